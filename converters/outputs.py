"""Outputs appear whole, under their name, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitzoo.errors import UsageError

_OWN_FILES = {"model.safetensors", "config.json", "preprocessor_config.json"}
"""What a folder that may be replaced holds."""


@contextmanager
def new_file(path: Path, size: int, *, force: bool, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the body succeeds, and vanishes if not.

    Args:
        path: The final name.
        size: Bytes that will be written; the disk must have them.
        force: Whether an existing output may be replaced.
        folder: Whether the path is a folder; the temporary one is there already.

    Raises:
        UsageError: If `path` may not or cannot be written.
    """
    check_replaceable(path, force=force, folder=folder)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise UsageError(
            f"{path}: needs {size:,} bytes, but its disk has {free:,} free. Make room or choose "
            "another output."
        )
    # Process numbers repeat across containers that share a disk, and threads share theirs.
    temporary = path.with_name(f".bitzoo-{secrets.token_hex(4)}.tmp")
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and path.is_dir():
            _swap(temporary, path)
        elif folder or force or not _link(temporary, path):
            os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def check_replaceable(path: Path, *, force: bool, folder: bool) -> None:
    """Refuse an output that exists and may not be replaced; a folder never takes strange files.

    Raises:
        UsageError: Says what stands there.
    """
    if folder and path.is_dir():
        strange = sorted({entry.name for entry in path.iterdir()} - _OWN_FILES)
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
                f"{path} already exists. Choose another output, or replace it: --force."
            )
        if folder:
            raise UsageError(f"{path}: expected a new folder, found a file. Choose another output.")


def _link(temporary: Path, path: Path) -> bool:
    """Give a file a second name that nothing has; False where the disk knows no second names.

    Raises:
        UsageError: If something has got the name meanwhile.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        check_replaceable(path, force=False, folder=False)
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
