"""What came of a study: a row for each group of cells that differ only in their seed."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitzoo.display import Displayed, in_percent
from bitzoo.files import write_json, write_text
from bitzoo.inference.intervals import student, wilson
from bitzoo.runs.study_cell import CELLS, Score
from bitzoo.runs.study_grid import Cell, StudyPlan
from bitzoo.runs.study_words import HEADINGS, UPSTREAM

RESULTS_NAME, TABLE_NAME = "results.json", "results.csv"

OF_SEEDS = "of the mean over seeds, by Student's distribution: what a seed changes is in it"
OF_IMAGES = (
    "of one run's share of right images, by Wilson's score: what another seed would change is not "
    "in it"
)


@dataclass(frozen=True)
class Row:
    """A metric of a group of cells.

    Attributes:
        values: Axis -> the group's value on it.
        metric: What was measured.
        seeds: The seeds of the cells that are done.
        scores: Their scores, in the same order.
        published: Figures that others published of it, in percent.
    """

    values: Mapping[str, str]
    metric: str
    seeds: tuple[int, ...]
    scores: tuple[Score, ...]
    published: tuple[float, ...] = ()

    @property
    def top1(self) -> tuple[float, ...]:
        """The accuracies, in [0, 1]."""
        return tuple(score.top1 for score in self.scores)

    @property
    def median(self) -> float:
        """The middle score, or the mean of the two in the middle."""
        return statistics.median(self.top1)

    @property
    def lowest(self) -> float:
        """The lowest score."""
        return min(self.top1)

    @property
    def highest(self) -> float:
        """The highest score."""
        return max(self.top1)

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95 % interval, within [0, 1]; None for a single score that is no share of images."""
        if len(self.scores) > 1:
            low, high = student(self.top1)
            return max(0.0, low), min(1.0, high)
        (score,) = self.scores
        if score.correct is None or not score.count:
            return None
        return wilson(score.correct, score.count)

    @property
    def interval_of(self) -> str:
        """What the interval is of: `OF_SEEDS`, `OF_IMAGES`, or nothing."""
        if self.interval is None:
            return ""
        return OF_SEEDS if len(self.scores) > 1 else OF_IMAGES

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "values": dict(self.values),
            "metric": self.metric,
            "seeds": list(self.seeds),
            "scores": [score.to_dict() for score in self.scores],
            "median": self.median,
            "lowest": self.lowest,
            "highest": self.highest,
            "interval": list(self.interval) if self.interval else None,
            "interval_of": self.interval_of or None,
            "published": list(self.published),
        }


