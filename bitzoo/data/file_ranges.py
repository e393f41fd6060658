"""Images that are stored inside larger files: where the bytes are, and reading them.

What says where an image is, is small and can be pickled, so any thread or process can read it.
Files stay open between reads, a bounded number of them; each read is one `pread`, which shares no
position with others.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from bitzoo.data.problems import DatasetError, printable
from bitzoo.models.image_files import open_image
from bitzoo.portable import pread

_MOST_OPEN = 128
"""Files that a process keeps open; systems allow from 256 on in all."""


class ChangedFileError(DatasetError):
    """A file that is not what it was when it was indexed: nothing of it can be relied on."""


@dataclass(frozen=True)
class FileIdentity:
    """What tells a file from what it was before it was written again.

    Attributes:
        size: In bytes.
        mtime_ns: When it was last written, in nanoseconds.
        inode: Its number in the file system; another one if it was replaced.
    """

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """Return the identity that `os.stat` shows."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file.

    Attributes:
        path: The file.
        offset: Where they begin.
        size: How many.
        identity: What the file must still be; None does not check.
    """

    path: str
    offset: int
    size: int
    identity: FileIdentity | None = None

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            ChangedFileError: If the file was changed since it was indexed.
            DatasetError: If it ends too early.
            OSError: If it cannot be read.
        """
        file = _open_file(self.path)
        if file.identity != self.identity:  # it may have been replaced since it was opened
            file = _open_file(self.path, again=True)
        if self.identity is not None and file.identity != self.identity:
            raise ChangedFileError(
                f"The file {printable(self.path)!r} has changed since it was indexed. Leave the "
                "shards alone while they are used, and start again."
            )
        content = pread(file.descriptor, self.size, self.offset)
        while 0 < len(content) < self.size:  # a read may be cut short, over 2 GB or by a signal
            more = pread(file.descriptor, self.size - len(content), self.offset + len(content))
            if not more:
                break
            content += more
        if len(content) != self.size:
            raise DatasetError(
                f"The file {printable(self.path)!r} is truncated: expected {self.size:,} bytes at "
                f"{self.offset:,}, found {len(content):,}. Copy or download it again."
            )
        return content


@dataclass(frozen=True)
class StoredImage:
    """Loads an image from the bytes of it that another file holds, as a file of its own.

    Attributes:
        place: Where they are.
    """

    place: FileRange

    @property
    def content(self) -> Callable[[], bytes]:
        """What returns the stored bytes."""
        return self.place.read

    def __call__(self) -> Image.Image:
        """Return the image."""
        return open_image(io.BytesIO(self.place.read()))


class _OpenFile:
    """An open file, closed when nobody holds it any more: a read in progress keeps it open."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.identity = FileIdentity.of(os.fstat(self.descriptor))

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


_opened: OrderedDict[str, _OpenFile] = OrderedDict()
_opening = threading.Lock()


def _open_file(path: str, *, again: bool = False) -> _OpenFile:
    with _opening:
        held = _opened.pop(path, None)
        file = _OpenFile(path) if held is None or again else held
        _opened[path] = file
        left = _opened.popitem(last=False)[1] if len(_opened) > _MOST_OPEN else None
    del left  # closes it, if no thread reads it
    return file


def _after_fork() -> None:
    global _opening
    _opening = threading.Lock()  # a thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
