"""List a manifest: a CSV or JSON-lines file of image paths and their labels."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from bitzoo.data.folder import Listing, Row, order_classes
from bitzoo.data.problems import DatasetError, Problem, Reason, join_some, printable
from bitzoo.data.split_columns import SplitColumn, find_split_column
from bitzoo.data.split_names import SPLITS, is_plain, resolve_splits
from bitzoo.display import shortened
from bitzoo.errors import CheckpointError, reason_of
from bitzoo.small_files import parse_json, read_bytes

Fields: TypeAlias = "Mapping[str, object] | str"
"""Column -> value for one line, or what is wrong with the line."""

MAX_BYTES = 1 << 30
"""Bound on a manifest: millions of lines of 100 bytes have some hundred megabytes."""
_READ = ("path", "label", "split")
_SEVERAL = "labels"
_SEPARATOR = ";"
"""Between the names of several classes in a cell of the column `labels`."""
_LIKE_LABEL = re.compile(r"label|class|target|categor|species|tag", re.IGNORECASE)
"""Names of columns in which a user may expect a label to be read."""
_SHOWN = 100
"""Characters of a line that a message quotes."""
_FORM = (
    "a CSV file with a header line path,label or path,label,split, or JSON lines "
    '{"path": "cats/1.jpg", "label": "cat"}; with several labels an image, the column labels with '
    f'names separated by {_SEPARATOR}, or in JSON lines a list, {{"labels": ["cat", "sofa"]}}'
)


def read_manifest(file: Path) -> Listing:
    """List the images of a `.csv`, `.jsonl` or `.ndjson` manifest.

    Each line has the path of an image, relative to the manifest's folder or absolute, the name of
    its class and optionally, but then in every line, its split: a name that `resolve_splits` knows.
    Instead of `label` it may have `labels`: the names of several classes, separated by a semicolon,
    or in JSON lines a list. Of a line with both, `label` counts.
    Without a column split, another can be one, see `split_columns`.
    Other columns can name groups, see `bitzoo.data.groups`, and are noted, as is a second column of
    a name. Unusable lines become problems of the listing; validation reports missing images.

    Raises:
        DatasetError: If the file is not UTF-8 text of at most `MAX_BYTES`, has no header with
            `path` and `label` or `labels`, only some lines have `labels`, or it lists nothing.
    """
    try:
        text = read_bytes(file, MAX_BYTES).decode("utf-8-sig")
    except CheckpointError as error:
        raise DatasetError(f"The manifest cannot be read: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"The manifest {_shown(file)} cannot be read: expected UTF-8 text, found {error}. "
            "Save it again as UTF-8."
        ) from error
    read: list[tuple[int, Row]] = []
    wrong: list[tuple[int, str]] = []
    remarks = _Remarks()
    for line, fields in _READERS[file.suffix.lower()](text, file):
        row = _row(fields, file.parent)
        if isinstance(row, Row):
            read.append((line, row))
        else:
            wrong.append((line, row))
        if not isinstance(fields, str):
            remarks.add(fields)
    if not read and not wrong:
        raise DatasetError(f"The manifest {_shown(file)} lists no images; expected {_FORM}.")
    splits = resolve_splits(dict.fromkeys(row.split for _, row in read if row.split))
    rows = []
    for line, row in read:
        if row.split and row.split not in splits:
            found = _quoted(printable(row.split))
            wrong.append((line, f"split must be one of {', '.join(SPLITS)}, found {found!r}"))
        else:
            rows.append(replace(row, split=splits[row.split]) if row.split else row)
    column = remarks.split_column(rows, _shown(file))
    rows = [*map(column.of, rows)]
    with_split = [row for row in rows if row.split]
    if with_split and len(with_split) < len(rows):
        raise DatasetError(
            f"In the manifest {_shown(file)}, either every line or none must have a split, found "
            f"{len(with_split)} lines with and {len(rows) - len(with_split)} without."
        )
    problems = [
        Problem(Reason.LINE, f"{printable(file.name)} line {line}", detail)
        for line, detail in sorted(wrong)
    ]
    _refuse_both(read, file)
    classes = order_classes(name for row in rows for name in row.names)
    notes = (*remarks.notes(column.name), *_notes_on_splits(splits), *column.notes)
    listing = Listing(tuple(rows), classes, _shown(file), notes, tuple(problems))
    return replace(listing, split_column=printable(column.name))


def is_manifest(file: Path) -> bool:
    """Whether the file has a manifest's suffix."""
    return file.suffix.lower() in _READERS


def _notes_on_splits(splits: Mapping[str, str]) -> Iterator[str]:
    if not all(map(is_plain, splits)):
        shown = ", ".join(f"{split} from {printable(name)!r}" for name, split in splits.items())
        yield f"Splits by their names: {shown}."


