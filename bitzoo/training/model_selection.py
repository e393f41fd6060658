"""Which evaluation's weights a run keeps, when it stops early, and how often it evaluates.

A run that keeps the best weights chooses them by the top-1 accuracy on the held-out images; of
equal ones the lower loss is better, then the earlier evaluation. An accuracy that was chosen for
being the highest is higher than that on other images, so whatever states it must say so:
`Choice.sentence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

Keep = Literal["best", "last"]

EVALUATIONS = 10
"""Evaluations per run, the last one included, unless they are too expensive."""

FORWARD_SHARE = 3
"""Trained images that cost as much as one evaluated image, inverted: backward takes about twice as
long as forward, so an evaluated image counts as a third of a trained one."""

TRAINING_PER_EVALUATION = 10
"""Training between two evaluations is at least this many times as expensive as one of them."""


class Scores(Protocol):
    """What evaluations are compared by."""

    @property
    def top1(self) -> float:
        """Share of correct predictions, in [0, 1]."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""


def evaluation_interval(steps: int, batch_size: int, held_out: int) -> int:
    """Return the number of steps between evaluations: a tenth of the steps, more where it is dear.

    The interval is a tenth of the steps, rounded up. It is longer if an evaluation would take more
    than a tenth of the time of the training in between, where an evaluated image counts as a third
    of a trained one. Nothing is measured, so the same run evaluates at the same steps everywhere.

    Args:
        steps: Steps of the run.
        batch_size: Images per step.
        held_out: Images per evaluation; 0 for none.

    Returns:
        At least 1; `steps` or more if there is no evaluation before the end.
    """
    usual = -(-steps // EVALUATIONS)
    affordable = -(-TRAINING_PER_EVALUATION * held_out // (FORWARD_SHARE * batch_size))
    return max(1, usual, affordable)


def explain_interval(every: int, steps: int, batch_size: int, held_out: int, ruled: bool) -> str:
    """Say when a run evaluates.

    Args:
        every: Steps between evaluations; 0 for only at the end.
        steps: Steps of the run.
        batch_size: Images per step.
        held_out: Images per evaluation.
        ruled: Whether `every` is `evaluation_interval`'s.
    """
    images = f"the {held_out:,} held-out image{'' if held_out == 1 else 's'}"
    often = 0 < every < steps
    when = f"every {every:,} steps and at the end" if often else "only at the end"
    if often and every == 1:
        when = "at every step"
    text = f"Evaluating on {images} {when}"
    if ruled and every > max(1, -(-steps // EVALUATIONS)):
        cost = held_out / (FORWARD_SHARE * batch_size)
        text += (
            f", less often than {EVALUATIONS} times a run: one evaluation costs about as much as "
            f"{cost:,.2g} training steps. `eval_every` sets another interval"
        )
    return text + "."


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: updates made before it, and its scores."""

    step: int
    top1: float
    loss: float


class ModelSelection:
    """The best evaluation so far, and how long there was no better one.

    Attributes:
        best: The best evaluation; None before the first.
        evaluations: Number of evaluations.
        without_better: Number of evaluations since the top-1 accuracy last rose.
    """

    def __init__(
        self, patience: int | None = None, record: Mapping[str, Any] | None = None
    ) -> None:
        """Begin, or go on from a record.

        Args:
            patience: See `TrainingConfig`; None never stops.
            record: The result of `to_dict`.

        Raises:
            Exception: Of several kinds, if `record` is something else.
        """
        found = record or {}
        self._patience = patience
        self.best = Best(**found["best"]) if found.get("best") else None
        self.evaluations = found.get("evaluations", 0)
        self.without_better = found.get("without_better", 0)
        _require_record(self, found)

    def add(self, step: int, scores: Scores) -> bool:
        """Count the evaluation after `step` updates; returns whether it is the best so far."""
        before, now = self.best, Best(step, scores.top1, scores.loss)
        self.evaluations += 1
        rose = before is None or now.top1 > before.top1
        self.without_better = 0 if rose else self.without_better + 1
        if before is None or (now.top1, -now.loss) > (before.top1, -before.loss):
            self.best = now
        return self.best is now

    @property
    def is_exhausted(self) -> bool:
        """Whether training stops because the accuracy has not risen for long enough."""
        return self._patience is not None and self.without_better >= self._patience

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record from which `ModelSelection` goes on."""
        return {
            "best": asdict(self.best) if self.best else None,
            "evaluations": self.evaluations,
            "without_better": self.without_better,
        }


def _require_record(selection: ModelSelection, record: object) -> None:
    """Raise ValueError or OverflowError if what a selection was read from is no record of one."""
    best = selection.best or Best(0, 0.0, 0.0)
    counts = (selection.evaluations, selection.without_better, best.step)
    kinds_fit = all(type(score) in (int, float) for score in (best.top1, best.loss))
    if not kinds_fit or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"no record of evaluations: {record!r:.80}")
    if not 0 <= best.top1 <= 1:
        raise ValueError(f"an accuracy of {best.top1!r:.40}")
    float(best.loss)  # of a whole number too large for one


@dataclass(frozen=True)
class Choice:
    """Which weights a finished run kept.

    Attributes:
        keep: ``last``, or ``best`` of several evaluations.
        step: Number of updates that made these weights.
        last_step: Number of updates that were made.
        steps: Number of updates that the schedule has.
        evaluations: Number of evaluations.
        patience: Evaluations without a better top-1 accuracy after which training stopped; None if
            it did not stop early.
    """

    keep: Keep
    step: int
    last_step: int
    steps: int
    evaluations: int
    patience: int | None = None

    @property
    def is_optimistic(self) -> bool:
        """Whether the stated accuracy is that of a choice made on the same images."""
        return self.keep == "best" and self.evaluations > 1

    @property
    def sentence(self) -> str:
        """Which weights were kept, and what that means for their accuracy; empty for BiT's way."""
        parts = []
        if self.patience is not None:
            parts.append(
                f"Training stopped after step {self.last_step:,} of {self.steps:,}, because "
                f"{self.patience} evaluation{'' if self.patience == 1 else 's'} in a row brought "
                "no better top-1 accuracy."
            )
        if self.is_optimistic:
            parts.append(
                f"The weights are those after step {self.step:,} of {self.last_step:,}, the best "
                f"of {self.evaluations} evaluations by top-1 accuracy: chosen on the same held-out "
                "images, so the figure is optimistic."
            )
        elif self.keep == "best":
            parts.append("There was only one evaluation, so no choice between weights.")
        return " ".join(parts)

    @property
    def summary(self) -> str:
        """The same in a few words."""
        chosen = f"the best of {self.evaluations} evaluations, so optimistic"
        early = f"stopped early after step {self.last_step:,}" if self.patience is not None else ""
        words = [chosen if self.is_optimistic else "", early]
        return ", ".join([f"of step {self.step:,}", *filter(None, words)])

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON-ready data."""
        return {**asdict(self), "optimistic": self.is_optimistic, "note": self.sentence}
