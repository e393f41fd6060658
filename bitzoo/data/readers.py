"""List a data source of any kind: folder, manifest, a library's data set or Python objects."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from bitzoo.data.examples import RowTable
from bitzoo.data.folder import Listing, Row, order_classes, read_arrays, read_folder
from bitzoo.data.hf_datasets import read_named, read_table
from bitzoo.data.imagenet_devkit import find_images, find_train, has_labels, read_devkit
from bitzoo.data.manifest import is_manifest, read_manifest
from bitzoo.data.problems import DatasetError, count_by_kind, join_some, printable
from bitzoo.data.source_names import (
    HF,
    TAR,
    TFDS,
    TORCHVISION,
    VTAB,
    SourceName,
    library_of,
    parse,
    parts_of,
)
from bitzoo.data.split_names import SPLITS, is_plain, resolve_splits
from bitzoo.data.tar_shards import read_shards
from bitzoo.data.tfds_datasets import TfdsSource, read_records, source_of, tfds_splits
from bitzoo.data.torchvision_datasets import read_torchvision
from bitzoo.data.vtab_data import as_task, find_task, task_source, task_splits
from bitzoo.files import Progress

DataSource: TypeAlias = "str | os.PathLike[str] | tuple[Any, Any] | Mapping[str, Any] | object"
"""A path, a name such as `tfds:NAME@SPLIT` (see `source_names`), a `TfdsSource`, (images, labels),
a `datasets.Dataset`, or a mapping of these by split."""


def read_listing(
    source: DataSource, known: Collection[str] = (), *, progress: Progress | None = None
) -> Listing:
    """List a source of any kind; see `bitzoo.data.dataset.read_dataset` for the kinds.

    Args:
        source: The source.
        known: Names that are classes, see `bitzoo.data.folder.read_folder`.
        progress: Called while the labels of records are read, which may take a while.

    Raises:
        DatasetError: If it has no known form or lists nothing, or nothing of it can be used.
        MissingExtraError: If the library that has the source is not installed.
    """
    listing = _list(source, known, progress)
    if not listing.rows and listing.problems:
        raise DatasetError(
            f"Nothing in the data set {listing.source} can be used, for the reasons "
            f"below.\n\n{count_by_kind(listing.problems)}"
        )
    return replace(listing, notes=(*listing.notes, *_note_on_names(listing)))


def _note_on_names(listing: Listing) -> list[str]:
    """Name classes whose names differ so little that they may be meant to be one."""
    alike: dict[str, list[str]] = {}
    for name in listing.classes:
        alike.setdefault(_simplified(name), []).append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if not groups:
        return []
    counts = Counter(name for row in listing.rows for name in row.names)
    shown = [" and ".join(f"{name!r} ({counts[name]:,})" for name in names) for names in groups]
    return [
        "Classes whose names differ only in case, spaces, separators or leading zeros count as "
        f"different classes: {join_some(shown, 3)}. If they are one, give them one name."
    ]


def _simplified(name: str) -> str:
    folded = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
    sign = "-" if name.strip().startswith("-") else ""
    return sign + re.sub(r"(?<![\d.,])0+(?=\d)", "", folded)


def _list(source: DataSource, known: Collection[str], progress: Progress | None) -> Listing:
    if isinstance(source, str) and library_of(source):
        return _list_named(source, progress)
    if isinstance(source, str) and (parts := parts_of(source)):
        return _list_splits(parts, repr(source), progress)
    if isinstance(source, TfdsSource):
        return _list_tfds(source, progress)
    if isinstance(source, (str, os.PathLike)):
        return _list_path(Path(source), known)
    return _list_object(source, "from Python", progress)


def _list_named(text: str, progress: Progress | None) -> Listing:
    """List a data set that a library manages, by its name."""
    name = parse(text)
    if name.library == TFDS:
        return _list_tfds(source_of(name), progress)
    if name.library == TAR:
        return read_shards(name, progress)
    if name.library == VTAB:
        return _list_task(name, progress)
    read = read_named if name.library == HF else read_torchvision
    found = read(name, repr(text))
    return found if isinstance(found, Listing) else _list_splits(found, repr(text), progress)


def _list_tfds(source: TfdsSource, progress: Progress | None) -> Listing:
    if source.split is not None:
        return read_records(source, progress)
    splits = tfds_splits(source)
    parts = {name: replace(source, split=name) for name in splits}
    return _list_splits(parts, str(source), progress)


def _list_task(name: SourceName, progress: Progress | None) -> Listing:
    """List what a VTAB task trains on and is tested on, or one of its parts."""
    task, part = find_task(name.name), name.split
    if part is None:
        listing = _list_splits(task_splits(task), "", progress)
    else:
        listing = _list_tfds(task_source(task, part), progress)
    return as_task(listing, task, part)


def _list_path(path: Path, known: Collection[str]) -> Listing:
    if path.is_dir():
        return _list_devkit(path) or read_folder(path, known)
    if path.is_file() and is_manifest(path):
        return read_manifest(path)
    found = "a file of another kind" if path.exists() else "nothing there"
    raise DatasetError(
        f"The data set {printable(os.fspath(path))!r} must be a folder of class folders, a .csv or "
        f".jsonl manifest with path and label, or {HF}NAME, {TFDS}NAME or {TORCHVISION}NAME for a "
        f"data set of these libraries, found {found}. Check the path."
    )


def _list_devkit(path: Path) -> Listing | None:
    """List a folder with ImageNet's validation images in the published layout; None for others."""
    images = find_images(path)
    if images is None or not (images == path or has_labels(images)):
        return None
    train = None if images == path else find_train(images)
    if train is None:
        return read_devkit(images)
    parts = {"train": train, "val": partial(read_devkit, images)}
    return _list_splits(parts, repr(str(path)), None)


