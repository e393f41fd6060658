"""Files on this disk: atomic writes, locks between processes, hashes.

Every file that bitzoo writes appears under its name by an atomic rename, so it is never seen
incomplete; what a failed write leaves is removed. A lock per name keeps processes apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bitzoo.errors import BitzooError, StorageError, UsageError

Progress = Callable[[str, int, int], None]
"""Called as ``progress(task, done, total)`` during the work."""

_HASH_BYTES = 1 << 20
_UNFINISHED = ".bitzoo-{}.tmp"
_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the cache folder: BITZOO_CACHE, $XDG_CACHE_HOME/bitzoo or ~/.cache/bitzoo."""
    if own := os.environ.get("BITZOO_CACHE"):
        return Path(own).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))  # ignored unless absolute, as specified
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "bitzoo"


# --- writing ------------------------------------------------------------------------------------


@contextmanager
def replaced(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path` that replaces it if the body succeeds.

    Args:
        path: The final name; an existing file is replaced atomically. Its folder must exist.
        durable: Whether to sync the bytes to disk before the rename, so that not even a power
            failure leaves a damaged file under the name.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # if the disk is gone, the body has already raised
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text atomically, UTF-8 with plain newlines."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half-written; only for who alone writes to the folder."""
    for leftover in folder.glob(_UNFINISHED.format("*")):
        leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's directory entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_output(
    path: Path, size: int, *, force: bool, contents: Collection[str] | None = None
) -> Iterator[Path]:
    """Yield a temporary path that becomes the output `path` if the body succeeds.

    Args:
        path: The final name.
        size: Bytes that will be written; the disk must have as many free.
        force: Whether an existing output may be replaced.
        contents: For a folder, the names that a folder to be replaced may contain; the temporary
            folder is created. None for a file.

    Raises:
        UsageError: If `path` may not or cannot be written.
    """
    check_replaceable(path, force=force, contents=contents)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise UsageError(
            f"{path}: needs {size:,} bytes, but its disk has only {free:,} free. Free some space, "
            "or choose another output."
        )
    temporary = _temporary(path)
    try:
        if contents is not None:
            temporary.mkdir()
        yield temporary
        if contents is not None and path.is_dir():
            _swap(temporary, path)
        elif contents is not None or force or not _link(temporary, path):
            os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, BitzooError):
            raise
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        if contents is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def check_replaceable(path: Path, *, force: bool, contents: Collection[str] | None = None) -> None:
    """Raise if an output exists and may not be replaced; a folder with other files never may.

    Raises:
        UsageError: With what is there.
    """
    if contents is not None and path.is_dir():
        strange = sorted({entry.name for entry in path.iterdir()} - set(contents))
        if strange:
            raise UsageError(
                f"{path}: expected a new folder, found one with {', '.join(strange[:3])}. Choose "
                "another output."
            )
        if force or not any(path.iterdir()):
            return
    if path.is_dir() or path.is_symlink() or path.exists():
        if not force or path.is_dir():
            raise UsageError(
                f"{path} already exists. Choose another output, or replace it with `force=True`."
            )
        if contents is not None:
            raise UsageError(f"{path}: expected a new folder, found a file. Choose another output.")


def _temporary(path: Path) -> Path:
    # Not the process id: containers that share a disk repeat them, and threads share theirs.
    return path.with_name(_UNFINISHED.format(secrets.token_hex(4)))


def _link(temporary: Path, path: Path) -> bool:
    """Give a file a second, unused name; False if the file system has no hard links.

    Raises:
        UsageError: If the name has been taken in the meantime.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        check_replaceable(path, force=False)
        raise
    except OSError:
        return False
    return True


def _swap(temporary: Path, path: Path) -> None:
    """Replace a folder by another; the old one is removed only when the new one is in place."""
    old = path.with_name(f"{temporary.name}.old")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


# --- locks --------------------------------------------------------------------------------------


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path` among all processes of this machine; waits until it is free.

    The lock is the file ``<path>.lock``, which is not removed; a process that dies releases it.
    It is not reentrant, and `bitzoo.fetch.http.download` takes the lock of its own target.

    Missing parent folders are created.

    Raises:
        StorageError: If the lock file cannot be written.
    """
    import filelock

    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            _log.warning("Waiting for another process that is using %s", path)
            lock.acquire(timeout=-1)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on a folder itself, without a lock file in it."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def hold_shared(file: IO[bytes]) -> None:
    """Mark an open file as in use, for as long as its descriptor or a map of it exists.

    Nothing is marked on a file system that has no locks, or where `is_held` asks at this moment.
    """
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_held(path: Path) -> bool:
    """Whether any process has the file in use; also if that cannot be found out."""
    import fcntl

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def unwritable(path: Path, error: OSError) -> StorageError:
    """Return the error that says what to do about a path that cannot be written."""
    return StorageError(
        f"{path} cannot be written: {error}. Make the folder writable, or point BITZOO_CACHE to "
        "one that is."
    )


# --- reading ------------------------------------------------------------------------------------


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON-lines file; empty if there is no such file.

    Lines that are not an object are left out, such as one that a killed process left incomplete.
    """
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def sha256_of(*paths: Path, advance: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file as hex, or of several files one after the other.

    Args:
        *paths: The files, in order.
        advance: Called with the number of bytes that each step has read.

    Raises:
        OSError: If a file cannot be opened.
        StorageError: If a file cannot be read, as on a failing disk.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASH_BYTES))
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while True:
                try:
                    count = file.readinto(buffer)
                except OSError as error:
                    raise StorageError(
                        f"{path}: cannot be read ({error.strerror or error}). Copy it to another "
                        "disk, or download it again."
                    ) from error
                if not count:
                    break
                digest.update(buffer[:count])
                if advance:
                    advance(count)
    return digest.hexdigest()
