"""Pre-training recipes as data: BiT's three, and those of its authors' later code.

From the paper (arXiv 1912.11370, section 3.2, "Upstream pre-training"): SGD with momentum 0.9;
learning rate 0.03 for batches of 256, in proportion to the batch; batches of 4096; a linear
warmup over 5000 steps; division by 10 after epochs 30, 60 and 80 of 90 (BiT-S and BiT-M), or 10,
23, 30 and 37 of 40 (BiT-L); weight decay 1e-4; inception crops of 224 pixels and random mirroring;
no MixUp.

``big_vision`` has the numbers of google-research/big_vision, configs/bit_i1k.py (data with one
label an image) or bit_i21k.py (several): a cosine, gradients clipped to norm 1, and a weight decay
that is apart from the gradient, times the schedule without the learning rate: to first order
``decay * (1 - momentum) / lr`` in torch's SGD: 1.6e-3 x 0.1 / 1.6 and 4.8e-4 x 0.1 / 0.48 are both
1e-4, the paper's.

The paper's numbers belong to its data and its batches. For others the recipe keeps the *shares*:
the warmup has the same share of the steps, and the rate decays after the same epochs; the notes say
what that departs from. The pre-training code was never released, so some choices are inferred or
made here; the notes say which. This module uses neither torch nor NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from bitzoo.errors import UsageError
from bitzoo.training.checked_values import in_proportion, whole
from bitzoo.training.recipe import (
    INCEPTION_CROP,
    SIGMOID,
    SOFTMAX,
    Recipe,
    steps_of,
)
from bitzoo.training.schedule import Schedule, Shape

RecipeName = Literal["bit-s", "bit-m", "bit-l", "big_vision"]

BATCH_SIZE = 4096
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
LR_BATCH = 256
"""Images of the batch to which a rule's learning rate belongs."""
CROP, EVAL_RESIZE = 224, 256


@dataclass(frozen=True)
class Rule:
    """The settings in which pre-training recipes differ.

    Attributes:
        title: Display name.
        data: What the paper's data are called.
        images: Their number of training images; for JFT-300M a round one.
        epochs: Passes over the images.
        decays: Epochs after which the rate is divided by 10.
        lr: Learning rate for a batch of `LR_BATCH` images.
        warmup: Steps of the warmup, for `images` and batches of `BATCH_SIZE`.
        loss: A word of `Recipe.loss`.
        shape: Of the schedule.
        clip_norm: As in `Recipe`.
        head_bias: As in `Recipe`.
        notes: Sentences that belong to this recipe.
    """

    title: str
    data: str
    images: int
    epochs: int
    decays: tuple[int, ...]
    lr: float
    warmup: int
    loss: str
    shape: Shape = "step"
    clip_norm: float | None = None
    head_bias: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Steps for the paper's data and batches."""
        return steps_of(self.epochs, self.images, BATCH_SIZE)


ILSVRC, I21K, JFT = 1_281_167, 14_197_122, 300_000_000
"""Images of ILSVRC-2012's training split; of ImageNet-21k (the paper says 14.2 million); and of
JFT-300M, roughly."""

_SOFTMAX_NOTE = "The loss, softmax, is inferred from the released heads: the paper names none."
_I21K_NOTE = (
    "The loss, sigmoid, is that of the paper's ImageNet-21k, by its authors "
    "(google-research/big_transfer, issue 26)."
)
_JFT_NOTE = "The loss, sigmoid, is inferred: JFT-300M has several labels an image."
_BIG_VISION_NOTES = (
    "The network is the paper's, with activations before convolutions, also where the config has "
    "another; and momentum is kept in float32, there in bfloat16.",
    "The config's weight decay is apart from the gradient; 1e-4 is, to first order, what equals it "
    "here.",
)

RULES: Mapping[str, Rule] = {
    "bit-s": Rule(
        *("BiT-S (ILSVRC-2012)", "ILSVRC-2012", ILSVRC, 90, (30, 60, 80), 0.03, 5000, SOFTMAX),
        notes=(_SOFTMAX_NOTE,),
    ),
    "bit-m": Rule(
        *("BiT-M (ImageNet-21k)", "ImageNet-21k", I21K, 90, (30, 60, 80), 0.03, 5000, SIGMOID),
        notes=(_I21K_NOTE,),
    ),
    "bit-l": Rule(
        *("BiT-L (JFT-300M)", "JFT-300M", JFT, 40, (10, 23, 30, 37), 0.03, 5000, SIGMOID),
        notes=(_JFT_NOTE,),
    ),
}
"""The paper's recipes by name."""

