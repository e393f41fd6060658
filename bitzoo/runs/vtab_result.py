"""The scores of VTAB-1k: of each run, task and group, and what they may be called."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitzoo.catalogue.vtab_published import DISAGREEMENTS, PUBLISHED
from bitzoo.catalogue.vtab_tasks import GROUPS, TASKS, VtabTask
from bitzoo.display import Displayed

MEDIAN_RULE = (
    "The paper does not say whether the median of the runs is taken of each task or of the means."
)


@dataclass(frozen=True)
class RunScore:
    """One run of a task.

    Attributes:
        seed: Its seed.
        folder: Its run folder, below that of all runs.
        correct: Number of test images that it classified correctly.
        count: Number of test images.
    """

    seed: int
    folder: str
    correct: int
    count: int

    @property
    def top1(self) -> float:
        """Share of correct predictions, in [0, 1]."""
        return self.correct / self.count

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "seed": self.seed,
            "folder": self.folder,
            "correct": self.correct,
            "count": self.count,
            "top1": self.top1,
        }


@dataclass(frozen=True)
class TaskScore:
    """All runs of a task.

    Attributes:
        name: The task.
        version: Version of its TFDS data set.
        runs: The runs, by seed.
        notes: How its data differ from those that the published scores were made with.
    """

    name: str
    version: str
    runs: tuple[RunScore, ...]
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> VtabTask:
        """The task's row."""
        return TASKS[self.name]

    @property
    def top1(self) -> float:
        """Median of the runs' top-1 accuracies, in [0, 1]."""
        return statistics.median(run.top1 for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "name": self.name,
            "title": self.task.title,
            "group": self.task.group,
            "data": self.task.tfds,
            "version": self.version,
            "top1": self.top1,
            "runs": [run.to_dict() for run in self.runs],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Mean:
    """Mean top-1 of several tasks, in both readings of the paper's "median of three runs".

    Attributes:
        tasks: Number of tasks.
        of: Number of tasks that there are.
        top1: Mean of the tasks' medians, in [0, 1].
        of_runs: Median, over the runs, of the mean over the tasks. None if the tasks have different
            numbers of runs.
    """

    tasks: int
    of: int
    top1: float
    of_runs: float | None

    @classmethod
    def over(cls, scores: Sequence[TaskScore], of: int) -> Mean:
        """Return the mean of at least one task."""
        columns = [[run.top1 for run in score.runs] for score in scores]
        of_runs = None
        if len({len(column) for column in columns}) == 1:
            of_runs = statistics.median(_mean(row) for row in zip(*columns, strict=True))
        return cls(len(scores), of, _mean([score.top1 for score in scores]), of_runs)

    @property
    def is_complete(self) -> bool:
        """Whether it is over all tasks that there are."""
        return self.tasks == self.of

    @property
    def readings_differ(self) -> bool:
        """Whether the order of median and mean shows in the second decimal of a percentage."""
        return self.of_runs is not None and f"{self.of_runs:.4f}" != f"{self.top1:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "tasks": self.tasks,
            "of": self.of,
            "top1": self.top1,
            "median_of_the_means": self.of_runs,
        }


@dataclass(frozen=True, repr=False)
class VtabResult(Displayed):
    """Scores on VTAB-1k.

    Attributes:
        model: What was fine-tuned.
        folder: Where the runs are.
        tasks: Task -> its scores, in the order of the groups.
        skipped: Task -> why it was skipped and what prepares it.
        departures: In what the runs departed from the paper's protocol; sentences.
        stopped: Whether it was stopped before its end; the same call goes on.
    """

    model: str
    folder: Path
    tasks: Mapping[str, TaskScore]
    skipped: Mapping[str, str] = field(default_factory=dict)
    departures: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def groups(self) -> dict[str, Mean]:
        """Group -> the mean of its tasks; without groups of which none was run."""
        found: dict[str, Mean] = {}
        for group in GROUPS:
            scores = [score for score in self.tasks.values() if score.task.group == group]
            if scores:
                of = sum(task.group == group for task in TASKS.values())
                found[group] = Mean.over(scores, of)
        return found

    @property
    def overall(self) -> Mean | None:
        """The mean of all tasks that were run; None if none was."""
        return Mean.over([*self.tasks.values()], len(TASKS)) if self.tasks else None

    @property
    def mean(self) -> float | None:
        """The score on VTAB-1k: mean of the 19 tasks' medians, in [0, 1]; None if one is missing.

        Whether the paper's protocol was followed, `departures` says.
        """
        overall = self.overall
        return overall.top1 if overall is not None and overall.is_complete else None

    @property
    def claim(self) -> str:
        """What the mean may be called, as a sentence without the figure."""
        overall = self.overall
        if overall is None:
            return "No task was run"
        if not overall.is_complete:
            return f"Mean of {overall.tasks} of the {overall.of} tasks, which is no VTAB-1k score"
        if self.departures:
            return f"Mean of all {overall.of} tasks, not by the paper's protocol (see departures)"
        return f"VTAB-1k: mean of all {overall.of} tasks"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data, without dates, durations and absolute paths."""
        overall = self.overall
        return {
            "model": self.model,
            "mean": self.mean,
            "claim": self.claim,
            "means": {
                **{group: mean.to_dict() for group, mean in self.groups.items()},
                **({"all": overall.to_dict()} if overall else {}),
            },
            "median": MEDIAN_RULE,
            "departures": list(self.departures),
            "tasks": [score.to_dict() for score in self.tasks.values()],
            "skipped": dict(self.skipped),
            "stopped": self.stopped,
            "published": [
                {
                    "model": row.model,
                    "mean": row.mean,
                    "groups": dict(row.groups),
                    "source": row.source,
                    "note": row.note,
                }
                for row in PUBLISHED
            ],
            "disagreements": list(DISAGREEMENTS),
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        overall = self.overall
        rows: list[tuple[str, object]] = [("model", self.model), ("folder", self.folder)]
        if overall is not None:
            rows.append((self.claim, f"{overall.top1:.2%}"))
        rows += [
            (f"{group} ({mean.tasks} of {mean.of})", f"{mean.top1:.2%}")
            for group, mean in self.groups.items()
        ]
        if self.departures:
            rows.append(("departures", list(self.departures)))
        if self.skipped:
            rows.append(("skipped", list(self.skipped)))
        if self.stopped:
            rows.append(("stopped", "the same call goes on"))
        return rows


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
