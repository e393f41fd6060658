"""The learning rate of every step, as data; neither torch nor NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from bitzoo.errors import UsageError
from bitzoo.training.checked_values import entries_of, expect, in_proportion, number, store, whole

Shape = Literal["step", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: linear warmup, then step decay or a cosine.

    Steps count from 0; update n is made with the learning rate of step n.

    Attributes:
        base_lr: Learning rate between warmup and first boundary, above 0.
        steps: Total number of updates, at least 1.
        warmup: Number of first steps in which the rate rises from 0; 0 means no warmup.
        boundaries: Ascending steps in [0, steps]; each divides the rate of all later steps.
        decay: The divisor at a boundary, at least 1. (The released code divides too;
            multiplying by 0.1 can differ in the last bit.)
        before: The schedule that was followed until this one replaced it; None if none was.
        since: The first step that follows this schedule; steps below it follow `before`.
        shape: ``step``: constant between boundaries; ``cosine``: half a cosine from `base_lr` at
            the end of the warmup to 0 at the end of the steps (arXiv 1608.03983 without restarts),
            which has no boundaries.
    """

    base_lr: float
    steps: int
    warmup: int = 0
    boundaries: tuple[int, ...] = ()
    decay: float = 10.0
    before: Schedule | None = None
    since: int = 0
    shape: Shape = "step"

    def __post_init__(self) -> None:
        steps = whole("`steps`", self.steps, 1)
        expect("`boundaries`", self.boundaries, list | tuple, "a list of steps")
        boundaries = tuple(whole("a boundary of the schedule", b, 0) for b in self.boundaries)
        if list(boundaries) != sorted(boundaries) or max(boundaries, default=0) > steps:
            raise UsageError(
                f"`boundaries` must ascend and be within the {steps} steps of the schedule, found "
                f"{list(boundaries)}. Sort them and drop those beyond the end."
            )
        warmup = whole("`warmup`", self.warmup, 0)
        if warmup > steps:
            raise UsageError(
                f"`warmup` must fit into the {steps} steps of the schedule, found {warmup}. "
                "Shorten it or use more steps."
            )
        if self.shape not in get_args(Shape):
            raise UsageError(
                f"`shape` of a schedule must be one of {', '.join(get_args(Shape))}, found "
                f"{self.shape!r}. Choose one of these."
            )
        if self.shape == "cosine" and boundaries:
            raise UsageError(
                f"A cosine schedule has no boundaries, found {list(boundaries)}. Leave them out, "
                "or use the shape `step`."
            )
        since = whole("`since`", self.since, 0)
        if (self.before is None) != (since == 0) or since > min(
            steps, self.before.steps if self.before else 0
        ):
            raise UsageError(
                "`since` of a schedule must be a step of it and of the schedule before it, found "
                f"{since}. Correct it."
            )
        store(
            self,
            base_lr=number("the learning rate", self.base_lr, above=0),
            steps=steps,
            warmup=warmup,
            boundaries=boundaries,
            decay=number("`decay`", self.decay, least=1),
            since=since,
        )

    def lr_at(self, step: int) -> float:
        """Return the learning rate of one step.

        During warmup it is ``base_lr * step / warmup`` (so step 0 has rate 0 and changes nothing);
        afterwards it is `base_lr`, divided by `decay` once per boundary below `step`, or for a
        cosine ``base_lr * (1 + cos(pi * t)) / 2``, where t is the share of the steps after the
        warmup that lie before `step`. Below `since` it is that of the schedule before.

        Args:
            step: In [0, steps).

        Raises:
            UsageError: If the schedule has no such step.

        Source: google-research/big_transfer, bit_hyperrule.py, `get_lr`; for the cosine
        google-research/big_vision, utils.py, `create_learning_rate_schedule`.
        """
        if not 0 <= step < self.steps:
            raise UsageError(
                f"`step` must be from 0 to {self.steps - 1}, the steps of the schedule, found "
                f"{step}. Choose one of these."
            )
        if self.before is not None and step < self.since:
            return self.before.lr_at(step)
        if step < self.warmup:
            return self.base_lr * step / self.warmup
        if self.shape == "cosine":
            done = (step - self.warmup) / (self.steps - self.warmup)
            return self.base_lr * 0.5 * (1 + math.cos(math.pi * done))
        rate = self.base_lr
        for boundary in self.boundaries:
            if step > boundary:
                rate /= self.decay
        return rate

    def scaled(self, steps: int) -> Schedule:
        """Return a schedule of the same shape over another number of steps.

        Warmup and boundaries scale in proportion, each rounded to the nearest step (halves up).

        Raises:
            UsageError: If `steps` is not a whole number of at least 1.
        """
        steps = whole("`steps`", steps, 1)
        return replace(
            self,
            steps=steps,
            warmup=in_proportion(self.warmup, steps, self.steps),
            boundaries=tuple(in_proportion(b, steps, self.steps) for b in self.boundaries),
        )

    def changed_at(
        self, step: int, *, lr: float | None = None, steps: int | None = None
    ) -> Schedule:
        """Return a schedule that follows this one up to `step` and then another.

        From `step` on, the learning rate is what it would have been there if the whole schedule had
        had the base rate `lr` and the length `steps`. So a run that is extended goes on where a
        longer run of the same shape would be, usually with a higher rate than it ended with.

        Args:
            step: Number of updates made so far, in [0, self.steps].
            lr: Another base rate; None keeps it.
            steps: Another length, above `step`; None keeps it.

        Raises:
            UsageError: If a number is out of its range.
        """
        after = replace(self, before=None, since=0)
        if steps is not None:
            after = after.scaled(steps)
        if lr is not None:
            after = replace(after, base_lr=lr)
        return replace(after, before=self, since=step) if step else after

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable data."""
        record = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("before", "since", "shape")
        }
        record["boundaries"] = list(self.boundaries)
        if self.shape != "step":  # schedules of earlier versions have no shape
            record["shape"] = self.shape
        if self.before is not None:
            record |= {"before": self.before.to_dict(), "since": self.since}
        return record

    @classmethod
    def from_dict(cls, record: object) -> Schedule:
        """Restore a schedule from the output of `to_dict`.

        Raises:
            UsageError: If entries are unknown or missing, or a value is out of its range.
        """
        given = entries_of(record, cls, "a recipe's schedule")
        if given.get("before") is not None:
            given["before"] = cls.from_dict(given["before"])
        return cls(**given)
