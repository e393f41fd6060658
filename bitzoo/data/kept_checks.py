"""Keep the checks of images in the cache, so that a later run need not read them again.

An image is known again by where its bytes are and what the file was: path, size, times of the last
changes and inode, and within a shard the place. If any of them differs, it is read again; if it
then has the content of an image that was checked before, it need not be decoded. What depends on
the machine rather than the image (a missing file or package, a limit on memory) is not kept. A file
of the cache holds the checks of one data set by one version of Pillow.

Clocks have ticks: a file that is written again within the tick in which it was written before may
look the same. So, as git does, an image is known again without reading only if its file was last
changed at least `TICK_NS` before the check. That needs a file system whose clock is not behind that
of this machine by more than its files are old, as that of a server may be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL

from bitzoo.data.array_files import read_arrays, write_arrays
from bitzoo.data.brightness import Levels
from bitzoo.data.file_ranges import StoredImage
from bitzoo.data.image_check import ImageCheck
from bitzoo.data.problems import Reason
from bitzoo.errors import StorageError
from bitzoo.files import cache_dir
from bitzoo.locks import file_lock
from bitzoo.models.wide_values import WideRange

if TYPE_CHECKING:
    from typing_extensions import Self

    from bitzoo.data.examples import Example

TICK_NS = 2_000_000_000
"""The coarsest clock of a file system in use: FAT counts times in steps of two seconds."""
_FORM = 3
"""Part of the names of the files; to change with their form, or with what `check_image` finds."""
_ID_BYTES, _SHA_BYTES = 16, 32
_KEPT_REASONS = (None, Reason.NO_BYTES, Reason.DAMAGED, Reason.ANIMATED)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What an image was, at a time.

    Attributes:
        identity: What it is known again by, 16 bytes.
        at_ns: When it was looked at.
        is_settled: Whether every later change of its file gives it another identity.
    """

    identity: bytes
    at_ns: int
    is_settled: bool


def look_at(example: Example) -> Seen | None:
    """Look at what an image is known again by; None if it is only in memory.

    Raises:
        OSError: If its file is missing.
    """
    now = time.time_ns()
    found = _identify(example)
    return found and Seen(found[0], now, found[1] + TICK_NS < now)


def _identify(example: Example) -> tuple[bytes, int] | None:
    """Return what an image is known again by, and when its file was last changed."""
    if isinstance(example.load, StoredImage):
        place = example.load.place
        if place.identity is None:
            return None
        path, file = place.path, place.identity
        text = f"{path}\0{file.size} {file.mtime_ns} {file.inode} {place.offset} {place.size}"
        changed = file.mtime_ns
    elif example.path is not None:
        path = os.fspath(example.path)
        if not path.startswith("/"):  # the common case is quick
            path = os.path.abspath(path)
        status = os.stat(path)
        # Anybody can set the time of the last change of the content, but not that of the inode's.
        written, changed = status.st_mtime_ns, status.st_ctime_ns
        text = f"{path}\0{status.st_size} {written} {status.st_ino} {changed}"
        changed = max(written, changed)
    else:
        return None
    return hashlib.blake2b(os.fsencode(text), digest_size=_ID_BYTES).digest(), changed


class _Entry(NamedTuple):
    """A check as it is kept: when it was made, SHA-256 of the content, or zeros, and the rest."""

    at_ns: int
    sha256: bytes
    signature: bytes
    found: list[Any]


