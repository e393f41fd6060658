"""The outcome of an evaluation: one entry per image, and every count derived from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bitzoo.display import Displayed, in_percent
from bitzoo.errors import BitzooError, LayoutError, UsageError
from bitzoo.inference.intervals import wilson
from bitzoo.inference.published import Published
from bitzoo.inference.selection import Selection

__all__ = ["MIN_TOP5_CLASSES", "Confusion", "Evaluation", "EvaluationError"]

Integers: TypeAlias = "npt.NDArray[np.int64]"
_TOP = 5
MIN_TOP5_CLASSES = 10
"""Fewest classes for which the top-5 accuracy is shown: with fewer, guessing gets most of it."""


class EvaluationError(BitzooError, ArithmeticError):
    """Outputs of a network that are not finite, or partial results that do not add up."""


@dataclass(frozen=True)
class Confusion:
    """One way to be wrong: images of class `true` that were taken for class `predicted`."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Displayed):
    """The outcome image by image; every total is derived from it, so parts add up exactly.

    The arrays have one entry per image, in the order of `rows`. An image may have several labels
    that are right, as in ReaL: it then is right if the predicted class is any of them, and counts
    among its own class, which may not be one of them.

    Attributes:
        classes: Class names; labels and predictions are indices into them.
        rows: Number of the image in the data set, int64.
        labels: True class, int64; with several labels, the class that the data set has it in.
        predicted: Class with the highest logit, of several the first, int64.
        ranks: How many classes come before the true one, by logit and then by index, int64; of
            several labels, before the first of them.
        scores: Probability of the predicted class, by softmax or sigmoid, float64.
        losses: Cross-entropy in nats, computed in float64 from float32 logits; of several labels,
            minus the logarithm of their probabilities' sum. Of a sigmoid, the sum over all classes
            of the binary ones.
        logits: float32 (n, classes) if they were asked for.
        selection: Which images these are; None if nobody said.
        matched: How the data set's classes and the network's outputs were matched, as a sentence;
            "" if nothing was to be matched.
        several: Whether images may have several labels.
        of_sigmoid: Whether scores and losses are those of a sigmoid, not of a softmax.
        published: What others published about the model on this data set.
        kept: A sentence on the images that were not read to check them, as an earlier check was
            kept (`bitzoo.data.kept_checks`); "" if all were.
    """

    classes: tuple[str, ...]
    rows: Integers
    labels: Integers
    predicted: Integers
    ranks: Integers
    scores: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32] | None = None
    selection: Selection | None = None
    matched: str = ""
    several: bool = False
    published: tuple[Published, ...] = ()
    of_sigmoid: bool = False
    kept: str = ""

    @classmethod
    def of_logits(
        cls,
        classes: Sequence[str],
        labels: Integers,
        logits: npt.NDArray[np.float32],
        rows: Integers | None = None,
        *,
        keep_logits: bool = False,
        accepted: Sequence[Sequence[int]] | None = None,
        sigmoid: bool = False,
    ) -> Evaluation:
        """Judge logits, however they were computed.

        Args:
            classes: Class names.
            labels: True classes, integers (n,).
            logits: Shape (n, classes).
            rows: The images' numbers; 0, 1, ... if None.
            keep_logits: Whether the result holds the logits too.
            accepted: The labels of each image that are right, at least one; None for `labels`.
            sigmoid: Whether scores and losses are those of a sigmoid for each class.

        Raises:
            UsageError: If a label is out of range.
            LayoutError: If the shapes do not fit.
            EvaluationError: If a logit is infinite or not a number.
        """
        labels = checked_labels(labels, len(labels), len(classes))
        rows = np.arange(len(labels), dtype=np.int64) if rows is None else rows
        check_logits(logits, len(labels), len(classes))
        exact = logits.astype(np.float64)
        log_total = log_sum_exp(exact)
        predicted = logits.argmax(axis=1).astype(np.int64)
        pick = np.arange(len(labels))
        if accepted is None:
            first, log_true = labels, exact[pick, labels]
        else:
            right = mask_of(accepted, len(classes))
            first = np.where(right, logits, -np.inf).argmax(axis=1).astype(np.int64)
            log_true = log_sum_exp(np.where(right, exact, -np.inf))
        best = exact[pick, predicted]
        scores, losses = np.exp(best - log_total), log_total - log_true
        if sigmoid:
            own = accepted if accepted is not None else [(label,) for label in labels.tolist()]
            scores = np.exp(-np.logaddexp(0, -best))
            losses = np.logaddexp(0, exact).sum(1) - (exact * mask_of(own, len(classes))).sum(1)
        return cls(
            classes=tuple(classes),
            rows=rows,
            labels=labels,
            predicted=predicted,
            ranks=_ranks(logits, first),
            scores=scores,
            losses=losses,
            logits=logits if keep_logits else None,
            several=accepted is not None,
            of_sigmoid=sigmoid,
        )

    @classmethod
    def merge(cls, parts: Iterable[Evaluation]) -> Evaluation:
        """Put parts of one evaluation together: equal to the whole, whatever the split and order.

        Args:
            parts: At least one; of several processes, what `accelerate.utils.gather_object` brings.

        Raises:
            EvaluationError: If there is none, classes differ, or an image was counted twice.
        """
        parts = list(parts)
        if len({part.classes for part in parts}) != 1:
            raise EvaluationError(
                "Evaluations to merge must be of the same classes, and at least one; found "
                f"{len(parts)} of {len({part.classes for part in parts})} different class lists. "
                "Evaluate all parts with the same model and data set."
            )
        rows = np.concatenate([part.rows for part in parts])
        order = np.argsort(rows, kind="stable")
        if (twice := rows[order][1:][np.diff(rows[order]) == 0]).size:
            raise EvaluationError(
                f"Image {twice[0]} is in two of the evaluations to merge: expected each once. "
                "Give every process its own rank."
            )

        names = ["rows", "labels", "predicted", "ranks", "scores", "losses"]
        if all(part.logits is not None for part in parts):
            names.append("logits")
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])[order] for name in names
        }
        first = parts[0]
        return cls(first.classes, several=first.several, of_sigmoid=first.of_sigmoid, **columns)

    @property
    def count(self) -> int:
        """Images judged."""
        return len(self.rows)

    @property
    def correct(self) -> int:
        """Images whose true class came first."""
        return int((self.ranks == 0).sum())

    @property
    def correct_top5(self) -> int:
        """Images whose true class was among the first five; all, if there are no more classes."""
        return int((self.ranks < _TOP).sum())

    @property
    def top1(self) -> float:
        """Share of correct predictions, in [0, 1]; NaN without images."""
        return _share(self.correct, self.count)

    @property
    def top5(self) -> float:
        """Share with the true class among the first five, in [0, 1]; NaN without images."""
        return _share(self.correct_top5, self.count)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `top1`, in [0, 1]; NaN without images. See `intervals.wilson`."""
        return wilson(self.correct, self.count)

    @property
    def interval_top5(self) -> tuple[float, float]:
        """95 % interval of `top5`, in [0, 1]; NaN without images."""
        return wilson(self.correct_top5, self.count)

    @property
    def has_top5(self) -> bool:
        """Whether there are enough classes for the top-5 accuracy to say something."""
        return len(self.classes) >= MIN_TOP5_CLASSES

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes with images of their accuracy, in [0, 1]; NaN without images.

        NaN also where images may have several labels, as each is of several classes then. Every
        class counts the same, however many images it has.

        Source: K. H. Brodersen et al., "The Balanced Accuracy and Its Posterior Distribution",
        ICPR 2010; for more than two classes, the mean recall.
        """
        if self.several:
            return math.nan
        counts, hits, _ = self._totals()
        shares = hits[counts > 0] / counts[counts > 0]
        return _share(math.fsum(shares), len(shares))

    @property
    def macro_f1(self) -> float:
        """Mean of the classes' F1 scores, in [0, 1]; NaN without images, or with several labels.

        A class's F1 is 2 tp / (2 tp + fp + fn), the harmonic mean of its precision and recall. Left
        out are only classes that no image has and that none was taken for, whose F1 is 0 / 0.

        Source: D. D. Lewis et al., "Training Algorithms for Linear Text Classifiers", SIGIR 1996
        (macro-averaging); the mean of F1 scores, not the F1 of mean precision and mean recall.
        """
        if self.several:  # what was taken for a class may rightly be so
            return math.nan
        counts, hits, guesses = self._totals()
        occurs = counts + guesses > 0
        scores = 2 * hits[occurs] / (counts + guesses)[occurs]  # 2 tp + fp + fn
        return _share(math.fsum(scores), len(scores))

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, of an exactly rounded sum; NaN without images."""
        return _share(math.fsum(self.losses), self.count)

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """`name`, `count`, `correct` and `accuracy` per class; accuracy is None without images.

        An image with several labels counts once, for the class of the data set or its first label.
        """
        counts, hits, _ = self._totals()
        return [
            {
                "name": name,
                "count": count,
                "correct": correct,
                "accuracy": correct / count if count else None,
            }
            for name, count, correct in zip(
                self.classes, counts.tolist(), hits.tolist(), strict=True
            )
        ]

    def _totals(self) -> tuple[Integers, Integers, Integers]:
        """Return per class the images of it, those of them that are right, and those taken for it.

        Right is what came first, as for `correct`.
        """
        size = len(self.classes)
        of, right = self.labels, self.ranks == 0
        counts, hits, guesses = (
            np.bincount(found, minlength=size) for found in (of, of[right], self.predicted)
        )
        return counts, hits, guesses

    @property
    def confusion(self) -> Integers:
        """Counts, int64 (classes, classes): rows are true classes, columns predicted ones."""
        size = len(self.classes)
        matrix = np.zeros((size, size), np.int64)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix

    def confusions(self, limit: int | None = None) -> list[Confusion]:
        """Wrong (true, predicted) pairs, the most frequent first; needs no full matrix."""
        wrong = self.ranks > 0
        labels, predicted = self.labels[wrong].tolist(), self.predicted[wrong].tolist()
        pairs = Counter(zip(labels, predicted, strict=True))
        found = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        return [Confusion(*pair, count) for pair, count in found[:limit]]

    def worst(self, limit: int | None = None) -> Integers:
        """Positions of wrong predictions, the highest loss first."""
        wrong = np.flatnonzero(self.ranks > 0)
        return wrong[np.argsort(-self.losses[wrong], kind="stable")][:limit]

    def to_dict(self) -> dict[str, Any]:
        """Return totals as JSON-ready data: shares in [0, 1], and the counts they are made of."""
        shares = {
            "top1": self.top1,
            "top5": self.top5,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "loss": self.loss,
        }
        return {
            **{name: None if math.isnan(value) else value for name, value in shares.items()},
            "interval": list(self.interval) if self.count else None,
            "interval_top5": list(self.interval_top5) if self.count else None,
            "count": self.count,
            "correct": self.correct,
            "correct_top5": self.correct_top5,
            "per_class": self.per_class,
            "matched": self.matched or None,
            "published": [figure.to_dict() for figure in self.published],
            **(self.selection.to_dict() if self.selection else {}),
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return the totals for people; top-5 from `MIN_TOP5_CLASSES` classes on."""
        rows: list[tuple[str, object]] = [
            ("top-1", f"{self.top1:.2%} ({self.correct:,} of {self.count:,} images)"),
            ("95 % interval", in_percent(self.interval)),
        ]
        if self.has_top5:
            rows.append(
                ("top-5", f"{self.top5:.2%} ({self.correct_top5:,} of {self.count:,} images)")
            )
        rows += [("published", figure.sentence) for figure in self.published]
        if not self.several:
            rows.append(("balanced accuracy", f"{self.balanced_accuracy:.2%}"))
            rows.append(("macro F1", f"{self.macro_f1:.2%}"))
        return [
            *rows,
            ("loss", f"{self.loss:.4f}" + (" (sigmoid, summed over classes)" * self.of_sigmoid)),
            ("classes", f"{len(self.classes):,}"),
            *(self.selection.display_rows() if self.selection else ()),
            *([("matched", self.matched)] if self.matched else ()),
        ]


