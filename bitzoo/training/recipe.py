"""Training recipes as data: preprocessing, schedule, optimizer, head and loss of a run.

Rules create recipes (`bitzoo.training.hyperrule` is the first), people override a few of their
numbers, and the training loop carries them out. A recipe is stored as plain JSON, so that a run
records exactly what it did. This module uses neither torch nor NumPy.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from fractions import Fraction
from types import UnionType
from typing import Any

from bitzoo.errors import UsageError

MIN_CROP = 32
"""Smallest crop in pixels: the network's total stride, so that one feature cell remains."""

CLASS_WEIGHTS, BALANCED = "class_weights", "balanced"
"""The option of a loss that weighs classes, and its only value; see `bitzoo.training.losses`."""

Scalar = str | int | float | bool | None
"""The values that JSON stores exactly."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: linear warmup, then step decay.

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
    """

    base_lr: float
    steps: int
    warmup: int = 0
    boundaries: tuple[int, ...] = ()
    decay: float = 10.0
    before: Schedule | None = None
    since: int = 0

    def __post_init__(self) -> None:
        steps = whole("`steps`", self.steps, 1)
        _expect("`boundaries`", self.boundaries, list | tuple, "a list of steps")
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
        since = whole("`since`", self.since, 0)
        if (self.before is None) != (since == 0) or since > min(
            steps, self.before.steps if self.before else 0
        ):
            raise UsageError(
                "`since` of a schedule must be a step of it and of the schedule before it, found "
                f"{since}. Correct it."
            )
        _set(
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
        afterwards it is `base_lr`, divided by `decay` once per boundary below `step`. Below `since`
        it is that of the schedule before.

        Args:
            step: In [0, steps).

        Raises:
            UsageError: If the schedule has no such step.

        Source: google-research/big_transfer, bit_hyperrule.py, `get_lr`.
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
            warmup=_in_proportion(self.warmup, steps, self.steps),
            boundaries=tuple(_in_proportion(b, steps, self.steps) for b in self.boundaries),
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
            if field.name not in ("before", "since")
        }
        record["boundaries"] = list(self.boundaries)
        if self.before is not None:
            record |= {"before": self.before.to_dict(), "since": self.since}
        return record

    @classmethod
    def from_dict(cls, record: object) -> Schedule:
        """Restore a schedule from the output of `to_dict`.

        Raises:
            UsageError: If entries are unknown or missing, or a value is out of its range.
        """
        given = _entries(record, cls, "a recipe's schedule")
        if given.get("before") is not None:
            given["before"] = cls.from_dict(given["before"])
        return cls(**given)


