"""List ImageNet's validation images as they are published: in one folder, with their labels apart.

The labels are in the development kit, in Kaggle's table, or in a list of synsets. The numbers of
the development kit are its own (`ILSVRC2012_ID`), which are not the order of the sorted synsets:
only its `meta.mat` says which synset each of them is, so without it nothing is guessed.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bitzoo.data.folder import Listing, Row
from bitzoo.data.problems import DatasetError, Problem, Reason, join_some, printable
from bitzoo.errors import damage_reported
from bitzoo.limited_process import can_limit, run_limited
from bitzoo.small_files import read_bytes

_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.(?:jpe?g|png)", re.IGNORECASE)
_SYNSET = re.compile(r"n\d{8}")
_WITHIN = (".", "val", "Data/CLS-LOC/val", "ILSVRC/Data/CLS-LOC/val")
"""Where the images are below the folder that is given; the latter two are Kaggle's."""
_KIT = "ILSVRC2012_devkit_t12"
_BESIDE = ("", "data", f"{_KIT}/data", "devkit/data")
"""Where the labels are, below the folder of the images or one of the folders around it."""
_AROUND = 5
_NUMBERS = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_TABLE = "LOC_val_solution.csv"
_MAPPING = "LOC_synset_mapping.txt"
_SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
"""Lists of one synset per image, in the order of their numbers, which TensorFlow's scripts use."""
_MAX_BYTES = 64 << 20
"""Bound on each file of labels; the largest, Kaggle's, has 3 MB."""
_META_SECONDS, _META_MEMORY = 1.5, 256 << 20
"""Bounds on reading `meta.mat`, whose 0.2 MB take some 0.1 s."""


@dataclass(frozen=True)
class _Truth:
    """The synset of each image by number, all synsets in order, and where that stands."""

    synsets: Mapping[int, str]
    classes: tuple[str, ...]
    file: Path


def find_images(root: Path) -> Path | None:
    """Return the folder of the validation images, if a folder is of this layout; else None.

    Args:
        root: The folder itself, one with a folder `val` in it, or the top of Kaggle's archive.
    """
    for within in _WITHIN:
        place = root / within
        try:
            with os.scandir(place) as entries:
                if any(_IMAGE.fullmatch(entry.name) for entry in entries):
                    return place
        except OSError:
            continue
    return None


def find_train(images: Path) -> Path | None:
    """Return the folder of the training images' class folders beside those images, if it exists."""
    place = images.parent / "train"
    if images.name != "val" or not place.is_dir():
        return None
    with os.scandir(place) as entries:
        return place if any(_SYNSET.fullmatch(e.name) and e.is_dir() for e in entries) else None


def has_labels(images: Path) -> bool:
    """Whether labels of the images are in a file beside them."""
    return _find(images, (_TABLE, *_SYNSETS, _NUMBERS)) is not None


def read_devkit(images: Path) -> Listing:
    """List ImageNet's validation images by the synsets of their labels.

    Raises:
        DatasetError: If the labels are not there, incomplete or damaged, or are numbers whose
            meaning `meta.mat` would say, and it is not there or cannot be read.
    """
    truth = _truth(images)
    rows, problems, others = [], [], []
    with os.scandir(images) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        match = _IMAGE.fullmatch(name)
        if match is None:
            others.append(printable(name))
        elif (synset := truth.synsets.get(int(match[1]))) is None:
            detail = f"expected a label of the image in {truth.file.name}, found none"
            problems.append(Problem(Reason.LABEL, name, detail))
        else:
            rows.append(Row(name, synset, path=images / name))
    notes = [f"Labels by {printable(str(truth.file))!r}."]
    missing = len(truth.synsets) - len(rows)
    if missing > 0:
        notes.append(f"Not there: {missing:,} of the {len(truth.synsets):,} images with labels.")
    kept = (_TABLE, _MAPPING, _NUMBERS, _META, *_SYNSETS, _KIT)
    left = [name for name in others if name not in kept]
    if left:
        notes.append(f"Ignored: what is no validation image ({len(left):,}): {join_some(left)}.")
    source = repr(printable(images.as_posix()))
    return Listing(tuple(rows), truth.classes, source, tuple(notes), tuple(problems))


