"""List Hugging Face data sets: by name on the Hub, from a folder, or as `datasets` objects."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo.data.examples import RowTable
from bitzoo.data.folder import Listing, order_classes
from bitzoo.data.label_sets import LabelSets
from bitzoo.data.problems import DatasetError, Problem, Reason, printable
from bitzoo.data.record_table import Records, RecordTable
from bitzoo.data.source_names import HF, SourceName
from bitzoo.data.split_names import says_split
from bitzoo.errors import MissingExtraError
from bitzoo.models.image_files import open_image
from bitzoo.models.wide_values import is_wide_grey

_SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes, for several splits or for one."""

FILE_NAME = "file_name"
"""The column that stands for the names which images have beside their bytes, as the library's
folders of images call it."""

_IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "class", "target")


class Table(Protocol):
    """The part of `datasets.Dataset` that bitzoo uses."""

    features: Any

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


def load_named(name: SourceName) -> Any:
    """Load a data set from a folder, or one that was loaded from the Hub before.

    A folder written by `save_to_disk` is opened directly; any other goes to
    `datasets.load_dataset`, which knows folders of Parquet, Arrow, CSV or image files. Nothing is
    downloaded. Tables are mapped into memory, not read into it.

    Args:
        name: Its name or folder, and its config; the split is for `read_named`.

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
            f"Reading {HF}{name.name} needs Hugging Face's library datasets, which is not "
            "installed. Install it: pip install 'bitzoo[datasets]'."
        ) from error
    is_saved = any(Path(name.name, file).is_file() for file in _SAVED)
    load = library.load_from_disk if is_saved else library.load_dataset
    options = () if name.config is None or is_saved else (name.config,)
    try:
        with _offline(library):
            return load(name.name, *options)
    except Exception as error:  # the library passes on whatever file systems and networks raise
        call = ", ".join(map(repr, (name.name, *options)))
        prepare = f'python -c "import datasets; datasets.load_dataset({call})"'
        raise DatasetError(
            f"The Hugging Face data set {printable(name.name)!r} cannot be loaded: expected a "
            "folder, or the name of a data set on the Hub that was loaded on this machine before, "
            f"found {type(error).__name__}: {error}. Nothing is downloaded unasked: load it once "
            f"with {prepare}. If that needs more options, load it in Python and pass the object."
        ) from error


@contextmanager
def _offline(library: Any) -> Iterator[None]:
    """Let the library load only what is on this machine, and draw no bars of its own."""
    hub = importlib.import_module("huggingface_hub.constants")
    places = [(place, "HF_HUB_OFFLINE") for place in (getattr(library, "config", None), hub)]
    before = [(place, name, getattr(place, name)) for place, name in places if place is not None]
    bars = getattr(library, "is_progress_bar_enabled", None)
    had_bars = bars is not None and bars()
    if had_bars:
        library.disable_progress_bars()
    for place, name, _ in before:
        setattr(place, name, True)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        if had_bars:
            library.enable_progress_bars()


def read_named(name: SourceName, source: str) -> Listing | dict[str, Callable[[], Listing]]:
    """List what a name means; of one without a split, return what lists each of the splits.

    Slices are those of the library, `train[:10%]+test[5:]`, in the order of the rows.

    Args:
        name: The name.
        source: Its display name.

    Raises:
        DatasetError: If it cannot be loaded or has no such split or columns.
        MissingExtraError: If the library is not installed.
    """
    loaded = load_named(name)
    tables = dict(loaded) if isinstance(loaded, Mapping) else {_split_of(loaded): loaded}
    listed = partial(read_table, source=source, image=name.image, label=name.label)
    if name.split is None:
        if isinstance(loaded, Mapping):
            return {key: partial(listed, table, split=key) for key, table in tables.items()}
        return listed(loaded)
    parts = [
        listed(tables[split], numbers=numbers, split=split)
        for split, numbers in _slices(name.split, tables, source)
    ]
    declared = parts[0].classes
    same = all(part.classes == declared for part in parts)
    classes = declared if same else order_classes(c for part in parts for c in part.classes)
    rows = [part.rows for part in parts if isinstance(part.rows, RowTable)]
    return Listing(
        RowTable.joined(rows, classes) if rows else (),
        classes,
        source,
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        tuple(problem for part in parts for problem in part.problems),
        unlabelled=tuple(row for part in parts for row in part.unlabelled),
    )


def _split_of(table: Any) -> str:
    """Return the name of the only split of a folder."""
    return str(getattr(table, "split", None) or "train")


def _slices(split: str, tables: Mapping[str, Any], source: str) -> list[tuple[str, range]]:
    """Return the splits that a slice consists of, and the numbers of their rows.

    Raises:
        DatasetError: If there is no such split or slice.
    """
    counts = {key: len(table) for key, table in tables.items()}
    library = importlib.import_module("datasets")
    try:
        found = library.ReadInstruction.from_spec(split).to_absolute(counts)
        meant = [(part.splitname, range(part.from_, part.to)) for part in found]
        empty = [name for name, numbers in meant if not numbers]
        why = f"no row of {empty[0]} is in the slice" if empty else ""
    except Exception as error:  # of several kinds, for what a user wrote
        why = " ".join(str(error).split()).rstrip(". ")
    if why:
        there = ", ".join(f"{key} ({count:,})" for key, count in counts.items())
        raise DatasetError(
            f"The data set {source} has the splits {there}, and slices of them, such as "
            f"train[:10%]+train[90%:]; it has no {printable(split)!r}: {why}. Correct what stands "
            "after @."
        )
    return meant


def read_table(
    table: Table,
    source: str,
    *,
    image: str | None = None,
    label: str | None = None,
    numbers: range | None = None,
    split: str = "",
) -> Listing:
    """List a `datasets.Dataset`, or an object with the same `features`, length and items.

    The images are in the one column of type `Image`, the labels in the one of type `ClassLabel`,
    whose names and order are kept, or in a sequence of it: several an image. If the types do not
    decide, the column names do (`image`, `img`, ..; `label`, `labels`, ..). Rows are decoded when
    they are used. A table in which every label is -1 or None is unlabelled, as the test splits of
    competitions are, and lists no rows.

    Args:
        table: The table.
        source: Its display name.
        image: The column of the images; None for the one that is meant by the above.
        label: The column of the labels; as `image`.
        numbers: The rows to list; None for all.
        split: Name of the split, for the rows' keys; "" names rows by their numbers alone.

    Raises:
        DatasetError: If the columns are ambiguous, or a label is neither a whole number nor text.
    """
    if not hasattr(table, "__len__"):
        raise DatasetError(
            f"The data set {source} must have a length, found {type(table).__name__}. Load it "
            "without streaming."
        )
    image = _column(table, source, "Image", _IMAGE_COLUMNS, image)
    label = _column(table, source, "ClassLabel", _LABEL_COLUMNS, label)
    pixels, mode = _undecoded(table, image)
    declared = getattr(_single(table.features[label]), "names", None)
    names = [printable(str(name)) for name in declared] if declared else None
    values = _values(table, label)
    numbers = range(len(values)) if numbers is None else numbers
    others = [str(name) for name in table.features if name not in (image, label)]
    if hasattr(pixels, "flatten") and FILE_NAME not in table.features:
        others.append(FILE_NAME)
    records = TableRecords(pixels, image, mode, split, _Columns(table, pixels, image), others)
    meant = np.arange(numbers.start, numbers.stop, dtype=np.uint32)
    if len(numbers) and _are_unlabelled(values, numbers):
        which = f" of {split}" if split else ""
        found = f"{len(numbers):,} images{which} have no labels, only {values[numbers[0]]!r}"
        table_of = RecordTable((records,), meant, np.zeros(len(meant), np.int32))
        note = f"not used: its {found}."
        classes = tuple(names) if names else ()
        return Listing((), classes, source, (note,), unlabelled=RowTable(table_of, ("",)))
    sets, known, wrong = _labels(values, numbers, names)
    expected = f"0 to {len(names) - 1}" if names else "a whole number or text"
    problems = tuple(
        Problem(
            Reason.LABEL,
            records.key(numbers[k]),
            f"expected {expected} in {label!r}, found {_item(values[numbers[k]])!r}",
        )
        for k in wrong.tolist()
    )
    good = np.ones(len(meant), bool)
    good[wrong] = False
    firsts = sets.values[sets.offsets[:-1]]
    several = sets if sets.single is None else None
    rows = RowTable(RecordTable((records,), meant[good], firsts, several), known)
    classes = tuple(names) if names else order_classes(known)
    notes = _notes_on_splits(table, others)
    return Listing(RowTable.joined([rows], classes), classes, source, notes, problems)


def _notes_on_splits(table: Table, columns: Sequence[str]) -> tuple[str, ...]:
    """Name the columns that divide the rows: what is set apart there is not, unless it is said."""
    divides = getattr(table, "unique", lambda name: ())
    return tuple(
        f"Not read as a split: the column {printable(name)!r}. If it is one, filter the data set "
        'by it in Python, and pass {"train": .., "test": ..}.'
        for name in columns
        if says_split(name, strictly=True) and len(divides(name)) > 1
    )


def _values(table: Table, label: str) -> Sequence[Any]:
    """Return the labels of all rows: an array, if each is a whole number."""
    if hasattr(table, "with_format") and getattr(table.features[label], "names", None):
        with contextlib.suppress(Exception):  # any library's, for values that make no array
            found = np.asarray(table.with_format("numpy")[label][:])
            if found.ndim == 1 and found.dtype.kind in "iu":
                return found  # type: ignore[return-value]
    return list(table[label])


def _are_unlabelled(values: Sequence[Any], numbers: range) -> bool:
    if isinstance(values, np.ndarray):
        return bool((values[numbers.start : numbers.stop] == -1).all())
    return all(_is_unlabelled(values[index]) for index in numbers)


def _labels(
    values: Sequence[Any], numbers: range, names: Sequence[str] | None
) -> tuple[LabelSets, tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the classes of the usable rows, the names of the classes, and which rows are not."""
    if isinstance(values, np.ndarray) and names:
        found = values[numbers.start : numbers.stop]
        good = (found >= 0) & (found < len(names))
        return LabelSets.of_single(found[good]), tuple(names), np.flatnonzero(~good)
    index = {name: number for number, name in enumerate(names)} if names else {}
    sets, wrong = [], []
    for place, number in enumerate(numbers):
        value = values[number]
        items = value if isinstance(value, (list, np.ndarray)) else [value]
        found_names = [_name(item, names) for item in items]
        if not found_names or None in found_names:
            wrong.append(place)
        else:
            distinct = dict.fromkeys(map(str, found_names))
            sets.append([index.setdefault(name, len(index)) for name in distinct])
    return LabelSets.of(sets), tuple(index), np.array(wrong, np.int64)


