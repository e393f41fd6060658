"""Keep the checks of images in the cache, so that a later run need not decode them again.

An image is known again by where its bytes are and what the file was: path, size, time of the last
change and inode, and within a shard the place. If any of them differs, it is checked again. What
depends on the machine rather than the image (a missing file or package, a limit on memory) is not
kept. A file of the cache holds the checks of one data set by one version of Pillow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

from bitzoo.data.array_files import read_arrays, write_arrays
from bitzoo.data.brightness import Levels
from bitzoo.data.file_ranges import FileIdentity, StoredImage
from bitzoo.data.image_check import ImageCheck
from bitzoo.data.problems import Reason
from bitzoo.errors import StorageError
from bitzoo.files import cache_dir
from bitzoo.locks import file_lock
from bitzoo.models.wide_values import WideRange

if TYPE_CHECKING:
    from typing_extensions import Self

    from bitzoo.data.examples import Example

_FORM = 1
"""Part of the names of the files; to change with their form, or with what `check_image` finds."""
_ID_BYTES = 16
_GOOD = b"[null"
"""How the JSON of an image without a problem begins."""
_KEPT_REASONS = (None, Reason.NO_BYTES, Reason.DAMAGED, Reason.ANIMATED)
_log = logging.getLogger(__name__)


def identity_of(example: Example) -> bytes | None:
    """Return what an image is known again by, 16 bytes; None if it is only in memory.

    Raises:
        OSError: If its file is missing.
    """
    if isinstance(example.load, StoredImage):
        place = example.load.place
        if place.identity is None:
            return None
        path, file, where = place.path, place.identity, (place.offset, place.size)
    elif example.path is not None:
        path, where = os.path.abspath(example.path), (0, -1)
        file = FileIdentity.of(os.stat(path))
    else:
        return None
    text = json.dumps([path, file.size, file.mtime_ns, file.inode, *where])
    return hashlib.blake2b(text.encode(), digest_size=_ID_BYTES).digest()


class KeptChecks:
    """The checks of a data set: those of earlier runs, and those that are added.

    Safe to use from several threads. A context manager, which saves what was added.

    Args:
        path: The file; None keeps nothing beyond this object.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = _load(path)
        self._added: dict[bytes, bytes] = {}
        self._has_bad = not all(text.startswith(_GOOD) for text in self._known.values())
        self._lock = threading.Lock()

    @classmethod
    def of(cls, source: str) -> KeptChecks:
        """Return those of a data set.

        Args:
            source: Its display name; images that are the same are known again only under it.
        """
        text = json.dumps([_FORM, PIL.__version__, source])
        try:
            folder = cache_dir() / "checks"
        except StorageError:
            return cls(None)
        return cls(folder / f"{hashlib.sha256(text.encode()).hexdigest()}.checks")

    def __len__(self) -> int:
        return len(self._known) + len(self._added)

    def find(self, example: Example) -> ImageCheck | None:
        """Return the check of an image; None if there is none."""
        identity = _identity(example)
        found = identity and (self._added.get(identity) or self._known.get(identity))
        return _unpacked(found) if found else None

    def find_bad(self, example: Example) -> ImageCheck | None:
        """Return the check of an image that cannot be used; None for any other."""
        if not self._has_bad:  # as for most data sets, for which nothing need be looked up
            return None
        found = self.find(example)
        return found if found and found.reason is not None else None

    def add(self, example: Example, check: ImageCheck) -> None:
        """Add a check; `save` keeps it."""
        identity = _identity(example)
        if identity is not None and check.reason in _KEPT_REASONS:
            with self._lock:
                self._added[identity] = _packed(check)
                self._has_bad |= check.reason is not None

    def checking(self, check: Callable[[Example], ImageCheck]) -> Callable[[Example], ImageCheck]:
        """Return a check that is made only of what is not known yet.

        Args:
            check: Checks an image.
        """

        def checked(example: Example) -> ImageCheck:
            found = self.find(example)
            if found is None:
                found = check(example)
                self.add(example, found)
            return found

        return checked

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


def _identity(example: Example) -> bytes | None:
    try:
        return identity_of(example)
    except OSError:
        return None


def _packed(check: ImageCheck) -> bytes:
    levels = check.levels
    wide = levels.wide if levels else None
    found = [
        check.reason and check.reason.name,
        *(check.detail, check.sha256, check.size, check.traits, check.signature.hex()),
        levels and [levels.low, levels.high],
        wide and [wide.lowest, wide.highest, wide.exact],
    ]
    return json.dumps(found).encode()


def _unpacked(kept: bytes) -> ImageCheck:
    reason, detail, sha256, size, traits, signature, levels, wide = json.loads(kept)
    values = wide and WideRange(*wide)
    return ImageCheck(
        Reason[reason] if reason else None,
        detail,
        sha256,
        tuple(size),
        tuple(traits),
        bytes.fromhex(signature),
        Levels(tuple(levels[0]), tuple(levels[1]), values) if levels else None,
    )


def _load(path: Path | None) -> dict[bytes, bytes]:
    found = read_arrays(path) if path is not None else None
    if found is None:
        return {}
    arrays: dict[str, Any] = found[1]
    ids, ends, texts = (bytes(arrays[n]) if n != "ends" else arrays[n].tolist() for n in _ARRAYS)
    starts = [0, *ends[:-1]]
    return {
        ids[row * _ID_BYTES : (row + 1) * _ID_BYTES]: texts[start:end]
        for row, (start, end) in enumerate(zip(starts, ends, strict=True))
    }


_ARRAYS = ("ids", "ends", "texts")


def _write(path: Path, checks: dict[bytes, bytes]) -> None:
    ends = np.cumsum([len(text) for text in checks.values()], dtype=np.int64)
    ids, texts = (np.frombuffer(b"".join(part), np.uint8) for part in (checks, checks.values()))
    write_arrays(path, {}, {"ids": [ids], "ends": [ends], "texts": [texts]})
