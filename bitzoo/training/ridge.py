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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitzoo.errors import UsageError

BIAS = 100.0
"""The constant feature. Its weight is regularized as all weights are, hardly, as it is large."""
EPSILON = 1e-5
"""Added to each standard deviation."""
L2 = 1024.0
"""big_vision's strength, configs/common_fewshot.py."""

STRENGTHS = tuple(2.0**power for power in range(-10, 21))
"""The strengths that are tried: the powers of two from 2^-10 to 2^20, with big_vision's 2^10 among
them. Below, the regularization is less than the rounding of float32 features; above, it is a
thousand times what big_vision uses, and all but the strongest directions are shrunk to nothing."""

_ROWS = 4096
"""How many examples are predicted at once."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LeftOut:
    """How a strength does on the training examples, each predicted without itself.

    Attributes:
        l2: The strength.
        correct: How many of the examples get their own class.
        count: How many there are.
        squared_error: Mean over examples and classes of the squared distance from the targets of
            -1 and +1.
    """

    l2: float
    correct: int
    count: int
    squared_error: float

    @property
    def accuracy(self) -> float:
        """Share of the examples that get their own class."""
        return self.correct / self.count


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
        self._labels = y
        targets = self._targets(slice(None))
        if inputs.shape[0] >= inputs.shape[1]:
            values, vectors = np.linalg.eigh(inputs.T @ inputs)
            self._left, self._right = vectors, vectors.T @ (inputs.T @ targets)
            self._rows = inputs
        else:
            values, vectors = np.linalg.eigh(inputs @ inputs.T)
            self._left, self._right = inputs.T @ vectors, vectors.T @ targets
            self._rows = vectors
        self._is_dual = inputs.shape[0] < inputs.shape[1]
        self._values = np.maximum(values, 0.0)  # below 0 by rounding alone

    def leave_one_out(self, l2: float) -> Floats:
        """Return the scores of each training example by the classifier of all the others.

        In closed form, by the hat matrix H = X (X'X + l2 I)^-1 X' of all examples: without example
        i, the residual of i is its residual with all of them, divided by 1 - H_ii. That is the
        PRESS residual of ridge regression; D. M. Allen, "The Relationship Between Variable
        Selection and Data Agumentation and a Method for Prediction", Technometrics 16 (1974).
        Features stay standardized as all examples are: the mean and the deviation of each feature,
        for which no labels are used, are not made again without the example.

        Args:
            l2: The strength, above 0.

        Returns:
            float64 (n, num_classes).

        Raises:
            UsageError: If the strength is out of its range.
        """
        _check_strength(l2)
        shrunk = l2 / (self._values + l2)
        found = np.empty((self.examples, self.num_classes))
        for start in range(0, self.examples, _ROWS):
            here = slice(start, start + _ROWS)
            targets = self._targets(here)
            if self._is_dual:  # X = U S V': y - Hy = U shrunk U'y, without a difference of others
                rows = self._rows[here]
                residuals = (rows * shrunk) @ self._right
                left = (rows**2) @ shrunk
            else:
                rows = self._rows[here] @ self._left
                residuals = targets - (rows / (self._values + l2)) @ self._right
                left = 1 - (rows**2) @ (1 / (self._values + l2))
            found[here] = targets - residuals / left[:, None]
        return found

    def judge(self, l2: float) -> LeftOut:
        """Return how a strength does on the training examples, each predicted without itself."""
        found = self.leave_one_out(l2)
        hits, error = 0, 0.0
        for start in range(0, self.examples, _ROWS):
            here = slice(start, start + _ROWS)
            hits += int((found[here].argmax(1) == self._labels[here]).sum())
            error += float(((found[here] - self._targets(here)) ** 2).sum())
        return LeftOut(l2, hits, self.examples, error / found.size)

    def _targets(self, rows: slice) -> Floats:
        labels = self._labels[rows]
        targets = np.full((len(labels), self.num_classes), -1.0)
        targets[np.arange(len(labels)), labels] = 1.0
        return targets

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
        _check_strength(l2)
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


def choose_strength(system: RidgeSystem, strengths: Sequence[float] = STRENGTHS) -> LeftOut:
    """Return the strength that does best on the training examples, each predicted without itself.

    The best has the most right answers; of several, it has the lowest squared error, and of
    several still, it is the largest. No other examples are looked at.

    Args:
        system: The examples.
        strengths: At least one, each above 0.

    Raises:
        UsageError: If there is none, or one is out of its range.
    """
    if not strengths:
        raise UsageError("`strengths` must be at least one number above 0, found none.")
    judged = [system.judge(l2) for l2 in strengths]
    return max(judged, key=lambda found: (found.correct, -found.squared_error, found.l2))


def scores(features: npt.ArrayLike, weight: Floats, bias: Floats) -> Floats:
    """Return the scores of features, float64 (n, num_classes).

    The predicted class is that with the highest score, the first of several.
    """
    return np.asarray(features, np.float64) @ weight.T + bias


def _check_strength(l2: float) -> None:
    if not (math.isfinite(l2) and l2 > 0):
        raise UsageError(f"`l2` must be a number above 0, found {l2!r}.")


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