def _item(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


class TableRecords(Records):
    """The rows of a table.

    Args:
        table: The images alone, not decoded.
        column: The column of the images.
        mode: The mode that they are to have.
        split: Name of the split; "" for none.
        columns: The other columns.
        others: Their names.
    """

    def __init__(
        self,
        table: Any,
        column: str,
        mode: str | None,
        split: str,
        columns: _Columns,
        others: Sequence[str],
    ) -> None:
        self._table, self._column, self._mode, self._split = table, column, mode, split
        self._columns, self._others = columns, others

    def __len__(self) -> int:
        return len(self._table)

    def key(self, number: int) -> str:
        """Return `SPLIT[17]`, or `row 17`."""
        return f"{self._split}[{number}]" if self._split else f"row {number}"

    def load(self, number: int) -> TableImage:
        """Return what loads the image of a row."""
        return TableImage(self._table, number, self._column, self._mode)

    def extra(self, number: int) -> Mapping[str, str]:
        """Return the other cells of a row."""
        return _Cells(self._columns, self._others, number)

    @property
    def digest(self) -> str:
        """How rows are named: what they hold shows only when they are read."""
        return self.key(0)


class _Columns(dict[str, list[object]]):
    """The columns of a table, each read when it is first used, and the names of its images."""

    def __init__(self, table: Table, pixels: Any, image: str) -> None:
        super().__init__()
        self._table, self._pixels, self._image = table, pixels, image

    def __missing__(self, name: str) -> list[object]:
        if name in self._table.features:
            values = list(self._table[name])
        else:  # the part of the image column beside the bytes, which stay unread
            flat, part = self._pixels.flatten(), f"{self._image}.path"
            values = list(flat[part]) if part in flat.features else [""] * len(self._table)
        self[name] = values
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


def _column(table: Table, source: str, kind: str, usual: Sequence[str], asked: str | None) -> str:
    """Return the column asked for, the only one of that type, or the first with a usual name."""
    features = table.features
    if asked is not None and asked in features:
        return asked
    of_kind = [name for name in features if type(features[name]).__name__ == kind] or [
        name for name in features if type(_single(features[name])).__name__ == kind
    ]
    if asked is None and len(of_kind) == 1:
        return str(of_kind[0])
    for name in usual if asked is None else ():
        if name in (of_kind or features):
            return name
    there = ", ".join(map(str, features))
    if asked is not None:
        raise DatasetError(
            f"The data set {source} must have the column {printable(asked)!r}, found the columns "
            f"{there}. Correct what stands after ?."
        )
    raise DatasetError(
        f"The data set {source} must have one column of type {kind} or one named "
        f"{' or '.join(usual)}, found the columns {there}. Rename the right one with "
        f"dataset.rename_column(..., {usual[0]!r}) and pass the object from Python; of a named "
        f"data set, choose it with ?{usual[0]}=COLUMN."
    )


def _single(feature: Any) -> Any:
    """Return the feature of the items of a sequence; any other as it is."""
    return getattr(feature, "feature", feature)


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
    """Return the images alone, as bytes or paths, and the mode that they are to have.

    The library would open any format that Pillow knows, PostScript included.
    """
    feature = table.features[column]
    if type(feature).__name__ != "Image" or not hasattr(table, "cast_column"):
        return table, None
    mode = getattr(feature, "mode", None)
    alone = table.select_columns([column]) if hasattr(table, "select_columns") else table
    return alone.cast_column(column, type(feature)(decode=False)), mode


@dataclass(frozen=True)
class TableImage:
    """Loads the image of one row: an image, its bytes or path, or an array of pixels."""

    table: Any
    index: int
    column: str
    mode: str | None = None

    def __call__(self) -> Image.Image:
        """Return the image."""
        value = self.table[self.index][self.column]
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, dict):
            content = value.get("bytes")
            image = open_image(io.BytesIO(content) if content else value["path"])
            # of more than 8 bits, Pillow would turn all but the 256 darkest values white
            return image.convert(self.mode) if self.mode and not is_wide_grey(image) else image
        return Image.fromarray(np.asarray(value))
