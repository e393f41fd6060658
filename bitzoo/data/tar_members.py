"""Walk the members of an uncompressed tar: the name, place and size of each, without its content.

All headers of a stretch of the file are taken apart at once, with NumPy: a shard of small images
has thousands of them. What is not the header of a plain file (long names, links, folders, numbers
in other forms) is taken apart one by one. Formats: POSIX ustar and pax, GNU and old tar, as GNU tar
and Python's tarfile write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitzoo.data.problems import DatasetError
from bitzoo.portable import pread

BLOCK = 512
"""Bytes of a header; contents begin and end at multiples of it."""
_NEAR, _STRETCH = 1 << 12, 1 << 20
"""Bytes read at once: behind a large member only the next headers, otherwise a stretch."""
_LARGE = 1 << 16
_MOST_NAME = 1 << 16
"""Bytes of a long name, or of a pax header: more is hostile."""
_POWERS = 8 ** np.arange(10, -1, -1, dtype=np.int64)
_SUM_POWERS = 8 ** np.arange(5, -1, -1, dtype=np.int64)
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device"} | {
    b"6": "a pipe",
    b"S": "a sparse file",
}
_COMPRESSED = (
    *((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2")),
    *((b"\xfd7zXZ", "xz"), (b"(\xb5/\xfd", "zstd")),
)
_HAS_MORE = 482
"""Byte of a sparse file's header that says whether its table goes on behind the header."""
_PAX = re.compile(rb"(\d+) ([^=]+)=")


