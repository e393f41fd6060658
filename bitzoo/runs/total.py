"""What many runs take together, said once, from the first of them that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from bitzoo.durations import duration
from bitzoo.runs.config import Callbacks
from bitzoo.runs.estimate import TOLD_FROM, Forecast, clock


class Total:
    """Says what the runs of a call take that are left.

    Attributes:
        left: How many are left.
    """

    def __init__(self, runs: int, say: Callable[[str], None], name: str = "run") -> None:
        """Say nothing yet.

        Args:
            runs: How many there are.
            say: Called with the sentence.
            name: What a run is called.
        """
        self.left, self._say, self._name = runs, say, name
        self._is_told = False

    def begin(self, callbacks: Callbacks) -> Callbacks:
        """Return the callbacks of the next run: only the first that is made is measured."""
        is_first, self._is_told = not self._is_told, True
        return replace(callbacks, confirm=self._tell if is_first else None, looks_ahead=is_first)

    def _tell(self, forecast: Forecast) -> bool:
        found, left = forecast.estimate, self.left
        seconds = found.seconds * left
        if seconds >= TOLD_FROM:
            runs = f"{left:,} {self._name}{' to go takes' if left == 1 else 's to go take'}"
            each = f", each about as long as the first, {duration(found.seconds)}"
            until = clock(datetime.now(), seconds)
            self._say(
                f"{runs} about {duration(seconds)}, until about {until}"
                f"{each if left > 1 else ''}. Estimated from {found.measured}."
            )
        return True
