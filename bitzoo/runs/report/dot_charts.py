"""Charts of groups of values: every value a dot, and lines through the medians."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from bitzoo.runs.report.svg_elements import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    add,
    add_text,
    draw_axes,
    draw_legend,
    in_words,
    new_svg,
    rendered,
    shortened_name,
)


@dataclass(frozen=True)
class Series:
    """Groups of values that a line goes through.

    Attributes:
        name: What the legend calls it.
        groups: The values of each group, which are shares; some groups may have none.
        style: CSS class of its line and dots, as for `Curve`.
        is_connected: Whether to draw a line through the groups' medians.
    """

    name: str
    groups: Sequence[Sequence[float]]
    style: str = "a"
    is_connected: bool = True


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
    names, series = [name for name, _ in columns], Series("", [own for _, own in columns])
    return series_chart(title, names, [series], label=label, unit=unit)


def series_chart(
    title: str, names: Sequence[str], series: Sequence[Series], *, label: str, unit: str,
    legend: bool = True,
) -> str:  # fmt: skip
    """Draw several series of groups in one chart, as `dot_chart` draws one.

    Args:
        title: Read out by screen readers in place of the chart.
        names: What the groups are called, from left to right.
        series: The series, each with as many groups as there are names.
        label: What the groups' names are.
        unit: What the values are.
        legend: Whether to name the series above the chart, if there are several.

    Returns:
        An `svg` element; empty without values.
    """
    values = [value for each in series for own in each.groups for value in own]
    if not values:
        return ""
    svg = new_svg(WIDTH, HEIGHT, title)
    x = Axis(-0.5, len(names) - 0.5, LEFT, WIDTH - RIGHT, ())
    y = Axis.over(values, HEIGHT - BOTTOM, TOP, limits=(0, 1))
    draw_axes(svg, x, y, unit, percent=True, label=label)
    room = int((WIDTH - LEFT - RIGHT) / len(names) / LETTER)
    for number, name in enumerate(names):
        shown, place = shortened_name(name, max(room, 3)), x.at(number)
        add_text(svg, shown, place, HEIGHT - BOTTOM + 17, "tick mid", title=name)
    for each in series:
        _draw_series(svg, names, each, label, x, y, alone=len(series) == 1)
    if legend:
        draw_legend(svg, [(each.name, each.style) for each in series])
    return rendered(svg)


def _draw_series(
    svg: ET.Element, names: Sequence[str], series: Series, label: str, x: Axis, y: Axis,
    *, alone: bool,
) -> None:  # fmt: skip
    about = "" if alone else f"{series.name}, "
    middles = []
    for number, (name, own) in enumerate(zip(names, series.groups, strict=True)):
        for value in own:
            style = "faint" if alone else series.style
            dot = add(svg, "circle", cx=x.at(number), cy=y.at(value), r=3, class_=f"dot {style}")
            said = f"{about}{label} {name}: {in_words(value, True, digits=6)}"
            ET.SubElement(dot, "title").text = said
        if own:
            middles.append((name, x.at(number), statistics.median(own)))
    if len(middles) > 1 and series.is_connected:
        path = " ".join(f"{place:.1f},{y.at(value):.1f}" for _, place, value in middles)
        add(svg, "polyline", points=path, class_=f"curve {series.style}")
    for name, place, value in middles:
        ends = {"x1": place - 9, "x2": place + 9, "y1": y.at(value), "y2": y.at(value)}
        mark = add(svg, "line", class_=f"curve {series.style}", **ends)
        said = f"{about}{label} {name}, median: {in_words(value, True, digits=6)}"
        ET.SubElement(mark, "title").text = said