class KeptChecks:
    """The checks of a data set: those of earlier runs, and those that are added.

    Safe to use from several threads. A context manager, which saves what was added.

    Args:
        path: The file; None keeps nothing beyond this object.
        recheck: Whether to know nothing of what earlier runs have kept.
    """

    def __init__(self, path: Path | None, *, recheck: bool = False) -> None:
        self._path, self._recheck = path, recheck
        self._known = {} if recheck else _load(path)
        self._added: dict[bytes, _Entry] = {}
        self._by_content: dict[bytes, _Entry] | None = None
        self._has_bad = any(entry.found[0] for entry in self._known.values())
        self._lock = threading.Lock()
        self.used: list[int] = []
        """When the checks were made that were found, for `describe_kept`."""

    @classmethod
    def of(cls, source: str, *, recheck: bool = False) -> KeptChecks:
        """Return those of a data set.

        Args:
            source: Its display name; images that are the same are known again only under it.
            recheck: As above.
        """
        text = json.dumps([_FORM, PIL.__version__, source])
        try:
            folder = cache_dir() / "checks"
        except StorageError:
            return cls(None)
        name = f"{hashlib.sha256(text.encode()).hexdigest()}.checks"
        return cls(folder / name, recheck=recheck)

    def __len__(self) -> int:
        return len(self._known) + len(self._added)

    def find(self, example: Example) -> ImageCheck | None:
        """Return the check of an image that is the same by its identity; None if there is none."""
        found = self._find(example)
        if found is None:
            return None
        self.used.append(found.at_ns)
        return _unpacked(found)

    def hash_of(self, example: Example) -> str:
        """Return the `Example.sha256` of an image that is the same by its identity; "" if none."""
        found = self._find(example)
        return found.sha256.hex() if found and any(found.sha256) else ""

    def _find(self, example: Example) -> _Entry | None:
        try:
            identity = _identify(example)
        except OSError:
            return None
        if identity is None:
            return None
        return self._added.get(identity[0]) or self._known.get(identity[0])

    def find_content(self, sha256: str) -> ImageCheck | None:
        """Return the check of an image by its content; None if there is none."""
        with self._lock:
            if self._by_content is None:
                entries = (*self._known.values(), *self._added.values())
                self._by_content = {entry.sha256: entry for entry in entries}
            found = self._by_content.get(bytes.fromhex(sha256))
        return _unpacked(found) if found else None

    def find_bad(self, example: Example) -> ImageCheck | None:
        """Return the check of an image that cannot be used; None for any other."""
        if not self._has_bad:  # as for most data sets, for which nothing need be looked up
            return None
        found = self.find(example)
        return found if found and found.reason is not None else None

    def look_at(self, example: Example) -> Seen | None:
        """Look at an image before it is read, for `add`; None if it cannot be known again."""
        try:
            return look_at(example)
        except OSError:
            return None

    def add(self, seen: Seen | None, check: ImageCheck) -> None:
        """Add a check; `save` keeps it.

        Args:
            seen: What the image was before it was read.
            check: Its check.
        """
        if seen is None or check.reason not in _KEPT_REASONS:
            return
        content = bytes.fromhex(check.sha256) or bytes(_SHA_BYTES)
        key = seen.identity if seen.is_settled else content[:_ID_BYTES]
        if any(key):  # of a bad image that may have changed since, nothing is known
            entry = _packed(seen.at_ns, content, check)
            with self._lock:
                self._added[key] = entry
                self._has_bad |= check.reason is not None
                if self._by_content is not None:
                    self._by_content[content] = entry

    def compared(
        self, kind: str, about: Iterable[bytes], make: Callable[[], dict[str, npt.NDArray[Any]]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the result of a comparison of all images; what was kept, if it is of the same.

        Args:
            kind: Which comparison; of each, the latest result is kept.
            about: All that the result depends on.
            make: Makes the result.
        """
        digest = hashlib.blake2b(digest_size=32)
        for part in about:
            digest.update(b"%d " % len(part) + part)
        path = self._path and self._path.with_suffix(f".{kind}")
        before = None if path is None or self._recheck else read_arrays(path)
        if before is not None and before[0] == {"of": digest.hexdigest()}:
            return before[1]
        made = make()
        if path is not None:
            with contextlib.suppress(OSError), file_lock(path):
                write_arrays(path, {"of": digest.hexdigest()}, {n: [a] for n, a in made.items()})
        return made

    def save(self) -> None:
        """Keep what was added, beside what another process has kept in between."""
        with self._lock:
            if self._path is None or not self._added:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with file_lock(self._path):
                    self._known = _load(self._path) | self._added
                    _write(self._path, self._known)
            except OSError as error:
                _log.warning(
                    "The images are checked again the next time: %s cannot be written: %s",
                    self._path,
                    error,
                )
            else:
                self._added = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.save()


def describe_kept(used: Sequence[int], total: int) -> str:
    """Return a sentence on the images that were not read again; "" if there are none.

    Args:
        used: When each of them was checked, `KeptChecks.used`.
        total: Number of all images.
    """
    if not used:
        return ""
    first, last = (
        time.strftime("%Y-%m-%d %H:%M", time.localtime(at // 10**9))
        for at in (min(used), max(used))
    )
    when = f"on {first}" if first == last else f"between {first} and {last}"
    count = f"{len(used):,}" if len(used) == total else f"{len(used):,} of {total:,}"
    return (
        f"Not read again: {count} images, checked {when}, unchanged by size, time and inode. "
        "`recheck=True` reads all."
    )


def _packed(at_ns: int, content: bytes, check: ImageCheck) -> _Entry:
    levels = check.levels
    wide = levels.wide if levels else None
    found = [
        check.reason and check.reason.name,
        *(check.detail, check.size, check.traits),
        levels and [levels.low, levels.high],
        wide and [wide.lowest, wide.highest, wide.exact],
    ]
    return _Entry(at_ns, content, check.signature, found)


def _unpacked(entry: _Entry) -> ImageCheck:
    reason, detail, size, traits, levels, wide = entry.found
    values = WideRange(*wide) if wide else None
    return ImageCheck(
        Reason[reason] if reason else None,
        detail,
        "" if reason else entry.sha256.hex(),
        tuple(size),
        tuple(traits),
        entry.signature,
        Levels(tuple(levels[0]), tuple(levels[1]), values) if levels else None,
    )


def _load(path: Path | None) -> dict[bytes, _Entry]:
    read = read_arrays(path) if path is not None else None
    if read is None:
        return {}
    arrays: dict[str, Any] = read[1]
    ids, contents, signatures, texts = (bytes(arrays[name]) for name in _BYTES)
    times, ends = arrays["times"].tolist(), arrays["ends"].tolist()
    rows = zip(times, [0, *ends[:-1]], ends, json.loads(texts), strict=True)
    return {
        ids[row * _ID_BYTES : (row + 1) * _ID_BYTES]: _Entry(
            at,
            contents[row * _SHA_BYTES : (row + 1) * _SHA_BYTES],
            signatures[start:end],
            found,
        )
        for row, (at, start, end, found) in enumerate(rows)
    }


_BYTES = ("ids", "contents", "signatures", "texts")


def _write(path: Path, checks: dict[bytes, _Entry]) -> None:
    entries = checks.values()
    columns = (
        b"".join(checks),
        b"".join(entry.sha256 for entry in entries),
        b"".join(entry.signature for entry in entries),
        json.dumps([entry.found for entry in entries]).encode(),
    )
    arrays: dict[str, list[npt.NDArray[Any]]] = {
        name: [np.frombuffer(column, np.uint8)]
        for name, column in zip(_BYTES, columns, strict=True)
    }
    arrays["times"] = [np.array([entry.at_ns for entry in entries], np.int64)]
    arrays["ends"] = [np.cumsum([len(entry.signature) for entry in entries], dtype=np.int64)]
    write_arrays(path, {}, arrays)
