"""Training recipes as data: preprocessing, schedule, optimizer, head and loss of a run.

Rules create recipes (`bitzoo.training.hyperrule` is the first), people override a few of their
numbers, and the training loop carries them out. A recipe is stored as plain JSON, so that a run
records exactly what it did. This module uses neither torch nor NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, Literal, get_args

from bitzoo.errors import UsageError
from bitzoo.training.checked_values import entries_of, expect, in_proportion, number, store, whole
from bitzoo.training.schedule import Schedule

__all__ = ["INCEPTION_CROP", "RESIZE_CROP", "Recipe", "Schedule", "number", "steps_of", "whole"]

MIN_CROP = 32
"""Smallest crop in pixels: the network's total stride, so that one feature cell remains."""

CLASS_WEIGHTS, BALANCED = "class_weights", "balanced"
"""The option of a loss that weighs classes, and its only value; see `bitzoo.training.losses`."""

RESIZE_CROP, INCEPTION_CROP = "resize_crop", "inception_crop"
"""Augmentations that a recipe may name."""
SOFTMAX, SIGMOID = "softmax_cross_entropy", "sigmoid_cross_entropy"
DISTILLATION = "distillation"
"""Losses that a recipe may name; the last compares with a teacher's logits, not with labels."""

TEMPERATURE = "temperature"
"""The option of `DISTILLATION`: a number above 0, of both sides."""

Decayed = Literal["all", "kernels"]

