"""List folders of class folders and arrays in memory; defines the `Listing` of every source.

No image is decoded here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bitzoo.data.folder_scan import Entries, FolderScan, count_images, identity_of, in_words
from bitzoo.data.problems import DatasetError, Problem, Reason, join_some, printable
from bitzoo.data.split_names import can_mean, is_plain, resolve_splits, splits_per_class

Load = Callable[[], Image.Image]
"""Returns an image. If it decodes bytes that are stored somewhere as it would those of a file, its
attribute `content` returns them, and the image counts as that file."""


@dataclass(frozen=True)
class Row:
    """One image as its source lists it.

    Attributes:
        key: Display name of the image.
        label: Name of its class.
        split: "train", "val", "test", or "" if the source has no splits.
        path: The image's file; None if `load` is set.
        load: Returns the image; None if `path` is set.
        extra: Its values in the other columns of the source, as text.
        group: Name of the group that stays in one split, see `bitzoo.data.groups`; "" for none.
        labels: Names of all its classes, `label` first, if the source can give it several; ().
    """

    key: str
    label: str
    split: str = ""
    path: Path | None = None
    load: Load | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all its classes."""
        return self.labels or (self.label,)


@dataclass(frozen=True)
class Listing:
    """Everything that a source lists, in an order that depends only on names.

    Attributes:
        rows: The images; of large sources as arrays, see `examples.RowTable`.
        classes: All class names in order, including classes without images.
        source: Display name of the source.
        notes: Remarks that need no action.
        problems: Lines and folders that could not be read.
        label_changing: Augmentations that would change the labels: "flip" and "crop" or one of
            them; for tasks of which that is known.
        unlabelled: The images of a split in which none has a label, with "" as the label.
        split_column: The column of another name that is the split; "" for none.
    """

    rows: Sequence[Row]
    classes: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    label_changing: tuple[str, ...] = ()
    unlabelled: Sequence[Row] = ()
    split_column: str = ""


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


def read_folder(root: Path, known: Collection[str] = ()) -> Listing:
    """List a folder of class folders, or of split folders with class folders in them.

    The folders are splits if one means train and another val or test, or if all of them have names
    of different splits (see `split_names.resolve_splits`); otherwise every folder is a class.
    Folders around all the others are passed through, as is a split folder in one of the same name.
    A split without class folders beside a train with them is unlabelled, and not listed.

    Classes are sorted by name (as torchvision's `ImageFolder` does) and their folders are searched
    to any depth; `folder_scan` says what counts as an image. Links are followed, but no folder is
    entered twice for one class.

    Args:
        root: The folder.
        known: Names that are classes, whatever they look like: those of a network to evaluate.

    Raises:
        DatasetError: If there is no class folder, or the folders are not classes: the folders in
            all of them have the same names, or all images are one level below.
    """
    reading = _Reading(root, FolderScan(root), frozenset(known))
    top = reading.unwrap(root)
    splits = reading.find_splits(top)
    if splits:
        reading.read_splits(top, splits)
    else:
        reading.refuse_no_classes(top)
        reading.read_classes(top, "")
        reading.refuse_one_level_above(top)
    return reading.listing()