@dataclass(frozen=True)
class Recipe:
    """All instructions for the training loop, as data.

    The named choices (`optimizer`, `augmentation`, `loss`, `head`) are words that the loop either
    knows or refuses; fine-tuning uses their defaults, pre-training and distillation add other
    words.

    Attributes:
        name: Display name of the rule that created the recipe.
        resize: Edge in pixels of the square to which every training image is resized.
        crop: Edge in pixels of the square that the network sees; at most `resize` (equal: no
            random crop), at least 32. Test images are resized directly to it.
        batch_size: Images per update, over all micro-batches and processes.
        schedule: The learning rate by step.
        optimizer: ``sgd``.
        momentum: In [0, 1).
        weight_decay: L2 penalty, at least 0.
        mixup_alpha: MixUp's Beta parameter, one lambda per batch; 0 turns MixUp off.
        flip: Whether half of the training images are mirrored left to right.
        augmentation: ``resize_crop``: resize to the square, then crop at random.
        loss: ``softmax_cross_entropy``.
        loss_options: Options of that loss: numbers, a teacher's name, or class weights.
        head: ``zero``: a new head of zeros; ``kept``: that of the weights.
        num_examples: Number of training examples that the recipe was created for; None if it does
            not depend on them.
        notes: Sentences that explain the numbers.
        overrides: Values that a person changed: option to ``{"from": ..., "to": ...}``.

    Raises:
        UsageError: If a number is out of its range; also from `override` and `from_dict`.
    """

    name: str
    resize: int
    crop: int
    batch_size: int
    schedule: Schedule
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    mixup_alpha: float = 0.0
    flip: bool = True
    augmentation: str = "resize_crop"
    loss: str = "softmax_cross_entropy"
    loss_options: Mapping[str, Scalar] = field(default_factory=dict, hash=False)
    head: str = "zero"
    num_examples: int | None = None
    notes: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for word in ("name", "optimizer", "augmentation", "loss", "head"):
            _expect(f"`{word}`", getattr(self, word), str, "a word")
        _expect("`flip`", self.flip, bool, "true or false")
        _expect("`schedule`", self.schedule, Schedule, "a Schedule")
        _expect("`notes`", self.notes, list | tuple, "a list of sentences")
        for table in ("loss_options", "overrides"):
            _expect(f"`{table}`", getattr(self, table), Mapping, "a mapping")
        crop = whole("`crop`", self.crop, MIN_CROP)
        resize = whole("`resize`", self.resize, MIN_CROP)
        if crop > resize:
            raise UsageError(
                f"`crop` must be at most `resize`, found crop {crop} and resize {resize}. Use a "
                f"smaller crop, or resize to at least {crop}."
            )
        momentum = number("`momentum`", self.momentum, least=0)
        if momentum >= 1:
            raise UsageError(f"`momentum` must be below 1, found {momentum:g}. 0.9 is usual.")
        examples = self.num_examples
        _set(
            self,
            crop=crop,
            resize=resize,
            momentum=momentum,
            batch_size=whole("`batch_size`", self.batch_size, 1),
            weight_decay=number("`weight_decay`", self.weight_decay, least=0),
            mixup_alpha=number("MixUp's alpha", self.mixup_alpha, least=0),
            num_examples=None if examples is None else whole("`num_examples`", examples, 1),
            notes=tuple(self.notes),
        )

    def override(
        self,
        *,
        steps: int | None = None,
        epochs: float | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        mixup: float | None = None,
        resize: int | None = None,
        crop: int | None = None,
        flip: bool | None = None,
        class_weights: str | None = None,
    ) -> Recipe:
        """Return the recipe with other numbers; None keeps the recipe's.

        New `steps` keep the schedule's shape (`Schedule.scaled`); `epochs` is another way to say
        them (`steps_of`). A `crop` without `resize` keeps their ratio (384 of 448 becomes 64 of
        75). Apart from that, options are independent: a smaller batch keeps its learning rate.
        `class_weights` may be ``balanced`` (`bitzoo.training.losses`). Values that differ from the
        rule's are recorded in `overrides`.

        Raises:
            UsageError: If a number is out of its range, or both `steps` and `epochs` are given.
        """
        if epochs is not None:
            steps = self._steps_of(epochs, steps, batch_size)
        if class_weights not in (None, BALANCED):
            raise UsageError(
                f"`class_weights` must be {BALANCED!r}, found {class_weights!r}. Use that, or "
                "leave it out to weigh all images equally."
            )
        if crop is not None and resize is None:
            resize = _in_proportion(self.resize, whole("`crop`", crop, MIN_CROP), self.crop)
        schedule = self.schedule if steps is None else self.schedule.scaled(steps)
        if lr is not None:
            schedule = replace(schedule, base_lr=lr)
        wanted: dict[str, Any] = {
            "batch_size": batch_size,
            "mixup_alpha": mixup,
            "resize": resize,
            "crop": crop,
            "flip": flip,
        }
        if class_weights is not None:
            wanted["loss_options"] = {**self.loss_options, CLASS_WEIGHTS: class_weights}
        given = {name: value for name, value in wanted.items() if value is not None}
        changed = replace(self, schedule=schedule, **given)
        return replace(changed, overrides=_changes(self, changed))

    def _steps_of(self, epochs: float, steps: int | None, batch_size: int | None) -> int:
        """Return the length of `epochs`, once it is known that nothing else says it."""
        if steps is not None:
            raise UsageError(
                f"`steps` and `epochs` both say how long to train, found {steps!r} and {epochs!r}. "
                "Give one of them."
            )
        if self.num_examples is None:
            raise UsageError(
                f"Recipe {self.name!r} does not know the number of images, so `epochs` has no "
                "meaning. Give `steps`."
            )
        return steps_of(epochs, self.num_examples, batch_size or self.batch_size)

    def changed_at(self, step: int, *, lr: float | None = None, steps: int | None = None) -> Recipe:
        """Return the recipe with a learning rate or a length that changes during the run.

        See `Schedule.changed_at`. The change is recorded in `overrides` and in a note.

        Raises:
            UsageError: If a number is out of its range.
        """
        schedule, old = self.schedule.changed_at(step, lr=lr, steps=steps), self.schedule
        notes = list(self.notes)
        if lr is not None:
            notes.append(
                f"The base learning rate was changed from {old.base_lr:g} to {lr:g} after "
                f"{step:,} steps."
            )
        if steps is not None:
            notes.append(
                f"The run was extended from {old.steps:,} to {steps:,} steps after {step:,} steps; "
                f"from there on it follows the schedule of a run of {steps:,} steps."
            )
        changed = replace(self, schedule=schedule, notes=tuple(notes))
        return replace(changed, overrides=_changes(self, changed))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-serializable data; `from_dict` restores an equal recipe."""
        record = asdict(self)
        record["notes"] = list(self.notes)
        record["schedule"] = self.schedule.to_dict()
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Recipe:
        """Restore a recipe from the output of `to_dict`.

        Raises:
            UsageError: If entries are unknown or missing, or a value is out of its range.
        """
        given = _entries(record, cls, "a recipe")
        return cls(**{**given, "schedule": Schedule.from_dict(given["schedule"])})


def _option_values(recipe: Recipe) -> dict[str, Scalar]:
    """Return the values that `Recipe.override` can change, by argument name."""
    return {
        "steps": recipe.schedule.steps,
        "batch_size": recipe.batch_size,
        "lr": recipe.schedule.base_lr,
        "mixup": recipe.mixup_alpha,
        "resize": recipe.resize,
        "crop": recipe.crop,
        "flip": recipe.flip,
        CLASS_WEIGHTS: recipe.loss_options.get(CLASS_WEIGHTS),
    }


def _changes(before: Recipe, after: Recipe) -> dict[str, dict[str, Scalar]]:
    # Compared with the rule's own value, so that changing a value back leaves no record.
    changes: dict[str, dict[str, Scalar]] = {}
    for option, value in _option_values(before).items():
        rule = before.overrides[option]["from"] if option in before.overrides else value
        now = _option_values(after)[option]
        if now != rule:
            changes[option] = {"from": rule, "to": now}
    return changes


def steps_of(epochs: float, num_examples: int, batch_size: int) -> int:
    """Return ``epochs * num_examples / batch_size``, rounded up.

    Args:
        epochs: Above 0; need not be whole. Taken as the decimal that it is written as.
        num_examples: Number of training images, at least 1.
        batch_size: Images per step, at least 1.

    Raises:
        UsageError: If `epochs` is not such a number.
    """
    exact = Fraction(str(number("`epochs`", epochs, above=0)))
    images = exact * num_examples
    return math.ceil(images / whole("`batch_size`", batch_size, 1))


def whole(subject: str, value: object, least: int) -> int:
    """Return `value` as an int.

    Raises:
        UsageError: If it is not a whole number of at least `least`; names the `subject`.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise UsageError(
        f"{subject} must be a whole number of at least {least}, found {value!r}. Give such a "
        "number, or leave it out to use the rule's."
    )


