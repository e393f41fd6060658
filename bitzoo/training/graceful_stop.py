"""Stop after the current step when a signal comes, and say at once how long that takes."""

from __future__ import annotations

import logging
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bitzoo.durations import duration
from bitzoo.interrupts import heard

_RECENT = 5
"""Steps whose median says how long a step takes."""

_log = logging.getLogger(__name__)


class Pace:
    """What training is doing, and how long its steps take; read from another thread."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._began, self._part = time.monotonic(), 0.0
        self._doing = "step"

    def within_step(self, part: float) -> None:
        """Take note that a step begins (0.0), or that a fraction of its images is done."""
        if not part:
            self._began = time.monotonic()
        self._doing, self._part = "step", part

    def step_ended(self) -> None:
        """Take note that the step is done."""
        self._steps.append(time.monotonic() - self._began)

    def now(self, doing: str) -> None:
        """Take note of what is done between two steps."""
        self._doing = doing

    def in_words(self) -> str:
        """Return what a stop waits for, and about how long."""
        if self._doing == "checkpoint":
            return "this checkpoint"
        if self._doing != "step":
            return f"this {self._doing}, with a checkpoint"
        left = self.seconds_left()
        if left is None:
            first = "this step (the first, so that nobody knows yet how long it takes)"
            return f"{first}, with a checkpoint"
        when = f", in about {duration(left)}" if left > 1 else ""
        return f"this step{when}, with a checkpoint"

    def seconds_left(self) -> float | None:
        """Return the seconds until the step ends; None if that cannot be known."""
        gone = time.monotonic() - self._began
        if self._steps:
            return max(0.0, statistics.median(list(self._steps)) - gone)
        return gone / self._part * (1 - self._part) if self._part else None


@contextmanager
def graceful_stop(pace: Pace) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGTERM or Ctrl-C has come; a second one acts as usual.

    Outside the main thread, which alone receives signals, it always returns False.

    Args:
        pace: Asked, when the first one comes, how long the step still takes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    numbers, times_heard = (signal.SIGTERM, signal.SIGINT), 0

    def hear(number: int, times: int, answered: bool) -> bool:
        nonlocal times_heard
        if number not in numbers:
            return False
        times_heard += 1
        if times_heard == 1:
            name = signal.Signals(number).name
            _log.warning(
                "%s: stopping after %s. Send it again to stop at once and keep "
                "only the last checkpoint.",
                name,
                pace.in_words(),
            )
        return times_heard == 1

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        restore()
        if times_heard > 1:  # both came within one computation, after which this is called once
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        with heard(hear):
            yield asked.is_set
    finally:
        restore()
