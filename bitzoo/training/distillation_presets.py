"""What was published for distillation, as data, and the recipe of a run that follows it.

Every row is a student R50x1 of arXiv 2106.05237 ("Knowledge distillation: A good teacher is patient
and consistent") and its teacher. Where the paper and the code of its authors
(google-research/big_vision, configs/proj/distill) differ, the row says how.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bitzoo.errors import UsageError
from bitzoo.training.recipe import (
    DISTILLATION,
    INCEPTION_CROP,
    TEMPERATURE,
    Recipe,
    Schedule,
    number,
    steps_of,
    whole,
)

SMALL, LARGE = (512, 1500, 160, 128), (4096, 5000, 256, 224)
"""Batch, warmup in steps, short side and crop of test images: of the small sets, and of ImageNet.
Training images are inception crops of the same edge."""


@dataclass(frozen=True)
class Preset:
    """A published run.

    Attributes:
        name: What it is called here: the data set, and the variant in big_vision's configs or the
            number of epochs if these have none.
        teacher: Catalogue name of its teacher.
        data: The data set in tensorflow_datasets, and the split that it was trained on.
        epochs: Length in passes over the training images.
        temperature: See `bitzoo.training.distillation.distillation_loss`.
        lr: Base learning rate.
        weight_decay: As published: decoupled and not multiplied by the learning rate. torch's AdamW
            multiplies by it, so there it is this divided by `lr`.
        student: Top-1 accuracy of the student in the paper, in per cent.
        batch_size: Images per step.
        warmup: Steps over which the learning rate rises from 0.
        resize: Short side to which test images are resized.
        crop: Edge of all images.
        note: Where paper and code differ; empty if they do not.
    """

    name: str
    teacher: str
    data: str
    epochs: int
    temperature: float
    lr: float
    weight_decay: float
    student: float
    batch_size: int = SMALL[0]
    warmup: int = SMALL[1]
    resize: int = SMALL[2]
    crop: int = SMALL[3]
    note: str = ""


_FLOWERS = "BiT-R152x2_T_flowers128", "oxford_flowers102 train"
_PET = "BiT-R152x2_T_pet128", "oxford_iiit_pet train[:90%]"
_FOOD = "BiT-R152x2_T_food128", "food101 train[:90%]"
_SUN = "BiT-R152x2_T_sun128", "sun397 train"
_IMAGENET = "BiT-R152x2_T_224", "imagenet2012 train[:98%]"
_FOOD_TEST = (
    "The paper tests on food101's test split; tensorflow_datasets calls these images validation, "
    "as big_vision's config does."
)
_SUN_RATE = (
    "The learning rate is the paper's, as is the figure; big_vision's config has 0.001, where the "
    "same weight decay is 0.1 in AdamW, not 0.033."
)
_MINIVAL = (
    "The best settings were chosen on a part of train: train[98%:] by the paper's table 5, "
    "train[99%:] by its listing and by big_vision's config, which trains on train[:98%]."
)

PRESETS = {
    row.name: row
    for row in (
        Preset("flowers-1000", *_FLOWERS, 1_000, 10, 0.003, 1e-3, 77.51),
        Preset("flowers-fast", *_FLOWERS, 10_000, 10, 0.003, 3e-4, 92.83),
        Preset("flowers-medium", *_FLOWERS, 100_000, 1, 0.001, 1e-4, 95.54),
        Preset("flowers-long", *_FLOWERS, 1_000_000, 1, 0.0003, 1e-5, 96.93),
        Preset("pet-300", *_PET, 300, 2, 0.01, 1e-5, 82.75),
        Preset("pet-fast", *_PET, 1_000, 5, 0.01, 1e-3, 88.01),
        Preset("pet-medium", *_PET, 3_000, 10, 0.003, 3e-4, 90.08),
        Preset("pet-10000", *_PET, 10_000, 2, 0.001, 1e-4, 90.98),
        Preset("pet-long", *_PET, 30_000, 2, 0.003, 1e-5, 91.06),
        Preset("food-fast", *_FOOD, 100, 10, 0.01, 1e-3, 83.29, note=_FOOD_TEST),
        Preset("food-medium", *_FOOD, 1_000, 10, 0.001, 3e-4, 86.64, note=_FOOD_TEST),
        Preset("food-long", *_FOOD, 3_000, 5, 0.01, 1e-4, 87.20, note=_FOOD_TEST),
        Preset("sun-fast", *_SUN, 100, 10, 0.01, 1e-3, 68.28),
        Preset("sun-medium", *_SUN, 1_000, 10, 0.003, 1e-4, 73.46, note=_SUN_RATE),
        Preset("sun-long", *_SUN, 3_000, 10, 0.01, 3e-5, 74.26),
        Preset("imagenet", *_IMAGENET, 1_200, 1, 0.03, 3e-4, 81.54, *LARGE, note=_MINIVAL),
    )
}
"""Name -> published run. Source of the figures: the paper's tables of the small sets and of
ImageNet; of the other numbers those and big_vision's configs."""

