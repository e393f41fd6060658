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

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from bitzoo.errors import UsageError
from bitzoo.training.recipe import BALANCED, CLASS_WEIGHTS, Recipe

LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "softmax_cross_entropy": lambda logits, targets, weights: F.cross_entropy(
        logits, targets.to(logits.dtype), weight=weights, reduction="none"
    ),
    "sigmoid_cross_entropy": lambda logits, targets, weights: F.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), weight=weights, reduction="none"
    ).sum(1),
}
"""Losses that a recipe may name: logits and soft targets (n, classes) and the weights of the
classes, (classes,) or None, to one loss per row, (n,)."""

LOSS_OPTIONS: Mapping[str, Mapping[str, set[str]]] = {
    "softmax_cross_entropy": {CLASS_WEIGHTS: {BALANCED}},
    "sigmoid_cross_entropy": {},
}
"""By loss: its options, and the values that they may have."""


def check_loss_options(recipe: Recipe) -> None:
    """Refuse options that the recipe's loss does not have.

    Raises:
        UsageError: Lists those that it has.
    """
    known = LOSS_OPTIONS[recipe.loss]
    unknown = {
        name: value
        for name, value in recipe.loss_options.items()
        if value not in known.get(name, ())
    }
    if unknown:
        allowed = [f"{name} {' or '.join(map(str, sorted(known[name])))}" for name in sorted(known)]
        expected = f"only {', '.join(allowed)}" if allowed else "none"
        raise UsageError(
            f"Recipe {recipe.name!r} has unknown loss options: expected of {recipe.loss} "
            f"{expected}, found {unknown}. Remove them."
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
    labels: npt.NDArray[np.integer],
    num_classes: int,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """Return the class weights that a recipe asks for, float32 (num_classes,), or None."""
    if CLASS_WEIGHTS not in recipe.loss_options:
        return None
    weights = balanced_weights(labels, num_classes).astype(np.float32)
    return torch.from_numpy(weights).to(device)
