"""Exit on Ctrl-C, SIGTERM or SIGHUP by unwinding, so that no incomplete files are left."""

from __future__ import annotations

import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BOOKKEEPING = {
    *("threading", "concurrent", "weakref", "_weakrefset", "queue", "logging"),
    "importlib",  # which keeps a lock for each module, in weak references
}
"""Modules in which an exception from a signal handler can leave a lock held or a thread unlisted,
so that the process waits for ever. In weak reference callbacks the exception would be swallowed."""
_RETRY_SECONDS = 0.01


def exit_on_signals() -> None:
    """Exit by `SystemExit`, which unwinds, with the exit code that shells use: 128 + the signal.

    An ignored signal, as under nohup, stays ignored.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    if not _is_bookkeeping(frame):
        sys.exit(128 + number)
    before = _place(frame)

    def again(_: int, frame: FrameType | None) -> None:
        nonlocal before
        # Still at the same instruction, it is waiting for a lock, which may be interrupted.
        if _is_bookkeeping(frame) and _place(frame) != before:
            before = _place(frame)
            signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
        else:
            sys.exit(128 + number)

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)


def _is_bookkeeping(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    return str(frame.f_globals.get("__name__")).split(".")[0] in _BOOKKEEPING


def _place(frame: FrameType | None) -> tuple[int, int] | None:
    return (id(frame), frame.f_lasti) if frame else None
