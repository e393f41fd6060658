"""List a data source of any kind: folder, manifest, Hugging Face data set or Python objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from bitzoo.data.folder import SPLITS, Listing, order_classes, read_arrays, read_folder
from bitzoo.data.hf_datasets import PREFIX, load_named, read_table
from bitzoo.data.manifest import is_manifest, read_manifest
from bitzoo.data.problems import DatasetError, join_some, printable

DataSource: TypeAlias = "str | os.PathLike[str] | tuple[Any, Any] | Mapping[str, Any] | object"
"""A path, `hf:NAME`, (images, labels), a `datasets.Dataset`, or a mapping of these by split."""


def read_listing(source: DataSource) -> Listing:
    """List a source of any kind; see `bitzoo.data.dataset.read_dataset` for the kinds.

    Raises:
        DatasetError: If it has no known form or lists nothing.
        MissingExtraError: If the source is `hf:NAME` and the library `datasets` is not installed.
    """
    if isinstance(source, str) and source.startswith(PREFIX):
        name = source.removeprefix(PREFIX)
        return _list_object(load_named(name), repr(source))
    if isinstance(source, (str, os.PathLike)):
        return _list_path(Path(source))
    return _list_object(source, "from Python")


def _list_path(path: Path) -> Listing:
    if path.is_dir():
        return read_folder(path)
    if path.is_file() and is_manifest(path):
        return read_manifest(path)
    found = "a file of another kind" if path.exists() else "nothing there"
    raise DatasetError(
        f"The data set {printable(os.fspath(path))!r} must be a folder of class folders, a .csv or "
        f".jsonl manifest with path and label, or {PREFIX}NAME for a Hugging Face data set, found "
        f"{found}. Check the path."
    )


def _list_object(source: Any, name: str) -> Listing:
    if isinstance(source, Mapping):
        return _list_splits(source, name)
    if hasattr(source, "features"):
        return read_table(source, name)
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return read_arrays(*source)
    raise DatasetError(
        "A data set must be a path, hf:NAME, a pair (images, labels), a datasets.Dataset, or such "
        f"pairs or Datasets by split name, found {type(source).__name__}."
    )


def _list_splits(source: Mapping[str, Any], name: str) -> Listing:
    """Merge the listings of several splits, each row marked with its split."""
    splits = {key: SPLITS[str(key).lower()] for key in source if str(key).lower() in SPLITS}
    if not splits:
        raise DatasetError(
            f"The data set {name} must have splits named {', '.join(SPLITS)}, found "
            f"{', '.join(map(str, source)) or 'none'}."
        )
    listings = {key: _list_object(source[key], name) for key in splits}
    rows = tuple(
        replace(row, key=f"{key} {row.key}", split=splits[key])
        for key, listing in listings.items()
        for row in listing.rows
    )
    problems = tuple(
        replace(problem, subject=f"{key} {problem.subject}")
        for key, listing in listings.items()
        for problem in listing.problems
    )
    orders = {listing.classes for listing in listings.values()}
    classes = orders.pop() if len(orders) == 1 else order_classes(c for o in orders for c in o)
    others = [key for key in source if key not in splits]
    notes = (f"Ignored: splits ({len(others)}): {join_some(others)}.",) if others else ()
    return Listing(rows, classes, name, notes, problems)
