"""The elements of charts: axes with round ticks, texts and shapes as trees of inline SVG.

Charts are trees of elements, so that whatever a class is called, the result is well-formed; their
colours are CSS classes, which the page that holds them defines (templates/page_style.css.j2).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 30, 40
MAX_LABEL = 20
LETTER = 6.4
"""Average width of a letter in the page's 11 px font, estimated generously."""

_SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3" + "".join(map(chr, range(0x2074, 0x207A)))
)


@dataclass(frozen=True)
class Axis:
    """Maps values to coordinates, and has ticks at round values."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        start: float,
        end: float,
        *,
        log: bool = False,
        whole: bool = False,
        limits: tuple[float, float] | None = None,
    ) -> Axis:
        """Return an axis for all values; not logarithmic if they lie within half a decade."""
        low, high = min(values), max(values)
        if log and high / low > 3:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            every = max(1, (last - first) // 6)
            ticks = tuple(10.0**power for power in range(first, last + 1, every))
            return cls(10.0**first, 10.0**last, start, end, ticks, log=True)
        if whole:
            ticks = tuple(t for t in round_ticks(low, high) if t <= high and t == int(t))
            return cls(low, max(high, low + 1), start, end, ticks)
        if low > 0 and low < 0.4 * high:
            low = 0.0
        ticks = round_ticks(low, high)
        if limits:
            ticks = tuple(t for t in ticks if limits[0] - 1e-9 <= t <= limits[1] + 1e-9)
        return cls(min(ticks[0], low), max(ticks[-1], high), start, end, ticks)

    def at(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def round_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten that enclose the range."""
    if high - low < 1e-9 * max(abs(low), abs(high)) or high == low:
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def draw_axes(
    svg: ET.Element, x: Axis, y: Axis, unit: str, percent: bool, label: str = "step"
) -> None:
    """Draw both axes with their ticks and names.

    Args:
        svg: Where to.
        x: The horizontal axis.
        y: The vertical axis.
        unit: Name of the vertical axis.
        percent: Whether its values are shares.
        label: Name of the horizontal axis.
    """
    for tick in y.ticks:
        height = y.at(tick)
        add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, class_="grid")
        text = power_of_ten(tick) if y.log else in_words(tick, percent)
        add_text(svg, text, LEFT - 7, height + 4, "tick end")
    base = HEIGHT - BOTTOM
    add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis")
    for tick in x.ticks:
        add(svg, "line", x1=x.at(tick), x2=x.at(tick), y1=base, y2=base + 4, class_="axis")
        text = f"{int(tick):,}" if tick == int(tick) else f"{tick:g}"
        add_text(svg, text, x.at(tick), base + 17, "tick mid")
    add_text(svg, label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "label mid")
    if unit:
        middle = (TOP + base) / 2
        add_text(svg, unit, 12, middle, "label mid", turn=-90)


def draw_legend(svg: ET.Element, lines: Sequence[tuple[str, str]]) -> None:
    """Draw above a chart what its lines are: (name, CSS class); nothing for a single one."""
    if len(lines) < 2:
        return
    left: float = LEFT
    for name, style in lines:
        add(svg, "line", x1=left, x2=left + 18, y1=10, y2=10, class_=f"curve {style}")
        add_text(svg, name, left + 23, 14, "legend")
        left += 1.2 * LETTER * len(name) + 40  # larger letters on a narrow screen


def new_svg(width: float, height: float, title: str) -> ET.Element:
    """Return an empty chart; the title is read out by screen readers."""
    box = f"0 0 {width:.0f} {height:.0f}"
    return ET.Element("svg", {"viewBox": box, "role": "img", "aria-label": title})


def add(parent: ET.Element, tag: str, **attributes: float | str) -> ET.Element:
    """Append an element; ``class_`` and ``fill_opacity`` become ``class`` and ``fill-opacity``."""
    texts = {
        name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else f"{value:.4g}"
        for name, value in attributes.items()
    }
    return ET.SubElement(parent, tag, texts)


def add_text(
    parent: ET.Element,
    text: str,
    x: float,
    y: float,
    style: str,
    *,
    turn: float = 0,
    title: str = "",
) -> None:
    """Append a text.

    Args:
        parent: Where to.
        text: The text.
        x: Where it begins, ends or has its middle, by its style.
        y: Its base line.
        style: Its CSS classes.
        turn: By how many degrees it is turned clockwise.
        title: What is told of it when it is pointed at, if that is something else.
    """
    element = add(parent, "text", x=x, y=y, class_=style)
    if turn:
        element.set("transform", f"rotate({turn:g} {x:.4g} {y:.4g})")
    element.text = text
    if title and title != text:
        ET.SubElement(element, "title").text = title


def rendered(svg: ET.Element) -> str:
    """Return an element as text."""
    return ET.tostring(svg, encoding="unicode")


def shortened_name(name: str, most: int = MAX_LABEL) -> str:
    """Return a name of at most `most` letters, an ellipsis at the end of one that was longer."""
    if letters_of(name) <= most:
        return name
    while letters_of(name) >= most:
        name = name[:-1]
    return name + "\u2026"


def letters_of(name: str) -> int:
    """Return a name's width in letters; a Chinese, Japanese or Korean one is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name)


def power_of_ten(value: float) -> str:
    """Return a power of ten with its exponent raised."""
    return "10" + f"{math.log10(value):.0f}".translate(_SUPERSCRIPTS)


def in_words(value: float, percent: bool, digits: int = 4) -> str:
    """Return a number, or a share in percent, with so many digits."""
    return f"{100 * value:.{digits}g} %" if percent else f"{value:.{digits}g}"
