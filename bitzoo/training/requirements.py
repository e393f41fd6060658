"""What the training loop requires of a recipe, a network and data before the first step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitzoo.data.image_store import Pixels
from bitzoo.errors import UsageError
from bitzoo.models.bit import BiT
from bitzoo.training.losses import DISTILLATION, LOSSES, check_loss_options
from bitzoo.training.optimizers import OPTIMIZERS
from bitzoo.training.recipe import Recipe


def check_training(
    model: BiT,
    recipe: Recipe,
    pixels: Pixels,
    labels: npt.NDArray[np.integer],
    *,
    has_teacher: bool = False,
) -> None:
    """Refuse a recipe that the loop does not know, and data that do not fit the network.

    Args:
        model: The network.
        recipe: The recipe.
        pixels: Training images.
        labels: Class of each.
        has_teacher: Whether there is a teacher, whose logits take the place of the labels.

    Raises:
        UsageError: Says what was expected and found.
    """
    known = {"loss": set(LOSSES), "optimizer": set(OPTIMIZERS), "augmentation": {"resize_crop"}}
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
    if len(labels) != len(pixels):
        raise UsageError(
            f"Every image needs a label, found {len(labels):,} labels for {len(pixels):,} "
            "images. Pass those of one split."
        )
    low, high = int(np.min(labels)), int(np.max(labels))
    if not 0 <= low <= high < model.num_classes:
        raise UsageError(
            f"Labels must be from 0 to {model.num_classes - 1}, the classes of the model's head, "
            f"found {low} to {high}. Create the model with `num_classes={high + 1}`."
        )
