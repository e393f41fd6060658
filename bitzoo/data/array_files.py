"""Keep named arrays in one file of the cache: written atomically, checked, mapped into memory.

JSON at the end says what is there: whatever the caller wants to keep beside the arrays, and for
each array its name, dtype, length, place and CRC-32; the last bytes are the CRC-32 and the length
of the JSON.
Mapped arrays are read when they are used, and need no memory that others could want.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.files import replaced

Array = npt.NDArray[Any]

_ALIGN = 64
_CHUNK = 1 << 22
_END = struct.Struct("<IQ")
"""The last bytes: the CRC-32 of the JSON, and its length."""
_FORM = "bitzoo arrays 2"
"""Changes with the form of these files."""


def write_arrays(
    path: Path, about: Mapping[str, Any], arrays: Mapping[str, Iterable[Array]]
) -> None:
    """Write a file of arrays.

    Args:
        path: The file; its folder must exist.
        about: What to keep beside them, as JSON.
        arrays: Name -> parts of one dtype, which become one array of one dimension. Each is
            consumed once, part by part.

    Raises:
        OSError: If it cannot be written.
    """
    with replaced(path) as temporary, open(temporary, "wb") as file:
        described = []
        for name, parts in arrays.items():
            file.write(bytes(-file.tell() % _ALIGN))
            place, count, check, dtype = file.tell(), 0, 0, np.dtype(np.uint8)
            for part in parts:
                data = np.ascontiguousarray(part).data.cast("B") if len(part) else b""
                file.write(data)
                check, count, dtype = zlib.crc32(data, check), count + len(part), part.dtype
            described.append([name, dtype.str, count, place, check])
        tail = json.dumps({"form": _FORM, "about": about, "arrays": described}).encode()
        file.write(tail + _END.pack(zlib.crc32(tail), len(tail)))


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, Array]] | None:
    """Open a file of arrays.

    Every byte is checked first; nothing of that stays in memory.

    Returns:
        What was kept beside the arrays, and the arrays, mapped read-only; None if there is no such
        file, or it is damaged or of another version.
    """
    try:
        with open(path, "rb") as file:
            end = file.seek(-_END.size, os.SEEK_END)
            check, length = _END.unpack(file.read())
            if length > end or not _is_intact(file, end - length, length, check):
                return None
            file.seek(end - length)
            tail = json.loads(file.read(length))
            if tail["form"] != _FORM:
                return None
            arrays: dict[str, Array] = {}
            for name, kind, count, place, check in tail["arrays"]:
                dtype = np.dtype(kind)
                if dtype.hasobject or not _is_intact(file, place, count * dtype.itemsize, check):
                    return None
                arrays[name] = (
                    np.memmap(path, dtype, "r", place, (count,)) if count else np.empty(0, dtype)
                )
            return tail["about"], arrays
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # none yet, or damaged: the caller makes it again


def _is_intact(file: Any, start: int, size: int, expected: int) -> bool:
    file.seek(start)
    found = 0
    while size > 0:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            return False
        found, size = zlib.crc32(chunk, found), size - len(chunk)
    return bool(found == expected)
