"""What POSIX systems have and Windows has not, with what stands in for it.

Nothing else in the package may use such names without asking first whether they are there, and a
test holds that. The stand-ins have the signatures of what they stand for.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
FOLDER = getattr(os, "O_DIRECTORY", 0)
CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0)
BINARY = getattr(os, "O_BINARY", 0)
"""Flags of `os.open`; 0 where the system knows no such thing."""

OPENS_FOLDERS = hasattr(os, "O_DIRECTORY")
"""Whether a folder can be opened, as to lock it or to flush its entries to disk."""

_RESERVED = {"con", "prn", "aux", "nul"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in range(10)
}
_position = threading.Lock()


def user_id() -> str:
    """Return what tells this user from others of the machine."""
    if hasattr(os, "getuid"):
        return str(os.getuid())
    try:
        import getpass  # here, as every command loads this module

        return re.sub(r"\W", "-", getpass.getuser())
    except (ImportError, KeyError, OSError):
        return "user"


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(processors())


def processors() -> frozenset[int]:
    """Return the numbers of these cores, as the kernel of Linux counts them."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_memory() -> int:
    """Return the bytes of memory of this machine."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil  # comes with accelerate

    return int(psutil.virtual_memory().total)


def valid_name(name: str) -> str:
    """Return a file name that every system takes: Windows refuses ``:``, names of devices and more.

    Args:
        name: A name without a path, as from an address.
    """
    plain = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name)
    plain = re.sub(r"[. ]+$", lambda end: "_" * len(end[0]), plain)
    return f"_{plain}" if plain.split(".")[0].lower() in _RESERVED else plain


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """Read by position, as `os.pread`, from any thread."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    """Write by position, as `os.pwrite`, from any thread."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


def _preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    done = 0
    for buffer in buffers:
        piece = pread(descriptor, len(buffer), offset + done)
        buffer[: len(piece)] = piece
        done += len(piece)
        if len(piece) < len(buffer):
            break
    return done


preadv: Callable[[int, Sequence[memoryview], int], int] = getattr(os, "preadv", _preadv)
"""Fill buffers by position, as `os.preadv`, from any thread; called for every row of a tensor."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees in blocks of up to 32 MB, for what it allocates next.

    GNU's C library gives a block of some hundred kilobytes back to the system when it is freed, and
    gets it again page by page: for decoded images of 500x400 pixels that took as long as resizing
    them. It adapts itself to large blocks when such are freed (mallopt(3), M_MMAP_THRESHOLD: up to
    32 MB, and twice as much is kept); this begins where that ends. Other libraries have no such
    function, and whoever has set one of its variables, `MALLOC_...`, knows better.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    import ctypes  # here, as every command loads this module

    function = getattr(ctypes.CDLL(None), "mallopt", None)
    if function is not None:
        function(_M_MMAP_THRESHOLD, 32 << 20)
        function(_M_TRIM_THRESHOLD, 64 << 20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""
