"""The lock of a run folder: one process at a time, and the second learns which one has it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from bitzoo.data.folder import RUN_LOCK_NAME
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.locks import taken
from bitzoo.small_files import read_json

_PATIENCE = 0.5
"""Seconds to wait for a holder to write who it is, which it does as soon as it has the lock."""


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keep all other runs out of a folder for the body.

    The lock is a file in the folder, with the process that holds it; it is gone at the end. The
    system drops the lock with the process, so none is stale: what a killed process leaves does not
    count. NFS has such locks too, between machines. On a file system without locks, only processes
    of this machine are kept apart; a lock file of another machine is an error, because nothing
    tells whether its process still runs.

    Args:
        folder: Created if missing, and removed at the end if it is still empty then.

    Raises:
        UsageError: If another process, or another run of this one, has the folder.
        OSError: If the lock cannot be written.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with contextlib.ExitStack() as stack:
            lock = folder / RUN_LOCK_NAME
            while True:
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    kind = stack.enter_context(taken(lock))
                    break
                except FileNotFoundError:  # removed by a run that failed before it began
                    continue
            if kind is None:
                raise _in_use(folder, _holder(lock))
            if kind == "stand-in":
                _require_of_this_machine(folder, lock)
                stack.callback(lock.unlink, missing_ok=True)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
            lock.write_text(json.dumps(holder))
            yield
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # it is in use
                place.rmdir()


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def _holder(lock: Path) -> dict[str, Any]:
    """Return what the holder wrote about itself; nothing if it cannot be read."""
    end = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(CheckpointError, OSError):
            return read_json(lock)
        if time.monotonic() > end:
            return {}
        time.sleep(0.02)


def _in_use(folder: Path, holder: dict[str, Any]) -> UsageError:
    pid, host, since = (holder.get(key) for key in ("pid", "host", "since"))
    if pid == os.getpid() and host == socket.gethostname():
        who = f"another run of this process (since {since})"
    elif holder:
        who = f"process {pid} on {host} (since {since})"
    else:
        who = "another process"
    return UsageError(
        f"{folder} is in use by {who}. Only one run at a time can write there: wait until it has "
        "ended, stop it, or use another folder."
    )


def _require_of_this_machine(folder: Path, lock: Path) -> None:
    try:
        holder = read_json(lock)
    except (CheckpointError, OSError):
        return
    if holder.get("host") not in (None, socket.gethostname()):
        raise UsageError(
            f"{folder} is in use by process {holder.get('pid')} on {holder['host']} (since "
            f"{holder.get('since')}), as {lock.name} says. Its file system has no locks, so "
            "whether that process still runs cannot be checked. If it does not, delete "
            f"{lock}."
        )
