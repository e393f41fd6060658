"""What a source of pictures lists: folders of class folders, and arrays from Python.

Every kind of source becomes a `Listing` of rows. Nothing is opened or decoded here.
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

from bitzoo.finetune.findings import DatasetError, Problem, Reason, join_some, printable

Load = Callable[[], Image.Image]

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff"),
        *(".webp", ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
"""What a file in a folder must end in, in any case, to be taken for a picture."""

SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""The names that people give to splits, in any case, and ours."""

_IGNORED = "__MACOSX"
"""What macOS leaves in archives beside the files: a folder of hidden files."""


@dataclass(frozen=True)
class Row:
    """One picture as its source lists it.

    Attributes:
        key: The picture's name for people.
        label: Name of its class.
        split: "train", "val", "test", or "" where the source has no splits.
        path: Its file, or
        load: what returns it.
    """

    key: str
    label: str
    split: str = ""
    path: Path | None = None
    load: Load | None = None


@dataclass(frozen=True)
class Listing:
    """All that a source lists, in an order that depends on names alone.

    Attributes:
        rows: The pictures.
        classes: The names of all classes in order, those without pictures too.
        source: The source's name for people.
        notes: What people should know and need not act upon.
        problems: Lines and folders that could not be read.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names in order: as numbers if all are whole numbers, else as text."""
    distinct = sorted(set(names))
    if all(_is_whole(name) for name in distinct):
        distinct.sort(key=int)
    return tuple(distinct)


def _is_whole(name: str) -> bool:
    digits = name.removeprefix("-")
    return digits.isascii() and digits.isdigit()


# --- folders ------------------------------------------------------------------------------------


def read_folder(root: Path) -> Listing:
    """List a folder of class folders, or of split folders with class folders in them.

    A folder `train` beside a `val`, `valid`, `validation` or `test` (in any case), or alone, makes
    splits; otherwise every folder is a class. Classes are sorted by name (as torchvision's
    `ImageFolder` does) and their folders are searched to any depth. Hidden files and folders do not
    count. Links are followed, but no folder is entered twice for one class.

    Raises:
        DatasetError: If there is no class folder.
    """
    walk = _Walk(root)
    folders, images = walk.list_folder(root)
    splits = {folder: SPLITS.get(folder.name.lower(), "") for folder in folders}
    named = set(splits.values()) - {""}
    if "train" in named and len(named) > 1 or (named and all(splits.values())):
        walk.note("Folders beside the splits that are left out", [f for f in folders if not splits[f]])
        for folder in folders:
            if splits[folder]:
                walk.read_classes(folder, splits[folder])
    else:
        walk.read_classes(root, "")
    return walk.listing()


@dataclass
class _Walk:
    root: Path
    rows: list[Row] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def read_classes(self, parent: Path, split: str) -> None:
        """List each class folder of `parent`."""
        folders, images = self.list_folder(parent)
        if not folders:
            raise DatasetError(
                f"The folder {self.key(parent, full=True)!r} must hold a folder for each class with "
                f"the class's images in it, found no folder and {len(images)} images. Sort the "
                "images into folders named after their classes, or list them in a CSV file with "
                "the columns path,label."
            )
        self.note("Images outside the class folders that are left out", images)
        for folder in folders:
            label = unicodedata.normalize("NFC", printable(folder.name))
            self.classes.add(label)
            # what is known of the way down is entered no more: links may lead back to it
            images = self.find_images(folder, {_identity(self.root), _identity(parent)})
            self.rows += [Row(self.key(path), label, split, path) for path in images]

    def find_images(self, folder: Path, entered: set[tuple[int, int]]) -> list[Path]:
        """All images below `folder`, sorted by path."""
        found: list[Path] = []
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            identity = _identity(folder)
            if identity in entered:
                self.note("Links to folders already read that are left out", [folder])
                continue
            entered.add(identity)
            folders, images = self.list_folder(folder)
            found += images
            waiting += folders
        return sorted(found)

    def list_folder(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the images directly in `folder`, sorted."""
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self.problems.append(Problem(Reason.FOLDER, self.key(folder), error.strerror or ""))
            return [], []
        paths = [folder / name for name in names if name[0] != "." and name != _IGNORED]
        folders = [path for path in paths if path.is_dir()]
        files = [path for path in paths if path not in set(folders)]
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        self.note("Files that are no images by name and are left out", sorted({*files} - {*images}))
        return folders, images

    def note(self, what: str, paths: Sequence[Path]) -> None:
        """Remember what is left out, once each."""
        known = self.left_out.setdefault(what, [])
        known += [path for path in paths if path not in known]

    def key(self, path: Path, *, full: bool = False) -> str:
        return printable((path if full else path.relative_to(self.root)).as_posix())

    def listing(self) -> Listing:
        notes = tuple(
            f"{what} ({len(paths)}): {join_some([self.key(path) for path in paths])}."
            for what, paths in self.left_out.items()
            if paths
        )
        source, classes = repr(self.key(self.root, full=True)), tuple(sorted(self.classes))
        return Listing(tuple(self.rows), classes, source, notes, tuple(self.problems))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


# --- arrays -------------------------------------------------------------------------------------


def read_arrays(images: object, labels: object) -> Listing:
    """List pictures that are in memory already.

    Args:
        images: uint8 (number, height, width) or (number, height, width, 3).
        labels: `number` whole numbers or strings. Whole numbers become names in order of size.

    Raises:
        DatasetError: If the shapes or types are others.
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
            f"{values.dtype} {values.shape}. Of one-hot rows take argmax(1)."
        )
    return [str(item) for item in items]
