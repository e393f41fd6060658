"""Small files that describe a model or a run: read whole, but never without a bound.

`config.json` may be a pipe, which is waited on for ever, or `/dev/zero`, which has no end, or claim
a hundred million entries. Only regular files are opened, and only so many bytes are read of them.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from bitzoo.errors import CheckpointError, damage_reported

MAX_BYTES = 4 << 20
"""Bound on a file of JSON; a model's with 21,843 class names, written three times, has 2.5 MB.
Parsed, JSON has up to 30 times its bytes."""
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
    try:
        # Without O_NONBLOCK, a pipe that nobody writes to is waited on already when it is opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        if path.is_socket():  # it cannot be opened at all
            raise _no_file(path, "a socket") from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _no_file(path, next((word for is_, word in _KINDS if is_(mode)), "another thing"))
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)  # never more, also if it grows or states no size
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise CheckpointError(
            f"{path}: expected a small file of at most {limit:,} bytes, found more. It is damaged, "
            "or not what its name says."
        )
    return content


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


def _no_file(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a regular file, found {found}. Put the file itself there, or remove it."
    )