def _list_object(source: Any, name: str, progress: Progress | None) -> Listing:
    if isinstance(source, Mapping):
        return _list_splits(source, name, progress)
    if hasattr(source, "features"):
        return read_table(source, name)
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return read_arrays(*source)
    raise DatasetError(
        "A data set must be a path, a name such as hf:NAME or tfds:NAME, a pair (images, labels), "
        f"a datasets.Dataset, or several of these by split name, found {type(source).__name__}."
    )


def _list_part(source: Any, name: str, progress: Progress | None) -> Listing:
    """List one of several splits: a source of any kind, or what lists it."""
    if isinstance(source, partial):
        return source()  # type: ignore[no-any-return]
    if isinstance(source, (str, os.PathLike, TfdsSource)):
        return _list(source, (), progress)
    return _list_object(source, name, progress)


def _says_where(source: Any) -> bool:
    """Whether the keys of a source's rows name their split already, as `train[17]`."""
    if isinstance(source, str):
        return library_of(source) is not None
    return isinstance(source, (TfdsSource, partial))


def _list_splits(source: Mapping[str, Any], name: str, progress: Progress | None) -> Listing:
    """Merge the listings of several splits, each row marked with its split."""
    meant = resolve_splits(map(str, source))
    splits = {key: meant[str(key)] for key in source if str(key) in meant}
    if not splits:
        raise DatasetError(
            f"The data set {name} must have splits named {', '.join(SPLITS)}, found "
            f"{', '.join(map(str, source)) or 'none'}."
        )
    listings = {key: _list_part(source[key], name, progress) for key in splits}
    problems = [
        replace(problem, subject=f"{key} {problem.subject}")
        for key, listing in listings.items()
        for problem in listing.problems
    ]
    orders = {listing.classes for listing in listings.values() if listing.rows or listing.problems}
    classes = orders.pop() if len(orders) == 1 else order_classes(c for o in orders for c in o)
    prefixes = {key: "" if _says_where(source[key]) else f"{key} " for key in splits}
    rows = _joined_rows(listings, splits, prefixes, classes)
    notes = [f"Split {key}: {note}" for key, found in listings.items() for note in found.notes]
    others = [key for key in source if key not in splits]
    if others:
        notes.append(f"Ignored: splits ({len(others)}): {join_some(others)}.")
    if not all(is_plain(str(key)) for key in splits):
        shown = ", ".join(f"{split} from {printable(str(key))}" for key, split in splits.items())
        notes.append(f"Splits by their names: {shown}.")
    unlabelled = tuple(row for listing in listings.values() for row in listing.unlabelled)
    return Listing(rows, classes, name, tuple(notes), tuple(problems), unlabelled=unlabelled)


def _joined_rows(
    listings: Mapping[Any, Listing],
    splits: Mapping[Any, str],
    prefixes: Mapping[Any, str],
    classes: tuple[str, ...],
) -> Sequence[Row]:
    """Return the rows of several listings, each marked with its split."""
    tables = [
        listing.rows.in_split(splits[key], prefixes[key])
        for key, listing in listings.items()
        if isinstance(listing.rows, RowTable)
    ]
    if len(tables) == len(listings):
        return RowTable.joined(tables, classes)
    return tuple(
        replace(row, key=f"{prefixes[key]}{row.key}", split=splits[key])
        for key, listing in listings.items()
        for row in listing.rows
    )
