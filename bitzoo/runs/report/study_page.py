"""The report of a study, as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitzoo._version import __version__
from bitzoo.runs.report.artifacts import REPORT_NAME
from bitzoo.runs.report.dot_charts import Series, series_chart
from bitzoo.runs.report.html import render, write_page
from bitzoo.runs.report.svg import Curve, line_chart
from bitzoo.runs.run_dir import RunDir
from bitzoo.runs.study_cell import CELLS, PRETRAIN
from bitzoo.runs.study_grid import Cell
from bitzoo.runs.study_result import Row, StudyResult
from bitzoo.runs.study_words import HEADINGS

STYLES = ("a", "b", "c", "d", "e", "f")
"""CSS classes of lines that can be told apart; further ones are faint."""


@dataclass(frozen=True)
class Figure:
    """A chart with what its lines are.

    Attributes:
        title: Heading.
        chart: An `svg` element; empty if there is nothing to draw.
        lines: Name and CSS class of each line; empty for a single one.
        caption: What is to be seen.
    """

    title: str
    chart: str
    lines: tuple[tuple[str, str], ...]
    caption: str


def write_study_report(result: StudyResult) -> Path:
    """Write the report into the folder of the study, in place of the one before.

    Args:
        result: What is done so far.

    Returns:
        Its path.
    """
    page = render(
        "study.html.j2",
        result=result,
        plan=result.plan,
        figures=[figure for figure in _figures(result) if figure.chart],
        tables=[
            (metric, result.title_of(metric), result.rows_of(metric)) for metric in result.metrics
        ],
        headings=[HEADINGS.get(axis, axis) for axis in result.plan.axes],
        named=named,
        version=__version__,
    )
    return write_page(result.folder / REPORT_NAME, page)


def named(row: Row | Cell) -> str:
    """Return what a group of cells is called where there is little room."""
    return ", ".join(f"{HEADINGS.get(k, k)} {v}" for k, v in row.values.items()) or "all"


def _figures(result: StudyResult) -> list[Figure]:
    return [
        *(_scores(result, metric) for metric in result.metrics),
        _curves(result),
    ]


def _scores(result: StudyResult, metric: str) -> Figure:
    """Draw the scores of a metric: by the last axis, with a line for each of the other values."""
    rows, axes = result.rows_of(metric), result.plan.axes
    if not axes:
        groups = [("all", [rows[0].top1])]
        return _drawn(metric, ["all"], [groups[0]], "cells", connected=False)
    last = axes[-1]
    names = list(dict.fromkeys(row.values[last] for row in rows))
    lines: dict[str, dict[str, Sequence[float]]] = {}
    for row in rows:
        rest = ", ".join(f"{HEADINGS.get(a, a)} {row.values[a]}" for a in axes[:-1])
        lines.setdefault(rest, {})[row.values[last]] = row.top1
    series = [(rest, [own.get(name, ()) for name in names]) for rest, own in lines.items()]
    return _drawn(metric, names, series, HEADINGS.get(last, last), connected=len(names) > 1)


def _drawn(
    metric: str,
    names: Sequence[str],
    series: Sequence[tuple[str, Sequence[Sequence[float]]]],
    label: str,
    *,
    connected: bool,
) -> Figure:
    styles = [_style(number) for number in range(len(series))]
    drawn = [
        Series(name, groups, style, connected)
        for (name, groups), style in zip(series, styles, strict=True)
    ]
    title = f"{metric}: top-1 of every cell"
    chart = series_chart(title, names, drawn, label=label, unit="top-1", legend=False)
    lines = tuple((each.name, each.style) for each in drawn) if len(drawn) > 1 else ()
    return Figure(metric, chart, lines, "A dot is a cell; the marks are medians over seeds.")


def _curves(result: StudyResult) -> Figure:
    """Draw the held-out accuracy during pre-training, of the first seed of each group."""
    first: dict[str, Cell] = {}
    for cell in result.plan.cells:
        if cell.name in result.scores:
            first.setdefault(cell.group, cell)
    curves = []
    for number, cell in enumerate(first.values()):
        history = RunDir(result.folder / CELLS / cell.name / PRETRAIN).history()
        points = [
            (float(record["step"]), float(record["top1"]))
            for record in history
            if record["event"] == "eval"
        ]
        if len(points) > 1:
            curves.append(Curve(named(cell), points, _style(number), marks=True))
    title = "Held-out accuracy during pre-training"
    chart = line_chart(title, curves, unit="top-1", percent=True, legend=False)
    lines = tuple((curve.name, curve.style) for curve in curves) if len(curves) > 1 else ()
    return Figure(title, chart, lines, "The first seed of each group.")


def _style(number: int) -> str:
    return STYLES[number] if number < len(STYLES) else "faint"
