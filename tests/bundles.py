"""Tensor bundles written byte by byte, so that they can be wrong in any one way.

The table and the messages are written from the formats' descriptions; nothing of bitzoo takes part.
"""

import struct

import google_crc32c

MAGIC = 0xDB4775248B80FB57
FLOAT, STRING = 1, 7


def masked(data):
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    """A field of a message: a number, or the bytes of a text or message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fixed32(number, value):
    return varint(number << 3 | 5) + struct.pack("<I", value)


def shape_message(shape):
    return b"".join(field(2, field(1, size)) for size in shape)


def entry(*, dtype=FLOAT, shape=(), shard=0, offset=0, size=0, crc=0, slices=()):
    parts = b"".join(
        field(7, b"".join(field(1, field(1, start) + field(2, length)) for start, length in part))
        for part in slices
    )
    return (
        field(1, dtype)
        + field(2, shape_message(shape))
        + field(3, shard)
        + field(4, offset)
        + field(5, size)
        + fixed32(6, crc)
        + parts
    )


def header(*, shards=1, endianness=0, consumer=0):
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1) + field(2, consumer))


def block(entries, *, kind=0, crc=None, restarts=None):
    """A block whose keys all stand whole, and what follows it."""
    body, starts = b"", []
    for key, value in entries:
        starts.append(len(body))
        body += varint(0) + varint(len(key)) + varint(len(value)) + key + value
    starts = (starts or [0]) if restarts is None else restarts
    body += struct.pack(f"<{len(starts) + 1}I", *starts, len(starts)) + bytes([kind])
    return body + struct.pack("<I", masked(body) if crc is None else crc)


def table(blocks, *, listed=None, magic=MAGIC):
    """A table of blocks, each a list of keys and values or the bytes of `block`."""
    data, handles = b"", []
    for content in blocks:
        made = content if isinstance(content, bytes) else block(content)
        last = b"\xff" * 8 if isinstance(content, bytes) else content[-1][0]
        handles.append((last, varint(len(data)) + varint(len(made) - 5)))
        data += made
    pointers = []
    for made in (block([]), block(handles if listed is None else listed(handles))):
        pointers.append(varint(len(data)) + varint(len(made) - 5))
        data += made
    return data + b"".join(pointers).ljust(40, b"\0") + struct.pack("<Q", magic)


def write(prefix, index, *shards):
    prefix.with_name(f"{prefix.name}.index").write_bytes(index)
    for number, data in enumerate(shards):
        name = f"{prefix.name}.data-{number:05d}-of-{len(shards):05d}"
        prefix.with_name(name).write_bytes(data)
    return prefix
