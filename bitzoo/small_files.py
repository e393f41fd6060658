"""Small files that describe a model or a run: read whole, but never without a bound.

`config.json` may be a pipe, which is waited on for ever, or `/dev/zero`, which has no end, or claim
a hundred million entries. Only regular files are opened, and only so many bytes are read of them.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bitzoo.errors import CheckpointError, damage_reported
from bitzoo.portable import BINARY, CLOSE_ON_EXEC, NO_WAIT, OPENS_FOLDERS

MAX_BYTES = 4 << 20
"""Bound on a file of JSON; a model's with 21,843 class names, written three times, has 2.5 MB.
Parsed, JSON has up to 30 times its bytes."""
MAX_LINES_BYTES = 256 << 20
"""Bound on a file of JSON lines; the metrics of a million updates have 100 MB."""
MAX_LINE_BYTES = 1 << 16
"""Bound on one of its lines; a longer one counts as damaged."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a small regular file, or of one that a link leads to.

    Raises:
        CheckpointError: If it is something else, as a pipe, or has more than `limit` bytes.
        OSError: If there is no such file, or it may not be read.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise _too_large(path, limit)
        content = file.read(size or limit + 1)  # in /proc files state no size
    if len(content) > limit:
        raise _too_large(path, limit)
    return content


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Return the text of a small file for people, such as a card; what is not UTF-8 is replaced.

    Raises:
        CheckpointError: If it is not a regular file, or has more than `limit` bytes.
        OSError: If there is no such file, or it may not be read.
    """
    text = read_bytes(path, limit).decode("utf-8", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json_lines(path: Path, limit: int = MAX_LINES_BYTES) -> list[dict[str, Any] | None]:
    """Return the object in each line of a JSON-lines file, None for lines that have none.

    A last line without its end, as a killed process leaves it, is left out if it has no object.
    Unlike `parse_json`, this takes NaN and infinity, which a loss can be.

    Raises:
        CheckpointError: If it is not a regular file, or has more than `limit` bytes.
        OSError: If there is no such file, or it may not be read.
    """
    found: list[dict[str, Any] | None] = []
    with _opened(path) as file:
        left, is_start = limit, True
        while line := file.readline(MAX_LINE_BYTES):
            left -= len(line)
            if left < 0:
                raise _too_large(path, limit)
            ends = line.endswith(b"\n")
            if is_start:
                record = _object_in(line)
                if ends or record is not None or len(line) == MAX_LINE_BYTES:
                    found.append(record)
            else:  # the rest of a line that is too long
                found[-1] = None
            is_start = ends
    return found


def _object_in(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file; see `read_bytes` for the errors."""
    try:
        # Without NO_WAIT, a pipe that nobody writes to is waited on already when it is opened.
        descriptor = os.open(path, os.O_RDONLY | NO_WAIT | CLOSE_ON_EXEC | BINARY)
    except OSError:
        if path.is_socket():  # it cannot be opened at all
            raise _no_file(path, "a socket") from None
        if path.is_dir() and not OPENS_FOLDERS:
            raise _no_file(path, "a folder") from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _no_file(path, next((word for is_, word in _KINDS if is_(mode)), "another thing"))
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a small file.

    Raises:
        CheckpointError: If it is not a regular file, has more than `limit` bytes, or contains
            anything but an object that `parse_json` takes.
        OSError: If there is no such file, or it may not be read.
    """
    text = read_bytes(path, limit)
    with damage_reported(path, "JSON", "It is damaged; fetch or make it again."):
        content = parse_json(text)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, found {type(content).__name__}. It is damaged; fetch "
            "or make it again."
        )
    return content


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text contains, if all of it can be used and written again.

    Infinity and NaN, which Python's parser takes, are not JSON, and a number that overflows becomes
    infinity. A lone surrogate (half of a character) can be escaped in JSON but is not text.

    Raises:
        ValueError: If it is not JSON in UTF-8, or has such a number or text.
        RecursionError: If it is nested too deeply.
    """
    decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    content = json.loads(decoded, parse_constant=_refuse, parse_float=_finite)
    if "\\ud" in decoded.lower():
        json.dumps(content, ensure_ascii=False).encode()  # raises for a lone surrogate
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _too_large(path: Path, limit: int) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a small file of at most {limit:,} bytes, found more. It is damaged, "
        "or not what its name says."
    )


def _no_file(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a regular file, found {found}. Put the file itself there, or remove it."
    )
