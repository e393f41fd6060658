"""Closed-form linear classifier on features: ridge regression to -1 and +1, as big_vision probes.

The arithmetic is that of google-research/big_vision, evaluators/fewshot_lsr.py: features are
standardized by the mean and the standard deviation of the training examples, a large constant
feature stands for an almost unregularized bias, and the weights are (X'X + l2 I)^-1 X'Y, or where
there are more features than examples, the equal X'(XX' + l2 I)^-1 Y.

It differs from it in two ways that change no result but by rounding. It computes in float64, where
big_vision has float32. And a feature that is constant over the training examples, as channels are
that the last ReLU leaves at 0, gets the weight 0, which is what the formula gives it: left in, its
rounded weight would be multiplied by up to 10^5, because other examples are divided by its standard
deviation of 0 plus 10^-5.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bitzoo.errors import UsageError

BIAS = 100.0
"""The constant feature. Its weight is regularized as all weights are, hardly, as it is large."""
EPSILON = 1e-5
"""Added to each standard deviation."""
L2 = 1024.0
"""big_vision's strength, configs/common_fewshot.py."""

Floats = npt.NDArray[np.float64]


class RidgeSystem:
    """The least-squares problem of some examples, decomposed: quick to solve for any strength.

    Attributes:
        examples: Number of examples.
        num_classes: Number of classes.
    """

    def __init__(
        self, features: npt.ArrayLike, labels: npt.NDArray[np.integer], num_classes: int
    ) -> None:
        """Standardize and decompose; takes the time of an eigendecomposition.

        Args:
            features: (n, width), finite, n at least 1; computed with as float64.
            labels: The class of each, from 0 to num_classes - 1. Classes may lack examples.
            num_classes: Number of classes, at least 1.

        Raises:
            UsageError: If they do not fit each other, or are not finite.
        """
        x, y = _checked(features, labels, num_classes)
        self.examples, self.num_classes = len(x), num_classes
        self._varies = (x != x[:1]).any(axis=0)
        self._mean = x.mean(axis=0)
        self._std = x.std(axis=0) + EPSILON
        standard = (x - self._mean)[:, self._varies] / self._std[self._varies]
        inputs = np.column_stack([standard, np.full(len(x), BIAS)])
        targets = np.full((len(x), num_classes), -1.0)
        targets[np.arange(len(x)), y] = 1.0
        if inputs.shape[0] >= inputs.shape[1]:
            values, vectors = np.linalg.eigh(inputs.T @ inputs)
            self._left, self._right = vectors, vectors.T @ (inputs.T @ targets)
        else:
            values, vectors = np.linalg.eigh(inputs @ inputs.T)
            self._left, self._right = inputs.T @ vectors, vectors.T @ targets
        self._values = np.maximum(values, 0.0)  # below 0 by rounding alone

    def solve(self, l2: float = L2) -> tuple[Floats, Floats]:
        """Return the classifier for a strength of the regularization.

        Args:
            l2: The strength, above 0.

        Returns:
            weight, float64 (num_classes, width), and bias, float64 (num_classes): the scores of
            features x are ``x @ weight.T + bias``; see `scores`.

        Raises:
            UsageError: If the strength is out of its range.
        """
        if not (math.isfinite(l2) and l2 > 0):
            raise UsageError(f"`l2` must be a number above 0, found {l2!r}.")
        solution = (self._left / (self._values + l2)) @ self._right
        weight = np.zeros((self.num_classes, len(self._mean)))
        weight[:, self._varies] = (solution[:-1] / self._std[self._varies, None]).T
        return weight, BIAS * solution[-1] - weight @ self._mean


def ridge(
    features: npt.ArrayLike,
    labels: npt.NDArray[np.integer],
    num_classes: int,
    l2: float = L2,
) -> tuple[Floats, Floats]:
    """Return the weight and bias of the closed-form classifier of some examples.

    Args:
        features: (n, width), finite.
        labels: The class of each, from 0 to num_classes - 1. Classes may lack examples.
        num_classes: Number of classes.
        l2: The strength of the regularization, above 0.

    Returns:
        As `RidgeSystem.solve`.

    Raises:
        UsageError: If they do not fit each other, are not finite, or the strength is not positive.
    """
    return RidgeSystem(features, labels, num_classes).solve(l2)


def scores(features: npt.ArrayLike, weight: Floats, bias: Floats) -> Floats:
    """Return the scores of features, float64 (n, num_classes).

    The predicted class is that with the highest score, the first of several.
    """
    return np.asarray(features, np.float64) @ weight.T + bias


def _checked(
    features: npt.ArrayLike, labels: npt.NDArray[np.integer], num_classes: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or not len(x) or y.shape != x.shape[:1]:
        raise UsageError(
            "Features must be of shape (n, width), with n labels and n at least 1; found features "
            f"of shape {x.shape} and labels of shape {y.shape}."
        )
    if y.dtype.kind not in "iu" or not 0 <= y.min() <= y.max() < num_classes:
        raise UsageError(
            f"Labels must be whole numbers from 0 to {num_classes - 1}, found {y.min()} to "
            f"{y.max()} of type {y.dtype}."
        )
    bad = int((~np.isfinite(x)).any(axis=1).sum())
    if bad:
        raise UsageError(
            f"Features must be finite, found infinity or NaN in {bad} of {len(x)} rows. The "
            "network's weights are damaged, or float16 overflowed: compute in float32."
        )
    return x, y.astype(np.int64)
