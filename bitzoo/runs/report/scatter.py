"""A chart of shares against another quantity: a numbered dot each, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from bitzoo.runs.report.svg_elements import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    add,
    add_text,
    draw_axes,
    in_words,
    new_svg,
    rendered,
)


@dataclass(frozen=True)
class Dot:
    """A point of the chart.

    Attributes:
        label: What stands beside it, a few letters.
        name: What it is called when it is pointed at.
        x: Its horizontal quantity, above 0.
        share: Its share, in [0, 1].
        interval: Lower and upper end of the share's interval.
        is_chosen: Whether it stands out.
    """

    label: str
    name: str
    x: float
    share: float
    interval: tuple[float, float]
    is_chosen: bool = False


def scatter_chart(title: str, dots: Sequence[Dot], *, label: str, unit: str) -> str:
    """Draw dots with their intervals, the chosen one on top of the others.

    Args:
        title: Read out by screen readers in place of the chart.
        dots: The dots.
        label: Name of the horizontal axis, which is logarithmic if values differ much.
        unit: Name of the vertical axis.

    Returns:
        An `svg` element; empty without dots.
    """
    if not dots:
        return ""
    svg = new_svg(WIDTH, HEIGHT, title)
    x = Axis.over([dot.x for dot in dots], LEFT + 12, WIDTH - RIGHT - 12, log=True)
    ends = [end for dot in dots for end in dot.interval]
    y = Axis.over(ends, HEIGHT - BOTTOM, TOP, limits=(0, 1))
    draw_axes(svg, x, y, unit, percent=True, label=label)
    for dot in sorted(dots, key=lambda own: own.is_chosen):
        style, place, height = "b" if dot.is_chosen else "a", x.at(dot.x), y.at(dot.share)
        low, high = map(y.at, dot.interval)
        add(svg, "line", x1=place, x2=place, y1=low, y2=high, class_=f"curve {style} thin")
        mark = add(svg, "circle", cx=place, cy=height, r=4, class_=f"dot {style}")
        said = f"{dot.name}: {in_words(dot.share, True, digits=4)}, {dot.x:,.3g} {label}"
        ET.SubElement(mark, "title").text = said
        add_text(svg, dot.label, place + 7, height - 6, "legend")
    return rendered(svg)