DEFAULT_VARIANT = "medium"
"""What ``flowers``, ``pet``, ``food`` and ``sun`` mean, as in big_vision's configs."""

_OWN = Preset("", "", "", 0, 2.0, 0.003, 1e-4, 0.0)
"""Without a preset: the middle of the paper's sweeps. These were of learning rates from 0.0003 to
0.01, weight decays from 1e-5 to 1e-3, and temperatures from 1 to 10."""

_WARMUP_SHARE = 10
"""Per cent of the steps, at most, for runs whose warmup was not published."""


def find_preset(name: str) -> Preset:
    """Return a preset; the name of a small set alone means its `DEFAULT_VARIANT`.

    Raises:
        UsageError: If there is none; lists all.
    """
    found = PRESETS.get(name) or PRESETS.get(f"{name}-{DEFAULT_VARIANT}")
    if found is None:
        raise UsageError(
            f"`preset` must be one of {', '.join(preset_names())}, found {name!r}. Choose one, or "
            "leave it out and give `steps` or `epochs`."
        )
    return found


def preset_names() -> list[str]:
    """Return all names that `find_preset` knows."""
    short = [name.removesuffix(f"-{DEFAULT_VARIANT}") for name in PRESETS]
    return sorted({*PRESETS, *short})


def distillation_recipe(
    preset: str | None,
    num_examples: int,
    *,
    teachers: int = 1,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    temperature: float | None = None,
    mixup: float | None = None,
    crop: int | None = None,
    flip: bool | None = None,
) -> Recipe:
    """Return the recipe of a distillation.

    Args:
        preset: A name of `preset_names`; None for no published run, which needs `steps` or
            `epochs`.
        num_examples: Number of training images.
        teachers: Number of teachers.
        steps: Length; the warmup of a preset scales in proportion.
        epochs: Length in passes over the training images, instead of `steps`.
        batch_size: Images per step; a preset keeps its epochs.
        lr: Base learning rate. What the weights decay by in a step at that rate stays.
        weight_decay: As `Preset.weight_decay`: that share.
        temperature: Of both sides, above 0.
        mixup: Alpha of MixUp; 0 for none.
        crop: Edge of all images; the short side of test images scales with it.
        flip: Whether images are mirrored at random.

    Raises:
        UsageError: If a number is out of its range, or the length is not said, or said twice.
    """
    row = _OWN if preset is None else find_preset(preset)
    if preset is None and steps is None and epochs is None:
        raise UsageError(
            "It must be said how long to distill: give `steps`, `epochs`, or a `preset` ("
            f"{', '.join(preset_names())}). The published runs are long: the student's accuracy "
            "rises for thousands of epochs."
        )
    rate = row.lr if lr is None else number("the learning rate", lr, above=0)
    decay = number(
        "the weight decay", row.weight_decay if weight_decay is None else weight_decay, least=0
    )
    rule = _rule(row, num_examples, steps, epochs, batch_size)
    if preset is None:
        steps = epochs = None  # the rule has that length
    elif steps is None and epochs is None and batch_size is not None:
        epochs = row.epochs
    changed = rule.override(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=decay / rate,
        mixup=mixup,
        crop=crop,
        flip=flip,
        temperature=temperature,
    )
    notes = _notes(row, decay, rate, teachers, changed.mixup_alpha)
    return replace(changed, notes=(*changed.notes, *notes))


