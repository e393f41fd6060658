"""Gather the members of a shard into records, as the WebDataset layout means them.

Members whose names are equal up to the first dot of the file name are one record: `0017.jpg` and
`0017.cls`. A record has one image, whose suffix is that of a format that is read, and a label:

- `.cls`: the name or the number of its class; several are separated by a semicolon;
- `.json`: an object with `label`, or `labels` for a list;
- `.txt`: the name of its class.

Of several the first of these counts. Members of a record need not follow each other, as the
system's `tar` writes files in the order of the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.data.problems import Problem, Reason, printable
from bitzoo.data.tar_members import BLOCK, Member, TarError, TarReader
from bitzoo.errors import reason_of
from bitzoo.models.image_files import suffixes
from bitzoo.small_files import parse_json

_LABELS = {b"txt": 1, b"json": 2, b"cls": 3}
"""Suffix of a member with a label -> its rank; the highest counts."""
_MOST_LABEL = 1 << 20
"""Bytes of a member with a label."""
_MOST_IMAGE = (1 << 32) - 1
_MOST_PROBLEMS = 1000
_WITHOUT, _SEPARATOR = -1, ";"
_NOWHERE = (0, 0)


@dataclass
class ShardRecords:
    """What one shard holds.

    Attributes:
        blocks: Where the content of each record's image begins, in blocks: uint32 (n,).
        sizes: Its bytes: uint32 (n,).
        keys: The names of the records, one after the other.
        key_ends: Where each name ends: int64 (n,).
        cells: Which of `labels` each record has: int32 (n,).
        labels: The distinct labels, each the names of one class or several.
        problems: What cannot be used.
        others: Number of members that are of no record.
    """

    blocks: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.uint32]
    keys: bytes
    key_ends: npt.NDArray[np.int64]
    cells: npt.NDArray[np.int32]
    labels: list[tuple[str, ...]]
    problems: list[Problem] = field(default_factory=list)
    others: int = 0


def read_shard(descriptor: int, name: str) -> ShardRecords:
    """Find the records of an open shard.

    Nothing is raised for what is in it: records that cannot be used are left out and reported, and
    where it cannot be read any further, the records before are kept.

    Args:
        descriptor: The open file.
        name: Display name of the shard.

    Raises:
        OSError: If it cannot be read.
    """
    reader = TarReader(descriptor, os.fstat(descriptor).st_size)
    gathered = _Gathered(reader, name)
    try:
        for members in reader.members():
            gathered.add(members)
    except TarError as error:
        gathered.problems.insert(0, Problem(Reason.SHARD, name, str(error)))
    return gathered.finish()


class _Gathered:
    """The records of a shard, as they are found."""

    def __init__(self, reader: TarReader, shard: str) -> None:
        self._reader, self._shard = reader, shard
        self._rows: dict[bytes, int] = {}
        self._images: list[tuple[int, int]] = []
        self._cells: list[int] = []
        self._ranks = bytearray()
        self._bad: dict[int, str] = {}
        self._empty: set[int] = set()
        self._labels: dict[tuple[str, ...], int] = {}
        self._known: dict[tuple[bytes, bytes], int] = {}
        self._kinds = {suffix[1:].encode(): 0 for suffix in suffixes()} | _LABELS
        self.problems: list[Problem] = []
        self._others = 0

    def add(self, members: Iterable[Member]) -> None:
        """Add members to their records; called for millions."""
        rows, ranks, places, cells = self._rows, self._ranks, self._images, self._cells
        for name, offset, size, odd in members:
            key, _, suffix = name.partition(b".")
            if b"/" in suffix or not key or key.endswith(b"/"):
                key, suffix = _taken_apart(name)
            rank = self._kinds.get(suffix)
            if (rank is None and (rank := self._kinds.get(suffix.lower())) is None) or not key:
                self._others += 1
                continue
            row = rows.get(key)
            if row is None:
                row = rows[key] = len(places)
                places.append(_NOWHERE)
                cells.append(_WITHOUT)
                ranks.append(0)
            if odd:
                self._bad[row] = f"its .{_text(suffix)} is {odd}"
            elif rank:
                self._add_label(row, rank, suffix.lower(), offset, size)
            elif places[row] is _NOWHERE and 0 < size <= _MOST_IMAGE:
                places[row] = offset, size
            else:
                self._add_image(row, offset, size)

    def _add_image(self, row: int, offset: int, size: int) -> None:
        if self._images[row] is not _NOWHERE:
            self._bad[row] = "it has several images, or its name is that of another record"
        elif size > _MOST_IMAGE:
            self._bad[row] = f"its image has {size:,} bytes"
        elif not size:
            self._empty.add(row)
        self._images[row] = offset, size

    def _add_label(self, row: int, rank: int, suffix: bytes, offset: int, size: int) -> None:
        if rank == self._ranks[row]:
            self._bad[row] = f"it has several .{_text(suffix)}, or its name is another record's"
        if rank <= self._ranks[row]:
            return
        if size > _MOST_LABEL:
            self._bad[row] = f"its .{_text(suffix)} has {size:,} bytes, expected a label"
            return
        content = self._reader.at(offset, size)
        cell = self._known.get((suffix, content))
        if cell is None:
            found = _names(suffix, content)
            if found is None:
                return  # JSON about other things
            if isinstance(found, str):
                self._bad[row] = f"its .{_text(suffix)} {found}"
                return
            cell = self._labels.setdefault(found, len(self._labels))
            if len(self._known) < 1 << 16:
                self._known[suffix, content] = cell
        self._cells[row], self._ranks[row] = cell, rank

    def finish(self) -> ShardRecords:
        """Return what was found, without the records that cannot be used."""
        keys, good = list(self._rows), np.ones(len(self._rows), bool)
        places = np.array(self._images, np.int64).reshape(-1, 2)
        cells = np.array(self._cells, np.int32)
        nowhere, unlabelled = places[:, 0] == 0, cells == _WITHOUT
        without = dict.fromkeys(np.flatnonzero(nowhere).tolist(), "it has no image")
        why = "it has no label: no .cls or .txt, and no .json with one"
        without |= dict.fromkeys(np.flatnonzero(unlabelled & ~nowhere).tolist(), why)
        for row in np.flatnonzero(unlabelled & nowhere).tolist():
            if row not in self._bad:  # a .json about the shard, or a text: no record
                del without[row]
                good[row] = False
                self._others += 1
        bad = without | self._bad
        for row in sorted(bad.keys() | self._empty):
            good[row] = False
            reason = Reason.RECORD if row in bad else Reason.NO_BYTES
            self.problems.append(Problem(reason, self._named(keys[row]), bad.get(row, "")))
        for row, key in enumerate(keys):
            if good[row] and not _is_text(key):
                good[row] = False
                said = "its name is not UTF-8"
                self.problems.append(Problem(Reason.RECORD, self._named(key), said))
        if len(self.problems) > _MOST_PROBLEMS:
            more = len(self.problems) - _MOST_PROBLEMS
            del self.problems[_MOST_PROBLEMS:]
            self.problems.append(Problem(Reason.RECORD, self._shard, f"and {more:,} more of it"))
        kept = [_short(key) for row, key in enumerate(keys) if good[row]]
        return ShardRecords(
            (places[good, 0] // BLOCK).astype(np.uint32),
            places[good, 1].astype(np.uint32),
            b"".join(kept),
            np.cumsum([len(key) for key in kept], dtype=np.int64),
            cells[good],
            list(self._labels),
            self.problems,
            self._others,
        )

    def _named(self, key: bytes) -> str:
        return f"{self._shard}/{_text(key)}"


def _names(suffix: bytes, content: bytes) -> tuple[str, ...] | str | None:
    """Return the names in a member with a label; what is wrong with it; None if it has no label."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    if suffix == b"json":
        return _names_in_json(text)
    items: Sequence[Any] = text.split(_SEPARATOR) if suffix == b"cls" else [text]
    return _checked(items)


def _names_in_json(text: str) -> tuple[str, ...] | str | None:
    try:
        found = parse_json(text)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON: {reason_of(error)}"
    if not isinstance(found, dict):
        return "is not a JSON object"
    value = found.get("labels", found.get("label"))
    return None if value is None else _checked(value if isinstance(value, list) else [value])


def _checked(items: Sequence[Any]) -> tuple[str, ...] | str:
    if not all(isinstance(item, (str, int)) and not isinstance(item, bool) for item in items):
        return "has a label that is neither a name nor a whole number"
    names = tuple(dict.fromkeys(printable(str(item).strip()) for item in items))
    return names if names and "" not in names else "has an empty label"


def _taken_apart(name: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and after the first dot of a file name; b"" without a name."""
    slash = name.rfind(b"/") + 1
    dot = name.find(b".", slash)
    return (name[:dot], name[dot + 1 :]) if dot > slash else (b"", b"")


def _short(key: bytes) -> bytes:
    return key.removeprefix(b"./")


def _text(name: bytes) -> str:
    return printable(_short(name).decode("utf-8", "surrogateescape"))


def _is_text(key: bytes) -> bool:
    if key.isascii():
        return True
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
