"""A training recipe as data: everything the loop needs to know, nothing it has to compute.

A `Recipe` says what is done to an image, what the optimizer does at which step, from which head
and towards which loss. Rules make recipes (`bitzoo.training.hyperrule` is the first), people
override a few numbers of them, the loop obeys. A recipe is plain JSON on disk, so a run can say
exactly what it did. No torch and no NumPy here.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from types import UnionType
from typing import Any

from bitzoo.errors import UsageError

MIN_CROP = 32
"""Smallest crop in pixels: the network's total stride, so that one feature cell remains."""

Scalar = str | int | float | bool | None
"""What JSON keeps exactly."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: linear warmup, then a staircase down.

    Steps count from 0; the learning rate of step n is the one with which update n is made.

    Attributes:
        base_lr: Learning rate between warmup and first boundary, above 0.
        steps: Updates in all, at least 1.
        warmup: The first steps, in which the rate rises from 0; none if 0.
        boundaries: Ascending steps in [0, steps]; each divides the rate of all later steps.
        decay: The divisor at a boundary, at least 1. (The released code divides too;
            a product with 0.1 can differ in the last bit.)
    """

    base_lr: float
    steps: int
    warmup: int = 0
    boundaries: tuple[int, ...] = ()
    decay: float = 10.0

    def __post_init__(self) -> None:
        steps = whole("steps", self.steps, 1)
        _expect("boundaries", self.boundaries, list | tuple, "a list of steps")
        boundaries = tuple(whole("a boundary of the schedule", b, 0) for b in self.boundaries)
        if list(boundaries) != sorted(boundaries) or max(boundaries, default=0) > steps:
            raise UsageError(
                f"boundaries must ascend and lie in the {steps} steps of the schedule, found "
                f"{list(boundaries)}. Sort them and drop those beyond the end."
            )
        warmup = whole("warmup", self.warmup, 0)
        if warmup > steps:
            raise UsageError(
                f"warmup must fit into the {steps} steps of the schedule, found {warmup}. "
                "Shorten it or take more steps."
            )
        _set(
            self,
            base_lr=number("the learning rate", self.base_lr, above=0),
            steps=steps,
            warmup=warmup,
            boundaries=boundaries,
            decay=number("decay", self.decay, least=1),
        )

    def lr_at(self, step: int) -> float:
        """Learning rate of one step.

        In the warmup ``base_lr * step / warmup`` (so step 0 has rate 0 and changes nothing);
        afterwards `base_lr`, divided by `decay` once for every boundary below `step`.

        Args:
            step: In [0, steps).

        Raises:
            UsageError: If the schedule has no such step.

        Source: google-research/big_transfer, bit_hyperrule.py, `get_lr`.
        """
        if not 0 <= step < self.steps:
            raise UsageError(
                f"step {step} is outside the schedule, which has steps 0 to {self.steps - 1}. "
                "Ask for one of these."
            )
        if step < self.warmup:
            return self.base_lr * step / self.warmup
        rate = self.base_lr
        for boundary in self.boundaries:
            if step > boundary:
                rate /= self.decay
        return rate

    def scaled(self, steps: int) -> Schedule:
        """The same shape over another number of steps.

        Warmup and boundaries move in proportion, each rounded to the nearest step (halves up).

        Raises:
            UsageError: If `steps` is not a whole number of at least 1.
        """
        steps = whole("steps", steps, 1)
        return replace(
            self,
            steps=steps,
            warmup=_in_proportion(self.warmup, steps, self.steps),
            boundaries=tuple(_in_proportion(b, steps, self.steps) for b in self.boundaries),
        )


