"""What the training loop requires of a recipe, a network and data before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.data.image_store import Pixels
from bitzoo.data.label_sets import LabelSets
from bitzoo.data.loader import Labels
from bitzoo.errors import UsageError
from bitzoo.models.bit import BiT
from bitzoo.training.losses import LOSSES, check_loss_options
from bitzoo.training.optimizers import OPTIMIZERS
from bitzoo.training.recipe import DISTILLATION, INCEPTION_CROP, RESIZE_CROP, SIGMOID, Recipe


def check_training(
    model: BiT, recipe: Recipe, pixels: Pixels, labels: Labels, *, has_teacher: bool = False
) -> None:
    """Refuse a recipe that the loop does not know, and data that do not fit the network.

    Args:
        model: The network.
        recipe: The recipe.
        pixels: Training images.
        labels: Class of each, or with a sigmoid loss the classes of each.
        has_teacher: Whether there is a teacher, whose logits take the place of the labels.

    Raises:
        UsageError: Says what was expected and found.
    """
    known = {
        "loss": set(LOSSES),
        "optimizer": set(OPTIMIZERS),
        "augmentation": {RESIZE_CROP, INCEPTION_CROP},
    }
    for name, words in known.items():
        if (found := getattr(recipe, name)) not in words:
            raise UsageError(
                f"Recipe {recipe.name!r} has an unknown {name}: expected one of "
                f"{', '.join(sorted(words))}, found {found!r}. Change the recipe."
            )
    check_loss_options(recipe)
    if has_teacher is not (recipe.loss == DISTILLATION):
        found = "one" if has_teacher else "none"
        raise UsageError(
            f"The loss {DISTILLATION} and no other compares with a teacher, found {found} with the "
            f"loss {recipe.loss}. Change the recipe, or {'leave out' if has_teacher else 'give'} "
            "`teacher`."
        )
    if pixels.are_whole != (recipe.augmentation == INCEPTION_CROP):
        kinds = ("squares", "whole images")
        raise UsageError(
            f"The augmentation {recipe.augmentation} takes {kinds[not pixels.are_whole]}, found "
            f"{kinds[pixels.are_whole]}. Open them with "
            f"`{'open_pixels' if pixels.are_whole else 'open_whole_images'}`."
        )
    if len(labels) != len(pixels):
        raise UsageError(
            f"Every image needs a label, found {len(labels):,} labels for {len(pixels):,} "
            "images. Pass those of one split."
        )
    values: npt.NDArray[np.integer[Any]]
    if isinstance(labels, LabelSets):
        if recipe.loss not in (SIGMOID, DISTILLATION):
            raise UsageError(
                f"The loss {recipe.loss} takes one label for each image, found images of several "
                f"or none. Give data with one; `bitzoo.pretrain` trains on several, with {SIGMOID}."
            )
        values = labels.values if len(labels.values) else np.zeros(1, np.int32)
    else:
        values = labels
    low, high = int(np.min(values)), int(np.max(values))
    if not 0 <= low <= high < model.num_classes:
        raise UsageError(
            f"Labels must be from 0 to {model.num_classes - 1}, the classes of the model's head, "
            f"found {low} to {high}. Create the model with `num_classes={high + 1}`."
        )