def _rule(
    row: Preset,
    num_examples: int,
    steps: int | None,
    epochs: float | None,
    batch_size: int | None,
) -> Recipe:
    """Return a preset as it was published; without one, that of the length that is asked for."""
    notes: list[str] = []
    if row.name:
        steps = steps_of(row.epochs, num_examples, row.batch_size)
    elif epochs is not None:
        if steps is not None:
            raise UsageError(
                f"`steps` and `epochs` both say how long to train, found {steps!r} and "
                f"{epochs!r}. Give one of them."
            )
        steps = steps_of(epochs, num_examples, batch_size or row.batch_size)
    assert steps is not None
    steps, warmup = whole("`steps`", steps, 1), row.warmup
    most = steps * _WARMUP_SHARE // 100
    if warmup > most and not row.name:
        warmup = most
    elif warmup >= steps:
        notes.append(
            f"The published warmup of {warmup:,} steps is as long as the whole run would be, so "
            f"{_WARMUP_SHARE} % of the {steps:,} steps were taken: bitzoo's choice."
        )
        warmup = most
    return Recipe(
        name=f"distillation, {row.name}" if row.name else "distillation",
        resize=row.crop,
        crop=row.crop,
        batch_size=row.batch_size,
        schedule=Schedule(row.lr, steps, warmup, shape="cosine"),
        optimizer="adamw",
        weight_decay=row.weight_decay / row.lr,
        mixup_alpha=1.0,
        augmentation=INCEPTION_CROP,
        loss=DISTILLATION,
        loss_options={TEMPERATURE: row.temperature},
        num_examples=num_examples,
        notes=tuple(notes),
        decayed="kernels",
        clip_norm=1.0,
        eval_resize=row.resize,
    )


def _notes(row: Preset, decay: float, rate: float, teachers: int, mixup: float) -> Iterator[str]:
    """Say where the numbers come from, and how the run differs from what was published."""
    if row.name:
        yield (
            f"The numbers of {row.name} are those of arXiv 2106.05237 for an R50x1 that was "
            f"distilled from {row.teacher} on {row.data} for {row.epochs:,} epochs; its top-1 "
            f"accuracy was {row.student:.2f} %."
        )
        if row.note:
            yield row.note
    else:
        yield (
            "No preset was asked for. The learning rate, weight decay and temperature are in the "
            "middle of those that arXiv 2106.05237 searched, which are not known to be good for "
            "these images; the warmup is bitzoo's choice. A longer run is better, usually with "
            "less weight decay."
        )
    yield (
        f"At the base learning rate a step takes {decay:g} of the kernels away, which is the "
        f"weight decay of the published runs; in torch's AdamW it is {decay:g} / {rate:g} = "
        f"{decay / rate:.3g}."
    )
    yield "big_vision keeps Adam's first average in bfloat16; here it is float32."
    if mixup:
        yield (
            "MixUp draws one weight per batch"
            + (", uniform from 0 to 1, as the paper says," if mixup == 1 else "")
            + " and a partner for each image by a random permutation of the batch; big_vision "
            "rolls the batch by one image and lets the heavier image lead. As a batch is in random "
            "order and no label says which image leads, mixed images have the same distribution, "
            "but for the one image per batch, on average, whose partner is itself."
        )
    if teachers > 1:
        yield (
            f"The logits of the {teachers} teachers are averaged, as in the paper; big_vision's "
            "trainer adds their divergences, which averages their probabilities."
        )
