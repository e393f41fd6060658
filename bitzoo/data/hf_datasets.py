"""List Hugging Face data sets: by name on the Hub, from a folder, or as `datasets` objects."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bitzoo.data.folder import Listing, Row, order_classes
from bitzoo.data.problems import DatasetError, Problem, Reason, printable
from bitzoo.data.source_names import HF
from bitzoo.errors import MissingExtraError
from bitzoo.models.image_files import open_image
from bitzoo.models.wide_values import is_wide_grey

_SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes, for several splits or for one."""

_IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "class", "target")


class Table(Protocol):
    """The part of `datasets.Dataset` that bitzoo uses."""

    features: Any

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


def load_named(name: str) -> Any:
    """Load a data set by its name on the Hub, or from a folder.

    A folder written by `save_to_disk` is opened directly; any other goes to
    `datasets.load_dataset`, which knows folders of Parquet, CSV or image files.

    Returns:
        A `datasets.DatasetDict` or a `datasets.Dataset`.

    Raises:
        MissingExtraError: If the library is not installed.
        DatasetError: If the library cannot load it.
    """
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtraError(
            f"Reading {HF}{name} needs Hugging Face's library datasets, which is not "
            "installed. Install it: pip install 'bitzoo[datasets]'."
        ) from error
    is_saved = any(Path(name, file).is_file() for file in _SAVED)
    load = library.load_from_disk if is_saved else library.load_dataset
    try:
        return load(name)
    except Exception as error:  # the library passes on whatever file systems and networks raise
        raise DatasetError(
            f"The Hugging Face data set {name!r} cannot be loaded: expected its name on the Hub or "
            f"a folder, found {type(error).__name__}: {error}. Check the name; if loading it needs "
            "more options, load it in Python and pass the object."
        ) from error


def read_table(table: Table, source: str) -> Listing:
    """List a `datasets.Dataset`, or an object with the same `features`, length and items.

    The images are in the one column of type `Image`, the labels in the one of type `ClassLabel`,
    whose names and order are kept. If the types do not decide, the column names do (`image`, `img`,
    ..; `label`, `labels`, ..). Rows are decoded when they are used. A table in which every label is
    -1 or None is unlabelled, as the test splits of competitions are, and lists no rows.

    Raises:
        DatasetError: If the columns are ambiguous, or a label is neither a whole number nor text.
    """
    if not hasattr(table, "__len__"):
        raise DatasetError(
            f"The data set {source} must have a length, found {type(table).__name__}. Load it "
            "without streaming."
        )
    image = _column(table, source, "Image", _IMAGE_COLUMNS)
    label = _column(table, source, "ClassLabel", _LABEL_COLUMNS)
    table, mode = _undecoded(table, image)
    declared = getattr(table.features[label], "names", None)
    names = [printable(str(name)) for name in declared] if declared else None
    values = list(table[label])
    classes = tuple(names) if names else ()
    if values and all(_is_unlabelled(value) for value in values):
        note = f"not used: its {len(values):,} images have no labels, only {values[0]!r}."
        return Listing((), classes, source, (note,))
    rows, problems = [], []
    columns = _Columns(table)
    others = [str(name) for name in table.features if name not in (image, label)]
    for index, value in enumerate(values):
        name = _name(value, names)
        if name is None:
            expected = f"0 to {len(names) - 1}" if names else "a whole number or text"
            detail = f"expected {expected} in {label!r}, found {value!r}"
            problems.append(Problem(Reason.LABEL, f"row {index}", detail))
        else:
            load = partial(_load, table, index, image, mode)
            rows.append(Row(f"row {index}", name, load=load, extra=_Cells(columns, others, index)))
    classes = classes or order_classes(row.label for row in rows)
    return Listing(tuple(rows), classes, source, problems=tuple(problems))


class _Columns(dict[str, list[object]]):
    """The columns of a table, each read when it is first used."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, name: str) -> list[object]:
        values = self[name] = list(self._table[name])
        return values


@dataclass(frozen=True)
class _Cells(Mapping[str, str]):
    """The other cells of one row, as text; "" for those that are neither a number nor text."""

    columns: _Columns
    names: Sequence[str]
    index: int

    def __getitem__(self, name: str) -> str:
        if name not in self.names:
            raise KeyError(name)
        value = self.columns[name][self.index]
        value = value.item() if isinstance(value, np.generic) else value
        return str(value) if isinstance(value, (str, int, float)) else ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _column(table: Table, source: str, kind: str, usual: Sequence[str]) -> str:
    """Return the only column of that type, else the first with a usual name."""
    features = table.features
    of_kind = [name for name in features if type(features[name]).__name__ == kind]
    if len(of_kind) == 1:
        return str(of_kind[0])
    for name in usual:
        if name in (of_kind or features):
            return name
    raise DatasetError(
        f"The data set {source} must have one column of type {kind} or one named "
        f"{' or '.join(usual)}, found the columns {', '.join(map(str, features))}. Rename the "
        f"right one with dataset.rename_column(..., {usual[0]!r}) and pass the object from Python."
    )


def _is_unlabelled(value: object) -> bool:
    """Whether a label says that there is none: -1 is the library's, for test splits."""
    return value is None or (not isinstance(value, bool) and value == -1)


def _name(value: object, names: Sequence[str] | None) -> str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if names is None:
        return printable(str(value))
    if isinstance(value, str):
        return value if value in names else None
    return names[value] if 0 <= value < len(names) else None


def _undecoded(table: Table, column: str) -> tuple[Table, str | None]:
    """Return the table with its images as bytes or paths, and the mode that they are to have.

    The library would open any format that Pillow knows, PostScript included.
    """
    feature = table.features[column]
    if type(feature).__name__ != "Image" or not hasattr(table, "cast_column"):
        return table, None
    return table.cast_column(column, type(feature)(decode=False)), getattr(feature, "mode", None)


def _load(table: Table, index: int, column: str, mode: str | None) -> Image.Image:
    """Decode one row: an image, its bytes or path (undecoded columns), or an array of pixels."""
    value = table[index][column]
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, dict):
        content = value.get("bytes")
        image = open_image(io.BytesIO(content) if content else value["path"])
        # of more than 8 bits, Pillow would turn all but the 256 darkest values white
        return image.convert(mode) if mode and not is_wide_grey(image) else image
    return Image.fromarray(np.asarray(value))