@dataclass
class _Reading:
    root: Path
    scan: FolderScan
    known: frozenset[str]
    rows: list[Row] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    # --- where the classes are ---

    def unwrap(self, root: Path) -> Path:
        """Return the folder with more than one folder, or with a class, in it or below it."""
        top, entered = root, {identity_of(root)}
        while len(self.entries(top).folders) == 1:
            inside = self.entries(top).folders[0]
            within = self.entries(inside)
            if within.images or not within.folders or _label(inside) in self.known:
                break
            if resolve_splits([inside.name]) or identity_of(inside) in entered:
                break
            entered.add(identity_of(inside))
            self.pass_through(top)
            top = inside
        if top != root:
            self.notes.append(f"Read: {self.key(top)}, because there is no other folder.")
        return top

    def find_splits(self, top: Path) -> dict[Path, str]:
        """Return the folders of `top` that are splits; none if its folders are classes."""
        folders = self.entries(top).folders
        if folders and all(_label(folder) in self.known for folder in folders):
            return {}
        meant = resolve_splits([folder.name for folder in folders])
        splits = {folder: meant[folder.name] for folder in folders if folder.name in meant}
        found = set(splits.values())
        several = len(found) > 1
        if ("train" in found and several) or (
            len(splits) == len(folders) and (several or len(folders) == 1)
        ):
            return splits
        return {}

    def within_split(self, folder: Path, split: str, common: str) -> Path:
        """Return the folder of a split's classes: the split's own, or the only one in it.

        Args:
            folder: The split's folder.
            split: The split.
            common: Name of the only folder in all splits' folders, if they have one.
        """
        while True:
            inside = self.entries(folder)
            if len(inside.folders) != 1 or inside.images:
                return folder
            only = inside.folders[0]
            is_around = can_mean(only.name, split) or only.name == common
            if not is_around or _label(only) in self.known:
                return folder
            self.pass_through(folder)
            folder = only

    def common_folder(self, splits: dict[Path, str]) -> str:
        """Return the name of the one folder in every split, if the classes of train are in it."""
        names = {tuple(inside.name for inside in self.entries(f).folders) for f in splits}
        name = names.pop() if len(names) == 1 else ()
        if len(name) != 1:
            return ""
        trains = [f / name[0] for f, split in splits.items() if split == "train"] or [
            f / name[0] for f in splits
        ]
        wrapped = all(self.entries(f).folders and not self.entries(f).images for f in trains)
        return name[0] if wrapped else ""

    # --- reading ---

    def read_splits(self, top: Path, splits: dict[Path, str]) -> None:
        """List every split; train first, because its classes tell whether others are labelled."""
        self.pass_through(top)
        common = self.common_folder(splits)
        places = [
            (self.within_split(folder, split, common), split)
            for folder, split in sorted(splits.items(), key=self.labelled_first)
        ]
        self.note_splits(top, splits, places)
        unlabelled = set()
        for place, split in places:
            if split != "train" and self.classes and self.is_unlabelled(place):
                unlabelled.add(split)
                images = self.scan.images_below(place, set())
                self.notes.append(
                    f"Not used: the {in_words(len(images))} in {self.key(place)}, which are in no "
                    "class folders, so their classes are unknown."
                )
            else:
                self.refuse_no_classes(place)
                self.read_classes(place, split)
        named = set(splits.values()) - unlabelled
        held_out = next((split for split in ("val", "test") if split in named), None)
        if held_out and all(row.split != held_out for row in self.rows):
            self.problems.append(Problem(Reason.EMPTY_SPLIT, held_out))

    def note_splits(
        self, top: Path, splits: dict[Path, str], places: Sequence[tuple[Path, str]]
    ) -> None:
        """Say which folders are no splits, and which are, unless their names say it plainly."""
        others = [folder for folder in self.entries(top).folders if folder not in splits]
        if others:
            counts = {folder: count_images(folder) for folder in others}
            shown = join_some(
                [self.key(f) + (f" ({in_words(counts[f])})" if counts[f] else "") for f in others]
            )
            self.notes.append(f"Ignored: folders beside the splits ({len(others)}): {shown}.")
        several = len(splits) > len(set(splits.values()))
        if several or not all(is_plain(folder.name) for folder in splits):
            shown = ", ".join(f"{split} from {self.key(place)}" for place, split in places)
            self.notes.append(f"Splits by the folders' names: {shown}.")

    def labelled_first(self, split: tuple[Path, str]) -> tuple[bool, bool]:
        folder, name = split
        return name != "train", not self.entries(folder).folders

    def is_unlabelled(self, place: Path) -> bool:
        """Whether a split's images are in no class folders: in its own, or in one of no class."""
        inside = self.entries(place)
        if len(inside.folders) == 1 and not inside.images:
            only = inside.folders[0]
            is_class = _label(only) in self.classes or len(self.classes) < 2
            return not is_class and not self.entries(only).folders
        return bool(inside.images) and not inside.folders

    def read_classes(self, parent: Path, split: str) -> None:
        """List each class folder of `parent`."""
        inside = self.entries(parent)
        if not inside.folders:
            raise DatasetError(
                f"The folder {_shown(parent)} must hold one folder of images per class, found no "
                f"folder and {in_words(len(inside.images))}. Sort the images into folders named "
                "after their classes, or list them in a CSV file with the columns path,label."
            )
        self.pass_through(parent)
        for folder in inside.folders:
            label = _label(folder)
            self.classes.add(label)
            entered = {identity_of(self.root), identity_of(parent)}
            images = sorted(self.scan.images_below(folder, entered))
            self.rows += [Row(self.key(path), label, split, path) for path in images]

    # --- folders that are no classes ---

    def refuse_no_classes(self, place: Path) -> None:
        """Raise if the folders here are not classes, by their names and the folders in them."""
        folders = self.entries(place).folders
        if self.known.issuperset(map(_label, folders)):
            return
        pairs = splits_per_class([folder.name for folder in folders])
        if pairs:
            raise DatasetError(
                f"The folders in {_shown(place)} ({join_some(_keys(folders))}) are not classes: "
                f"each names one of {len(pairs)} classes ({join_some([*map(printable, pairs)])}) "
                f"and a split. Move the images to folders such as train/{printable(min(pairs))}, "
                "or list them in a CSV file with the columns path,label,split."
            )
        try:
            around = {identity_of(self.root), identity_of(place)}
            inside = {f: self.scan.entries(f) for f in folders if identity_of(f) not in around}
            innermost = self.below_only_folders(inside, around)
        except OSError:
            return  # reported when its class is read
        self.refuse_copies(inside)
        self.refuse_equal_folders(place, innermost)
        self.refuse_divided(place, inside)

    def below_only_folders(
        self, inside: dict[Path, Entries], entered: set[tuple[int, int]]
    ) -> dict[Path, Entries]:
        """Return what is in the folders, or in the one folder that each of them has, and so on."""
        full = {folder: found for folder, found in inside.items() if found.folders or found.images}
        while full and all(len(e.folders) == 1 and not e.images for e in full.values()):
            only = {folder: found.folders[0] for folder, found in full.items()}
            identities = set(map(identity_of, only.values()))
            if identities & entered:
                return {}
            entered = entered | identities
            full = {folder: self.scan.entries(inner) for folder, inner in only.items()}
        return full

    def refuse_copies(self, inside: dict[Path, Entries]) -> None:
        """Raise if a folder has folders of the same names as those beside it."""
        beside = {folder.name for folder in inside}
        for folder, found in inside.items():
            again = sorted(beside & {sub.name for sub in found.folders})
            if len(again) > 1:
                raise DatasetError(
                    f"The folder {_shown(folder)} is no class: it has folders of the same names "
                    f"({join_some([*map(printable, again)])}) as those beside it. If it is a "
                    "split, move the folders beside it to a folder named train; if it is a copy, "
                    "move it away."
                )

    def refuse_equal_folders(self, place: Path, inside: dict[Path, Entries]) -> None:
        """Raise if all folders have the same folders in them, and no images of their own."""
        full = {folder: found for folder, found in inside.items() if found.folders or found.images}
        names = [{sub.name for sub in found.folders} for found in full.values()]
        if len(names) < 2 or any(found.images for found in full.values()):
            return
        common, every = set.intersection(*names), set.union(*names)
        if len(common) > 1 and 2 * len(common) >= len(every) and len(_with_images(inside)) > 1:
            raise self.equal_folders(place, _keys(full), sorted(map(printable, common)))

    def refuse_divided(self, place: Path, inside: dict[Path, Entries]) -> None:
        """Raise if a folder has splits in it: it is a data set, and those beside it are others."""
        divided = _with_images(
            folder
            for folder, found in inside.items()
            if not found.images
            and {"train"} < set(resolve_splits([sub.name for sub in found.folders]).values())
        )
        if divided:
            raise DatasetError(
                f"The folders in {_shown(place)} ({join_some(_keys(inside))}) are not classes: "
                f"there are splits in {join_some(_keys(divided))} "
                f"({join_some([sub.name for sub in inside[divided[0]].folders])}). Give that "
                f"folder alone: {_shown(divided[0])}."
            )

    def equal_folders(self, place: Path, names: list[str], common: list[str]) -> DatasetError:
        """Return the error for folders that all hold the folders in `common`."""
        found = (
            f"The folders in {_shown(place)} ({join_some(names)}) are not classes: expected images "
            f"of one class in each, found the same folders in all of them ({join_some(common)}). "
        )
        if {"train"} < set(resolve_splits(common).values()):
            return DatasetError(
                f"{found}Each class has its own splits, but bitzoo expects the classes in the "
                f"splits. Move the folders, as {common[-1]}/{names[0]}, or list the images in a "
                "CSV file with the columns path,label,split."
            )
        return DatasetError(
            f"{found}If they are splits, name them train and val (or test). If they are parts or "
            f"copies of a data set, give one of them: {_shown(place / names[0])}. If they are the "
            "classes, put the images directly into them, or list them in a CSV file with the "
            "columns path,label."
        )

    def refuse_one_level_above(self, top: Path) -> None:
        """Raise if all images are below one folder that has folders, but no images, in it."""
        used = {row.label for row in self.rows}
        if len(used) != 1 or len(self.classes) == 1 or self.known & used:
            return
        (only,) = (f for f in self.entries(top).folders if _label(f) in used)
        inside = self.entries(only)
        if inside.folders and not inside.images:
            others = [name for name in order_classes(self.classes) if name not in used]
            raise DatasetError(
                f"The folder {_shown(top)} must hold one folder of images per class, but all its "
                f"images are below {printable(only.name)}, in {join_some(_keys(inside.folders))}; "
                f"there are none in {join_some(others)}. Give the folder {_shown(only)}."
            )

    # --- plumbing ---

    def entries(self, folder: Path) -> Entries:
        """Return the contents of a folder that must be readable."""
        try:
            return self.scan.entries(folder)
        except OSError as error:
            raise DatasetError(
                f"The folder {_shown(folder)} cannot be read: {error.strerror}. "
                "Check its permissions."
            ) from error

    def pass_through(self, folder: Path) -> None:
        """Remember what is left out of a folder above the class folders: all its files."""
        inside = self.entries(folder)
        self.scan.leave_out("images outside the class folders", inside.images)
        self.scan.account_for(replace(inside, by_content=[]))

    def key(self, path: Path) -> str:
        return self.scan.key(path)

    def listing(self) -> Listing:
        unreadable = [
            Problem(Reason.FOLDER, self.key(folder), why) for folder, why in self.scan.unreadable
        ]
        return Listing(
            tuple(self.rows),
            tuple(sorted(self.classes)),
            _shown(self.root),
            (*self.notes, *self.scan.notes()),
            (*unreadable, *self.problems),
        )


def _label(folder: Path) -> str:
    return unicodedata.normalize("NFC", printable(folder.name))


def _with_images(folders: Iterable[Path]) -> list[Path]:
    """Return the folders with an image anywhere in them."""
    return [folder for folder in folders if count_images(folder)]


def _keys(folders: Iterable[Path]) -> list[str]:
    return [printable(folder.name) for folder in folders]


def _shown(path: Path) -> str:
    return repr(printable(path.as_posix()))


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