Scalar = str | int | float | bool | None
"""The values that JSON stores exactly."""


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
        optimizer: ``sgd`` (torch's, whose weight decay is added to the gradient), or ``adamw``
            (torch's with eps 1e-8, whose weight decay is apart from it, times the learning rate).
        momentum: Of SGD, in [0, 1).
        weight_decay: At least 0.
        mixup_alpha: MixUp's Beta parameter, one lambda per batch; 0 turns MixUp off.
        flip: Whether half of the training images are mirrored left to right.
        augmentation: ``resize_crop``: resize to the square, then crop at random; or
            ``inception_crop``: a box of random area and shape, resized to `crop`.
        loss: ``softmax_cross_entropy``; or ``sigmoid_cross_entropy``, summed over the classes, for
            images of any number of labels; or ``distillation``, from a teacher, without labels.
        loss_options: Options of that loss: class weights, or the temperature.
        head: ``zero``: a new head of zeros; ``kept``: that of the weights.
        num_examples: Number of training examples that the recipe was created for; None if it does
            not depend on them.
        notes: Sentences that explain the numbers.
        overrides: Values that a person changed: option to ``{"from": ..., "to": ...}``.
        decayed: What the weight decay is on: ``all`` parameters, or only ``kernels``: those of the
            convolutions and of the head, not scales, shifts and biases.
        clip_norm: Most that the global L2 norm of a batch's gradients may be, above 0; larger ones
            are scaled down to it. None never clips.
        eval_resize: Pixels to which the shorter side of a test image is resized, at least `crop`,
            before the central square of `crop` pixels is taken; None resizes it to that square
            directly, whatever its shape, as BiT-HyperRule does.
        betas: Decays of AdamW's two averages, each in [0, 1).
        head_bias: Value at which each bias of a new head starts.

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
    decayed: Decayed = "all"
    clip_norm: float | None = None
    eval_resize: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    head_bias: float = 0.0

    def __post_init__(self) -> None:
        for word in ("name", "optimizer", "augmentation", "loss", "head"):
            expect(f"`{word}`", getattr(self, word), str, "a word")
        expect("`flip`", self.flip, bool, "true or false")
        expect("`schedule`", self.schedule, Schedule, "a Schedule")
        expect("`notes`", self.notes, list | tuple, "a list of sentences")
        for table in ("loss_options", "overrides"):
            expect(f"`{table}`", getattr(self, table), Mapping, "a mapping")
        crop = whole("`crop`", self.crop, MIN_CROP)
        resize = whole("`resize`", self.resize, MIN_CROP)
        if crop > resize:
            raise UsageError(
                f"`crop` must be at most `resize`, found crop {crop} and resize {resize}. Use a "
                f"smaller crop, or resize to at least {crop}."
            )
        if self.augmentation == INCEPTION_CROP and crop != resize:
            raise UsageError(
                "With an inception crop, `resize` must be `crop`, to which the boxes are resized, "
                f"found {resize} and {crop}. Give only the crop."
            )
        momentum = number("`momentum`", self.momentum, least=0)
        if momentum >= 1:
            raise UsageError(f"`momentum` must be below 1, found {momentum:g}. 0.9 is usual.")
        if self.decayed not in get_args(Decayed):
            raise UsageError(
                f"`decayed` must be one of {', '.join(get_args(Decayed))}, found {self.decayed!r}. "
                "Choose one of these."
            )
        expect("`betas`", self.betas, list | tuple, "two numbers")
        betas = tuple(number("a beta of the recipe", beta, least=0) for beta in self.betas)
        if len(betas) != 2 or max(betas) >= 1:
            raise UsageError(
                f"`betas` must be two numbers from 0 to below 1, found {list(betas)}. (0.9, 0.999) "
                "is usual."
            )
        examples, clip, short = self.num_examples, self.clip_norm, self.eval_resize
        store(
            self,
            crop=crop,
            resize=resize,
            momentum=momentum,
            batch_size=whole("`batch_size`", self.batch_size, 1),
            weight_decay=number("`weight_decay`", self.weight_decay, least=0),
            mixup_alpha=number("MixUp's alpha", self.mixup_alpha, least=0),
            num_examples=None if examples is None else whole("`num_examples`", examples, 1),
            notes=tuple(self.notes),
            clip_norm=None if clip is None else number("`clip_norm`", clip, above=0),
            eval_resize=None if short is None else whole("`eval_resize`", short, crop),
            betas=betas,
            head_bias=number("`head_bias`", self.head_bias),
        )

    def override(
        self,
        *,
        steps: int | None = None,
        epochs: float | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        mixup: float | None = None,
        resize: int | None = None,
        crop: int | None = None,
        flip: bool | None = None,
        class_weights: str | None = None,
        temperature: float | None = None,
    ) -> Recipe:
        """Return the recipe with other numbers; None keeps the recipe's.

        New `steps` keep the schedule's shape (`Schedule.scaled`); `epochs` is another way to say
        them (`steps_of`). A `crop` without `resize` keeps their ratio (384 of 448 becomes 64 of
        75), and any `crop` keeps that to `eval_resize`. Apart from that, options are independent: a
        smaller batch keeps its learning rate. `class_weights` may be ``balanced``
        (`bitzoo.training.losses`); `temperature` is that of a distillation. Values that differ from
        the rule's are recorded in `overrides`.

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
            resize = in_proportion(self.resize, whole("`crop`", crop, MIN_CROP), self.crop)
        short = self.eval_resize
        if crop is not None and short is not None:
            short = in_proportion(short, whole("`crop`", crop, MIN_CROP), self.crop)
        schedule = self.schedule if steps is None else self.schedule.scaled(steps)
        if lr is not None:
            schedule = replace(schedule, base_lr=lr)
        wanted: dict[str, Any] = {
            "batch_size": batch_size,
            "weight_decay": weight_decay,
            "mixup_alpha": mixup,
            "resize": resize,
            "crop": crop,
            "flip": flip,
            "eval_resize": short,
        }
        if class_weights is not None:
            wanted["loss_options"] = {**self.loss_options, CLASS_WEIGHTS: class_weights}
        if temperature is not None:
            heat = number(f"`{TEMPERATURE}`", temperature, above=0)
            wanted["loss_options"] = {**self.loss_options, TEMPERATURE: heat}
        given = {name: value for name, value in wanted.items() if value is not None}
        changed = replace(self, schedule=schedule, **given)
        return replace(changed, overrides=_changes(self, changed))

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

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-serializable data; `from_dict` restores an equal recipe."""
        record = asdict(self)
        record["notes"] = list(self.notes)
        record["schedule"] = self.schedule.to_dict()
        for option in _LATER:
            if getattr(self, option.name) == option.default:
                del record[option.name]
        if "betas" in record:
            record["betas"] = list(self.betas)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Recipe:
        """Restore a recipe from the output of `to_dict`.

        Raises:
            UsageError: If entries are unknown or missing, or a value is out of its range.
        """
        given = entries_of(record, cls, "a recipe")
        return cls(**{**given, "schedule": Schedule.from_dict(given["schedule"])})


_LATER = tuple(
    option
    for option in fields(Recipe)
    if option.name in ("decayed", "clip_norm", "eval_resize", "betas", "head_bias")
)
"""Options that recipes of earlier versions do not have; at their defaults they are not written."""


def _option_values(recipe: Recipe) -> dict[str, Scalar]:
    """Return the values that `Recipe.override` can change, by argument name."""
    return {
        "steps": recipe.schedule.steps,
        "batch_size": recipe.batch_size,
        "lr": recipe.schedule.base_lr,
        "weight_decay": recipe.weight_decay,
        "mixup": recipe.mixup_alpha,
        "resize": recipe.resize,
        "crop": recipe.crop,
        "flip": recipe.flip,
        **{name: recipe.loss_options.get(name) for name in (CLASS_WEIGHTS, TEMPERATURE)},
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
