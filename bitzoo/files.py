"""Files on this disk: atomic writes, hashes, and where the cache is.

Every file that bitzoo writes appears under its name by an atomic rename, so it is never seen
incomplete. Until then it lies in a hidden workspace beside that name, ``.bitzoo-<random>.tmp``,
which is removed at the end. A process that is killed cannot do that; its workspace, which is locked
for as long as the process lives, is removed by the next one that writes there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bitzoo.errors import BitzooError, StorageError, UsageError
from bitzoo.locks import IDLE_SECONDS, claimed, hold_shared
from bitzoo.portable import FOLDER, NO_FOLLOW, OPENS_FOLDERS, user_id

Progress = Callable[[str, int, int], None]
"""Called as ``progress(task, done, total)`` during the work."""

Naming = Callable[[], AbstractContextManager[object]]
"""Called when an output is complete; it gets its name in the body of the returned context."""

_HASH_BYTES = 1 << 20
_UNFINISHED = ".bitzoo-{}.tmp"
_REPLACED = ".bitzoo-replaced"
"""Folder in a workspace: the output that is being replaced, until the new one has its name."""


def cache_dir() -> Path:
    """Return the cache folder: BITZOO_CACHE, $XDG_CACHE_HOME/bitzoo or ~/.cache/bitzoo.

    Raises:
        StorageError: If none of them is known, because the user has no home folder.
    """
    if own := os.environ.get("BITZOO_CACHE"):
        return user_path(own)
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))  # ignored unless absolute, as specified
    if not xdg.is_absolute():
        xdg = user_path("~/.cache", "Set BITZOO_CACHE to a folder that can be written.")
    return xdg / "bitzoo"


def user_path(
    text: str | os.PathLike[str], advice: str = "Give the path without ~, or set HOME."
) -> Path:
    """Return a path as given by a user, with ``~`` as the home folder.

    Raises:
        StorageError: If the path needs a home folder that does not exist; ends with `advice`.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise StorageError(
            f"{os.fspath(text)}: expected a home folder for ~, found none: HOME is not set, and "
            f"the system does not know it for user id {user_id()}. {advice}"
        ) from error


# --- writing ------------------------------------------------------------------------------------