@dataclass(frozen=True)
class Recipe:
    """Everything the training loop is told, as data.

    The named choices (`optimizer`, `augmentation`, `loss`, `head`) are words that the loop knows
    or refuses; fine-tuning uses their defaults, pre-training and distillation bring other words.

    Attributes:
        name: Which rule made it, for people.
        resize: Side in pixels of the square to which every training image is resized.
        crop: Side in pixels of the square that the network sees; at most `resize` (equal: no
            random crop), at least 32. Test images are resized straight to it.
        batch_size: Images an update, over all micro-batches and processes.
        schedule: The learning rate by step.
        optimizer: ``sgd``.
        momentum: In [0, 1).
        weight_decay: L2 penalty, at least 0.
        mixup_alpha: MixUp's Beta parameter, one lambda a batch; 0 turns MixUp off.
        flip: Whether half of the training images are mirrored left to right.
        augmentation: ``resize_crop``: resize to the square, then crop at random.
        loss: ``softmax_cross_entropy``.
        loss_options: What else that loss needs: numbers, or a teacher's name.
        head: ``zero``: a new head of zeros.
        num_examples: Training examples that the recipe was made for; None if it does not depend
            on them.
        notes: Sentences for people on how the numbers came about.
        overrides: What a person changed: option to ``{"from": ..., "to": ...}``.

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
            _expect(word, getattr(self, word), str, "a word")
        _expect("flip", self.flip, bool, "true or false")
        _expect("schedule", self.schedule, Schedule, "a Schedule")
        _expect("notes", self.notes, list | tuple, "a list of sentences")
        for table in ("loss_options", "overrides"):
            _expect(table, getattr(self, table), Mapping, "a mapping")
        crop, resize = whole("crop", self.crop, MIN_CROP), whole("resize", self.resize, MIN_CROP)
        if crop > resize:
            raise UsageError(
                f"crop must be at most resize, found crop {crop} and resize {resize}. Give a "
                f"smaller crop, or resize to at least {crop}."
            )
        momentum = number("momentum", self.momentum, least=0)
        if momentum >= 1:
            raise UsageError(f"momentum must be below 1, found {momentum:g}. 0.9 is usual.")
        examples = self.num_examples
        _set(
            self,
            crop=crop,
            resize=resize,
            momentum=momentum,
            batch_size=whole("batch size", self.batch_size, 1),
            weight_decay=number("weight decay", self.weight_decay, least=0),
            mixup_alpha=number("mixup", self.mixup_alpha, least=0),
            num_examples=None if examples is None else whole("num_examples", examples, 1),
            notes=tuple(self.notes),
        )

    def override(
        self,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        mixup: float | None = None,
        resize: int | None = None,
        crop: int | None = None,
        flip: bool | None = None,
    ) -> Recipe:
        """The recipe with a person's own numbers; None keeps the recipe's.

        New `steps` keep the schedule's shape (`Schedule.scaled`). A `crop` without `resize` keeps
        their ratio (384 of 448 becomes 64 of 75). Nothing else moves with anything else: a smaller
        batch keeps its learning rate. What differs from the rule is recorded in `overrides`.

        Raises:
            UsageError: If a number is out of its range.
        """
        if crop is not None and resize is None:
            resize = _in_proportion(self.resize, whole("crop", crop, MIN_CROP), self.crop)
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
        given = {name: value for name, value in wanted.items() if value is not None}
        changed = replace(self, schedule=schedule, **given)
        return replace(changed, overrides=_changes(self, changed))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON-able data; `from_dict` gives an equal recipe back."""
        record = asdict(self)
        record["notes"] = list(self.notes)
        record["schedule"]["boundaries"] = list(self.schedule.boundaries)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` described.

        Raises:
            UsageError: If entries are unknown or missing, or a value is out of its range.
        """
        given = _entries(record, cls, "a recipe")
        schedule = Schedule(**_entries(given["schedule"], Schedule, "a recipe's schedule"))
        return cls(**{**given, "schedule": schedule})


def _option_values(recipe: Recipe) -> dict[str, Scalar]:
    """The numbers that `Recipe.override` can change, by the names of its arguments."""
    return {
        "steps": recipe.schedule.steps,
        "batch_size": recipe.batch_size,
        "lr": recipe.schedule.base_lr,
        "mixup": recipe.mixup_alpha,
        "resize": recipe.resize,
        "crop": recipe.crop,
        "flip": recipe.flip,
    }


def _changes(before: Recipe, after: Recipe) -> dict[str, dict[str, Scalar]]:
    # Compared with the rule's own value, so that changing back leaves no trace.
    changes: dict[str, dict[str, Scalar]] = {}
    for option, value in _option_values(before).items():
        rule = before.overrides[option]["from"] if option in before.overrides else value
        now = _option_values(after)[option]
        if now != rule:
            changes[option] = {"from": rule, "to": now}
    return changes


def whole(subject: str, value: object, least: int) -> int:
    """`value` as an int.

    Raises:
        UsageError: If it is not a whole number of at least `least`; names the `subject`.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise UsageError(
        f"{subject} must be a whole number of at least {least}, found {value!r}. Give such a "
        "number, or leave it out where the rule has its own."
    )


def number(
    subject: str, value: object, *, least: float = -math.inf, above: float = -math.inf
) -> float:
    """`value` as a finite float, at least `least` and more than `above`.

    Raises:
        UsageError: If it is not such a number; names the `subject`.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        found = float(value)
        if math.isfinite(found) and found >= least and found > above:
            return found
    bound = f"above {above:g}" if above > -math.inf else f"of at least {least:g}"
    raise UsageError(
        f"{subject} must be a number {bound}, found {value!r}. Give such a number, or leave it "
        "out where the rule has its own."
    )


def _expect(subject: str, value: object, kind: type | UnionType, called: str) -> None:
    if not isinstance(value, kind):
        raise UsageError(f"{subject} of a recipe must be {called}, found {value!r}. Correct it.")


def _in_proportion(value: int, new: int, old: int) -> int:
    """``value * new / old`` to the nearest whole number, halves up; exact, unlike floats."""
    return (2 * value * new + old) // (2 * old)


def _entries(record: object, kind: type, subject: str) -> dict[str, Any]:
    """The mapping `record` as arguments of the dataclass `kind`."""
    if not isinstance(record, Mapping):
        raise UsageError(
            f"{subject} must be a mapping, found {record!r}. Pass what `to_dict` gave."
        )
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    diff = [f"+ {name}" for name in record if name not in known]
    diff += [f"- {name}" for name, required in known.items() if required and name not in record]
    if diff:
        raise UsageError(
            f"{subject} has unknown (+) or missing (-) entries: {', '.join(sorted(diff))}. "
            "It may come from another version of bitzoo; make it anew."
        )
    return dict(record)


def _set(frozen: object, **values: object) -> None:
    """Store checked values; a frozen dataclass knows no other way."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)
