"""The batches of a run, by its recipe: a pure function of seed and step, known before it starts."""

from __future__ import annotations

from bitzoo.data.loader import BatchPlan
from bitzoo.training.recipe import INCEPTION_CROP, Recipe


def batch_plan(recipe: Recipe, examples: int, seed: int) -> BatchPlan:
    """Return the batches of a run: the same for the same recipe, number of examples and seed."""
    return BatchPlan(
        examples,
        recipe.batch_size,
        recipe.resize,
        recipe.crop,
        recipe.flip,
        recipe.mixup_alpha,
        seed,
        random_resized=recipe.augmentation == INCEPTION_CROP,
    )
