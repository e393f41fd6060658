"""The split of a data set that has none: which images are held out, and what to do if none can be.

It is drawn when the data set is read, and again when its contents are known, so that copies of one
image stay on the same side.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bitzoo.data.problems import join_some
from bitzoo.data.splits import hold_out
from bitzoo.errors import UsageError

Labels: TypeAlias = "Sequence[int] | npt.NDArray[np.int64]"

_FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
"""Fractions to advise, the first that holds out something."""


@dataclass(frozen=True)
class Draw:
    """How the split of a data set was drawn.

    Attributes:
        fraction: Fraction asked for.
        seed: Seed of the choice.
        positions: Of the held-out examples among all, ascending; None if not all examples of the
            data set were listed (few-shot), so that it cannot be drawn again.
        notes: What `notes_on` says about it.
        group_by: What the groups that stay on one side are named by; None without groups.
    """

    fraction: float
    seed: int
    positions: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    group_by: str | None = None


def draw(
    labels: Labels,
    classes: Sequence[str],
    fraction: float,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> tuple[int, ...]:
    """Choose the examples to hold out; see `splits.hold_out` for arguments and result.

    Raises:
        UsageError: If none can be held out; it advises what works.
    """
    chosen = hold_out(labels, classes, fraction, seed, groups)
    if chosen:
        return chosen
    larger = (f for f in _FRACTIONS if f > fraction)
    works = next((f for f in larger if hold_out(labels, classes, f, seed, groups)), None)
    advice = (
        f"Hold out more, `val_fraction={works:g}`, or nothing, `val_fraction=0`."
        if works
        else "No fraction can: add images to the classes, or hold out nothing, `val_fraction=0`; "
        "then the accuracy on other images stays unknown."
    )
    kept = (
        "one image of each class stays in train"
        if groups is None or len(set(groups)) == len(labels)
        else "one image of each class stays in train, and images that belong together are not "
        "separated"
    )
    raise UsageError(
        f"`val_fraction` must hold out at least one image, but {fraction:g} of {len(labels)} "
        f"images in {len(np.unique(labels))} classes holds out none ({kept}). {advice}"
    )


def describe(draw: Draw, held: int, total: int, grouped: int) -> str:
    """Return how the images were held out, as a phrase.

    Args:
        draw: How it was asked for.
        held: Number of images held out.
        total: Number of images in the data set.
        grouped: Number of images that were kept together with others.
    """
    groups = f" in whole groups by {draw.group_by!r}" if draw.group_by else ""
    together = f", {grouped:,} images with equal content kept together" if grouped else ""
    return f"{held:,} of {total:,} images, drawn by class{groups} with seed {draw.seed}{together}"


def notes_on(labels: Labels, classes: Sequence[str], positions: Sequence[int]) -> Iterator[str]:
    """Yield what is worth knowing about a draw: the classes of which nothing is held out."""
    every = np.asarray(labels, np.int64)
    counts = np.bincount(every, minlength=len(classes)).tolist()
    held = np.bincount(every[list(positions)], minlength=len(classes)).tolist()
    single = [name for label, name in enumerate(classes) if counts[label] == 1]
    if single:
        yield f"Only in train: the one image of {join_some(single)}."
    several = [
        f"{name} ({counts[label]})"
        for label, name in enumerate(classes)
        if counts[label] > 1 and not held[label]
    ]
    if several:
        yield (
            f"Nothing is held out of {len(several)} of {len(classes)} classes, so the accuracy "
            f"says nothing about them: {join_some(several)}."
        )