def number(
    subject: str, value: object, *, least: float = -math.inf, above: float = -math.inf
) -> float:
    """Return `value` as a finite float, at least `least` and more than `above`.

    Raises:
        UsageError: If it is not such a number; names the `subject`.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        found = float(value)
        if math.isfinite(found) and found >= least and found > above:
            return found
    bound = f"above {above:g}" if above > -math.inf else f"of at least {least:g}"
    raise UsageError(
        f"{subject} must be a number {bound}, found {value!r}. Give such a number, or leave it out "
        "to use the rule's."
    )


def _expect(subject: str, value: object, kind: type | UnionType, called: str) -> None:
    if not isinstance(value, kind):
        raise UsageError(f"{subject} of a recipe must be {called}, found {value!r}. Correct it.")


def _in_proportion(value: int, new: int, old: int) -> int:
    """Round ``value * new / old`` to the nearest whole number, halves up; exact, unlike floats."""
    return (2 * value * new + old) // (2 * old)


def _entries(record: object, kind: type, subject: str) -> dict[str, Any]:
    """Return the mapping `record` as arguments for the dataclass `kind`."""
    if not isinstance(record, Mapping):
        raise UsageError(
            f"{subject} must be a mapping, found {record!r}. Pass the output of `to_dict`."
        )
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    diff = [f"+ {name}" for name in record if name not in known]
    diff += [f"- {name}" for name, required in known.items() if required and name not in record]
    if diff:
        raise UsageError(
            f"{subject} has unknown (+) or missing (-) entries: {', '.join(sorted(diff))}. "
            "It may come from another version of bitzoo; create it again."
        )
    return dict(record)


def _set(frozen: object, **values: object) -> None:
    """Store checked values in a frozen dataclass, which allows no plain assignment."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)
