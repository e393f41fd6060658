"""When a run was worked on, for how long and on what: one entry per session in `sessions.json`.

A session is one process (or group of them) between starting or resuming a run and its end. The time
is kept every few seconds, so that a killed session counts too, and what was done again after it
counts twice: it is the time that the run took.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from typing import Any

import torch

from bitzoo.errors import CheckpointError
from bitzoo.files import write_json
from bitzoo.openmp_waiting import description
from bitzoo.runs.run_dir import SESSIONS_NAME, RunDir
from bitzoo.small_files import read_json

_EVERY = 10.0
"""Seconds between two writings of the file."""


class WorkLog:
    """The sessions of a run, of which this is the last one."""

    def __init__(self, run_dir: RunDir) -> None:
        """Begin a session now; nothing is written before `start`.

        Args:
            run_dir: The run.
        """
        self._run_dir = run_dir
        self._path = run_dir.folder / SESSIONS_NAME
        self._started, self._began = time.time(), time.perf_counter()
        self._written = 0.0
        self._sessions: list[dict[str, Any]] = []

    def start(self, device: str, step: int, waiting: str = "") -> None:
        """Record the session.

        Args:
            device: What it computes on.
            step: Number of updates made before it.
            waiting: How the threads of a CPU wait for each other.

        Raises:
            UsageError: If it cannot be written, as on a full disk.
        """
        started = datetime.fromtimestamp(self._started, timezone.utc).isoformat(timespec="seconds")
        own = {"started": started, "from_step": step, "device": device, "seconds": 0.0}
        own |= {"waiting": waiting} if waiting else {}
        self._sessions = [*self._earlier(), own]
        self._write()

    def describe(self, **facts: str) -> None:
        """Record more about the session, as text.

        Args:
            facts: What is recorded, by name; ``memory_format`` is among the `rows`.

        Raises:
            UsageError: If it cannot be written, as on a full disk.
        """
        self._sessions[-1].update(facts)
        self._write()

    def keep(self, *, now: bool = False) -> None:
        """Record how long the session has taken, if that was not done a few seconds ago.

        Args:
            now: Whether to record it in any case.

        Raises:
            UsageError: If it cannot be written, as on a full disk.
        """
        if self._sessions and (now or time.perf_counter() - self._written > _EVERY):
            self._write()

    def rows(self) -> list[tuple[str, str]]:
        """Return what was recorded as names and values."""
        if not self._sessions:
            return []
        first, last = self._sessions[0], self._sessions[-1]
        ended = datetime.fromisoformat(last["started"]).timestamp() + last["seconds"]
        count = len(self._sessions)
        parts = f", in {count} sessions" if count > 1 else ""
        since = f", without the first {first['from_step']:,} steps" if first["from_step"] else ""
        seconds = sum(session["seconds"] for session in self._sessions)
        devices = list(dict.fromkeys(session["device"] for session in self._sessions))
        formats = dict.fromkeys(
            found for each in self._sessions if isinstance(found := each.get("memory_format"), str)
        )
        waits = [str(session["waiting"]) for session in self._sessions if session.get("waiting")]
        return [
            ("started", _minute(datetime.fromisoformat(first["started"]).timestamp())),
            ("finished", _minute(ended)),
            ("duration", f"{_duration(seconds)} to decode, train and evaluate{parts}{since}"),
            ("device", "; ".join(devices)),
            *([("memory format", "; ".join(formats))] if formats else []),
            *([("threads wait", "; ".join(dict.fromkeys(waits)))] if waits else []),
        ]

    def _earlier(self) -> list[dict[str, Any]]:
        """Return the sessions before this one; what cannot be read is left out."""
        if not self._path.is_file():
            return []
        try:
            found = read_json(self._path).get("sessions")
        except CheckpointError:
            return []
        return (
            [dict(each) for each in found if _is_session(each)] if isinstance(found, list) else []
        )

    def _write(self) -> None:
        self._written = time.perf_counter()
        self._sessions[-1]["seconds"] = round(self._written - self._began, 3)
        with self._run_dir.writing():
            write_json(self._path, {"sessions": self._sessions})


def device_name(device: torch.device, processes: int = 1) -> str:
    """Return a device as a reader knows it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'' if threads == 1 else 's'}"
    else:
        name = device.type
    return name if processes == 1 else f"{processes} processes, each with {name}"


def waiting_of(device: torch.device) -> str:
    """Return how the threads that compute wait for each other; empty if there is but one."""
    if device.type != "cpu" or torch.get_num_threads() < 2:
        return ""
    return description(os.environ)


def _is_session(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    try:
        datetime.fromisoformat(entry["started"])
    except (KeyError, TypeError, ValueError):
        return False
    kinds = {"from_step": (int,), "device": (str,), "seconds": (int, float)}
    return all(type(entry.get(name)) in allowed for name, allowed in kinds.items())


def _minute(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
