"""Read messages in protobuf's wire format: field numbers and values, without the library.

A reader asks for the fields that it knows; others are passed over, as the format wants it. Source:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT = 10
"""Bytes of the longest varint, of 64 bits."""
MAX_FIELDS = 100_000
"""Bound on the fields of one message; a view of two bytes takes two hundred."""
_MAX_FIELD = (1 << 29) - 1
_SIGN, _WRAP = 1 << 63, 1 << 64


class Message:
    """The fields of a message.

    Of a field that stands several times, the last number counts, and the parts of a message in it
    are one message: what protobuf's own readers do.

    Raises:
        ValueError: If the bytes are no message.
    """

    def __init__(self, data: memoryview) -> None:
        """Read the fields.

        Args:
            data: The message; views of it are kept, no copies.
        """
        self._numbers: dict[int, int] = {}
        self._pieces: dict[int, list[memoryview]] = {}
        for count, (field, value) in enumerate(_fields(data)):
            if count >= MAX_FIELDS:
                raise ValueError(f"a message has more than {MAX_FIELDS:,} fields")
            if isinstance(value, int):
                self._numbers[field] = value
            else:
                self._pieces.setdefault(field, []).append(value)

    def number(self, field: int) -> int:
        """Return a number, with a sign where its 64 bits have one; 0 if the field is absent."""
        self._refuse(field, self._pieces)
        value = self._numbers.get(field, 0)
        return value - _WRAP if value & _SIGN else value

    def has(self, field: int) -> bool:
        """Whether the field is there."""
        return field in self._numbers or field in self._pieces

    def message(self, field: int) -> Message:
        """Return a message; one without fields if the field is absent."""
        pieces = self.each(field)
        return Message(pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces)))

    def each(self, field: int) -> list[memoryview]:
        """Return the bytes of a repeated field; empty if it is absent."""
        self._refuse(field, self._numbers)
        return self._pieces.get(field, [])

    def text(self, field: int) -> str:
        """Return a text; empty if the field is absent."""
        pieces = self.each(field)
        return str(pieces[-1], "utf-8") if pieces else ""

    def _refuse(self, field: int, others: dict[int, int] | dict[int, list[memoryview]]) -> None:
        if field in others:
            raise ValueError(f"field {field} of a message is of another kind")


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return the number, of at most 64 bits, at a position, and the position after it.

    Raises:
        ValueError: If the data ends within it, or it has more bits.
    """
    value = 0
    for index in range(_MAX_VARINT):
        if not 0 <= position + index < len(data):
            raise ValueError("the data ends within a number")
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            break
    else:
        raise ValueError("a number has too many bytes")
    if value >= _WRAP:
        raise ValueError("a number has more than 64 bits")
    return value, position + index + 1


def take(data: memoryview, position: int, size: int) -> memoryview:
    """Return the bytes at a position, all of which must be there.

    Raises:
        ValueError: If the data ends before.
    """
    if size > len(data) - position:
        raise ValueError(f"{size:,} bytes were expected where {len(data) - position:,} are left")
    return data[position : position + size]


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    position = 0
    while position < len(data):
        key, position = read_varint(data, position)
        field, kind = key >> 3, key & 7
        if not 0 < field <= _MAX_FIELD:
            raise ValueError(f"a message has a field of number {field}")
        if kind == _VARINT:
            number, position = read_varint(data, position)
            yield field, number
        elif kind == _BYTES:
            size, position = read_varint(data, position)
            piece = take(data, position, size)
            position += size
            yield field, piece
        elif kind in _FIXED:
            yield field, int.from_bytes(take(data, position, _FIXED[kind]), "little")
            position += _FIXED[kind]
        else:
            raise ValueError(f"field {field} of a message is of the unknown kind {kind}")