@dataclass
class _Remarks:
    """What is worth saying about the lines of a manifest, collected line by line."""

    others: dict[str, None] = field(default_factory=dict)
    spaced: list[str] = field(default_factory=list)
    has_split: bool = False

    def add(self, fields: Mapping[str, object]) -> None:
        read = _READ if "label" in fields else (*_READ, _SEVERAL)
        self.others.update((name, None) for name in fields if name not in read)
        self.has_split |= "split" in fields
        label = fields.get("label")
        if isinstance(label, str) and label != label.strip():
            self.spaced.append(label)

    def split_column(self, rows: Sequence[Row], source: str) -> SplitColumn:
        """Return the column that is a split under another name.

        Raises:
            DatasetError: As `find_split_column`.
        """
        if self.has_split or not rows:
            return SplitColumn()
        labels = re.compile(rf"label \(|{_SEVERAL}")
        return find_split_column(rows, [n for n in self.others if not labels.match(n)], source)

    def notes(self, split: str) -> Iterator[str]:
        """Name the columns that are not read, and spaces that were removed.

        Args:
            split: The column that is the split; "" for none.
        """
        others = [name for name in self.others if not split or name != split]
        if others:
            shown = join_some([_quoted(name) or "(no name)" for name in others])
            yield f"Other columns of the manifest ({len(others)}): {shown}." + (
                " An image has one label, which is in the column label, or several in labels."
                if any(map(_LIKE_LABEL.search, others))
                else ""
            )
        if self.spaced:
            yield (
                f"Spaces around the labels of {len(self.spaced):,} lines were removed, as in "
                f"{_quoted(self.spaced[0])!r}."
            )


def _row(fields: Fields, folder: Path) -> Row | str:
    """Return the row that a line describes, with its split as it is written, or what is wrong."""
    if isinstance(fields, str):
        return fields
    values: dict[str, str] = {}
    labels: tuple[str, ...] = ()
    if _SEVERAL in fields and "label" not in fields:
        found = _several(fields[_SEVERAL])
        if isinstance(found, str):
            return found
        labels, fields = found, {**fields, "label": found[0]}
    for name in _READ:
        value = fields.get(name, "")
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return f"{name} must be text, found {_quoted(json.dumps(value))}"
        values[name] = str(value).strip()
        if not values[name] and (name in fields or name != "split"):
            return f"{name} is missing" if name not in fields else f"{name} is empty"
    if "\0" in values["path"]:
        return "path must not hold the character NUL"
    path, label = values["path"], printable(values["label"])
    extra = {
        name: str(value)
        for name, value in fields.items()
        if name not in values and isinstance(value, (str, int, float))
    }
    return Row(printable(path), label, values["split"], folder / path, extra=extra, labels=labels)


def _several(value: object) -> tuple[str, ...] | str:
    """Return the distinct names in a cell of the column `labels`, or what is wrong with it."""
    items = value.split(_SEPARATOR) if isinstance(value, str) else value
    if not isinstance(items, list) or not all(
        isinstance(item, (str, int)) and not isinstance(item, bool) for item in items
    ):
        return f"{_SEVERAL} must be a list of names, found {_quoted(json.dumps(value))}"
    names = dict.fromkeys(printable(str(item).strip()) for item in items)
    if not names or "" in names:
        return f"{_SEVERAL} {'has an empty name' if names else 'is empty'}"
    return tuple(names)


def _refuse_both(read: Sequence[tuple[int, Row]], file: Path) -> None:
    """Raise if some lines have a label and others labels: it is unclear what is meant."""
    several = sum(bool(row.labels) for _, row in read)
    if 0 < several < len(read):
        raise DatasetError(
            f"In the manifest {_shown(file)}, every line must have its label in the column label, "
            f"or every line its labels in the column {_SEVERAL}, found {several:,} lines with "
            f"{_SEVERAL} and {len(read) - several:,} with label. Write all of them as {_SEVERAL}."
        )


def _read_csv(text: str, file: Path) -> Iterator[tuple[int, Fields]]:
    lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        if "path" not in header or not {"label", _SEVERAL} & set(header):
            found = _quoted(text.partition("\n")[0].strip())
            raise DatasetError(
                f"The manifest {_shown(file)} must begin with a header line that names the columns "
                f"path and label (and optionally split), found {found!r}. Insert path,label as the "
                "first line; the separator is a comma."
            )
        names = _numbered(header)
        for cells in lines:
            if len(cells) == len(header):
                yield lines.line_num, dict(zip(names, cells, strict=True))
            elif cells:
                yield lines.line_num, f"expected {len(header)} columns, found {len(cells)}"
    except csv.Error as error:
        raise DatasetError(
            f"The manifest {_shown(file)} is not valid CSV from line {lines.line_num} on: {error}. "
            'Put text with commas or line breaks in double quotes, and write " as "".'
        ) from error


def _numbered(header: Sequence[str]) -> list[str]:
    """Return the names of the columns, the second of a name as `label (column 4)`."""
    return [
        f"{name} (column {index + 1})" if name in header[:index] else name
        for index, name in enumerate(header)
    ]


def _read_jsonl(text: str, file: Path) -> Iterator[tuple[int, Fields]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = parse_json(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not valid JSON: {reason_of(error)}"
            continue
        yield number, fields if isinstance(fields, dict) else "expected a JSON object"


def _quoted(text: str) -> str:
    return shortened(printable(text), _SHOWN)


def _shown(file: Path) -> str:
    return repr(printable(file.as_posix()))


_READERS: dict[str, Callable[[str, Path], Iterator[tuple[int, Fields]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}
