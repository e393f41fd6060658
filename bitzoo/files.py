"""Files on this disk: written whole or not at all, locked among processes, hashed.

Every file that bitzoo writes appears under its name by an atomic rename, so that whoever sees it
sees all of it; what a failed write leaves is removed. One lock per name keeps two processes apart.
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
from typing import Any

from bitzoo.errors import BitzooError, StorageError, UsageError

Progress = Callable[[str, int, int], None]
"""Called as ``progress(task, done, total)`` while work goes on."""

_HASH_BYTES = 1 << 20
_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Folder for fetched files: BITZOO_CACHE, $XDG_CACHE_HOME/bitzoo or ~/.cache/bitzoo."""
    if own := os.environ.get("BITZOO_CACHE"):
        return Path(own).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))  # counts only if absolute, says its standard
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "bitzoo"


# --- writing ------------------------------------------------------------------------------------


@contextmanager
def replaced(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place if the body succeeds.

    Args:
        path: The final name; what stands there is replaced at once. Its folder must exist.
        durable: Whether the bytes are on the disk before they get the name, so that not even a
            power cut leaves a damaged file under it.
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
        with contextlib.suppress(OSError):  # the disk may be gone, which the body has told
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text in one piece, UTF-8 with plain newlines."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object in one piece."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sync(path: Path) -> None:
    """Have the operating system bring a file, or a folder's list of files, to the disk."""
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
        size: Bytes that will be written; the disk must have them.
        force: Whether an existing output may be replaced.
        contents: For a folder, the names that one to be replaced may hold; the temporary folder is
            there already. None for a file.

    Raises:
        UsageError: If `path` may not or cannot be written.
    """
    check_replaceable(path, force=force, contents=contents)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise UsageError(
            f"{path}: needs {size:,} bytes, but its disk has {free:,} free. Make room or choose "
            "another output."
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
    """Refuse an output that exists and may not be replaced; a folder never takes strange files.

    Raises:
        UsageError: Says what stands there.
    """
    if contents is not None and path.is_dir():
        strange = sorted({entry.name for entry in path.iterdir()} - set(contents))
        if strange:
            raise UsageError(
                f"{path}: expected a new folder, found one that holds {', '.join(strange[:3])}. "
                "Choose another output."
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
    # Process numbers repeat across containers that share a disk, and threads share theirs.
    return path.with_name(f".bitzoo-{secrets.token_hex(4)}.tmp")


def _link(temporary: Path, path: Path) -> bool:
    """Give a file a second name that nothing has; False where the disk knows no second names.

    Raises:
        UsageError: If something has got the name meanwhile.
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
    """Put a folder in the place of another, which goes only when the new one is there."""
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

    The lock is the file ``<path>.lock``, which stays behind; a process that dies lets go of it.
    It is not reentrant, and `bitzoo.fetch.http.download` takes the lock of its own target.

    Missing parent folders are made.

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
            _log.warning("Waiting for another process that is busy with %s", path)
            lock.acquire(timeout=-1)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on a folder itself, which leaves no file behind in it."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> StorageError:
    """Return the error that says what to do about a path that cannot be written."""
    return StorageError(
        f"{path} could not be written: {error}. Make the folder writable, or point BITZOO_CACHE at "
        "one that is."
    )


# --- reading ------------------------------------------------------------------------------------


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; none if there is no such file.

    A line that a killed process left half-written, or that is no object, is left out.
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
    """Return the SHA-256 of a file as hex; of several, that of one after the other.

    Args:
        *paths: The files, in order.
        advance: Called with the number of bytes that each step has read.

    Raises:
        OSError: If a file cannot be opened.
        StorageError: If its disk fails.
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
                        "disk, or fetch it again."
                    ) from error
                if not count:
                    break
                digest.update(buffer[:count])
                if advance:
                    advance(count)
    return digest.hexdigest()
