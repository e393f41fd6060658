"""How a run resizes its images, and which decoded images it will want, known before the check."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitzoo.data.dataset import Example, ImageSet
from bitzoo.data.rows_while_checking import WantedRows
from bitzoo.errors import BitzooError
from bitzoo.models.image_files import open_image, orientation
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.runs.job import Job
from bitzoo.runs.kinds import find_kind
from bitzoo.training.recipe import INCEPTION_CROP, Recipe

_SAMPLE = 64
"""Images whose size is looked at, evenly spaced, of which only the head is read."""


def training_size(recipe: Recipe, *, freeze: bool) -> int | None:
    """Return the edge to which training images are resized; None if each use takes another crop.

    Args:
        recipe: The recipe.
        freeze: Whether only the head is trained, on features of the images as they are evaluated.
    """
    if recipe.augmentation == INCEPTION_CROP:
        return None
    return recipe.crop if freeze else recipe.resize


def evaluation_transform(recipe: Recipe, bit_depth: int | None) -> EvalTransform:
    """Return how a recipe prepares test images."""
    if recipe.eval_resize is None:
        return EvalTransform.to_square(recipe.crop, bit_depth)
    return EvalTransform(recipe.crop, recipe.eval_resize, square=False, bit_depth=bit_depth)


def wanted_rows(job: Job, images: ImageSet) -> WantedRows | None:
    """Return which decoded images a run will want, as far as that is known before the check.

    The rule may depend on the median size of the images, for which that of a sample is taken.

    Args:
        job: The run.
        images: Its data, as listed.

    Returns:
        None if it is not known, or nothing is to be kept.
    """
    expect, budget = find_kind(job.config.kind).expect, int(job.config.cache_gb * 1e9)
    size = _median_size(images.train.examples)
    if expect is None or budget <= 0 or size is None:
        return None
    try:
        recipe = expect(job, images, size)
        edge = training_size(recipe, freeze=job.config.freeze)
        transforms = {} if edge is None else {"train": EvalTransform.to_square(edge)}
        return WantedRows(transforms | {"val": evaluation_transform(recipe, None)}, budget)
    except BitzooError:  # said where the run is planned, after what is wrong with the data
        return None


def _median_size(examples: Sequence[Example]) -> tuple[int, int] | None:
    """Return the median height and width of a sample of files; None if none can be opened."""
    chosen = np.unique(np.linspace(0, len(examples) - 1, min(_SAMPLE, len(examples))).astype(int))
    sizes = [size for k in chosen.tolist() if (size := _size(examples[k])) is not None]
    if not sizes:
        return None
    height, width = np.median(sizes, axis=0)
    return int(height), int(width)


def _size(example: Example) -> tuple[int, int] | None:
    try:
        with open_image(example.path) if example.path else example.load_image() as image:
            turned = orientation(image) in range(5, 9)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # a damaged file makes Pillow's decoders raise nearly anything
        return None
