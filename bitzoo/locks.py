"""Advisory locks between processes, and what stands in for them where a file system has none.

Every lock is `flock` on an open file or folder: the kernel drops it when the last process that has
the descriptor ends, however it ends, so no lock is ever stale. It works between containers that
share a disk. Some network and FUSE file systems have no locks and answer ENOSYS, ENOLCK or the
like. There a lock file in this machine's folder of temporary files stands in, which keeps apart the
processes of this machine; a warning says so once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from bitzoo.errors import StorageError

IDLE_SECONDS = 24 * 3600
"""Where locks do not exist, what nobody has written for so long counts as not in use."""

_NO_LOCKS = {
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EINVAL,
    errno.EBADF,  # NFS, of a folder: its exclusive locks need a file that is open for writing
}
_log = logging.getLogger(__name__)
_has_warned = False
_taken: set[int] = set()
"""Descriptors that `taken` holds."""


class _NoLocksError(Exception):
    """The file system has no locks."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path` among all processes of this machine; waits until it is free.

    The lock is the file ``<path>.lock``, which is not removed; a process that dies releases it.
    It is not reentrant, and `bitzoo.fetch.http.download` takes the lock of its own target.

    Missing parent folders are created.

    Raises:
        StorageError: If the lock file cannot be written.
    """
    lock = lock_of(path)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(lambda: _open_lock(lock), path))
        except OSError as error:
            raise unwritable(path, error) from error
        yield


def lock_of(path: Path) -> Path:
    """Return the file that `file_lock` locks for `path`."""
    return Path(f"{path}.lock")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on a folder itself, without a lock file in it; waits until it is free.

    Raises:
        OSError: If the folder cannot be opened.
    """
    with _locked(lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY), folder):
        yield


def hold_shared(file: IO[bytes] | int) -> None:
    """Mark an open file or folder as in use, for as long as its descriptor or a map of it exists.

    Where another process has claimed it (`claimed`), this waits. Nothing is marked on a file system
    that has no locks.

    Args:
        file: The open file, or its descriptor.
    """
    with contextlib.suppress(OSError, _NoLocksError):
        _flock(file if isinstance(file, int) else file.fileno(), shared=True, wait=True)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yield whether no process has a file or folder in use; then none can begin to in the body.

    Where locks do not exist, it is not in use if nothing was written to it for `IDLE_SECONDS`. What
    cannot be found out counts as in use.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        try:
            free = _flock(descriptor, shared=False, wait=False)
        except _NoLocksError:
            free = time.time() - _last_written(path) > IDLE_SECONDS
        except OSError:
            free = False
        yield free
    finally:
        os.close(descriptor)


@contextmanager
def taken(path: Path) -> Iterator[Literal["lock", "stand-in"] | None]:
    """Take a lock file for the body, if it is free; this does not wait.

    The holder may write to the file; it is removed at the end. One that a killed process left is
    free. Two holders in one process exclude each other too, and no child process inherits the lock.

    Args:
        path: The lock file, in an existing folder.

    Yields:
        None if another has it; ``stand-in`` on a file system without locks, where processes of
        other machines are not kept apart, and where the caller removes the file.

    Raises:
        OSError: If the file cannot be opened.
    """
    kind: Literal["lock", "stand-in"] = "lock"
    with contextlib.ExitStack() as stack:
        try:
            is_ours = _take(path, stack)
        except _NoLocksError as error:
            _warn_once(path, error)
            kind, is_ours = "stand-in", True
            with contextlib.suppress(OSError, _NoLocksError):  # then nothing keeps them apart
                is_ours = _take(_stand_in(path), stack)
        yield kind if is_ours else None


def is_held(path: Path) -> bool:
    """Whether any process has the file or folder in use, as in `claimed`."""
    with claimed(path) as free:
        return not free


def unwritable(path: Path, error: OSError) -> StorageError:
    """Return the error that says what to do about a path that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "Free some space there, or point BITZOO_CACHE at a folder on a larger disk."
    else:
        advice = "Make the folder writable, or point BITZOO_CACHE to one that is."
    return StorageError(f"{path} cannot be written: {error}. {advice}")


@contextmanager
def _locked(open_it: Callable[[], int], path: Path) -> Iterator[None]:
    """Hold an exclusive lock on what `open_it` opens, or on its stand-in."""
    with contextlib.ExitStack() as stack:
        try:
            _wait_for(stack, open_it(), path)
        except _NoLocksError as error:
            _warn_once(path, error)
            with contextlib.suppress(OSError, _NoLocksError):  # then nothing keeps them apart
                _wait_for(stack, _open_lock(_stand_in(path)), path)
        yield


def _wait_for(stack: contextlib.ExitStack, descriptor: int, path: Path) -> None:
    stack.callback(_release, descriptor)
    if not _flock(descriptor, shared=False, wait=False):
        _log.warning("Waiting for another process that is using %s", path)
        _flock(descriptor, shared=False, wait=True)


def _release(descriptor: int) -> None:
    import fcntl

    with contextlib.suppress(OSError):
        # Closing is not enough: a child process may have inherited the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _flock(descriptor: int, *, shared: bool, wait: bool) -> bool:
    """Lock an open file; False if another process has it and `wait` is False.

    Raises:
        _NoLocksError: If its file system has no locks.
    """
    import fcntl  # not on every platform that can import bitzoo

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise _NoLocksError(error.strerror) from error
        raise
    return True


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _stand_in(path: Path) -> Path:
    """Return the lock file that stands for a path; the same in all processes of this machine."""
    key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"bitzoo-{os.getuid()}-{key}.lock"


def _warn_once(path: Path, error: _NoLocksError) -> None:
    global _has_warned
    if not _has_warned:
        _has_warned = True
        _log.warning(
            "%s is on a file system without locks (%s). Processes of this machine still wait for "
            "each other, but those of other machines do not: let only one of them write there.",
            path,
            error,
        )


def _last_written(path: Path) -> float:
    """Return the newest time at which a file, or a folder or anything in it, was written."""
    times = [path.stat().st_mtime]
    if path.is_dir():
        for folder, names, files in os.walk(path):
            times += [os.lstat(os.path.join(folder, name)).st_mtime for name in (*names, *files)]
    return max(times)


def _take(path: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a file until `stack` is unwound, which also removes it; False if another has it."""
    while True:
        descriptor = _open_lock(path)
        _taken.add(descriptor)
        try:
            if not _flock(descriptor, shared=False, wait=False):
                return False
            if _is_at(path, descriptor):
                stack.callback(_give_back, path, descriptor)
                descriptor = -1
                return True
            # Else its holder removed it after it was opened here.
        finally:
            if descriptor >= 0:
                _taken.discard(descriptor)
                os.close(descriptor)


def _give_back(path: Path, descriptor: int) -> None:
    if descriptor in _taken:  # not in a forked child, which has nothing to give back
        with contextlib.suppress(OSError):
            if _is_at(path, descriptor):
                path.unlink()
        _taken.discard(descriptor)
        _release(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    """Close what a forked child inherited: it would hold the locks of a parent that is killed."""
    for descriptor in _taken:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _taken.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
