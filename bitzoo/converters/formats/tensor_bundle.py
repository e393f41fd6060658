"""Read TensorFlow's tensor bundles: an index of tensors, and shards with their bytes.

The index is a sorted table whose values are small messages: under the empty key the header, under
each other key where a tensor is. Sizes and positions are compared with the files before anything
is read. Source: github.com/tensorflow/tensorflow, tensorflow/core/protobuf/tensor_bundle.proto and
tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np

from bitzoo.converters.dtypes import BrainFloatTensor
from bitzoo.converters.formats.protobuf_wire import Message, read_varint, take
from bitzoo.converters.formats.sorted_table import MAX_TABLE_BYTES, masked, read_table
from bitzoo.converters.source import (
    Array,
    RawFile,
    RawTensor,
    Scratch,
    StoredTensor,
    brief,
    read_pieces,
)

MAX_SHARDS = 256
"""Bound on the number of files that are open at once."""
MAX_TEXT_BYTES = 2 << 20
"""Bound on a tensor of texts that is read; the object graph of the largest network has 200 kB."""
_VERSION = 1
"""Newest version of the format that there is: a file may ask for a newer reader."""
_MAX_RANK = 32
_MAX_SIZE = 1 << 62
_STRING, _BFLOAT16 = 7, 14
_DTYPES = {
    1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 8: "c8", 9: "i8", 10: "?", 11: "i1",
    12: "u1", 13: "i4", 14: "u2", 15: "i2", 16: "u2", 17: "u2", 18: "c16", 19: "f2", 22: "u4",
    23: "u8",
}  # fmt: skip
"""Kinds of numbers by their code; tensorflow/core/framework/types.proto. Of the others, whose bytes
have a form of their own or no name in NumPy, nothing is read."""


class OpaqueTensor(StoredTensor):
    """A tensor of anything but numbers."""

    dtype = np.dtype("V1")

    def __init__(self, name: str, shape: tuple[int, ...], code: int) -> None:
        """Note what is there.

        Args:
            name: Its key.
            shape: Its dimensions.
            code: Its kind in TensorFlow.
        """
        self.name, self.shape, self._code = name, shape, code

    @property
    def stored_dtype(self) -> str:
        """What it holds, in words."""
        return "string" if self._code == _STRING else f"TensorFlow's dtype {self._code}"

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Raise: there are no numbers."""
        raise TypeError(f"{self.name} holds {self.stored_dtype}")


