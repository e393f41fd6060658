"""Durations: as people type them, and in words."""

from __future__ import annotations

import math
import re

from bitzoo.errors import UsageError

_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_TYPED = re.compile("".join(rf"(?:(?P<{unit}>[0-9]+(?:\.[0-9]+)?){unit})?" for unit in _SECONDS))
_ALSO = {"min": "m", "sec": "s", "hr": "h"}


def parse_duration(value: str | float, name: str = "time_limit") -> float:
    """Return a duration in seconds.

    Args:
        value: As ``30m``, ``2h``, ``1h30m``, ``90s``, ``1.5h`` or ``2d``, in any case and with
            spaces; a plain number counts seconds.
        name: What the duration is, for the error: an option.

    Raises:
        UsageError: If it is none, or not above 0 and finite.
    """
    if isinstance(value, str):
        text = re.sub(r"\s+", "", value).lower()
        for word, unit in _ALSO.items():
            text = text.replace(word, unit)
        found = _TYPED.fullmatch(text)
        if found and text:
            parts = found.groupdict(default="0")
            seconds = sum(float(parts[unit]) * size for unit, size in _SECONDS.items())
        else:
            seconds = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else math.nan
    elif isinstance(value, bool) or not isinstance(value, int | float):
        seconds = math.nan
    else:
        seconds = float(value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(
            f"`{name}` must be a duration above 0, found {value!r:.40}. Write it as 30m, 2h, "
            "1h30m or 90s; a plain number counts seconds."
        )
    return seconds


def duration(seconds: float) -> str:
    """Return a duration in words, to about two digits: "0.4 s", "12 s", "5 min", "1 h 20 min"."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
