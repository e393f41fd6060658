"""Durations: as people type them, and in words."""

import pytest

from bitzoo.durations import duration, parse_duration
from bitzoo.errors import UsageError


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("90s", 90), ("90", 90), ("1.5h", 5400),
        ("1d2h3m4s", 93_784), ("1 H 5 min", 3900), ("20sec", 20), (45, 45), (0.5, 0.5),
    ],
)  # fmt: skip
def test_what_people_type(typed, seconds):
    assert parse_duration(typed) == seconds


@pytest.mark.parametrize(
    "typed",
    ["", " ", "m", "30x", "m30", "30m2h", "1e3", "-5", "0", "0m", "inf", "nan", "1h 5", "٣m",
     0, -1, float("nan"), float("inf"), True, None, [3]],
)  # fmt: skip
def test_what_is_no_duration(typed):
    with pytest.raises(UsageError) as error:
        parse_duration(typed, "time_limit")
    assert str(error.value) == (
        f"`time_limit` must be a duration above 0, found {typed!r:.40}. Write it as 30m, 2h, "
        "1h30m or 90s; a plain number counts seconds."
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.44, "0.4 s"), (12.4, "12 s"), (99, "99 s"), (300, "5 min"),
        (4800, "80 min"), (7300, "2 h 2 min"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_in_words(seconds, words):
    assert duration(seconds) == words