def checked_labels(labels: npt.ArrayLike, count: int, classes: int) -> Integers:
    """Return labels as int64, once they are known to be `count` indices of classes."""
    found = np.asarray(labels)
    if found.shape != (count,) or (count and found.dtype.kind not in "iu"):
        raise UsageError(
            f"Labels must be {count:,} integers, one per image; found {found.dtype} of shape "
            f"{found.shape}."
        )
    if count and not 0 <= found.min() <= found.max() < classes:
        raise UsageError(
            f"Labels must be from 0 to {classes - 1}, as there are {classes:,} class names; found "
            f"{found.min()} to {found.max()}. Give the classes of the same data set."
        )
    return found.astype(np.int64)


def check_logits(logits: npt.NDArray[np.float32], count: int, classes: int) -> None:
    """Refuse logits that are not of shape (count, classes), or not finite."""
    if logits.shape != (count, classes):
        raise LayoutError(
            f"Expected logits of shape ({count}, {classes}), one per class name; found "
            f"{logits.shape}. Use a model and names that belong together."
        )
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise EvaluationError(
            f"The network's output is infinite or NaN for {bad} of {count} images. "
            "Either training diverged (use a checkpoint from before, and a lower learning rate) or "
            "float16 overflowed (use bfloat16 or float32)."
        )


def log_sum_exp(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the logarithm of each row's sum of exponentials, without overflow."""
    top = logits.max(axis=1, initial=-np.inf)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))


def mask_of(accepted: Sequence[Sequence[int]], classes: int) -> npt.NDArray[np.bool_]:
    """Return which classes are right for which image: bool (n, classes)."""
    mask = np.zeros((len(accepted), classes), bool)
    for row, labels in enumerate(accepted):
        if not labels:
            raise UsageError(f"Image {row} must have at least one label, found none. Leave it out.")
        mask[row, checked_labels(np.asarray(labels), len(labels), classes)] = True
    return mask


def _ranks(logits: npt.NDArray[np.float32], labels: Integers) -> Integers:
    """Return how many classes come before the label, by logit and then by index."""
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    tied_before = (logits == true) & (np.arange(logits.shape[1]) < labels[:, None])
    ranks: Integers = ((logits > true).sum(axis=1) + tied_before.sum(axis=1)).astype(np.int64)
    return ranks


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
