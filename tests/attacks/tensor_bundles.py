"""Write the index of a TensorFlow checkpoint, with right checksums or without.

The `.index` is a LevelDB table (leveldb/doc/table_format.md): blocks of sorted keys with shared
prefixes, each with a type and a masked CRC-32C; values are protocol buffers
(tensorflow/core/protobuf/tensor_bundle.proto). Nothing is imported from TensorFlow or bitzoo.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

MAGIC = bytes.fromhex("57fb808b247547db")
Field = "tuple[int, int, int | bytes]"
"""Number, wire type and value of a field."""


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli)."""
    value, table = 0xFFFFFFFF, _CRC
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """As LevelDB and TensorFlow store a CRC."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def read_fields(data: bytes) -> list[tuple[int, int, int | bytes]]:
    """The fields of a protocol buffer in order."""
    fields: list[tuple[int, int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = read_varint(data, at)
        elif tag & 7 == 2:
            size, at = read_varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            size = 4 if tag & 7 == 5 else 8
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        fields.append((tag >> 3, tag & 7, value))
    return fields


def write_fields(fields: Iterable[tuple[int, int, int | bytes]]) -> bytes:
    """The protocol buffer with these fields."""
    out = bytearray()
    for number, kind, value in fields:
        out += varint(number << 3 | kind)
        if isinstance(value, bytes):
            out += varint(len(value)) + value
        elif kind == 0:
            out += varint(value)
        else:
            size = 4 if kind == 5 else 8
            out += (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return bytes(out)


def read_table(data: bytes) -> list[tuple[bytes, bytes]]:
    """Keys and values of an undamaged table."""
    footer = data[-48:]
    _, at = read_varint(footer, 0)
    _, at = read_varint(footer, at)
    offset, at = read_varint(footer, at)
    size, at = read_varint(footer, at)
    pairs = []
    for _, handle in _read_block(data[offset : offset + size]):
        start, at = read_varint(handle, 0)
        length, at = read_varint(handle, at)
        pairs += _read_block(data[start : start + length])
    return pairs


def _read_block(block: bytes) -> list[tuple[bytes, bytes]]:
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key, pairs = len(block) - 4 - 4 * restarts, 0, b"", []
    while at < end:
        shared, at = read_varint(block, at)
        own, at = read_varint(block, at)
        size, at = read_varint(block, at)
        key, at = key[:shared] + block[at : at + own], at + own
        pairs.append((key, block[at : at + size]))
        at += size
    return pairs


def write_table(pairs: Sequence[tuple[bytes, bytes]], per_block: int = 16) -> bytes:
    """A table of these pairs, in the order given, so many in each block."""
    out, index = bytearray(), []
    for start in range(0, max(len(pairs), 1), per_block):
        piece = list(pairs[start : start + per_block])
        handle = _add(out, _block(piece))
        index.append((piece[-1][0] if piece else b"", handle))
    meta = _add(out, _block([]))
    top = _add(out, _block(index))
    out += (meta + top).ljust(40, b"\0") + MAGIC
    return bytes(out)


def _add(out: bytearray, block: bytes) -> bytes:
    handle = varint(len(out)) + varint(len(block))
    out += block + b"\0" + struct.pack("<I", masked(crc32c(block + b"\0")))
    return handle


def _block(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    out, before, restarts = bytearray(), b"", [0]
    for number, (key, value) in enumerate(pairs):
        shared = 0
        if number % 16 == 0:
            restarts = [*restarts, len(out)] if number else restarts
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        before = key
    return (
        bytes(out) + struct.pack(f"<{len(restarts)}I", *restarts) + struct.pack("<I", len(restarts))
    )