class PartitionedTensor(StoredTensor):
    """A tensor stored in parts along one axis, as training on several machines leaves it."""

    def __init__(
        self, name: str, shape: tuple[int, ...], axis: int, parts: Sequence[StoredTensor]
    ) -> None:
        """Join parts.

        Args:
            name: Its key.
            shape: The dimensions of the whole.
            axis: Where the parts follow one another.
            parts: The parts, in order.
        """
        self.name, self.shape, self.dtype = name, shape, parts[0].dtype
        self._axis, self._parts = axis, parts

    @property
    def stored_dtype(self) -> str:
        """The stored dtype of the parts."""
        return self._parts[0].stored_dtype

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab of each part that has some of it."""
        stop = min(stop, self.shape[axis])
        start = min(start, stop)
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        whole = (scratch or Scratch()).array(shape, self.dtype)
        ends = accumulate(part.shape[self._axis] for part in self._parts)
        for part, end in zip(self._parts, ends, strict=True):
            first = end - part.shape[self._axis]
            if axis != self._axis:
                place, piece = slice(first, end), part.read_slab(axis, start, stop)
            else:
                low, high = max(start, first), min(stop, end)
                if low >= high:
                    continue
                place = slice(low - start, high - start)
                piece = part.read_slab(axis, low - first, high - first)
            whole[(slice(None),) * self._axis + (place,)] = piece
        return whole


@dataclass(frozen=True)
class _Entry:
    """Where a tensor is, as the index says."""

    key: str
    code: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[tuple[tuple[int, int], ...], ...]
    """Of a partitioned tensor: start and length of each part in each dimension; -1 for all."""

    @property
    def stop(self) -> int:
        return self.offset + self.size

    @classmethod
    def read(cls, key: bytes, value: memoryview) -> _Entry:
        message = Message(value)
        shape = message.message(2)
        dims = tuple(Message(dim).number(1) for dim in shape.each(2))
        possible = len(dims) <= _MAX_RANK and all(0 <= size < _MAX_SIZE for size in dims)
        if shape.number(3) or not possible:
            raise ValueError(f"{_shown(key)} has an impossible shape")
        return cls(
            key.decode("utf-8", errors="backslashreplace"),
            message.number(1),
            dims,
            message.number(3),
            message.number(4),
            message.number(5),
            message.number(6),
            tuple(_extents(Message(part), len(dims), key) for part in message.each(7)),
        )


class TensorBundle:
    """An open bundle.

    Attributes:
        tensors: Every tensor by its key.
        files: The index and the shards, in order.

    Raises:
        ValueError: If the bundle is damaged, unsafe or of a newer version.
    """

    def __init__(self, index: Path, find_shards: Callable[[int], Sequence[Path]]) -> None:
        """Read the index, and open the shards.

        Args:
            index: The index.
            find_shards: Returns the shards, given how many there are.
        """
        self.files = [RawFile(index)]
        try:
            table = self._read_table()
            count, self._order = _read_header(table.pop(b"", None))
            self.files += [RawFile(shard) for shard in find_shards(count)]
            self._read_entries(table)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the index and all shards."""
        return sum(file.size for file in self.files)

    def text(self, key: str) -> bytes:
        """Return the only element of a tensor of texts; empty if there is no such tensor.

        Raises:
            ValueError: If it is damaged, or anything else.
        """
        entry = self._entries.get(key)
        if entry is None:
            return b""
        if entry.code != _STRING or math.prod(entry.shape) != 1:
            raise ValueError(f"{key} is expected to be one text")
        return self._read_texts(entry)

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the index and the shards in order, and check each tensor's CRC-32C on the way.

        Only what is never read goes unchecked: long texts, and kinds that are neither text nor
        numbers.

        Raises:
            ValueError: If a checksum does not match.
        """
        digest = hashlib.sha256()
        for number, file in enumerate(self.files, start=-1):
            position = 0
            for entry in self._stored[number] if number >= 0 else ():
                self._hash(file, position, entry.offset, digest, advance)
                crc = self._hash(file, entry.offset, entry.stop, digest, advance)
                if entry.code in _DTYPES:
                    _check_crc(entry, crc)
                elif entry.code == _STRING and entry.size <= MAX_TEXT_BYTES:
                    self._read_texts(entry)
                position = entry.stop
            self._hash(file, position, file.size, digest, advance)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

    def _read_table(self) -> dict[bytes, memoryview]:
        file = self.files[0]
        if file.size > MAX_TABLE_BYTES:
            raise ValueError(
                f"its index has {file.size:,} bytes, expected at most {MAX_TABLE_BYTES:,}"
            )
        return dict(read_table(file.read(0, file.size)))

    def _read_entries(self, table: Mapping[bytes, memoryview]) -> None:
        found = {key: _Entry.read(key, value) for key, value in table.items()}
        of_parts = {
            key: [_part_key(key, extents) for extents in entry.slices]
            for key, entry in found.items()
            if entry.slices
        }
        parts = {part for keys in of_parts.values() for part in keys}
        for key in found.keys() - parts:
            if not found[key].key.isprintable():
                raise ValueError(f"the key {_shown(key)} is no name")
        self._entries = {entry.key: entry for key, entry in found.items() if key not in parts}
        self._stored = self._check_places([e for key, e in found.items() if key not in of_parts])
        self.tensors: dict[str, StoredTensor] = {
            entry.key: self._joined(entry, [found.get(part) for part in of_parts[key]])
            if key in of_parts
            else self._tensor(entry)
            for key, entry in found.items()
            if key not in parts
        }

    def _check_places(self, entries: Sequence[_Entry]) -> list[list[_Entry]]:
        """Return the tensors of each shard in their order; each has bytes of its own."""
        stored: list[list[_Entry]] = [[] for _ in self.files[1:]]
        for entry in entries:
            if not 0 <= entry.shard < len(stored):
                raise ValueError(f"{_shown(entry.key)} is in shard {entry.shard}, which is none")
            there = self.files[entry.shard + 1].size
            if entry.offset < 0 or entry.size < 0 or entry.stop > there:
                raise ValueError(
                    f"{_shown(entry.key)} has {entry.size:,} bytes from byte {entry.offset:,}, "
                    f"of {there:,} in its shard"
                )
            stored[entry.shard].append(entry)
        for shard in stored:
            shard.sort(key=lambda entry: (entry.offset, entry.stop))
            for first, second in pairwise(shard):
                if second.offset < first.stop:
                    raise ValueError(f"{_shown(first.key)} and {_shown(second.key)} overlap")
        return stored

    def _tensor(self, entry: _Entry) -> StoredTensor:
        if entry.code not in _DTYPES:
            return OpaqueTensor(entry.key, entry.shape, entry.code)
        dtype: np.dtype[Any] = np.dtype(_DTYPES[entry.code]).newbyteorder(self._order)
        needed = math.prod(entry.shape) * dtype.itemsize
        if needed != entry.size:
            raise ValueError(
                f"{_shown(entry.key)} of shape {entry.shape} needs {needed:,} bytes, found "
                f"{entry.size:,}"
            )
        file = self.files[entry.shard + 1]
        raw = RawTensor(entry.key, entry.shape, dtype, file, entry.offset)
        return BrainFloatTensor(raw) if entry.code == _BFLOAT16 else raw

    def _joined(self, whole: _Entry, parts: Sequence[_Entry | None]) -> StoredTensor:
        """Return a partitioned tensor, whose parts must be all of it and follow one another."""
        if None in parts or not parts:
            raise ValueError(f"a part of {_shown(whole.key)} is missing")
        axes = [
            axis
            for axis, size in enumerate(whole.shape)
            if any(extents[axis] not in ((0, -1), (0, size)) for extents in whole.slices)
        ]
        if len(axes) != 1:
            raise ValueError(
                f"{_shown(whole.key)} is in parts along {len(axes)} axes, of which only one can be "
                "joined: save it in one piece"
            )
        (axis,), position = axes, 0
        places = [extents[axis] for extents in whole.slices]
        present = [part for part in parts if part]
        placed = sorted(zip(places, present, strict=True), key=lambda pair: pair[0])
        for (start, length), part in placed:
            shape = (*whole.shape[:axis], length, *whole.shape[axis + 1 :])
            found = (start, part.shape, part.code, part.slices)
            if found != (position, shape, whole.code, ()):
                raise ValueError(f"the parts of {_shown(whole.key)} do not fit together")
            position += length
        if position != whole.shape[axis] or whole.code not in _DTYPES:
            raise ValueError(f"the parts of {_shown(whole.key)} do not fit together")
        tensors = [self._tensor(part) for _, part in placed]
        return PartitionedTensor(whole.key, whole.shape, axis, tensors)

    def _hash(
        self,
        file: RawFile,
        start: int,
        stop: int,
        digest: hashlib._Hash,
        advance: Callable[[int], None] | None,
    ) -> int:
        crc = 0
        for piece in read_pieces(file, start, stop):
            digest.update(piece)
            crc = google_crc32c.extend(crc, bytes(piece))  # takes nothing that could change
            if advance:
                advance(len(piece))
        return crc

    def _read_texts(self, entry: _Entry) -> bytes:
        """Return the bytes of all texts: they follow their lengths and the lengths' checksum."""
        if entry.size > MAX_TEXT_BYTES:
            raise ValueError(
                f"{_shown(entry.key)} has {entry.size:,} bytes of text, expected at most "
                f"{MAX_TEXT_BYTES:,}"
            )
        data = memoryview(self.files[entry.shard + 1].read(entry.offset, entry.size))
        position, total, lengths = 0, 0, bytearray()
        for _ in range(math.prod(entry.shape)):
            length, position = read_varint(data, position)
            lengths += struct.pack(self._order + ("I" if length < 1 << 32 else "Q"), length)
            total += length
        stored = bytes(take(data, position, 4))
        crc = google_crc32c.value(bytes(lengths))
        (expected,) = struct.unpack(self._order + "I", stored)
        texts = bytes(take(data, position + 4, total))
        if masked(crc) != expected or position + 4 + total != entry.size:
            raise ValueError(f"the lengths of {_shown(entry.key)} are damaged: a wrong checksum")
        _check_crc(entry, google_crc32c.extend(crc, stored + texts))
        return texts


