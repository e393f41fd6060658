"""Losses that a recipe may name, and the class weights that they may use.

With ``class_weights: balanced`` class c weighs ``n / (k * n_c)``: n training images, k classes that
have some, n_c of them in class c (scikit-learn's definition of "balanced"). The target
probabilities of a row are multiplied by the weights, so MixUp's two classes each bring their own.
Losses are then summed and divided by the size of the batch, as
`torch.nn.functional.cross_entropy` does with probabilities as targets, not by the sum of the
weights: over all training images the weights have mean 1, so the learning rate keeps its meaning,
and micro-batches add up to the batch.

The sigmoid cross-entropy is a binary problem for each class, summed over the classes and averaged
over the images, as google-research/big_vision, `utils.py`, `sigmoid_xent` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from bitzoo.data.label_sets import LabelSets
from bitzoo.data.loader import Labels
from bitzoo.errors import UsageError
from bitzoo.training.distillation import distillation_loss
from bitzoo.training.recipe import (
    BALANCED,
    CLASS_WEIGHTS,
    DISTILLATION,
    SIGMOID,
    SOFTMAX,
    TEMPERATURE,
    Recipe,
    Scalar,
)

_Loss = Callable[[Tensor, Tensor, Tensor | None, Mapping[str, Scalar]], Tensor]

LOSSES: Mapping[str, _Loss] = {
    SOFTMAX: lambda logits, targets, weights, options: F.cross_entropy(
        logits, targets, weight=weights, reduction="none"
    ),
    SIGMOID: lambda logits, targets, weights, options: F.binary_cross_entropy_with_logits(
        logits, targets, weight=weights, reduction="none"
    ).sum(1),
    DISTILLATION: lambda logits, targets, weights, options: distillation_loss(
        logits, targets, float(options[TEMPERATURE] or 0)
    ),
}
"""Losses that a recipe may name: logits and soft targets (n, classes), the weights of the classes,
(classes,) or None, and the recipe's `loss_options`, to one loss per row, (n,)."""


@dataclass(frozen=True)
class _Option:
    """What an option of a loss may be.

    Attributes:
        words: It, for a message.
        allows: Whether a value is such.
        required: Whether a recipe must have it.
    """

    words: str
    allows: Callable[[object], bool]
    required: bool = False


def _is_temperature(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < float(value) < math.inf  # type: ignore[arg-type]


_OPTIONS: Mapping[str, Mapping[str, _Option]] = {
    SOFTMAX: {CLASS_WEIGHTS: _Option(BALANCED, lambda value: value == BALANCED)},
    SIGMOID: {},
    DISTILLATION: {TEMPERATURE: _Option("above 0", _is_temperature, required=True)},
}
"""By loss: its options."""


def check_loss_options(recipe: Recipe) -> None:
    """Refuse options that the recipe's loss does not have, and one that lacks what it needs.

    Raises:
        UsageError: Lists those that it has.
    """
    known, given = _OPTIONS[recipe.loss], recipe.loss_options
    unknown = {
        name: value
        for name, value in given.items()
        if name not in known or not known[name].allows(value)
    }
    allowed = ", ".join(f"{name} {known[name].words}" for name in sorted(known))
    if unknown:
        expected = f"only {allowed}" if allowed else "none"
        raise UsageError(
            f"Recipe {recipe.name!r} has unknown loss options: expected of {recipe.loss} "
            f"{expected}, found {unknown}. Remove them."
        )
    if missing := [name for name, option in known.items() if option.required and name not in given]:
        raise UsageError(
            f"Recipe {recipe.name!r} lacks an option of the loss {recipe.loss}: expected "
            f"{allowed}, found no {missing[0]}. Add it to `loss_options`."
        )


def balanced_weights(labels: npt.NDArray[np.integer], num_classes: int) -> npt.NDArray[np.float64]:
    """Return the weight of each class, (num_classes,): ``n / (k * n_c)``; 0 for one without images.

    Args:
        labels: Class of each training image.
        num_classes: Number of classes.

    Source: scikit-learn, `sklearn.utils.class_weight.compute_class_weight`.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    total = len(labels) / present.sum()
    weights = np.zeros(num_classes)
    weights[present] = total / counts[present]
    return weights


def loss_weights(
    recipe: Recipe,
    labels: Labels,
    num_classes: int,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """Return the class weights that a recipe asks for, float32 (num_classes,), or None."""
    if CLASS_WEIGHTS not in recipe.loss_options:
        return None
    assert not isinstance(labels, LabelSets)  # refused before: only a softmax has class weights
    weights = balanced_weights(labels, num_classes).astype(np.float32)
    return torch.from_numpy(weights).to(device)
