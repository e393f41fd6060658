"""BiT-HyperRule: derive a complete recipe from the number of training images and their size.

One rule for every data set instead of a search (arXiv 1912.11370, section 3.3). It always uses SGD
with momentum 0.9, learning rate 0.003, batches of 512, no weight decay, a zero-initialized head,
random crops and random horizontal flips. The number of examples determines steps, decay points,
warmup and MixUp; the size of the images determines the resolution.

Two editions, because the paper and the code released with it (google-research/big_transfer,
bit_hyperrule.py) differ:

* ``paper``: larger images are resized to 448 and cropped to 384 (R152x4: 512 and 480); the learning
  rate decays after 30, 60 and 90 % of the steps.
* ``released``: larger images are resized to 512 and cropped to 480 with every network; the 500-step
  schedule decays after steps 200, 300 and 400.

The paper does not mention warmup in fine-tuning: section 3.3 has warmup for pre-training only, and
supplementary section A, to which it refers for details, has none. Both editions use the warmup of
the released code: 100 steps for small tasks, otherwise 500. Its authors say that the script uses
the hyper-parameters of the original paper and reproduces the paper's results (big_transfer's
README, "Hyper-parameters" and "Expected results"), and their later google-research/big_vision,
configs/transfer.py, warms up over the same numbers of steps.
Nor does the paper say on which side of a boundary the boundary's own step falls; both editions
follow the released code (`step > boundary`).

For tasks whose labels flips or crops would change, the paper leaves them out (supplementary section
F): `flip=False` and `crop=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bitzoo.catalogue.registry import get_spec
from bitzoo.errors import UsageError
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.training.checked_values import number, whole
from bitzoo.training.recipe import Recipe
from bitzoo.training.schedule import Schedule

Edition = Literal["paper", "released"]

BASE_LR = 0.003
BATCH_SIZE = 512
MOMENTUM = 0.9
SMALL_AREA = 96 * 96
"""Images with fewer pixels than this count as small."""

SMALL_SIZE = (160, 128)
LARGE_SIZE = {"paper": (448, 384), "released": (512, 480)}
LARGEST_SIZE = (512, 480)
"""Resize and crop in pixels: for small images; for others; for others with `LARGEST` (paper)."""

LARGEST = "R152x4"
PAPER_DECAYS = (30, 60, 90)
"""Per cent of the steps (arXiv 1912.11370, section 3.3)."""


@dataclass(frozen=True)
class _Task:
    """The settings that depend on the number of examples.

    Attributes:
        size: The paper's name for tasks of this size.
        below: Tasks of this size have fewer examples than this; None for the largest size.
        steps: Length of the schedule.
        warmup: Warmup of the released code, in steps.
        released_decays: Boundaries of the released code, in steps.
        mixup_alpha: 0 turns MixUp off.
    """

    size: str
    below: int | None
    steps: int
    warmup: int
    released_decays: tuple[int, ...]
    mixup_alpha: float


_TASKS = (
    _Task("small", 20_000, 500, 100, (200, 300, 400), 0.0),
    _Task("medium", 500_000, 10_000, 500, (3_000, 6_000, 9_000), 0.1),
    _Task("large", None, 20_000, 500, (6_000, 12_000, 18_000), 0.1),
)


def hyperrule(
    num_examples: int,
    resolution: tuple[float, float],
    edition: Edition = "paper",
    model: str | Architecture | None = None,
    *,
    flip: bool = True,
    crop: bool = True,
) -> Recipe:
    """Return the recipe of BiT-HyperRule for a data set.

    Args:
        num_examples: Number of training examples, at least 1.
        resolution: Height and width of the images in pixels, each at least 1; the medians if sizes
            vary.
        edition: ``paper``, or ``released`` for the numbers of the released code.
        model: Catalogue name, name of a published architecture (``R152x4``), or an
            `Architecture`; only matters for the paper's rule for R152x4.
        flip: False for a task whose labels mirroring would change: no random flip.
        crop: False for a task whose labels cropping would change: images are resized to what the
            network sees.

    Raises:
        UsageError: If a number is out of its range or the edition is unknown.
        UnknownModelError: If `model` is an unknown name.

    Source: arXiv 1912.11370, section 3.3; google-research/big_transfer, bit_hyperrule.py.
    """
    if edition not in get_args(Edition):
        raise UsageError(
            f"`edition` must be one of {', '.join(get_args(Edition))}, found {edition!r}. "
            "Choose one of these."
        )
    num_examples = whole("`num_examples`", num_examples, 1)
    task = next(t for t in _TASKS if t.below is None or num_examples < t.below)
    boundaries = task.released_decays
    if edition == "paper":
        boundaries = tuple(task.steps * percent // 100 for percent in PAPER_DECAYS)
    resize, size, reason = _sizes(resolution, edition, _is_largest(model))
    exceptions = [note for is_usual, note in ((flip, _NO_FLIP), (crop, _NO_CROP)) if not is_usual]
    return Recipe(
        name=f"BiT-HyperRule ({edition})",
        resize=resize if crop else size,
        crop=size,
        batch_size=BATCH_SIZE,
        schedule=Schedule(BASE_LR, task.steps, task.warmup, boundaries),
        momentum=MOMENTUM,
        mixup_alpha=task.mixup_alpha,
        flip=flip,
        num_examples=num_examples,
        notes=(_task_reason(num_examples, task), reason, *exceptions, *_EDITION_NOTES[edition]),
    )


_NO_FLIP = "No flips: they would change this task's labels (paper, supplementary section F)."
_NO_CROP = "No crops: they would change this task's labels (paper, supplementary section F)."
_EDITION_NOTES = {
    "paper": ("The paper gives no warmup for fine-tuning; this one is from its authors' code.",),
    "released": (),
}


def _sizes(
    resolution: tuple[float, float], edition: Edition, largest: bool
) -> tuple[int, int, str]:
    """Return resize, crop, and a sentence with the reason."""
    if not isinstance(resolution, Sequence) or len(resolution) != 2:
        raise UsageError(
            f"`resolution` must be (height, width) in pixels, found {resolution!r}. Give two "
            "numbers."
        )
    height = number("height of the images", resolution[0], least=1)
    width = number("width of the images", resolution[1], least=1)
    image = f"Images of {height:g}x{width:g} (height x width)"
    if height * width < SMALL_AREA:
        return *SMALL_SIZE, f"{image} are small: their area is below 96x96."
    if edition == "paper" and largest:
        return *LARGEST_SIZE, f"{image} are at least 96x96 in area; {LARGEST} has its own size."
    return *LARGE_SIZE[edition], f"{image} are at least 96x96 in area."


def _task_reason(num_examples: int, task: _Task) -> str:
    bound = f"fewer than {task.below:,}" if task.below else f"at least {_TASKS[-2].below:,}"
    return f"{num_examples:,} examples make a {task.size} task ({bound})."


def _is_largest(model: str | Architecture | None) -> bool:
    if model is None or isinstance(model, Architecture):
        return model == ARCHITECTURES[LARGEST]
    return (model if model in ARCHITECTURES else get_spec(model).arch_name) == LARGEST
