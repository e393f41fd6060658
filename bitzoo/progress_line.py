"""What is said about work in progress, and about work that is done, in one line of a given width.

training  ━━━━━━━━━━──────────────────  step 12/40  loss 2.183  214 images/s  7 s left
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitzoo.display import visible
from bitzoo.durations import duration

_MIN_BAR, _MAX_BAR = 8, 40
_SHORTEST_NAME = 8
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Kind:
    """How one kind of work is spoken of.

    Attributes:
        name: What is shown while it is done; empty for the task's own name.
        past: The same when it is done.
        unit: What is counted; ``bytes`` are shown as MB and so on.
        is_told: Whether its end is told however short it was.
    """

    name: str
    past: str
    unit: str
    is_told: bool = False


KINDS: Mapping[str, Kind] = {
    "checking images": Kind("checking", "checked", "images"),
    "reading": Kind("reading", "read", "images"),
    "reading labels": Kind("reading labels", "read", "labels"),
    "decoding": Kind("decoding", "decoded", "images"),
    "features": Kind("features", "computed the features of", "images"),
    "training": Kind("training", "trained", "steps", is_told=True),
    "calibrate": Kind("calibrating", "calibrated on", "images"),
    "evaluate": Kind("evaluating", "evaluated", "images"),
    "predict": Kind("classifying", "classified", "images"),
    "load": Kind("loading", "loaded", "bytes"),
    "convert": Kind("converting", "converted", "bytes"),
    "hash": Kind("hashing", "hashed", "bytes"),
    "compare": Kind("comparing", "compared", "bytes"),
    "logits": Kind("comparing logits", "compared", "logits"),
    "download": Kind("downloading", "downloaded", "bytes", is_told=True),
    "export": Kind("exporting", "exported", "parts"),
}
"""Task, as passed to a `bitzoo.files.Progress`, to how it is shown; others show as they are."""


def kind_of(task: str) -> Kind:
    """Return how a task is spoken of; what stands after a colon is the name of its object."""
    first, _, name = task.partition(": ")
    kind = KINDS.get(first)
    if kind is None:
        return Kind(task, f"{task}:", "", False)
    if not name:
        return kind
    return Kind(f"{kind.name} {name}", f"{kind.past} {name},", kind.unit, kind.is_told)


def line(
    kind: Kind,
    done: float,
    total: int,
    facts: Sequence[str],
    seconds_left: float | None,
    width: int,
    *,
    elapsed: float = 0.0,
    is_ascii: bool = False,
) -> str:
    """Return a line of at most `width` columns; what does not fit is left out, the bar first.

    Args:
        kind: What is done.
        done: How much of it; a fraction is part of the next.
        total: How much there is; 0 if that is not known.
        facts: More to say, the most important first.
        seconds_left: How long it will take; None if that is not known.
        width: Columns of the terminal that may be used.
        elapsed: Seconds so far; shown where nothing else moves.
        is_ascii: Whether the terminal knows nothing but ASCII.
    """
    name = visible(kind.name).replace("\n", " ")
    parts, end = _parts(kind, done, total, seconds_left, elapsed), []
    if seconds_left is not None:
        end = [parts.pop()]
    short = shorten(name, max(_SHORTEST_NAME, width // 3), is_ascii)
    for label, gap, kept in (
        (name, "  ", facts),
        (name, " ", facts),
        *((short, " ", facts[:count]) for count in range(len(facts), -1, -1)),
    ):
        shown = [*parts, *kept, *end]
        room = width - sum(map(columns_of, (label, *shown))) - len(gap) * len(shown)
        if room < 0:
            continue
        if total and room >= len(gap) + _MIN_BAR:
            shown = [_bar(done / total, min(room - len(gap), _MAX_BAR), is_ascii), *shown]
        return gap.join([label, *shown])
    rest = " ".join([*parts, *end])  # hardly any columns are left
    return cut(f"{shorten(name, max(0, width - columns_of(rest) - 1), is_ascii)} {rest}", width)


def plain_line(
    kind: Kind,
    done: float,
    total: int,
    facts: Sequence[str],
    seconds_left: float | None,
    elapsed: float = 0.0,
) -> str:
    """Return the same for a file: "decoding: 120/540 images, 45/s, 9 s left"."""
    parts = _parts(kind, done, total, seconds_left, elapsed)
    end = [parts.pop()] if seconds_left is not None else []
    return f"{visible(kind.name)}: {', '.join([*parts, *facts, *end])}"


def _parts(
    kind: Kind, done: float, total: int, seconds_left: float | None, elapsed: float
) -> list[str]:
    """Return how much is done and, last, the time left; the time so far if neither is known."""
    parts = [amount] if (amount := amount_of(kind, done, total)) else []
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    return parts or [duration(elapsed)]


def finished(kind: Kind, total: int, seconds: float, facts: Sequence[str] = ()) -> str:
    """Return the line that is left of finished work: "decoded 540 images in 12 s"."""
    amount = size_of(total) if kind.unit == "bytes" else f"{total:,} {kind.unit}".strip()
    return ", ".join([f"{visible(kind.past)} {amount} in {duration(seconds)}", *facts])


def amount_of(kind: Kind, done: float, total: int) -> str:
    """Return how much is done: "120/540 images", "1.2/3.4 GB", "step 12/40"."""
    if kind.unit == "steps":
        whole, part = int(done), done - int(done)
        inside = f" {100 * part:.0f} % of the next" if part else ""
        return f"step {whole:>{len(f'{total:,}')},}/{total:,}{inside}"
    if kind.unit == "bytes":
        return f"{size_of(done, total)}/{size_of(total)}" if total else size_of(done)
    if not total:
        return f"{int(done):,} {kind.unit}".strip() if done else ""
    return f"{int(done):>{len(f'{total:,}')},}/{total:,} {kind.unit}".strip()


def size_of(count: float, like: float | None = None) -> str:
    """Return a number of bytes in words: "3.4 GB"; with `like` without the unit, in that of `like`.

    Units are decimal, as on the labels of disks: 1 MB is 10**6 bytes.
    """
    scale = 0
    while (count if like is None else like) >= 1000 ** (scale + 1) and scale + 1 < len(_UNITS):
        scale += 1
    number = f"{count / 1000**scale:.1f}" if scale else f"{int(count)}"
    return number if like is not None else f"{number} {_UNITS[scale]}"


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for letters of East Asia."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def cut(text: str, width: int) -> str:
    """Return the beginning of a text that fits into `width` columns."""
    taken, used = [], 0
    for letter in text:
        used += _width(letter)
        if used > width:
            break
        taken.append(letter)
    return "".join(taken)


def shorten(name: str, width: int, is_ascii: bool = False) -> str:
    """Return a name with its middle left out if it takes more than `width` columns."""
    if columns_of(name) <= width:
        return name
    gap = "..." if is_ascii else "…"
    tail = max(0, width - len(gap)) // 2
    end = cut(name[::-1], tail)[::-1]
    return cut(name, max(0, width - len(gap) - tail)) + gap + end


def _width(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Me", "Mn", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _bar(fraction: float, width: int, is_ascii: bool) -> str:
    full = int(min(max(fraction, 0.0), 1.0) * width)
    return ("#" * full + "." * (width - full)) if is_ascii else "━" * full + "─" * (width - full)
