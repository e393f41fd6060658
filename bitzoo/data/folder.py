"""List folders of class folders and arrays in memory; defines the `Listing` of every source.

Nothing is opened or decoded here.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bitzoo.data.problems import DatasetError, Problem, Reason, join_some, printable
from bitzoo.errors import CheckpointError
from bitzoo.small_files import read_json

Load = Callable[[], Image.Image]

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff"),
        *(".webp", ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
"""Suffixes, in any case, by which a file in a folder counts as an image."""

SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Split name in a source, in any case -> bitzoo's name for it."""

_IGNORED = "__MACOSX"
"""The folder of hidden files that macOS adds to archives."""

RUN_NAME = "run.json"
RUN_LOCK_NAME = ".bitzoo-run.lock"
"""By either of these files a folder is known as a run folder, which has no images to train on."""

_RUNS = "run folders"
_NO_IMAGES = "files whose names are not image names"


@dataclass(frozen=True)
class Row:
    """One image as its source lists it.

    Attributes:
        key: Display name of the image.
        label: Name of its class.
        split: "train", "val", "test", or "" if the source has no splits.
        path: The image's file; None if `load` is set.
        load: Returns the image; None if `path` is set.
    """

    key: str
    label: str
    split: str = ""
    path: Path | None = None
    load: Load | None = None


@dataclass(frozen=True)
class Listing:
    """Everything that a source lists, in an order that depends only on names.

    Attributes:
        rows: The images.
        classes: All class names in order, including classes without images.
        source: Display name of the source.
        notes: Remarks that need no action.
        problems: Lines and folders that could not be read.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


_MAX_DIGITS = 100
"""Longer names are text: no class is numbered so, and Python converts no more than 4,300 digits."""


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names sorted: as numbers if all are whole numbers, else as text."""
    distinct = sorted(set(names))
    if all(_is_whole(name) for name in distinct):
        distinct.sort(key=int)
    return tuple(distinct)


def _is_whole(name: str) -> bool:
    digits = name.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS


# --- folders ------------------------------------------------------------------------------------


def read_folder(root: Path) -> Listing:
    """List a folder of class folders, or of split folders with class folders in them.

    The folders are splits if there is a `train` beside a `val`, `valid`, `validation` or `test` (in
    any case), or if all of them have such names; otherwise every folder is a class. Classes are
    sorted by name (as torchvision's `ImageFolder` does) and their folders are searched to any
    depth. Hidden files and folders do not count. Links are followed, but no folder is entered twice
    for one class.

    Raises:
        DatasetError: If there is no class folder.
    """
    walk = _Walk(root)
    splits = {path: SPLITS.get(path.name.lower(), "") for path in walk.scan(root).folders}
    named = set(splits.values()) - {""}
    if ("train" in named and len(named) > 1) or (named and all(splits.values())):
        others = [path for path, split in splits.items() if not split]
        walk.ignore("folders beside the splits", others)
        for path, split in splits.items():
            if split:
                walk.read_classes(path, split)
        held_out = next((split for split in ("val", "test") if split in named), None)
        if held_out and all(row.split != held_out for row in walk.rows):
            walk.problems.append(Problem(Reason.EMPTY_SPLIT, held_out))
    else:
        walk.read_classes(root, "")
    return walk.listing()


@dataclass(frozen=True)
class _Folder:
    """The direct contents of a folder, each list sorted by name."""

    folders: list[Path]
    images: list[Path]
    others: list[Path]