BIG_VISION: Mapping[str, Rule] = {
    SOFTMAX: Rule(
        *("big_vision's bit_i1k", "ILSVRC-2012, train[:99%]", 1_268_355, 90, (), 0.1, 1000),
        *(SOFTMAX, "cosine", 1.0),
        notes=("The data have one label an image: big_vision's bit_i1k.", *_BIG_VISION_NOTES),
    ),
    SIGMOID: Rule(
        *("big_vision's bit_i21k", "ImageNet-21k, full[51200:]", I21K - 51_200, 90, (), 0.03, 5000),
        *(SIGMOID, "cosine", 1.0, -10.0),
        notes=("The data have several labels an image: big_vision's bit_i21k.", *_BIG_VISION_NOTES),
    ),
}
"""big_vision's recipes by loss."""

_BOUNDARY_NOTE = (
    "A step that begins exactly where the rate decays keeps the higher rate: inferred from the "
    "authors' fine-tuning code (google-research/big_transfer, bit_hyperrule.py)."
)

_NOTES = (
    "This is a new training by the recipe; the weights are not Google's, whose pre-training code "
    "was never released.",
    "Weight decay on kernels only is inferred from the authors' code of a year before "
    "(google-research/revisiting-self-supervised): the paper does not say on what it is.",
    "Chosen here, because the paper does not say: kernels start He-normal, the head at zero; boxes "
    "of the inception crop as TensorFlow draws them, resized by Pillow with antialiasing.",
    "Test images are prepared as in big_vision's configs, the shorter side resized and the centre "
    "taken: the paper does not say.",
)


def pretraining(
    name: RecipeName, num_examples: int, *, batch_size: int | None = None, several: bool = False
) -> Recipe:
    """Return a pre-training recipe for a data set.

    Args:
        name: ``bit-s``, ``bit-m``, ``bit-l`` or ``big_vision``.
        num_examples: Number of training images, at least 1.
        batch_size: Images per step, at least 1; None is the paper's 4096. The learning rate is in
            proportion, and the number of epochs stays.
        several: Whether images may have several labels; decides between big_vision's two.

    Raises:
        UsageError: If a number is out of its range, the name is unknown, or the recipe's loss takes
            one label an image and the data have several.
    """
    if name not in get_args(RecipeName):
        raise UsageError(
            f"`recipe` must be one of {', '.join(get_args(RecipeName))}, found {name!r}. Choose "
            "one of these."
        )
    rule = RULES[name] if name in RULES else BIG_VISION[SIGMOID if several else SOFTMAX]
    if several and rule.loss == SOFTMAX:
        raise UsageError(
            f"The recipe {name} has a softmax, which takes one label for each image, but images of "
            "these data have several. Use the recipe bit-m, bit-l or big_vision."
        )
    images = whole("`num_examples`", num_examples, 1)
    batch = BATCH_SIZE if batch_size is None else whole("`batch_size`", batch_size, 1)
    steps = steps_of(rule.epochs, images, batch)
    warmup = in_proportion(rule.warmup, steps, rule.steps)
    lr, usual = (rule.lr * size / LR_BATCH for size in (batch, BATCH_SIZE))
    changes: dict[str, dict[str, float]] = {}
    if batch != BATCH_SIZE:
        changes = {
            "batch_size": {"from": BATCH_SIZE, "to": batch},
            "lr": {"from": usual, "to": lr},
        }
    return Recipe(
        name=f"pre-training: {rule.title}",
        resize=CROP,
        crop=CROP,
        batch_size=batch,
        schedule=Schedule(lr, steps, warmup, _boundaries(rule, images, batch), shape=rule.shape),
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        decayed="kernels",
        clip_norm=rule.clip_norm,
        augmentation=INCEPTION_CROP,
        loss=rule.loss,
        head_bias=rule.head_bias,
        eval_resize=EVAL_RESIZE,
        num_examples=images,
        notes=(
            *_departures(rule, images, batch),
            *rule.notes,
            *_NOTES,
            *((_BOUNDARY_NOTE,) if rule.decays else ()),
        ),
        overrides=changes,
    )


def _boundaries(rule: Rule, images: int, batch: int) -> tuple[int, ...]:
    """Return the last step of each rate.

    Step n begins after ``n * batch`` images, so that the first step of the lower rate is the first
    with ``n * batch > epoch * images``; a step that begins exactly there keeps the higher one.
    """
    return tuple(int(Fraction(epoch * images, batch)) for epoch in rule.decays)


def _departures(rule: Rule, images: int, batch: int) -> tuple[str, ...]:
    """Return what the recipe does not have in common with the paper's, as sentences."""
    if images == rule.images and batch == BATCH_SIZE:
        return ()
    found = []
    if images != rule.images:
        found.append(f"{images:,} training images instead of the {rule.images:,} of {rule.data}")
    if batch != BATCH_SIZE:
        found.append(f"batches of {batch:,} instead of {BATCH_SIZE:,}")
    share = 100 * rule.warmup / rule.steps
    text = " and ".join(found)
    return (
        f"{text[0].upper()}{text[1:]}: the recipe's length is {rule.epochs} epochs of these, and "
        f"the warmup keeps its share of the steps, {share:.2g} % ({rule.warmup:,} of "
        f"{rule.steps:,}).",
    )
