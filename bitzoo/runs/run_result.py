"""The outcome of a run of any kind."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitzoo.display import Displayed
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.report.leakage import Leakage
from bitzoo.training.model_selection import Choice
from bitzoo.training.recipe import Recipe


@dataclass(frozen=True, repr=False)
class RunResult(Displayed):
    """The outcome of a run.

    Attributes:
        folder: The run folder.
        recipe: The recipe it followed.
        steps: Number of updates.
        stopped: Whether it was stopped before its end and can be resumed.
        evaluation: On the held-out images; None if there are none or the run was stopped.
        images_per_s: Training speed.
        repeats: The results of all repeated runs, if there are several; the result itself is then
            the one with the median top-1 accuracy.
        was_finished: Whether nothing was done, because the run had reached its end before. Its
            evaluation is then in the folder (`evaluation.json`), not here.
        leakage: Near-duplicates across the splits, and the accuracy without them; None as for
            `evaluation`.
        choice: Which weights the run kept; None if it was stopped.
    """

    folder: Path
    recipe: Recipe
    steps: int
    stopped: bool
    evaluation: Evaluation | None
    images_per_s: float
    repeats: tuple[RunResult, ...] = ()
    was_finished: bool = False
    leakage: Leakage | None = None
    choice: Choice | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What else to say beside the accuracy."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "folder": str(self.folder),
            "recipe": self.recipe.to_dict(),
            "steps": self.steps,
            "stopped": self.stopped,
            "evaluation": self.evaluation.to_dict() if self.evaluation else None,
            "images_per_s": self.images_per_s,
            "repeats": self.summary() if self.repeats else None,
            "was_finished": self.was_finished,
            "near_duplicates": self.leakage.to_dict() if self.leakage else None,
            "weights": self.choice.to_dict() if self.choice else None,
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        found, summary = self.evaluation, self.summary()
        rows: list[tuple[str, object]] = [
            ("folder", self.folder),
            ("recipe", self.recipe.name),
            ("steps", f"{self.steps:,}" + (", then stopped" if self.stopped else "")),
            ("held-out", found.display_rows()[0][1] if found else "not evaluated"),
            ("speed", f"{self.images_per_s:,.1f} images/s"),
        ]
        if self.leakage and self.leakage.matters:
            rows.insert(4, ("without near-duplicates", self.leakage.accuracy_without))
        if self.choice and self.choice.sentence:
            rows.insert(-1, ("weights", self.choice.summary))
        if len(summary["top1"]) > 1:
            figures = f"{summary['median']:.2%}, standard deviation {summary['stdev']:.2%}"
            rows.append((f"median of {len(summary['top1'])} runs", figures))
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the repeats' top-1 accuracies, with their median and standard deviation."""
        scores = [run.evaluation.top1 for run in self.repeats if run.evaluation]
        return {
            "runs": [str(run.folder) for run in self.repeats],
            "top1": scores,
            "median": statistics.median(scores) if scores else None,
            "stdev": statistics.stdev(scores) if len(scores) > 1 else None,
        }
