"""List a manifest: a CSV or JSON-lines file of image paths and their labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from bitzoo.data.folder import SPLITS, Listing, Row, order_classes
from bitzoo.data.problems import DatasetError, Problem, Reason, printable
from bitzoo.display import shortened
from bitzoo.errors import CheckpointError, reason_of
from bitzoo.small_files import parse_json, read_bytes

Fields: TypeAlias = "Mapping[str, object] | str"
"""Column -> value for one line, or what is wrong with the line."""

MAX_BYTES = 1 << 30
"""Bound on a manifest: millions of lines of 100 bytes have some hundred megabytes."""
_SHOWN = 100
"""Characters of a line that a message quotes."""
_FORM = (
    "a CSV file with a header line path,label or path,label,split, or JSON lines "
    '{"path": "cats/1.jpg", "label": "cat"}'
)


def read_manifest(file: Path) -> Listing:
    """List the images of a `.csv`, `.jsonl` or `.ndjson` manifest.

    Each line has the path of an image, relative to the manifest's folder or absolute, the name of
    its class and optionally, but then in every line, its split: one of `SPLITS`. Other columns are
    ignored. Unusable lines become problems of the listing; validation reports missing images.

    Raises:
        DatasetError: If the file is not UTF-8 text of at most `MAX_BYTES`, has no header with
            `path` and `label`, or lists nothing at all.
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
    rows, problems = [], []
    for line, fields in _READERS[file.suffix.lower()](text, file):
        row = _row(fields, file.parent)
        if isinstance(row, Row):
            rows.append(row)
        else:
            problems.append(Problem(Reason.LINE, f"{printable(file.name)} line {line}", row))
    if not rows and not problems:
        raise DatasetError(f"The manifest {_shown(file)} lists no images; expected {_FORM}.")
    with_split = [row for row in rows if row.split]
    if with_split and len(with_split) < len(rows):
        raise DatasetError(
            f"In the manifest {_shown(file)}, either every line or none must have a split, found "
            f"{len(with_split)} lines with and {len(rows) - len(with_split)} without."
        )
    classes = order_classes(row.label for row in rows)
    return Listing(tuple(rows), classes, _shown(file), problems=tuple(problems))


def is_manifest(file: Path) -> bool:
    """Whether the file has a manifest's suffix."""
    return file.suffix.lower() in _READERS


def _row(fields: Fields, folder: Path) -> Row | str:
    """Return the row that a line describes, or what is wrong with the line."""
    if isinstance(fields, str):
        return fields
    values = {}
    for name in ("path", "label", "split"):
        value = fields.get(name, "")
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return f"{name} must be text, found {_quoted(json.dumps(value))}"
        values[name] = str(value).strip()
        if not values[name] and (name in fields or name != "split"):
            return f"{name} is missing" if name not in fields else f"{name} is empty"
    split = values["split"]
    if split and split.lower() not in SPLITS:
        return f"split must be one of {', '.join(SPLITS)}, found {_quoted(split)!r}"
    if "\0" in values["path"]:
        return "path must not hold the character NUL"
    path, label = values["path"], printable(values["label"])
    return Row(printable(path), label, SPLITS.get(split.lower(), ""), folder / path)


def _read_csv(text: str, file: Path) -> Iterator[tuple[int, Fields]]:
    lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        if not {"path", "label"} <= set(header):
            found = _quoted(text.partition("\n")[0].strip())
            raise DatasetError(
                f"The manifest {_shown(file)} must begin with a header line that names the columns "
                f"path and label (and optionally split), found {found!r}. Insert path,label as the "
                "first line; the separator is a comma."
            )
        for cells in lines:
            if len(cells) == len(header):
                yield lines.line_num, dict(zip(header, cells, strict=True))
            elif cells:
                yield lines.line_num, f"expected {len(header)} columns, found {len(cells)}"
    except csv.Error as error:
        raise DatasetError(
            f"The manifest {_shown(file)} is not valid CSV from line {lines.line_num} on: {error}. "
            'Put text with commas or line breaks in double quotes, and write " as "".'
        ) from error


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
