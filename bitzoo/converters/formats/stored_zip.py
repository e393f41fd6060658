"""Read a zip archive of uncompressed records, as PyTorch writes them, and believe nothing it says.

A zip file states sizes and positions twice: in its directory, and in a header before each record.
Readers that trust different places see different bytes. Here both must agree, records must not
overlap, and the CRC-32 of each is checked. Format: PKWARE, APPNOTE.TXT, sections 4.3.7 to 4.3.16.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from isal import isal_zlib

from bitzoo.converters.source import RawFile, brief, read_pieces
from bitzoo.errors import CheckpointError

MAX_DIRECTORY_BYTES = 4 << 20
"""Bound on the directory; a training checkpoint of the largest network has 0.2 MB."""
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_STORED = 0
_VERSION = 63
"""Version of the format, times ten, that defines all that is read here."""
_ENCRYPTED, _SIZES_FOLLOW, _MASKED = 0x0001, 0x0008, 0x2000
_FOLDER = 0x10
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
"""In place of a number that does not fit, which the zip64 fields have."""
_ZIP64 = 1
_MAX_NAME = 1_024


@dataclass(frozen=True)
class Record:
    """One file in the archive.

    Attributes:
        name: Its name.
        header: Position of its local header.
        offset: Position of its first byte.
        size: Number of its bytes.
        crc: Its CRC-32, as the directory states it.
    """

    name: str
    header: int
    offset: int
    size: int
    crc: int


class StoredZip:
    """The records of an archive by name.

    Raises:
        CheckpointError: If the directory and the local headers do not agree on separate,
            uncompressed records inside the file.
    """

    def __init__(self, file: RawFile) -> None:
        self._file = file
        self.records: dict[str, Record] = {}
        start, directory, count = self._directory()
        position = 0
        for _ in range(count):
            position = self._add(directory, position)
        if position != len(directory):
            raise self.damaged("its zip directory has another length than stated")
        self._in_order = sorted(self.records.values(), key=lambda record: record.header)
        for one, other in pairwise(self._in_order):
            if one.offset + one.size > other.header:
                raise self.damaged(f"its records {one.name!r} and {other.name!r} overlap")
        if self._in_order and self._in_order[-1].offset + self._in_order[-1].size > start:
            raise self.damaged(f"its record {self._in_order[-1].name!r} overlaps the directory")

    def damaged(self, reason: str) -> CheckpointError:
        """Return the error for a file that cannot be read, with the reason."""
        return CheckpointError(
            f"{self._file.path}: expected a PyTorch checkpoint, but it cannot be read "
            f"({brief(reason)}). It is truncated or damaged; fetch it again."
        )

    def read(self, name: str, most: int) -> bytes:
        """Return a record's bytes after checking their CRC-32.

        Raises:
            CheckpointError: If it has more than `most` bytes, or the checksum differs.
        """
        record = self.records[name]
        if record.size > most:
            raise self.damaged(f"{name!r} has {record.size:,} bytes, more than {most:,}")
        content = bytearray(record.size)
        self._file.read_into(memoryview(content), record.offset)
        self._check(record, isal_zlib.crc32(content))
        return bytes(content)

    def hash_into(
        self, digest: hashlib._Hash, advance: Callable[[int], None] | None = None
    ) -> None:
        """Read the whole file once, into a hash, and check the CRC-32 of every record on the way.

        Raises:
            CheckpointError: If a checksum differs.
        """
        position = 0
        for record in self._in_order:
            self._pass(digest, position, record.offset, advance)
            position = record.offset + record.size
            self._check(record, self._pass(digest, record.offset, position, advance))
        self._pass(digest, position, self._file.size, advance)

    def _check(self, record: Record, crc: int) -> None:
        if crc != record.crc:
            raise CheckpointError(
                f"{self._file.path}: its record {brief(repr(record.name))} is damaged: expected "
                f"CRC-32 {record.crc:08x}, found {crc:08x}. Fetch the file again."
            )

    def _pass(
        self,
        digest: hashlib._Hash,
        start: int,
        stop: int,
        advance: Callable[[int], None] | None,
    ) -> int:
        crc = 0
        for piece in read_pieces(self._file, start, stop):
            digest.update(piece)
            crc = isal_zlib.crc32(piece, crc)  # equals zlib's, several times faster
            if advance:
                advance(len(piece))
        return crc

    def _directory(self) -> tuple[int, bytes, int]:
        """Return the position of the directory, its bytes, and the number of its entries."""
        file = self._file
        end = file.size - _END.size
        magic, *disks, count, size, start, comment = self._unpack(_END, end)
        entries, limit = disks.pop(), end
        magic64, disk64, end64, total = self._unpack(_LOCATOR64, end - _LOCATOR64.size)
        if magic != b"PK\x05\x06" or comment or any(disks) or entries != count:
            raise self.damaged("it does not end with a zip directory")
        if magic64 == b"PK\x06\x07":
            fields = self._unpack(_END64, end64)
            wide = fields[7], fields[8], fields[9]
            limit = end - _LOCATOR64.size - _END64.size
            narrow = (count, _FULL16), (size, _FULL32), (start, _FULL32)
            agree = all(
                value in (full, other) for (value, full), other in zip(narrow, wide, strict=True)
            )
            regular = fields[1] == _END64.size - 12 and fields[4:6] == (0, 0)
            if fields[0] != b"PK\x06\x06" or end64 != limit or (disk64, total) != (0, 1):
                raise self.damaged("the end of its zip directory is not where it is stated")
            if not agree or not regular or fields[6] != fields[7]:
                raise self.damaged("its zip directory contradicts itself")
            count, size, start = wide
        if size > MAX_DIRECTORY_BYTES:
            raise self.damaged(f"its zip directory claims {size:,} bytes")
        if start + size != limit:
            raise self.damaged("its zip directory is not at the end of the file")
        return start, file.read(start, size), count

    def _add(self, directory: bytes, position: int) -> int:
        """Read one entry of the directory; return the position of the next."""
        if position + _ENTRY.size > len(directory):
            raise self.damaged("its zip directory ends early")
        fields = _ENTRY.unpack_from(directory, position)
        (
            magic,
            _,
            version,
            flags,
            method,
            _,
            _,
            crc,
            packed,
            size,
            *lengths,
            disk,
            _,
            kind,
            header,
        ) = fields
        name_end = position + _ENTRY.size + lengths[0]
        stop = name_end + lengths[1] + lengths[2]
        raw = directory[position + _ENTRY.size : name_end]
        if magic != b"PK\x01\x02" or stop > len(directory) or disk or version & 0xFF > _VERSION:
            raise self.damaged("its zip directory is malformed")
        name = self._name(raw)
        extra = directory[name_end : name_end + lengths[1]]
        size, packed, header = self._widened(extra, size, packed, header)
        if flags & (_ENCRYPTED | _MASKED):
            raise CheckpointError(
                f"{self._file.path}: its record {brief(repr(name))} is encrypted, expected plain "
                "data. Decrypt the file first."
            )
        if method != _STORED:
            raise CheckpointError(
                f"{self._file.path}: its record {brief(repr(name))} is compressed (zip method "
                f"{method}), expected stored data, as torch.save writes. Another tool packed the "
                "archive again; fetch the original, or load it with PyTorch and save it again."
            )
        if packed != size:
            raise self.damaged(f"{name!r} states two sizes, {size:,} and {packed:,} bytes")
        if kind & _FOLDER and size:  # which PyTorch takes for a folder, and reads nothing
            raise self.damaged(f"{name!r} is marked as a folder, but has {size:,} bytes")
        offset = self._data_offset(name, raw, flags, (crc, packed, size), header)
        self.records[name] = Record(name, header, offset, size, crc)
        return int(stop)

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = ""
        if not name or len(name) > _MAX_NAME or not name.isprintable():
            raise self.damaged("a record's name is not printable text")
        if name in self.records:
            raise self.damaged(f"two records are named {name!r}")
        return name

    def _widened(self, extra: bytes, *numbers: int) -> list[int]:
        """Return size, packed size and header position, the large ones from the zip64 field."""
        fields: dict[int, bytes] = {}
        position = 0
        while position + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, position)
            fields.setdefault(kind, extra[position + 4 : position + 4 + length])
            position += 4 + length
        wide, wanted = fields.get(_ZIP64, b""), [n for n in numbers if n == _FULL32]
        if len(wide) < 8 * len(wanted):
            raise self.damaged("its zip directory lacks a zip64 field")
        found = list(struct.unpack_from(f"<{len(wanted)}Q", wide))
        return [found.pop(0) if number == _FULL32 else number for number in numbers]

    def _data_offset(
        self, name: str, raw: bytes, flags: int, stated: tuple[int, int, int], header: int
    ) -> int:
        """Return the position of a record's data, after comparing its own header."""
        fields = self._unpack(_LOCAL, header)
        magic, _, own_flags, method, _, _, *own, name_size, extra_size = fields
        offset = header + _LOCAL.size + name_size + extra_size
        if magic != b"PK\x03\x04" or self._file.read(header + _LOCAL.size, name_size) != raw:
            raise self.damaged(f"{name!r} is not where the zip directory says")
        later = bool(own_flags & _SIZES_FOLLOW)  # then the header may leave its numbers out
        absent = (0, _FULL32) if later else (_FULL32,)
        same = all(mine in (said, *absent) for mine, said in zip(own[1:], stated[1:], strict=True))
        same &= own[0] == stated[0] or (later and own[0] == 0)
        if not same or method != _STORED or own_flags != flags:
            raise self.damaged(f"the header of {name!r} contradicts the zip directory")
        if offset + stated[2] > self._file.size:
            raise self.damaged(f"{name!r} claims more bytes than the file has")
        return int(offset)

    def _unpack(self, form: struct.Struct, position: int) -> tuple[Any, ...]:
        """Return the fields at a position; zeros where the file has no such bytes."""
        raw = self._file.read(position, form.size) if 0 <= position < self._file.size else b""
        return form.unpack(raw.ljust(form.size, b"\0"))
