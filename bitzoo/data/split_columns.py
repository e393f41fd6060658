"""Find the column of a manifest that is a split under another name, such as FER-2013's `Usage`.

An image that its publisher set apart must not be trained on unsaid. So a column whose name and
values both say that it is a split is used as one; where only one of the two says so, it is refused
or named, never passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from bitzoo.data.folder import Row, order_classes
from bitzoo.data.problems import DatasetError, join_some, printable
from bitzoo.data.split_names import flag_splits, is_division, resolve_splits, says_split

_MOST = 100
"""A column of more distinct values is no split: it is dropped while it is read."""
_SHOWN = 5


@dataclass(frozen=True)
class SplitColumn:
    """What the other columns of a manifest say about splits.

    Attributes:
        name: The column that is the split; "" if there is none.
        splits: Value of that column -> the split that it means.
        notes: What is to be said about it, or about a column that was not taken for a split.
    """

    name: str = ""
    splits: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()

    def of(self, row: Row) -> Row:
        """Return the row with its split."""
        if not self.splits:
            return row
        return replace(row, split=self.splits[_cell(row, self.name)])


def find_split_column(rows: Sequence[Row], columns: Sequence[str], source: str) -> SplitColumn:
    """Return the column that divides rows without a split.

    Args:
        rows: The rows of a manifest without a column `split`.
        columns: The columns that may be a split.
        source: Display name of the manifest.

    Raises:
        DatasetError: If a column may be a split and may be none, some of its values are no names of
            splits, or two columns divide the rows otherwise.
    """
    divided: dict[str, Mapping[str, str]] = {}
    notes: list[str] = []
    for column in columns:
        values = _values(rows, column)
        meant = flag_splits(column, columns, values)
        is_split = bool(meant) or says_split(column)
        meant = meant or resolve_splits(filter(None, values))
        if values and is_split and meant.keys() >= {*values}:
            divided[column] = meant
        elif is_division(meant) and (is_split or meant.keys() >= {*values} - {""}):
            raise _undecided(column, values, meant, source)
        elif len(values) > 1 and says_split(column, strictly=True):
            notes.append(_not_taken(column, values))
    if not divided:
        return SplitColumn(notes=tuple(notes))
    column, splits = next(iter(divided.items()))
    _refuse_contradictions(rows, divided, source)
    shown = join_some([f"{split} from {printable(v)!r}" for v, split in splits.items()], _SHOWN)
    return SplitColumn(column, splits, (f"Splits by the column {printable(column)!r}: {shown}.",))


def _refuse_contradictions(
    rows: Sequence[Row], divided: Mapping[str, Mapping[str, str]], source: str
) -> None:
    """Raise if two columns divide the rows otherwise."""
    (first, splits), *others = divided.items()
    for other, theirs in others:
        if any(splits[_cell(row, first)] != theirs[_cell(row, other)] for row in rows):
            raise DatasetError(
                f"The manifest {source} must have one split, found two columns that divide its "
                f"images otherwise: {printable(first)!r} and {printable(other)!r}. Rename the "
                "right one to split."
            )


def _cell(row: Row, column: str) -> str:
    return row.extra.get(column, "").strip()


def _values(rows: Sequence[Row], column: str) -> Collection[str]:
    """Return the distinct values of a column in their order, "" for none; () if too many."""
    found: dict[str, None] = {}
    for row in rows:
        found[_cell(row, column)] = None
        if len(found) > _MOST:
            return ()
    return found.keys()


def _undecided(
    column: str, values: Collection[str], meant: Mapping[str, str], source: str
) -> DatasetError:
    """Return the error for a column that has splits in it, but may not be the split."""
    others = sorted({*values} - meant.keys())
    names = join_some([repr(printable(value)) for value in meant], _SHOWN)
    if others:
        what = join_some([repr(printable(value)) if value else "none" for value in others], _SHOWN)
        found = f"and in other lines {what}"
        step = "Write train, val or test in every line"
    else:
        found, step = (
            "and its name does not say what it is",
            "If it is the split, rename it to split",
        )
    return DatasetError(
        f"The column {printable(column)!r} of the manifest {source} has names of splits ({names}), "
        f"{found}; nothing is held out at random beside it. {step}; if it is none, remove it."
    )


def _not_taken(column: str, values: Collection[str]) -> str:
    shown = join_some([repr(printable(value)) for value in order_classes(values)], _SHOWN)
    name = printable(column)
    return (
        f"Not read as a split: the column {name!r}, because its values ({shown}) are no names of "
        "splits. To hold out by it, write train, val or test in a column split; to keep the images "
        f"of one value together: `group_by={name!r}`."
    )
