"""What near-duplicates across the splits mean for a run's accuracy, in numbers and in images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.data.data_summary import DataSummary
from bitzoo.data.dataset import Example, ImageSet
from bitzoo.data.near_duplicates import NearDuplicates, Pair
from bitzoo.errors import BitzooError
from bitzoo.inference.metrics import Evaluation
from bitzoo.models.preprocessing import read_rgb

_MOST_SHOWN = 12
_EDGE = 192


@dataclass(frozen=True)
class Leakage:
    """The near-duplicates across the splits, and the accuracy without them.

    Attributes:
        found: The near-duplicates.
        correct: Correct predictions among the held-out images that have none in train.
        count: Number of these images.
        total: Number of all held-out images.
    """

    found: NearDuplicates
    correct: int
    count: int
    total: int

    @property
    def matters(self) -> bool:
        """Whether near-duplicates of held-out images were trained on."""
        return bool(self.found.pairs) and not self.found.dropped

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-ready data; without images, top-1 is None."""
        top1 = self.correct / self.count if self.count else None
        counts = {"count": self.count, "correct": self.correct, "top1": top1}
        return {**self.found.to_dict(), "held_out_without_them": counts}

    @property
    def finding(self) -> str:
        """What was found, as a phrase for a table."""
        if not self.found.pairs:
            return "none found across the splits"
        train, held_out = len(self.found.pairs), len(self.found.held_out)
        where = "dropped from train" if self.found.dropped else "in train"
        return f"{train:,} {where}, of {held_out:,} of {self.total:,} held-out images"

    @property
    def accuracy_without(self) -> str:
        """Top-1 without the held-out images that have near-duplicates in train, as a phrase."""
        if not self.count:
            return "unknown: every held-out image has near-duplicates in train"
        return f"{self.correct / self.count:.2%} ({self.correct:,} of {self.count:,})"


def measure_leakage(
    summary: DataSummary, evaluation: Evaluation | None, images: ImageSet
) -> Leakage | None:
    """Count the correct predictions on held-out images without near-duplicates in train.

    Args:
        summary: Of the data set, with its near-duplicates.
        evaluation: Of its held-out images.
        images: The data set.

    Returns:
        The counts; None without held-out images, or if near-duplicates were not looked for.
    """
    if evaluation is None or images.val is None or summary.checked is not None:
        return None
    found = summary.near_duplicates
    affected = set() if found.dropped else set(found.held_out)
    keys = [example.key for example in images.val.examples]
    clean = np.array([keys[row] not in affected for row in evaluation.rows], dtype=bool)
    right = int((evaluation.ranks[clean] == 0).sum())
    return Leakage(found, right, int(clean.sum()), evaluation.count)


@dataclass(frozen=True)
class ShownPair:
    """A pair of near-duplicates with both images.

    Attributes:
        held_out: uint8 pixels (height, width, 3); None if it can no longer be read.
        train: The same of the training image.
        held_out_key: Name of the held-out image.
        train_key: Name of the training image.
        labels: Names of their classes, held-out first.
        distance: Number of bits that differ.
    """

    held_out: npt.NDArray[np.uint8] | None
    train: npt.NDArray[np.uint8] | None
    held_out_key: str
    train_key: str
    labels: tuple[str, str]
    distance: int


def show_pairs(
    found: NearDuplicates, classes: Sequence[str], bit_depth: int | None
) -> list[ShownPair]:
    """Return some pairs with their images, one per held-out image, the nearest first.

    Args:
        found: The near-duplicates.
        classes: Class names.
        bit_depth: `DataSummary.bit_depth` of the data set.
    """
    first: dict[str, Pair] = {}
    for pair in found.pairs:
        first.setdefault(pair.held_out.key, pair)
    pairs = list(first.values())
    step = max(1, math.ceil(len(pairs) / _MOST_SHOWN))
    return [
        ShownPair(
            _thumbnail(pair.held_out, bit_depth),
            _thumbnail(pair.train, bit_depth),
            pair.held_out.key,
            pair.train.key,
            (classes[pair.held_out.label], classes[pair.train.label]),
            pair.distance,
        )
        for pair in pairs[::step]
    ]


def _thumbnail(example: Example, bit_depth: int | None) -> npt.NDArray[np.uint8] | None:
    try:
        rgb = read_rgb(example.image(), bit_depth).copy()
    except (BitzooError, OSError, ValueError):  # removed since training began
        return None
    rgb.thumbnail((_EDGE, _EDGE))
    return np.asarray(rgb)