class TarError(DatasetError):
    """A tar that cannot be walked any further: truncated, damaged, or none."""


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
        name: Its path, as it is stored.
        offset: Where its content begins.
        size: Bytes of it.
        odd: What it is if it is no file, such as "a symbolic link"; "" for files.
    """

    name: bytes
    offset: int
    size: int
    odd: str = ""


class TarReader:
    """An open tar of which a stretch is in memory.

    Args:
        descriptor: The open file.
        size: Its bytes.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._descriptor = descriptor
        self._start, self._stretch = 0, b""

    def at(self, offset: int, count: int) -> bytes:
        """Return bytes of the file, fewer only at its end."""
        place = offset - self._start
        if place >= 0 and place + count <= len(self._stretch):
            return self._stretch[place : place + count]
        return pread(self._descriptor, count, offset)

    def stretch(self, offset: int, count: int) -> bytes:
        """Return whole blocks from an offset on, at most `count` bytes, and keep them."""
        content = pread(self._descriptor, count, offset)
        self._start, self._stretch = offset, content[: len(content) // BLOCK * BLOCK]
        return self._stretch

    def members(self) -> Iterator[list[Member]]:
        """Yield the members in order, several at a time; folders are left out.

        What is yielded is still in memory, see `at`.

        Raises:
            TarError: Where the file cannot be read any further. All members before are whole.
        """
        position, jump, long = 0, 0, _Extended()
        while True:
            if position + BLOCK > self.size:
                raise TarError(
                    "it has no end mark, so it may be truncated"
                    if position == self.size and position
                    else f"it ends within the header at byte {position:,}"
                )
            content = self.stretch(position, _NEAR if jump > _LARGE else _STRETCH)
            if len(content) < BLOCK:
                raise TarError(f"it ends within the header at byte {position:,}")
            start, headers = position, _Headers(content)
            rows, offsets = headers.plain_run(position, self.size)
            if len(rows) and long.is_set:  # the header belongs to the one before it
                rows, offsets = rows[:0], offsets[:0]
            if len(rows):
                sizes = headers.sizes[rows].tolist()
                yield list(map(Member, headers.names(rows), offsets.tolist(), sizes))
                last = int(headers.sizes[rows[-1]])
                jump = last
                position = int(offsets[-1]) + _padded(last)
                if position >= start + len(content):
                    continue
            block = self.at(position, BLOCK)
            if not any(block):
                return
            member = _parsed(block, position)
            position, jump = self._odd(member, block, long), member.size
            if long.ready is not None:
                yield [long.take()]

    def _odd(self, member: Member, block: bytes, long: _Extended) -> int:
        """Take a header apart that is not plain, and return where the next one is."""
        kind = block[156:157]
        size = long.size if long.size is not None and kind not in (b"L", b"K", b"x", b"g") else None
        if size is not None:
            member = Member(member.name, member.offset, size)
        holds = kind not in (b"1", b"2", b"3", b"4", b"5", b"6")
        end = member.offset + (_padded(member.size) if holds else 0)
        if holds and member.offset + member.size > self.size:
            raise TarError(
                f"it is truncated: the member {member.name[:100]!r} at byte "
                f"{member.offset - BLOCK:,} has {member.size:,} bytes, and the file ends after "
                f"{max(self.size - member.offset, 0):,} of them"
            )
        if kind == b"S" and block[_HAS_MORE]:  # its table goes on in blocks that its size omits
            raise _sparse(member.offset)
        if kind in (b"L", b"K", b"x", b"X", b"g"):
            if member.size > _MOST_NAME:
                raise TarError(
                    f"the name of a member at byte {member.offset:,} has {member.size:,} bytes; at "
                    f"most {_MOST_NAME:,} are read"
                )
            long.add(kind, self.at(member.offset, member.size), member.offset)
            return end
        name = long.name if long.name is not None else member.name
        long.clear()
        if kind == b"5" or (kind in (b"0", b"\0") and name.endswith(b"/")):
            return end
        odd = "" if kind in (b"0", b"\0", b"7") else _KINDS.get(kind, f"of the type {kind!r}")
        long.ready = Member(name, member.offset, member.size, odd)
        return end


class _Extended:
    """What headers before a member say about it: its long name and its size."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.size: int | None = None
        self.ready: Member | None = None

    @property
    def is_set(self) -> bool:
        return self.name is not None or self.size is not None

    def clear(self) -> None:
        self.name = self.size = None

    def take(self) -> Member:
        member, self.ready = self.ready, None
        assert member is not None
        return member

    def add(self, kind: bytes, content: bytes, offset: int) -> None:
        """Take in the content of a header before a member, which begins at an offset."""
        if kind == b"L":
            self._add_name(content.split(b"\0", 1)[0], offset)
        elif kind in (b"x", b"X", b"g"):
            said = _pax_records(content, offset)
            if any(key.startswith(b"GNU.sparse") for key in said):
                raise _sparse(offset)
            path, size = said.get(b"path"), said.get(b"size")
            if kind == b"g" and (path is not None or size is not None):
                raise TarError(f"the header at byte {offset:,} gives all members one name or size")
            if path is not None:
                self._add_name(path, offset)
            if size is not None:
                if not size.isdigit() or len(size) > 18:
                    raise _damaged_pax(offset)
                self.size = int(size)

    def _add_name(self, name: bytes, offset: int) -> None:
        if self.name is not None:  # programs differ in which of them counts
            raise TarError(f"the header at byte {offset:,} is a second name of one member")
        self.name = name


def _pax_records(content: bytes, offset: int) -> dict[bytes, bytes]:
    found, place = {}, 0
    while place < len(content):
        match = _PAX.match(content, place)
        length = int(match[1][:9]) if match else 0
        if match is None or length <= match.end() - place or place + length > len(content):
            raise _damaged_pax(offset)
        found[match[2]] = content[match.end() : place + length - 1]
        place += length
    return found


def _sparse(offset: int) -> TarError:
    return TarError(f"the member at byte {offset:,} is a sparse file: make the tar without -S")


def _damaged_pax(offset: int) -> TarError:
    return TarError(f"the pax header at byte {offset:,} is damaged")


class _Headers:
    """All blocks of a stretch, read as if each were a header."""

    def __init__(self, content: bytes) -> None:
        self._blocks = np.frombuffer(content, np.uint8).reshape(-1, BLOCK)
        digits = self._blocks[:, 124:135] - np.uint8(48)
        ends, kinds = self._blocks[:, 135], self._blocks[:, 156]
        self.sizes = digits.astype(np.int64) @ _POWERS
        self._may_be = (
            (digits < 8).all(1)
            & ((ends == 0) | (ends == 32))
            & ((kinds == 48) | (kinds == 0))
            & (self._blocks[:, 345] == 0)
            & (self._blocks[:, 0] != 0)
        )

    def plain_run(
        self, position: int, total: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the headers of plain files that follow each other from the first block on.

        Returns:
            Their blocks, and where their contents begin in the file.
        """
        may_be = self._may_be.tolist()
        jumps = (1 + (self.sizes + (BLOCK - 1)) // BLOCK).tolist()
        found, row, last = [], 0, len(may_be)
        while row < last and may_be[row]:
            found.append(row)
            row += jumps[row]
        rows = np.array(found, np.int64)
        if not len(rows):
            return rows, rows
        heads = self._blocks[rows]
        offsets = position + (rows + 1) * BLOCK
        stored = heads[:, 148:154] - np.uint8(48)
        sums = heads.sum(1, dtype=np.int64) - heads[:, 148:156].sum(1, dtype=np.int64) + 8 * 32
        good = (stored < 8).all(1) & (stored.astype(np.int64) @ _SUM_POWERS == sums)
        good &= offsets + self.sizes[rows] <= total
        good &= ~((heads[:, :99] == 47) & (heads[:, 1:100] == 0)).any(1)  # old tars' folders
        count = len(rows) if good.all() else int(good.argmin())
        return rows[:count], offsets[:count]

    def names(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        heads = np.ascontiguousarray(self._blocks[rows, :100])
        names: list[bytes] = heads.view("S100").ravel().tolist()
        return [name if 0 not in name else name[: name.index(0)] for name in names]


def _parsed(block: bytes, position: int) -> Member:
    """Take one header apart."""
    for magic, method in _COMPRESSED:
        if position == 0 and block.startswith(magic):
            raise TarError(
                f"it is compressed ({method}), and single images can be read only from a tar that "
                "is not: decompress it"
            )
    stored = _number(block[148:156])
    if stored is None or sum(block) - sum(block[148:156]) + 8 * 32 != stored:
        raise TarError(
            "it is no tar"
            if position == 0
            else f"there is no header at byte {position:,}, where one must be: the file is damaged"
        )
    size = _number(block[124:136])
    if size is None or size < 0:
        raise TarError(f"the header at byte {position:,} has no valid size")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return Member(name, position + BLOCK, size)


def _number(field: bytes) -> int | None:
    """Return a number: octal digits, or with the first bit set base 256; None if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
