"""A full disk in one sentence, whatever the library that wrote throws."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitzoo.errors import BitzooError, StorageError

_PIECE = 1 << 20
_MARGIN = 1.15
"""A file's size over that of its parameters, at most, apart from a piece for small ones."""


def require_room(path: Path, size: int) -> None:
    """Raise if the disk of `path` has fewer than `size` bytes free.

    Raises:
        StorageError: With both numbers.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise StorageError(
            f"{path}: needs {size:,} bytes, but its disk has only {free:,} free. Free some space, "
            "or choose another `out`."
        )


@contextmanager
def disk_errors(path: Path, size: int) -> Iterator[None]:
    """Raise a StorageError for what the body throws because `path` could not be written.

    The libraries report a failed write each in its own way, or not at all until the truncated file
    is read. So after an error that names no cause, the disk itself is asked: if it does not take
    that many bytes now, after what the body left was removed, it is the cause.

    Args:
        path: The output; its folder is on the disk in question.
        size: Bytes of the parameters to write.

    Raises:
        StorageError: With what the operating system says.
    """
    try:
        yield
    except BitzooError:
        raise
    except Exception as error:
        refused = error if isinstance(error, OSError) and error.errno else _refusal(path, size)
        if refused is None:
            raise
        raise StorageError(
            f"{path}: cannot be written ({refused.strerror}). Nothing was left behind. Free some "
            "space or check the permissions of its folder, or choose another `out`."
        ) from error


def _refusal(path: Path, size: int) -> OSError | None:
    """Write zeros next to `path`, and return the error of doing so."""
    piece = bytes(_PIECE)
    try:
        with tempfile.TemporaryFile(dir=path.parent, buffering=0) as file:
            for _ in range(int(size * _MARGIN) // _PIECE + 2):
                if file.write(piece) < _PIECE:  # the next write says why
                    file.write(piece)
    except OSError as error:
        return error
    return None
