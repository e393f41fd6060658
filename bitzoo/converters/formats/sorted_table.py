"""Read the sorted table of keys and values that is the index of a TensorFlow checkpoint.

The format is LevelDB's: blocks of entries whose keys share prefixes, each block with a CRC-32C; a
block that lists the blocks; a footer that says where that is. Everything is checked, and sizes are
bounded before anything is made of them. Source: github.com/google/leveldb, doc/table_format.md;
github.com/tensorflow/tensorflow, tensorflow/core/lib/io/format.cc and block.cc.
"""

from __future__ import annotations

import struct
from itertools import pairwise

import google_crc32c

from bitzoo.converters.formats.protobuf_wire import read_varint, take

MAX_TABLE_BYTES = 4 << 20
"""Bound on a table; that of the largest network after training has 100 kB."""
MAX_ENTRIES = 20_000
MAX_VALUE_BYTES = 1 << 16
MAGIC = bytes.fromhex("57fb808b247547db")
"""Last bytes of a table."""
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
"""After each block: how it is compressed, and its CRC-32C."""
_MAX_KEY_BYTES = 1_024
_MASK_DELTA, _MASK_SHIFT = 0xA282EAD8, 15


def read_table(data: bytes) -> list[tuple[bytes, memoryview]]:
    """Return the keys and values of a table, in its order, which is that of the keys.

    Args:
        data: The whole table.

    Raises:
        ValueError: If it is damaged or has more than `MAX_ENTRIES` entries.
    """
    view = memoryview(data)
    if len(view) < _FOOTER_BYTES or view[-len(MAGIC) :] != MAGIC:
        raise ValueError("the index does not end as one")
    footer = view[-_FOOTER_BYTES:]
    others, position = _handle(footer, 0)
    listed, _ = _handle(footer, position)
    _entries(_block(view, others))
    entries: list[tuple[bytes, memoryview]] = []
    spent = 0
    for last_key, where in _entries(_block(view, listed)):
        handle, _ = _handle(where, 0)
        spent += handle[1]
        if spent > len(view):  # else a small table could be read for hours
            raise ValueError("the blocks of the index overlap")
        entries += _entries(_block(view, handle))
        if entries and entries[-1][0] > last_key:
            raise ValueError("the keys of the index are out of order")
        if len(entries) > MAX_ENTRIES:
            raise ValueError(f"the index has more than {MAX_ENTRIES:,} entries")
    if any(first >= second for (first, _), (second, _) in pairwise(entries)):
        raise ValueError("the keys of the index are out of order")
    return entries


def masked(crc: int) -> int:
    """Return a CRC-32C as TensorFlow stores it.

    Source: tensorflow/core/lib/hash/crc32c.h.
    """
    rotated = crc >> _MASK_SHIFT | crc << (32 - _MASK_SHIFT)
    return (rotated + _MASK_DELTA) & 0xFFFFFFFF


def _handle(data: memoryview, position: int) -> tuple[tuple[int, int], int]:
    """Return where a block is: its offset and size; and the position after that."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _block(data: memoryview, handle: tuple[int, int]) -> memoryview:
    offset, size = handle
    checked = take(data, min(offset, len(data)), size + _TRAILER_BYTES)
    (crc,) = struct.unpack_from("<I", checked, size + 1)
    if masked(google_crc32c.value(bytes(checked[: size + 1]))) != crc:
        raise ValueError("the checksum of a block of the index does not match")
    if kind := checked[size]:
        raise ValueError(f"the index is compressed by method {kind}, expected none")
    return checked[:size]


def _entries(block: memoryview) -> list[tuple[bytes, memoryview]]:
    """Return the entries of a block, whose last numbers say where keys stand whole."""
    if len(block) < 4:
        raise ValueError("a block of the index is too short")
    (count,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * count
    if end < 0 or count > MAX_ENTRIES:
        raise ValueError("a block of the index is shorter than it says")
    whole = set(struct.unpack_from(f"<{count}I", block, end))
    block, position, key = block[:end], 0, b""
    entries: list[tuple[bytes, memoryview]] = []
    while position < end:
        starts = position in whole
        whole.discard(position)
        shared, position = read_varint(block, position)
        more, position = read_varint(block, position)
        size, position = read_varint(block, position)
        if shared > len(key) or (starts and shared) or shared + more > _MAX_KEY_BYTES:
            raise ValueError("a key of the index is damaged")
        key = key[:shared] + bytes(take(block, position, more))
        value = take(block, position + more, size)
        position += more + size
        entries.append((key, value))
        if len(entries) > MAX_ENTRIES or size > MAX_VALUE_BYTES:
            raise ValueError("a block of the index has more than it should")
    if whole - {0}:
        raise ValueError("a block of the index lists keys where there are none")
    return entries