def _read_header(value: memoryview | None) -> tuple[int, Literal["<", ">"]]:
    """Return the number of shards, and the order of bytes as `struct` writes it."""
    if value is None:
        raise ValueError("its index has no header")
    header = Message(value)
    count, endianness, versions = header.number(1), header.number(2), header.message(3)
    if not 1 <= count <= MAX_SHARDS:
        raise ValueError(f"its index counts {count:,} shards, expected 1 to {MAX_SHARDS}")
    if endianness not in (0, 1):
        raise ValueError(f"its order of bytes is {endianness}, expected 0 or 1")
    written, oldest = versions.number(1), versions.number(2)
    if written < 0 or oldest > _VERSION:
        raise ValueError(f"it needs version {oldest} of the format, expected {_VERSION}")
    if versions.has(3):  # bad_consumers: readers of versions that are known to misread it
        raise ValueError("it lists versions of the format that cannot read it")
    return count, ">" if endianness else "<"


def _extents(part: Message, rank: int, key: bytes) -> tuple[tuple[int, int], ...]:
    messages = [Message(extent) for extent in part.each(1)]
    if len(messages) != rank:
        raise ValueError(f"a part of {_shown(key)} has another rank")
    return tuple(
        (message.number(1), message.number(2) if message.has(2) else -1) for message in messages
    )