@contextmanager
def workspace(folder: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Yield a new hidden folder inside `folder`, for what is not finished; removed at the end.

    First, what killed processes left in `folder` is removed.

    Args:
        folder: Where it is made.
        mode: Its permissions, less those of the umask.

    Raises:
        OSError: If it cannot be created.
    """
    remove_unfinished(folder)
    with contextlib.ExitStack() as stack:
        while not (place := _hold_new(folder, mode, stack)):
            pass  # another process took it for abandoned
        yield place


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder among the temporary files (TMPDIR), which only this user can enter.

    It is a `workspace`: if the process is killed, the next one removes it.

    Raises:
        OSError: If it cannot be created.
    """
    with workspace(Path(tempfile.gettempdir()), mode=0o700) as place:
        yield place


@contextmanager
def replaced(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the body succeeds.

    Args:
        path: The final name; an existing file is replaced atomically. Its folder must exist.
        durable: Whether to sync the bytes to disk before the rename, so that not even a power
            failure leaves a damaged file under the name.

    Raises:
        OSError: If it cannot be written; the error names `path`, not the temporary path.
    """
    try:
        with workspace(path.parent) as place:
            temporary = place / path.name
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(path.parent)
    except OSError as error:
        if not isinstance(error, BitzooError) and error.errno is not None:
            error.filename, error.filename2 = os.fspath(path), None
        raise


def reason_of(error: OSError) -> str:
    """Return what the system refused, in its own words; libraries add pages to them."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


def write_text(path: Path, text: str) -> None:
    """Write text atomically, UTF-8 with plain newlines."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder.

    If the folder is in the cache, the same is done in all of the cache. Workspaces that a living
    process holds stay, and so does what cannot be removed.
    """
    folders = [folder]
    with contextlib.suppress(OSError):
        if folder.is_relative_to(cache := cache_dir()):
            folders += [*cache.glob("*/"), *cache.glob("*/*/")]
    for place in folders:
        with contextlib.suppress(OSError):
            for left in list(place.glob(_UNFINISHED.format("*"))):
                _remove_left(left)


def _remove_left(left: Path) -> None:
    """Remove a workspace that no process holds; an output that it was replacing goes back."""
    with contextlib.suppress(OSError), claimed(left) as free:
        if not free:
            return
        if not left.is_dir():  # as earlier versions wrote, without a lock
            if time.time() - left.stat().st_mtime > IDLE_SECONDS:
                left.unlink()
            return
        kept = left / _REPLACED
        for output in list(kept.iterdir()) if kept.is_dir() else ():
            if not os.path.lexists(left.parent / output.name):
                os.replace(output, left.parent / output.name)
        shutil.rmtree(left)


def _hold_new(folder: Path, mode: int, stack: contextlib.ExitStack) -> Path | None:
    """Make a folder that is locked and, when `stack` is unwound, removed; None if it is gone."""
    # Not the process id: containers that share a disk repeat them, and threads share theirs.
    place = folder / _UNFINISHED.format(secrets.token_hex(8))
    stack.callback(shutil.rmtree, place, ignore_errors=True)  # first: a signal may come any time
    place.mkdir(mode)
    if not OPENS_FOLDERS:  # nor are they locked: others take it for abandoned after a day
        return place
    try:
        descriptor = os.open(place, os.O_RDONLY | FOLDER | NO_FOLLOW)
        stack.callback(os.close, descriptor)
        hold_shared(descriptor)
        return place if os.path.samestat(os.stat(place), os.fstat(descriptor)) else None
    except FileNotFoundError:
        return None


def sync(path: Path) -> None:
    """Flush a file, or a folder's directory entries, to disk; the latter where the system can."""
    if not OPENS_FOLDERS and path.is_dir():
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if OPENS_FOLDERS else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_output(
    path: Path,
    size: int,
    *,
    option: str,
    force: bool,
    contents: Collection[str] | None = None,
    naming: Naming = nullcontext,
) -> Iterator[Path]:
    """Yield a temporary path that becomes the output `path` if the body succeeds.

    Args:
        path: The final name.
        size: Bytes that will be written; the disk must have as many free.
        option: The caller's option that gives `path`, such as ``dst``; errors name it.
        force: Whether an existing output may be replaced.
        contents: For a folder, the names that a folder to be replaced may contain; the temporary
            folder is created. None for a file.
        naming: See `Naming`.

    Raises:
        UsageError: If `path` may not or cannot be written.
    """
    check_replaceable(path, option=option, force=force, contents=contents)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    remove_unfinished(path.parent)  # first, because it frees space
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise UsageError(
            f"{path}: needs {size:,} bytes, but its disk has only {free:,} free. Free some space, "
            f"or choose another `{option}`."
        )
    try:
        with workspace(path.parent) as place:
            temporary = place / path.name
            if contents is not None:
                temporary.mkdir()
            yield temporary
            is_named = False
            try:
                with naming():
                    _give_name(temporary, path, force=force, is_folder=contents is not None)
                    is_named = True
            except BaseException:
                if is_named:  # without what `naming` adds, such as its proof, it may not stay
                    _remove(path)
                raise
    except OSError as error:
        if isinstance(error, BitzooError):
            raise
        if isinstance(error, FileExistsError):  # taken in the meantime
            check_replaceable(path, option=option, force=force, contents=contents)
        raise UsageError(f"{path}: cannot be written ({reason_of(error)}).") from error


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _give_name(temporary: Path, path: Path, *, force: bool, is_folder: bool) -> None:
    if is_folder and path.is_dir():
        _swap(temporary, path)
    elif is_folder or force or not _link(temporary, path):
        os.replace(temporary, path)


def check_replaceable(
    path: Path, *, option: str, force: bool, contents: Collection[str] | None = None
) -> None:
    """Raise if an output exists and may not be replaced; a folder with other files never may.

    Args:
        path: The output.
        option: As for `new_output`.
        force: Whether an existing output may be replaced.
        contents: As for `new_output`.

    Raises:
        UsageError: With what is there.
    """
    advice = f"Choose another `{option}`"
    if contents is not None and path.is_dir():
        strange = sorted({entry.name for entry in path.iterdir()} - set(contents))
        if strange:
            raise UsageError(
                f"{path}: expected a new folder, found one with {', '.join(strange[:3])}. {advice}."
            )
        if force or not any(path.iterdir()):
            return
    elif path.is_dir() or (contents is not None and os.path.lexists(path)):  # not even by force
        wanted, found = ("a file", "a folder") if contents is None else ("a new folder", "a file")
        raise UsageError(f"{path}: expected {wanted}, found {found}. {advice}.")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} already exists. {advice}, or replace it with `force=True`.")


def _link(temporary: Path, path: Path) -> bool:
    """Give a file a second, unused name; False if the file system has no hard links.

    Raises:
        FileExistsError: If the name has been taken in the meantime.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _swap(temporary: Path, path: Path) -> None:
    """Replace a folder by another; the old one is removed only when the new one is in place."""
    old = temporary.with_name(_REPLACED) / path.name
    old.parent.mkdir()
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise


# --- reading ------------------------------------------------------------------------------------


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