def _truth(images: Path) -> _Truth:
    table = _find(images, (_TABLE,))
    if table is not None:
        return _of_table(table)
    listed = _find(images, _SYNSETS)
    if listed is not None:
        return _of_synsets(listed)
    numbers = _find(images, (_NUMBERS,))
    if numbers is None:
        raise DatasetError(
            f"The folder {printable(str(images))!r} has ImageNet's validation images, whose labels "
            f"must be beside them: {_NUMBERS} and {_META} of the development kit "
            f"({_KIT}.tar.gz), or Kaggle's {_TABLE}. Found neither there nor in the folders "
            "around it. Unpack the development kit in the folder, or sort the images into folders "
            "named after their synsets."
        )
    return _of_numbers(numbers, images)


def _find(images: Path, names: tuple[str, ...]) -> Path | None:
    """Return a file of labels, in the folder of the images or one of those around it."""
    around = [images, *images.absolute().parents][:_AROUND]
    places = (folder / beside / name for folder in around for beside in _BESIDE for name in names)
    return next((place for place in places if place.is_file()), None)


def _of_table(path: Path) -> _Truth:
    """Read Kaggle's table: an image, and its synset before each box."""
    synsets = {}
    with _reading(path, "Kaggle's table of labels"):
        rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        if next(rows, None) != ["ImageId", "PredictionString"]:
            raise ValueError("its first line is not ImageId,PredictionString")
        for image, boxes in rows:
            match = _IMAGE.fullmatch(f"{image}.JPEG")
            found = {word for word in boxes.split() if _SYNSET.fullmatch(word)}
            if match is None or len(found) != 1:
                raise ValueError(f"line {rows.line_num} has not one image and one synset")
            synsets[int(match[1])] = found.pop()
    mapping = path.with_name(_MAPPING)
    known = set(synsets.values())
    if mapping.is_file():
        with _reading(mapping, "Kaggle's list of synsets"):
            listed = {line.split()[0] for line in _lines(mapping)}
            if not known <= listed:
                raise ValueError(f"it lacks {join_some(sorted(known - listed))}")
            known = listed
    return _Truth(synsets, tuple(sorted(known)), path)


def _of_synsets(path: Path) -> _Truth:
    with _reading(path, "one synset per line"):
        lines = _lines(path)
        wrong = [line for line in lines if not _SYNSET.fullmatch(line)]
        if wrong:
            raise ValueError(f"there is {wrong[0][:20]!r}")
    return _Truth(dict(enumerate(lines, start=1)), tuple(sorted(set(lines))), path)


def _of_numbers(path: Path, images: Path) -> _Truth:
    """Read the development kit: a number per image, and the synset of each number."""
    meta = _find(images, (_META,))
    if meta is None:
        raise DatasetError(
            f"The labels in {printable(str(path))!r} are the development kit's own numbers, which "
            f"are not in the order of the sorted synsets. Only the kit's {_META} says what they "
            f"are, found none beside them. Copy it from {_KIT}/data of {_KIT}.tar.gz."
        )
    by_number = _synsets_by_number(meta)
    with _reading(path, f"one number of {_META} per line"):
        numbers = [int(line) for line in _lines(path)]
        unknown = sorted({number for number in numbers if number not in by_number})
        if unknown:
            raise ValueError(f"{_META} has no {join_some(unknown)}")
    synsets = {image: by_number[number] for image, number in enumerate(numbers, start=1)}
    return _Truth(synsets, tuple(sorted(by_number.values())), path)


def _synsets_by_number(meta: Path) -> dict[int, str]:
    """Return `ILSVRC2012_ID` -> synset, of the synsets that are classes: those without children."""
    try:
        table = importlib.import_module("bitzoo.data.matlab_table")
    except ImportError as error:
        raise DatasetError(
            f"The file {printable(str(meta))!r} can be read with the package scipy, which is not "
            "installed. Install it: pip install scipy."
        ) from error
    with _reading(meta, "the table of synsets of the development kit"):
        content = read_bytes(meta, _MAX_BYTES)
        if can_limit():
            with tempfile.TemporaryFile() as file:
                file.write(content)
                file.flush()
                leaves = run_limited(
                    table.read_leaves,
                    file.fileno(),
                    cpu_seconds=_META_SECONDS,
                    memory=_META_MEMORY,
                    descriptors=(file.fileno(),),
                )
        else:
            leaves = table.leaves_in(io.BytesIO(content))
        found = dict(leaves)
        names = set(found.values())
        if len(found) != len(leaves) or len(names) != len(leaves) or not names:
            raise ValueError("numbers or synsets occur twice, or there are none")
        if not all(map(_SYNSET.fullmatch, names)):
            raise ValueError("not all are synsets")
    return found


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    return read_bytes(path, _MAX_BYTES).decode()


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    with damage_reported(
        printable(str(path)), expected, "Copy it again from where it was published.", DatasetError
    ):
        yield