@dataclass(frozen=True, repr=False)
class StudyResult(Displayed):
    """The outcome of `bitzoo.study`.

    Attributes:
        folder: Where `results.json`, `results.csv`, the report and the cells are.
        plan: The study.
        scores: Name of a cell -> metric -> score, of all cells that are done.
        failed: Name of a cell -> why it could not be done.
        stopped: Whether it was stopped; the same call goes on.
    """

    folder: Path
    plan: StudyPlan
    scores: Mapping[str, Mapping[str, Score]]
    failed: Mapping[str, str]
    stopped: bool = False

    @property
    def finished(self) -> bool:
        """Whether all cells are done."""
        return len(self.scores) == len(self.plan.cells)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was measured, in the order of the cells' parts."""
        found = dict.fromkeys(m for cell in self.plan.cells for m in self.scores.get(cell.name, ()))
        return tuple(found)

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, by metric, groups in the order of the grid."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.plan.cells:
            if cell.name in self.scores:
                groups.setdefault(cell.group, []).append(cell)
        rows = []
        for metric in self.metrics:
            for cells in groups.values():
                own = [cell for cell in cells if metric in self.scores[cell.name]]
                if own:
                    values = own[0].values
                    scores = tuple(self.scores[cell.name][metric] for cell in own)
                    seeds = tuple(cell.seed for cell in own)
                    rows.append(Row(values, metric, seeds, scores, self._published(values, metric)))
        return tuple(rows)

    def rows_of(self, metric: str) -> list[Row]:
        """Return the rows of one metric."""
        return [row for row in self.rows if row.metric == metric]

    def _published(self, values: Mapping[str, str], metric: str) -> tuple[float, ...]:
        return tuple(
            figure.value
            for figure in self.plan.published
            if figure.metric == metric
            and figure.where
            and all(values.get(axis) == value for axis, value in figure.where.items())
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be known of the figures, as sentences."""
        kinds = dict.fromkeys(row.interval_of for row in self.rows if row.interval_of)
        return (*self.plan.remarks, *(f"The 95 % interval is {kind}." for kind in kinds))

    def title_of(self, metric: str) -> str:
        """Return what a metric is, as a heading."""
        over = dict.fromkeys(s.over for row in self.rows_of(metric) for s in row.scores if s.over)
        of = "after pre-training" if metric == UPSTREAM else "after transfer"
        return f"{metric}: top-1 {of}" + (f", over {'; '.join(over)}" if over else "")

    def table(self, metric: str) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        """Return headers and rows of a metric, accuracies in percent."""
        rows = self.rows_of(metric)
        has_published = any(row.published for row in rows)
        headers = (
            *(HEADINGS.get(axis, axis) for axis in self.plan.axes),
            *("seeds", "median", "spread", "95 %"),
            *(("paper",) if has_published else ()),
        )
        cells: list[tuple[object, ...]] = [
            (
                *(row.values[axis] for axis in self.plan.axes),
                len(row.seeds),
                f"{100 * row.median:6.2f}",
                f"{100 * row.lowest:.2f}-{100 * row.highest:.2f}",
                _range(row.interval),
                *((" ".join(f"{v:.2f}" for v in row.published),) if has_published else ()),
            )
            for row in rows
        ]
        return headers, cells

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data, without dates, durations and absolute paths."""
        plan = self.plan
        return {
            "study": plan.name,
            "title": plan.title,
            "scale": plan.scale,
            "finished": self.finished,
            "stopped": self.stopped,
            "cells": len(plan.cells),
            "done": len(self.scores),
            "failed": dict(self.failed),
            "axes": list(plan.axes),
            "rows": [row.to_dict() for row in self.rows],
            "notes": list(self.notes),
            "claims": list(plan.claims),
            "published": [
                {
                    "where": dict(figure.where),
                    "metric": figure.metric,
                    "value": figure.value,
                    "source": figure.source,
                }
                for figure in plan.published
            ],
            "folders": [f"{CELLS}/{cell.name}" for cell in plan.cells],
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        count = len(self.plan.cells)
        return [
            ("study", self.plan.title),
            ("scale", self.plan.scale or "as the file says"),
            ("cells", f"{len(self.scores)} of {count} done"),
            ("folder", self.folder),
            *(
                (
                    f"{row.metric}, {', '.join(row.values.values()) or 'all'}",
                    f"{row.median:.2%}"
                    + (f" (95 %: {in_percent(row.interval)})" if row.interval else ""),
                )
                for row in self.rows
            ),
        ]

    def csv(self) -> str:
        """Return the rows as CSV, accuracies in [0, 1]."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                *self.plan.axes,
                *("metric", "seeds", "scores", "median", "lowest", "highest"),
                *("interval_low", "interval_high", "published_percent"),
            ]
        )
        for row in self.rows:
            writer.writerow(
                [
                    *(row.values[axis] for axis in self.plan.axes),
                    row.metric,
                    _joined(row.seeds),
                    _joined(row.top1),
                    *(row.median, row.lowest, row.highest),
                    *(row.interval or ("", "")),
                    _joined(row.published),
                ]
            )
        return file.getvalue()

    def write(self) -> None:
        """Write `results.json` and `results.csv`."""
        write_json(self.folder / RESULTS_NAME, self.to_dict())
        write_text(self.folder / TABLE_NAME, self.csv())


def _joined(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


def _range(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"
