"""The classes of images that may have several: flat arrays, and the targets that a loss takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The classes of each of n images; an image may have any number of them, none included.

    Attributes:
        values: The classes of all images, one image after the other, int32.
        offsets: Where each image's classes begin in `values`, and at the end their number: int64
            (n + 1,), ascending from 0.

    Raises:
        ValueError: If the offsets are none of these values.
    """

    values: npt.NDArray[np.int32]
    offsets: Integers

    def __post_init__(self) -> None:
        ends = self.offsets
        if (
            not len(ends)
            or ends[0] != 0
            or ends[-1] != len(self.values)
            or (np.diff(ends) < 0).any()
        ):
            raise ValueError("offsets must ascend from 0 to the number of values")

    @classmethod
    def of(cls, sets: Iterable[Sequence[int]]) -> LabelSets:
        """Return the sets that are given one by one, in order."""
        listed = list(sets)
        counts = np.fromiter(map(len, listed), np.int64, len(listed))
        values = np.fromiter((k for labels in listed for k in labels), np.int32, int(counts.sum()))
        return cls(values, np.concatenate([[0], counts.cumsum()]).astype(np.int64))

    @classmethod
    def joined(cls, parts: Sequence[LabelSets]) -> LabelSets:
        """Return the sets of several, one after the other."""
        starts = np.cumsum([0, *(len(part.values) for part in parts)])
        ends = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([np.zeros(1, np.int64), *ends]),
        )

    @classmethod
    def of_single(cls, labels: npt.ArrayLike) -> LabelSets:
        """Return the sets of images of which each has one class.

        Args:
            labels: The class of each image.
        """
        values = np.asarray(labels, np.int32).ravel()
        return cls(values, np.arange(len(values) + 1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> tuple[int, ...]:
        """Return the classes of one image."""
        row = range(len(self))[row]
        return tuple(self.values[self.offsets[row] : self.offsets[row + 1]].tolist())

    @property
    def counts(self) -> Integers:
        """How many classes each image has, (n,)."""
        return np.diff(self.offsets)

    @property
    def single(self) -> npt.NDArray[np.int64] | None:
        """The class of each image, (n,); None if an image has several or none."""
        return self.values.astype(np.int64) if (self.counts == 1).all() else None

    def take(self, rows: npt.ArrayLike) -> LabelSets:
        """Return the sets of some images, in the order of `rows`; repeats are allowed.

        Raises:
            IndexError: If a row is not in 0..n-1.
        """
        chosen = np.asarray(rows, np.int64).ravel()
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows must be in 0..{len(self) - 1}")
        counts = self.counts[chosen]
        ends = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
        places = np.arange(ends[-1]) + np.repeat(self.offsets[chosen] - ends[:-1], counts)
        return LabelSets(self.values[places], ends)

    def targets(self, rows: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.float32]:
        """Return 1 for every class of an image and 0 for all others.

        Args:
            rows: Which images, n of them; repeats are allowed.
            num_classes: Width of the result; every class must be below.

        Returns:
            float32 (n, num_classes).
        """
        chosen = self.take(rows)
        targets = np.zeros((len(chosen), num_classes), np.float32)
        targets[np.repeat(np.arange(len(chosen)), chosen.counts), chosen.values] = 1
        return targets


class _Split(Protocol):
    @property
    def examples(self) -> Sequence[Any]: ...


def label_sets_of(split: _Split) -> LabelSets:
    """Return the classes of every example of a split, whether it has one or several."""
    stored = getattr(split.examples, "label_sets", None)
    if isinstance(stored, LabelSets):
        return stored
    return LabelSets.of(example.labels or (example.label,) for example in split.examples)
