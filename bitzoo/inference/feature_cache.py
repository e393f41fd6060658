"""On-disk cache of computed features: immutable files, looked up by the images' contents.

A file has up to `ROWS` images, in a folder per network and way of preparing images::

    features/<key>/<digest>-<count>.features
        32 bytes             SHA-256 of all that follows
        count x 32 bytes     SHA-256 of each image's content
        count x width x 4    the features, float32, little-endian

As in the cache of decoded images, nothing is appended or patched, a file gets its name when its
bytes are on the disk, and removing one (or the whole folder) is always safe: what is missing or
damaged is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitzoo.files import replaced

ROWS = 2048
"""Most images per file: bounds what is lost if the work is interrupted."""

_SUFFIX = ".features"
_DIGEST = 32
_log = logging.getLogger(__name__)

Features = npt.NDArray[np.float32]


def read_rows(folder: Path, hashes: Sequence[bytes], out: Features) -> npt.NDArray[np.int64]:
    """Fill in the features that are stored; a damaged file is removed, with a warning.

    Args:
        folder: The folder of one network and one way of preparing images.
        hashes: SHA-256 of each image's content.
        out: float32 (len(hashes), width); rows that are found are written.

    Returns:
        Which rows were not found, ascending.
    """
    wanted: dict[bytes, list[int]] = {}
    for number, digest in enumerate(hashes):
        wanted.setdefault(digest, []).append(number)
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        stored = _read(path, out.shape[1])
        if stored is None:
            _log.warning("Removed the damaged file %s; its features are computed again", path)
            with contextlib.suppress(OSError):  # of another user's cache
                path.unlink()
            continue
        for digest, row in zip(*stored, strict=True):
            for number in wanted.pop(digest, ()):
                out[number] = row
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of last use, for `make_room`
        if not wanted:
            break
    return np.array(sorted(number for rows in wanted.values() for number in rows), np.int64)


def write_rows(folder: Path, hashes: Sequence[bytes], rows: Features) -> None:
    """Store features.

    Args:
        folder: As for `read_rows`; created if missing.
        hashes: SHA-256 of each image's content.
        rows: float32 (len(hashes), width).

    Raises:
        OSError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = b"".join(hashes) + rows.astype("<f4").tobytes()
    digest = hashlib.sha256(body).digest()
    path = folder / f"{digest.hex()[:32]}-{len(hashes)}{_SUFFIX}"
    with replaced(path, durable=True) as part:
        part.write_bytes(digest + body)


def make_room(cache: Path, budget: int, keep: Path) -> None:
    """Remove files, least recently used first, until all folders together fit the budget.

    Args:
        cache: The folder of all folders.
        budget: Most bytes.
        keep: The folder that is in use; its files stay.
    """
    found = [(path.stat(), path) for path in cache.glob(f"*/*{_SUFFIX}")]
    excess = sum(status.st_size for status, _ in found) - budget
    for status, path in sorted(found, key=lambda entry: entry[0].st_mtime_ns):
        if excess <= 0:
            return
        if path.parent != keep:
            path.unlink(missing_ok=True)
            excess -= status.st_size


def _read(path: Path, width: int) -> tuple[list[bytes], Features] | None:
    """Return hashes and features of a file; None if it is not what was written."""
    try:
        content = path.read_bytes()
        count = int(path.stem.rpartition("-")[2])
    except (OSError, ValueError):
        return None
    body = memoryview(content)[_DIGEST:]
    if count < 1 or len(body) != count * (_DIGEST + 4 * width):
        return None
    if hashlib.sha256(body).digest() != content[:_DIGEST]:
        return None
    heads = bytes(body[: count * _DIGEST])
    hashes = [heads[start : start + _DIGEST] for start in range(0, len(heads), _DIGEST)]
    rows = np.frombuffer(body[count * _DIGEST :], "<f4").reshape(count, width)
    return hashes, rows.astype(np.float32, copy=False)