@dataclass
class _Walk:
    root: Path
    rows: list[Row] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    ignored: dict[str, list[Path]] = field(default_factory=dict)

    def read_classes(self, parent: Path, split: str) -> None:
        """List each class folder of `parent`."""
        inside = self.scan(parent)
        if not inside.folders:
            raise DatasetError(
                f"The folder {self.key(parent, full=True)!r} must hold one folder of images per "
                f"class, found no folder and {len(inside.images)} images. Sort the images into "
                "folders named after their classes, or list them in a CSV file with the columns "
                "path,label."
            )
        self.ignore("images outside the class folders", inside.images)
        self.ignore(_NO_IMAGES, inside.others)
        for folder in inside.folders:
            label = unicodedata.normalize("NFC", printable(folder.name))
            self.classes.add(label)
            images = self.find_images(folder, {_identity(self.root), _identity(parent)})
            self.rows += [Row(self.key(path), label, split, path) for path in images]

    def find_images(self, folder: Path, entered: set[tuple[int, int]]) -> list[Path]:
        """Return all images below `folder`, sorted; links to folders in `entered` are ignored."""
        found: list[Path] = []
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            try:
                identity = _identity(folder)
                inside = self.scan(folder, refuse=False)
            except OSError as error:
                detail = error.strerror or str(error)
                self.problems.append(Problem(Reason.FOLDER, self.key(folder), detail))
                continue
            if identity in entered:
                self.ignore("links to folders that were already read", [folder])
                continue
            entered.add(identity)
            found += inside.images
            waiting += reversed(inside.folders)
            self.ignore(_NO_IMAGES, inside.others)
        return sorted(found)

    def scan(self, folder: Path, *, refuse: bool = True) -> _Folder:
        """Sort a folder's entries by kind; with `refuse`, an unreadable folder is an error."""
        inside = _Folder([], [], [])
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith(".") or entry.name == _IGNORED:
                        continue
                    if holds_only_runs(entry):
                        if (run := folder / entry.name) not in self.ignored.get(_RUNS, ()):
                            self.ignore(_RUNS, [run])
                        continue
                    _list_for(entry, inside).append(folder / entry.name)
        except OSError as error:
            if not refuse:
                raise
            raise DatasetError(
                f"The folder {self.key(folder, full=True)!r} cannot be read: {error.strerror}. "
                "Check its permissions."
            ) from error
        return inside

    def ignore(self, what: str, paths: Sequence[Path]) -> None:
        """Record paths that are ignored, for the notes."""
        self.ignored.setdefault(what, []).extend(paths)

    def key(self, path: Path, *, full: bool = False) -> str:
        return printable((path if full else path.relative_to(self.root)).as_posix())

    def listing(self) -> Listing:
        notes = tuple(
            f"Ignored: {what} ({len(paths)}): {join_some([self.key(path) for path in paths])}."
            for what, paths in self.ignored.items()
            if paths
        )
        source, classes = repr(self.key(self.root, full=True)), tuple(sorted(self.classes))
        return Listing(tuple(self.rows), classes, source, notes, tuple(self.problems))


def holds_only_runs(entry: os.DirEntry[str]) -> bool:
    """Whether it is a run folder, or a folder with run folders and no images below it."""
    try:
        if not entry.is_dir(follow_symlinks=False):
            return False
        if _is_run(Path(entry.path)):
            return True
        found = False
        with os.scandir(entry.path) as inside:
            for child in inside:
                if child.is_dir():
                    if not holds_only_runs(child):
                        return False
                    found = True
                elif Path(child.name).suffix.lower() in IMAGE_SUFFIXES:
                    return False
        return found
    except OSError:  # reported where it is listed
        return False


def _is_run(folder: Path) -> bool:
    """Whether a run has written there, or is about to."""
    if (folder / RUN_LOCK_NAME).exists():
        return True
    if not (folder / RUN_NAME).is_file():
        return False
    try:
        return "recipe" in read_json(folder / RUN_NAME)
    except CheckpointError:  # of somebody else, or damaged
        return False


def _list_for(entry: os.DirEntry[str], inside: _Folder) -> list[Path]:
    try:
        if entry.is_dir():
            return inside.folders
    except OSError:
        pass  # a link to itself: by its name it may be an image, which validation reports
    is_image = Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
    return inside.images if is_image else inside.others


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


# --- arrays -------------------------------------------------------------------------------------


def read_arrays(images: object, labels: object) -> Listing:
    """List images that are already in memory.

    Args:
        images: uint8 (number, height, width) or (number, height, width, 3).
        labels: `number` whole numbers or strings. Whole numbers become class names in numeric
            order.

    Raises:
        DatasetError: If the shapes or types are different.
    """
    pixels, names = np.asarray(images), _names(labels)
    is_grey, is_colour = pixels.ndim == 3, pixels.ndim == 4 and pixels.shape[-1] == 3
    if pixels.dtype != np.uint8 or not (is_grey or is_colour) or 0 in pixels.shape:
        raise DatasetError(
            "Images in memory must be uint8 with shape (number, height, width) or (number, height, "
            f"width, 3), found {pixels.dtype} {pixels.shape}. Move channels last and scale to "
            "0..255."
        )
    if len(names) != len(pixels):
        raise DatasetError(
            f"Every image needs one label, found {len(pixels)} images and {len(names)} labels."
        )
    rows = tuple(
        Row(f"row {index}", name, load=partial(Image.fromarray, pixels[index]))
        for index, name in enumerate(names)
    )
    return Listing(rows, order_classes(names), f"of {len(pixels)} arrays")


def _names(labels: object) -> list[str]:
    values: Any = np.asarray(labels)
    items = values.tolist() if values.ndim == 1 else [None]
    if not all(isinstance(item, (int, str)) and not isinstance(item, bool) for item in items):
        raise DatasetError(
            "Labels in memory must be a flat list or array of whole numbers or strings, found "
            f"{values.dtype} {values.shape}. For one-hot rows, pass their argmax(1)."
        )
    return [str(item) for item in items]
