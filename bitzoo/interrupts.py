"""Hear of signals at once, even while the main thread computes.

Python calls a signal's handler between two instructions of the main thread, so not before a long
computation in a library returns, such as the backward pass of a micro-batch, which can take a
minute. Here a thread hears of the signal when it comes, so that it can say what is waited for, or
end the process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Hear = Callable[[int, int, bool], bool]
"""Called in a thread as ``hear(number, times, answered)`` with the signal's number, how many have
come since it began to listen, and whether one that began later has answered; returns whether this
one has, so that the user knows."""

_FLUSH = 0
"""No signal's number."""


class _Listener:
    """The thread, the pipe that the interpreter writes numbers of signals into, and who hears."""

    def __init__(self) -> None:
        self.hearers: list[list[object]] = []
        self._flushed = threading.Event()
        reading, self._writing = os.pipe()
        if os.name == "posix":  # elsewhere neither needed nor possible
            os.set_blocking(self._writing, False)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        if hasattr(os, "register_at_fork"):  # a fork shares the pipe
            os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._listen, args=(reading,), name="signals", daemon=True).start()

    def flush(self) -> None:
        """Wait until everybody has heard of what has come."""
        self._flushed.clear()
        with suppress(OSError):
            os.write(self._writing, bytes([_FLUSH]))
            self._flushed.wait(1)

    def _listen(self, reading: int) -> None:
        while True:
            for number in os.read(reading, 64):
                if number == _FLUSH:
                    self._flushed.set()
                    continue
                if self._before != -1:  # an event loop's
                    with suppress(OSError):
                        os.write(self._before, bytes([number]))
                self._tell(number)

    def _tell(self, number: int) -> None:
        answered = False
        for hearer in reversed(list(self.hearers)):
            hear, times = hearer
            hearer[1] = times + 1  # type: ignore[operator]
            answered = hear(number, hearer[1], answered) or answered  # type: ignore[operator]

    @staticmethod
    def _forget() -> None:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)


_listener: list[_Listener] = []


@contextmanager
def heard(hear: Hear) -> Iterator[None]:
    """Have every signal heard that Python has a handler for; in the main thread only.

    At the end, everything that has come has been heard.
    """
    listener = _listen()
    entry: list[object] = [hear, 0]
    listener.hearers.append(entry)
    try:
        yield
    finally:
        listener.flush()
        listener.hearers.remove(entry)


def hear_always(hear: Hear) -> None:
    """Have every signal heard until the process ends."""
    _listen().hearers.append([hear, 0])


def _listen() -> _Listener:
    if not _listener:
        _listener.append(_Listener())
    return _listener[0]
