"""Measure how far a random split flatters, where images come in groups: hand signs of persons.

    python benchmarks/split_leakage.py FOLDER [--seeds 20]

FOLDER is the Sign Language Digits data set (arXiv 2011.08927; github.com/ardamavi/
Sign-Language-Digits-Dataset): a folder for each of the signs 0 to 9, with photographs that are
numbered in the order of taking. It does not say who is on them. Its pupils showed one sign after
the other, so a person's photographs are taken to be those between two of the same sign.

20 % of the photographs are held out by bitzoo's own rule, at random or with each person on one
side. The classifiers are weak on purpose: they show what the split alone does. Those of the coin
toss have nothing to learn: a coin decides which class all photographs of a person are in.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measure import aligned_table, machine
from PIL import Image

from bitzoo.data.splits import hold_out

SIZE = 24
FRACTION = 0.2
PENALTY = 100.0
"""Of the ridge, on pixels of unit variance on average."""

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def photographs(folder: Path) -> list[Path]:
    """Return the images in the order in which they were taken."""
    paths = [path for path in folder.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg")]
    return sorted(paths, key=lambda path: int(re.findall(r"\d+", path.stem)[-1]))


def persons_of(signs: Sequence[str]) -> Labels:
    """Return a number for the person on each photograph: the next begins where a sign recurs."""
    persons, person, shown = [], 0, set[str]()
    for sign in signs:
        if sign in shown:
            person, shown = person + 1, set()
        shown.add(sign)
        persons.append(person)
    return np.array(persons)


def pixels_of(paths: Sequence[Path]) -> Array:
    """Return small grey images, one a row, centred and scaled to unit variance on average."""
    rows = []
    for path in paths:
        with Image.open(path) as image:
            small = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        rows.append(np.asarray(small, np.float64).ravel())
    pixels: Array = np.stack(rows)
    pixels -= pixels.mean(axis=0)
    pixels /= np.sqrt(pixels.var(axis=0).mean())
    return pixels


def ridge(train: Array, labels: Labels, test: Array) -> Labels:
    """Classify by a ridge regression of one output a class."""
    targets = np.eye(labels.max() + 1)[labels]
    middle, mean = train.mean(axis=0), targets.mean(axis=0)
    x = train - middle
    weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ (targets - mean))
    found: Labels = np.argmax((test - middle) @ weights + mean, axis=1)
    return found


def nearest(train: Array, labels: Labels, test: Array) -> Labels:
    """Classify by the nearest neighbour."""
    squares = (train**2).sum(axis=1) - 2 * test @ train.T  # less what is equal for all
    found: Labels = labels[np.argmin(squares, axis=1)]
    return found


CLASSIFIERS: dict[str, Callable[[Array, Labels, Array], Labels]] = {
    "ridge": ridge,
    "nearest neighbour": nearest,
}


def accuracies(
    classify: Callable[[Array, Labels, Array], Labels],
    pixels: Array,
    labels_by_seed: Sequence[Labels],
    groups: Labels | None,
) -> list[float]:
    """Return the accuracy in percent of each seed's held-out photographs."""
    found = []
    for seed, labels in enumerate(labels_by_seed):
        classes = [str(label) for label in range(labels.max() + 1)]
        of = None if groups is None else groups.tolist()
        held_out = np.zeros(len(labels), bool)
        held_out[list(hold_out(labels, classes, FRACTION, seed, of))] = True
        said = classify(pixels[~held_out], labels[~held_out], pixels[held_out])
        found.append(100 * float(np.mean(said == labels[held_out])))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    paths = photographs(options.folder)
    signs = [path.parent.name for path in paths]
    persons, pixels = persons_of(signs), pixels_of(paths)
    names = sorted(set(signs))
    tosses = [np.random.default_rng(seed) for seed in range(options.seeds)]
    tasks: dict[str, list[Labels]] = {
        "the ten signs": [np.array([names.index(sign) for sign in signs])] * options.seeds,
        "a coin toss per person": [
            toss.integers(0, 2, persons.max() + 1)[persons] for toss in tosses
        ],
    }
    rows: list[tuple[str, ...]] = [("classes", "classifier", "random split", "by person")]
    for task, labels in tasks.items():
        for name, classify in CLASSIFIERS.items():
            cells = []
            for groups in (None, persons):
                found = accuracies(classify, pixels, labels, groups)
                cells.append(f"{statistics.mean(found):.1f} % ({statistics.stdev(found):.1f})")
            rows.append((task, name, *cells))
    print(machine() + "\n")
    title = f"{len(paths):,} photographs of {persons.max() + 1} persons, {options.seeds} seeds"
    print(aligned_table(title, rows))


if __name__ == "__main__":
    main()
