"""Charts as inline SVG: lines over training steps, confusion matrices. No plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from bitzoo.inference.metrics import Confusion
from bitzoo.runs.report.svg_elements import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    MAX_LABEL,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    add,
    add_text,
    draw_axes,
    draw_legend,
    in_words,
    letters_of,
    new_svg,
    rendered,
    shortened_name,
)

__all__ = [
    "Curve",
    "confusion_matrix",
    "line_chart",
    "matrix_overview",
    "smoothed",
]

Point: TypeAlias = tuple[float, float]

_MAX_POINTS = 600
"""Most points drawn per curve: two per pixel column that it crosses."""
_MAX_MARKS = 60
_LINE = 13
"""Height of a line of the page's 11 px font."""

OTHERS = "other classes"
MAX_CELLS = 40_000
"""Most mistakes drawn in an overview, at about 15 bytes each."""

_TOLD = 1000
"""Mistakes of an overview that say what they are, at about 120 bytes each."""

_LEVELS = 5
LEAST_OPACITY = 0.8
"""Of a cell of an overview: a single mistake must stand out from the page by 3 to 1 (WCAG 1.4.11).
"""


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
    legend: bool = True,
) -> str:
    """Draw curves over steps.

    Args:
        title: Read out by screen readers in place of the chart.
        curves: Drawn in this order, later ones on top.
        unit: Label of the value axis.
        end: Step up to which the axis goes, if the curves do not go further.
        log: Whether the value axis is logarithmic; values that are not positive are left out.
        percent: Whether values are shares, to be shown in percent and never beyond 0 and 100.
        legend: Whether to name the curves above the chart, if there are several.

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
    x = Axis.over([0, end, *steps], LEFT, WIDTH - RIGHT, whole=True)
    y = Axis.over(values, HEIGHT - BOTTOM, TOP, log=log, limits=(0, 1) if percent else None)
    svg = new_svg(WIDTH, HEIGHT, title)
    draw_axes(svg, x, y, unit, percent)
    for curve, points in drawn:
        _draw_curve(svg, curve, points, x, y, percent)
    if legend:
        draw_legend(svg, [(curve.name, curve.style) for curve, points in drawn if points])
    return rendered(svg)


def _draw_curve(
    svg: ET.Element, curve: Curve, points: Sequence[Point], x: Axis, y: Axis, percent: bool
) -> None:
    places = [(x.at(step), y.at(value)) for step, value in _thinned(points)]
    if len(places) > 1:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        add(svg, "polyline", points=path, class_=f"curve {curve.style}")
    if (curve.marks and len(points) <= _MAX_MARKS) or len(points) == 1:
        for (step, value), (a, b) in zip(points, places, strict=True):
            dot = add(svg, "circle", cx=a, cy=b, r=3, class_=f"dot {curve.style}")
            title = f"{curve.name}, step {step:,}: {in_words(value, percent, digits=6)}"
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
    shown = [_wrapped(name) if wraps else [shortened_name(name)] for name in classes]
    left = 34 + LETTER * max(letters_of(line) for lines in shown for line in lines)
    # Column names are rotated by 50 degrees, so their height is 0.77 of their length.
    letters = max(letters_of(shortened_name(name)) for name in columns)
    top, lean = 28 + 0.77 * LETTER * letters, 0.64 * LETTER * letters
    width = left + cell * count + lean
    svg = new_svg(width, top + cell * len(classes) + 8, "Confusion matrix")
    # Few classes must not fill the page, and many not shrink until they cannot be read.
    svg.set("style", f"width:{width:.0f}px;min-width:{0.8 * width:.0f}px;max-width:100%")
    svg.set("class", "matrix")
    add_text(svg, "predicted class", left + cell * count / 2, 12, "label mid")
    add_text(svg, "true class", 12, top + cell * len(classes) / 2, "label mid", turn=-90)
    for index, lines in enumerate(shown):
        middle = top + (index + 0.5) * cell + 4 - (len(lines) - 1) * _LINE / 2
        cut = classes[index] if " ".join(lines) != classes[index] else ""
        for number, line in enumerate(lines):
            add_text(svg, line, left - 7, middle + number * _LINE, "tick end", title=cut)
    for index, name in enumerate(columns):
        place = left + (index + 0.5) * cell + 3
        add_text(svg, shortened_name(name), place, top - 7, "tick", turn=-50, title=name)
    board = {"x": left, "y": top, "width": cell * count, "height": cell * len(classes)}
    add(svg, "rect", **board, class_="board")
    totals = matrix.sum(axis=1).tolist()
    for row, column in zip(*(index.tolist() for index in matrix.nonzero()), strict=True):
        found, total = int(matrix[row, column]), totals[row]
        group = ET.SubElement(svg, "g")
        what = f"{found:,} of {total:,} images of {classes[row]} classified as {columns[column]}"
        ET.SubElement(group, "title").text = what
        x, y, shade = left + column * cell, top + row * cell, math.sqrt(found / total)
        kind = "right" if row == column else "wrong"
        size = cell - 1
        add(group, "rect", x=x, y=y, width=size, height=size, class_=kind, fill_opacity=shade)
        text = f"{found}" if found < 10_000 else f"{found // 1000}k"
        style = f"count mid{' small' if cell < 30 else ''}"
        add_text(group, text, x + size / 2, y + size / 2 + 4, style)
    return rendered(svg)


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
    svg = new_svg(side, side, f"Confusion matrix of {side:,} classes")
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
        add(svg, "path", d="".join(paths), class_=kind, fill_opacity=opacity)
    for pair in drawn[:_TOLD]:
        what = (
            f"{pair.count:,} of {totals[pair.true]:,} images of {classes[pair.true]} classified as "
            f"{classes[pair.predicted]}"
        )
        x, y = place[pair.predicted], place[pair.true]
        cell = add(svg, "rect", x=x, y=y, width=1, height=1, class_="told")
        ET.SubElement(cell, "title").text = what
    for number, group in enumerate(groups, start=1):
        first, size = place[group[0]], len(group)
        add(svg, "rect", x=first, y=first, width=size, height=size, class_="frame")
        beside = first + size + side / 200
        right = beside < 0.95 * side
        edge, style = (beside, "") if right else (first - side / 200, "end")
        text = add(svg, "text", x=edge, y=first + size / 2 + side / 120, class_=style)
        text.set("font-size", f"{side / 40:.4g}")
        text.text = str(number)
    return rendered(svg)


def _wrapped(name: str) -> list[str]:
    """Return a name as one line or, if it is too long and has a space, as two."""
    if letters_of(name) <= MAX_LABEL or " " not in name:
        return [shortened_name(name)]
    words = name.split(" ")
    cuts = [(" ".join(words[:k]), " ".join(words[k:])) for k in range(1, len(words))]
    fitting = [cut for cut in cuts if letters_of(cut[0]) <= MAX_LABEL] or cuts[:1]
    first, second = min(fitting, key=lambda cut: max(map(letters_of, cut)))
    return [shortened_name(first), shortened_name(second)]