def _part_key(key: bytes, extents: Sequence[tuple[int, int]]) -> bytes:
    """Return the key of a part: ordered codes of 0, the name, the rank, and the extents.

    Source: tensorflow/core/util/saved_tensor_slice_util.cc and
    tensorflow/core/lib/strings/ordered_code.cc.
    """
    name = b"".join({0: b"\0\xff", 255: b"\xff\0"}.get(byte, bytes([byte])) for byte in key)
    rank = bytes([1, len(extents)]) if extents else b"\0"
    numbers = b"".join(_ordered(number) for pair in extents for number in pair)
    return b"\0" + name + b"\0\1" + rank + numbers


def _ordered(number: int) -> bytes:
    """Return the ordered code of a number from -1 on; as many leading ones as it has bytes."""
    if not -1 <= number < _MAX_SIZE:
        raise ValueError(f"a part of a tensor starts at or has {number:,}")
    if number < 0:
        return b"\x7f"
    size = number.bit_length() // 7 + 1
    return ((((1 << size) - 1) << 7 * size) | number).to_bytes(size, "big")


def _check_crc(entry: _Entry, crc: int) -> None:
    if masked(crc) != entry.crc:
        raise ValueError(
            f"{_shown(entry.key)} is damaged: expected the checksum {entry.crc:08x}, found "
            f"{masked(crc):08x}"
        )


def _shown(key: bytes | str) -> str:
    return brief(repr(key if isinstance(key, str) else key.decode("utf-8", "backslashreplace")))
