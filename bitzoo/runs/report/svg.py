"""Charts as inline SVG: lines over training steps, confusion matrices. No plotting library.

Charts are trees of elements, so that whatever a class is called, the result is well-formed; their
colours are CSS classes, which the page that holds them defines (templates/report.html.j2).
"""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from bitzoo.inference.metrics import Confusion

__all__ = ["Curve", "confusion_matrix", "dot_chart", "line_chart", "matrix_overview", "smoothed"]

Point: TypeAlias = tuple[float, float]

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 30, 40
_MAX_POINTS = 600
"""Most points drawn per curve: two per pixel column that it crosses."""
_MAX_MARKS = 60
_MAX_LABEL = 20
_LINE = 13
"""Height of a line of the page's 11 px font."""
_LETTER = 6.4
"""Average width of a letter in the page's 11 px font, estimated generously."""

OTHERS = "other classes"
MAX_CELLS = 40_000
"""Most mistakes drawn in an overview, at about 15 bytes each."""

_TOLD = 1000
"""Mistakes of an overview that say what they are, at about 120 bytes each."""

_LEVELS = 5
LEAST_OPACITY = 0.8
"""Of a cell of an overview: a single mistake must stand out from the page by 3 to 1 (WCAG 1.4.11).
"""

_SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3" + "".join(map(chr, range(0x2074, 0x207A)))
)


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        name: What the legend calls it.
        points: (step, value), by ascending step; what is not finite is left out.
        style: CSS class of the line: ``a``, ``b``, or ``faint`` for raw values behind a line.
        marks: Whether to mark each point, if there are not too many.
    """

    name: str
    points: Sequence[Point]
    style: str = "a"
    marks: bool = False


def smoothed(points: Sequence[Point], window: int | None = None) -> list[Point]:
    """Return the values with their noise averaged out, without a delay.

    The mean of two exponential moving averages, one from each end, each unbiased from its first
    value on.

    Args:
        points: (step, value); values that are not finite are left out.
        window: Values an average looks back on; None is a 25th of them, and at least 5.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    values = [value for _, value in finite]
    keep = 1 - 1 / (window or max(5, len(values) // 25))
    forth, back = _averaged(values, keep), _averaged(values[::-1], keep)[::-1]
    return [(step, (a + b) / 2) for (step, _), a, b in zip(finite, forth, back, strict=True)]


def _averaged(values: Sequence[float], keep: float) -> list[float]:
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        result.append(total / weight)
    return result


def line_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    end: float = 0,
    log: bool = False,
    percent: bool = False,
) -> str:
    """Draw curves over steps.

    Args:
        title: Read out by screen readers in place of the chart.
        curves: Drawn in this order, later ones on top.
        unit: Label of the value axis.
        end: Step up to which the axis goes, if the curves do not go further.
        log: Whether the value axis is logarithmic; values that are not positive are left out.
        percent: Whether values are shares, to be shown in percent and never beyond 0 and 100.

    Returns:
        An `svg` element; empty if no curve has a point to draw.
    """
    drawn = [
        (curve, [p for p in curve.points if math.isfinite(p[1]) and (p[1] > 0 or not log)])
        for curve in curves
    ]
    values = [value for _, points in drawn for _, value in points]
    steps = [step for _, points in drawn for step, _ in points]
    if not values:
        return ""
    x = _Axis.over([0, end, *steps], _LEFT, _WIDTH - _RIGHT, whole=True)
    y = _Axis.over(values, _HEIGHT - _BOTTOM, _TOP, log=log, limits=(0, 1) if percent else None)
    svg = _svg(_WIDTH, _HEIGHT, title)
    _draw_axes(svg, x, y, unit, percent)
    for curve, points in drawn:
        _draw_curve(svg, curve, points, x, y, percent)
    _draw_legend(svg, [curve for curve, points in drawn if points])
    return _render(svg)


@dataclass(frozen=True)
class _Axis:
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
    ) -> _Axis:
        """Return an axis for all values; not logarithmic if they lie within half a decade."""
        low, high = min(values), max(values)
        if log and high / low > 3:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            every = max(1, (last - first) // 6)
            ticks = tuple(10.0**power for power in range(first, last + 1, every))
            return cls(10.0**first, 10.0**last, start, end, ticks, log=True)
        if whole:
            ticks = tuple(t for t in _round_ticks(low, high) if t <= high and t == int(t))
            return cls(low, max(high, low + 1), start, end, ticks)
        if low > 0 and low < 0.4 * high:
            low = 0.0
        ticks = _round_ticks(low, high)
        if limits:
            ticks = tuple(t for t in ticks if limits[0] - 1e-9 <= t <= limits[1] + 1e-9)
        return cls(min(ticks[0], low), max(ticks[-1], high), start, end, ticks)

    def at(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def _round_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten that enclose the range."""
    if high - low < 1e-9 * max(abs(low), abs(high)) or high == low:
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def _draw_axes(
    svg: ET.Element, x: _Axis, y: _Axis, unit: str, percent: bool, label: str = "step"
) -> None:
    for tick in y.ticks:
        height = y.at(tick)
        _add(svg, "line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=height, y2=height, class_="grid")
        text = _power(tick) if y.log else _number(tick, percent)
        _text(svg, text, _LEFT - 7, height + 4, "tick end")
    base = _HEIGHT - _BOTTOM
    _add(svg, "line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=base, y2=base, class_="axis")
    for tick in x.ticks:
        _add(svg, "line", x1=x.at(tick), x2=x.at(tick), y1=base, y2=base + 4, class_="axis")
        _text(svg, f"{int(tick):,}", x.at(tick), base + 17, "tick mid")
    _text(svg, label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, "label mid")
    if unit:
        middle = (_TOP + base) / 2
        _text(svg, unit, 12, middle, "label mid", turn=-90)


def _draw_curve(
    svg: ET.Element, curve: Curve, points: Sequence[Point], x: _Axis, y: _Axis, percent: bool
) -> None:
    places = [(x.at(step), y.at(value)) for step, value in _thinned(points)]
    if len(places) > 1:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        _add(svg, "polyline", points=path, class_=f"curve {curve.style}")
    if (curve.marks and len(points) <= _MAX_MARKS) or len(points) == 1:
        for (step, value), (a, b) in zip(points, places, strict=True):
            dot = _add(svg, "circle", cx=a, cy=b, r=3, class_=f"dot {curve.style}")
            title = f"{curve.name}, step {step:,}: {_number(value, percent, digits=6)}"
            ET.SubElement(dot, "title").text = title


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return lowest and highest point of as many buckets as can be drawn, to keep the outline."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    edges = np.linspace(0, len(points), _MAX_POINTS // 2 + 1).astype(int).tolist()
    kept: set[int] = {0, len(points) - 1}
    for first, last in pairwise(edges):
        bucket = range(first, last)
        kept |= {min(bucket, key=lambda i: points[i][1]), max(bucket, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def _draw_legend(svg: ET.Element, curves: Sequence[Curve]) -> None:
    if len(curves) < 2:
        return
    left: float = _LEFT
    for curve in curves:
        _add(svg, "line", x1=left, x2=left + 18, y1=10, y2=10, class_=f"curve {curve.style}")
        _text(svg, curve.name, left + 23, 14, "legend")
        left += 1.2 * _LETTER * len(curve.name) + 40  # larger letters on a narrow screen


def dot_chart(
    title: str, columns: Sequence[tuple[str, Sequence[float]]], *, label: str, unit: str
) -> str:
    """Draw every value of some groups as a dot, and a line through the groups' medians.

    Args:
        title: Read out by screen readers in place of the chart.
        columns: What each group is called, and its values, which are shares; from left to right, at
            equal distances.
        label: What the groups' names are.
        unit: What the values are.

    Returns:
        An `svg` element; empty without values.
    """
    values = [value for _, own in columns for value in own]
    if not values:
        return ""
    svg = _svg(_WIDTH, _HEIGHT, title)
    x = _Axis(-0.5, len(columns) - 0.5, _LEFT, _WIDTH - _RIGHT, ())
    y = _Axis.over(values, _HEIGHT - _BOTTOM, _TOP, limits=(0, 1))
    _draw_axes(svg, x, y, unit, percent=True, label=label)
    middles = []
    for number, (name, own) in enumerate(columns):
        place = x.at(number)
        _text(svg, name, place, _HEIGHT - _BOTTOM + 17, "tick mid")
        for value in own:
            dot = _add(svg, "circle", cx=place, cy=y.at(value), r=3, class_="dot faint")
            said = f"{label} {name}: {_number(value, True, digits=6)}"
            ET.SubElement(dot, "title").text = said
        if own:
            middles.append((name, place, statistics.median(own)))
    if len(middles) > 1:
        path = " ".join(f"{place:.1f},{y.at(value):.1f}" for _, place, value in middles)
        _add(svg, "polyline", points=path, class_="curve a")
    for name, place, value in middles:
        mark = _add(
            svg,
            "line",
            class_="curve a",
            x1=place - 9,
            x2=place + 9,
            y1=y.at(value),
            y2=y.at(value),
        )
        said = f"{label} {name}, median: {_number(value, True, digits=6)}"
        ET.SubElement(mark, "title").text = said
    return _render(svg)


def confusion_matrix(
    classes: Sequence[str],
    matrix: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64] | None = None,
) -> str:
    """Draw a confusion matrix as a heat map, with all non-zero counts in their cells.

    A cell is the stronger the larger its share of the row, on a square-root scale: a single mistake
    shows. Right predictions and mistakes have different colours.

    Args:
        classes: Class names.
        matrix: Counts (classes, classes): rows are true classes, columns predicted ones.
        others: Of each class's images, how many were taken for a class that is not drawn; they get
            a column of their own.

    Returns:
        An `svg` element.
    """
    columns = list(classes)
    if others is not None:
        matrix, columns = np.column_stack([matrix, others]), [*columns, OTHERS]
    count = len(columns)
    cell = min(44 if others is None else 32, max(21, 560 // count))
    wraps = cell >= 2 * _LINE
    shown = [_wrapped(name) if wraps else [_short(name)] for name in classes]
    left = 34 + _LETTER * max(_columns(line) for lines in shown for line in lines)
    # Column names are rotated by 50 degrees, so their height is 0.77 of their length.
    letters = max(_columns(_short(name)) for name in columns)
    top, lean = 28 + 0.77 * _LETTER * letters, 0.64 * _LETTER * letters
    width = left + cell * count + lean
    svg = _svg(width, top + cell * len(classes) + 8, "Confusion matrix")
    # Few classes must not fill the page, and many not shrink until they cannot be read.
    svg.set("style", f"width:{width:.0f}px;min-width:{0.8 * width:.0f}px;max-width:100%")
    svg.set("class", "matrix")
    _text(svg, "predicted class", left + cell * count / 2, 12, "label mid")
    _text(svg, "true class", 12, top + cell * len(classes) / 2, "label mid", turn=-90)
    for index, lines in enumerate(shown):
        middle = top + (index + 0.5) * cell + 4 - (len(lines) - 1) * _LINE / 2
        cut = classes[index] if " ".join(lines) != classes[index] else ""
        for number, line in enumerate(lines):
            _text(svg, line, left - 7, middle + number * _LINE, "tick end", title=cut)
    for index, name in enumerate(columns):
        place = left + (index + 0.5) * cell + 3
        _text(svg, _short(name), place, top - 7, "tick", turn=-50, title=name)
    board = {"x": left, "y": top, "width": cell * count, "height": cell * len(classes)}
    _add(svg, "rect", **board, class_="board")
    totals = matrix.sum(axis=1).tolist()
    for row, column in zip(*(index.tolist() for index in matrix.nonzero()), strict=True):
        found, total = int(matrix[row, column]), totals[row]
        group = ET.SubElement(svg, "g")
        what = f"{found:,} of {total:,} images of {classes[row]} classified as {columns[column]}"
        ET.SubElement(group, "title").text = what
        x, y, shade = left + column * cell, top + row * cell, math.sqrt(found / total)
        kind = "right" if row == column else "wrong"
        size = cell - 1
        _add(group, "rect", x=x, y=y, width=size, height=size, class_=kind, fill_opacity=shade)
        text = f"{found}" if found < 10_000 else f"{found // 1000}k"
        style = f"count mid{' small' if cell < 30 else ''}"
        _text(group, text, x + size / 2, y + size / 2 + 4, style)
    return _render(svg)


def matrix_overview(
    classes: Sequence[str],
    order: Sequence[int],
    totals: Sequence[int],
    hits: Sequence[int],
    mistakes: Sequence[Confusion],
    groups: Sequence[Sequence[int]] = (),
) -> str:
    """Draw the confusion matrix of many classes, without names: a square of one unit per cell.

    The most frequent mistakes say what they are when pointed at.

    Args:
        classes: Class names.
        order: The classes to draw, in this order.
        totals: Images of each class.
        hits: Right ones among them.
        mistakes: The most frequent first; of more than `MAX_CELLS` only the first are drawn.
        groups: Classes that stand together, to be framed and numbered from 1.

    Returns:
        An `svg` element.
    """
    place = {label: number for number, label in enumerate(order)}
    drawn = [pair for pair in mistakes if pair.true in place and pair.predicted in place]
    side = len(order)
    svg = _svg(side, side, f"Confusion matrix of {side:,} classes")
    svg.set("class", "overview")
    cells = [("right", k, k, hits[k]) for k in order if hits[k]]
    cells += [("wrong", pair.true, pair.predicted, pair.count) for pair in drawn[:MAX_CELLS]]
    shades: dict[tuple[str, int], list[str]] = {}
    for kind, row, column, count in cells:
        level = math.ceil(_LEVELS * math.sqrt(count / totals[row]))
        path = f"M{place[column]} {place[row]}h1v1h-1z"
        shades.setdefault((kind, level), []).append(path)
    for (kind, level), paths in sorted(shades.items(), reverse=True):  # mistakes below the diagonal
        opacity = LEAST_OPACITY + (1 - LEAST_OPACITY) * (level - 1) / (_LEVELS - 1)
        _add(svg, "path", d="".join(paths), class_=kind, fill_opacity=opacity)
    for pair in drawn[:_TOLD]:
        what = (
            f"{pair.count:,} of {totals[pair.true]:,} images of {classes[pair.true]} classified as "
            f"{classes[pair.predicted]}"
        )
        x, y = place[pair.predicted], place[pair.true]
        cell = _add(svg, "rect", x=x, y=y, width=1, height=1, class_="told")
        ET.SubElement(cell, "title").text = what
    for number, group in enumerate(groups, start=1):
        first, size = place[group[0]], len(group)
        _add(svg, "rect", x=first, y=first, width=size, height=size, class_="frame")
        beside = first + size + side / 200
        right = beside < 0.95 * side
        edge, style = (beside, "") if right else (first - side / 200, "end")
        text = _add(svg, "text", x=edge, y=first + size / 2 + side / 120, class_=style)
        text.set("font-size", f"{side / 40:.4g}")
        text.text = str(number)
    return _render(svg)


def _svg(width: float, height: float, title: str) -> ET.Element:
    box = f"0 0 {width:.0f} {height:.0f}"
    return ET.Element("svg", {"viewBox": box, "role": "img", "aria-label": title})


def _add(parent: ET.Element, tag: str, **attributes: float | str) -> ET.Element:
    """Append an element; ``class_`` and ``fill_opacity`` become ``class`` and ``fill-opacity``."""
    texts = {
        name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else f"{value:.4g}"
        for name, value in attributes.items()
    }
    return ET.SubElement(parent, tag, texts)


def _text(
    parent: ET.Element,
    text: str,
    x: float,
    y: float,
    style: str,
    *,
    turn: float = 0,
    title: str = "",
) -> None:
    element = _add(parent, "text", x=x, y=y, class_=style)
    if turn:
        element.set("transform", f"rotate({turn:g} {x:.4g} {y:.4g})")
    element.text = text
    if title and title != text:
        ET.SubElement(element, "title").text = title


def _render(svg: ET.Element) -> str:
    return ET.tostring(svg, encoding="unicode")


def _short(name: str) -> str:
    if _columns(name) <= _MAX_LABEL:
        return name
    while _columns(name) >= _MAX_LABEL:
        name = name[:-1]
    return name + "\u2026"


def _wrapped(name: str) -> list[str]:
    """Return a name as one line or, if it is too long and has a space, as two."""
    if _columns(name) <= _MAX_LABEL or " " not in name:
        return [_short(name)]
    words = name.split(" ")
    cuts = [(" ".join(words[:k]), " ".join(words[k:])) for k in range(1, len(words))]
    fitting = [cut for cut in cuts if _columns(cut[0]) <= _MAX_LABEL] or cuts[:1]
    first, second = min(fitting, key=lambda cut: max(map(_columns, cut)))
    return [_short(first), _short(second)]


def _columns(name: str) -> int:
    """Return a name's width in letters; a Chinese, Japanese or Korean one is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name)


def _power(value: float) -> str:
    return "10" + f"{math.log10(value):.0f}".translate(_SUPERSCRIPTS)


def _number(value: float, percent: bool, digits: int = 4) -> str:
    return f"{100 * value:.{digits}g} %" if percent else f"{value:.{digits}g}"
