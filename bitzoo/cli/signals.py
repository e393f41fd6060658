"""Exit on Ctrl-C, SIGTERM or SIGHUP by unwinding, so that no incomplete files are left.

A second one ends the process at once, if unwinding takes longer than a moment.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from bitzoo.cli.console import say
from bitzoo.interrupts import hear_always

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_BOOKKEEPING = {
    *("threading", "concurrent", "weakref", "_weakrefset", "queue", "logging"),
    "importlib",  # which keeps a lock for each module, in weak references
}
"""Modules in which an exception from a signal handler can leave a lock held or a thread unlisted,
so that the process waits for ever. In weak reference callbacks the exception would be swallowed."""
_RETRY_SECONDS = 0.01
_SILENT_SECONDS = 2.0
"""What ends within this time needs no explanation."""
_LAST_SECONDS = 0.5
"""Time to unwind after a second signal: a lock, a temporary folder."""
_asked_twice: list[int] = []


def exit_on_signals() -> None:
    """Exit by `SystemExit`, which unwinds, with the exit code that shells use: 128 + the signal.

    An ignored signal, as under nohup, stays ignored.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    hear_always(_hear)
    atexit.register(_skip_the_rest)  # first, so that it is called last


def _hear(number: int, times: int, answered: bool) -> bool:
    if number not in _SIGNALS:
        return False
    if times > 1:
        _asked_twice.append(number)
        _later(_LAST_SECONDS, lambda: _end(number))
    elif not answered:
        name = signal.Signals(number).name
        _later(
            _SILENT_SECONDS,
            lambda: say(
                f"{name}: stopping as soon as the current computation or file lets it. Send it "
                "again to stop at once.",
                error=True,
            ),
        )
    return True


def _later(seconds: float, do: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    with suppress(RuntimeError):  # the interpreter is ending, and starts no more threads
        timer.start()


def _end(number: int) -> None:
    """End the process, whatever the main thread is doing; what was being written has no name."""
    try:
        say(f"{signal.Signals(number).name} again: stopped at once.", error=True)
    finally:
        os._exit(128 + number)


def _skip_the_rest() -> None:
    """End here after a second signal: taking the libraries apart takes seconds."""
    if _asked_twice:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(128 + _asked_twice[0])


def _leave(number: int, frame: FrameType | None) -> None:
    # Without timers, as on Windows, there is no second try.
    if not _is_bookkeeping(frame) or not hasattr(signal, "setitimer"):
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
