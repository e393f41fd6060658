"""Plan batch n of a run as a pure function of (seed, n), independent of what came before.

The choice of images, crop windows, mirroring and MixUp pairs comes from NumPy's Philox, a generator
that can jump to any position of its stream at no cost: its key holds the seed and the purpose, its
counter the number of the epoch or step. So a killed run resumes with the batches it would have
seen, and micro-batches, processes and prefetching threads change nothing.

The choices follow google-research/big_transfer, bit_pytorch/train.py: crop windows anywhere in the
resized image, half of the images mirrored, one MixUp weight per batch. There, however, MixUp pairs
images within a micro-batch, and sampling restarts with each batch if the data set is smaller than a
batch; here pairs are drawn from the whole batch, and every image is seen once per epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bitzoo.errors import UsageError

Integers = npt.NDArray[np.int64]

_ORDER, _AUGMENTATION, _MIXUP = range(3)
"""Purposes. Each has its own stream: turning MixUp on does not change orders and crops."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The batch of one training step, as data.

    Attributes:
        step: Index of the step, from 0.
        indices: Indices of the examples, (B,).
        top: First row of each crop window in the resized image, (B,).
        left: First column, (B,).
        flip: Whether each crop is mirrored left to right, bool (B,).
        mix: Row of the batch that each row is mixed with, a permutation; None without MixUp.
        lam: Weight of the row itself; its partner's is 1 - lam. 1 without MixUp.
        crop_seed: With random-resized crops, the seed of their boxes, which depend on the size of
            each image too; `top` and `left` are then 0. None without them.
    """

    step: int
    indices: Integers
    top: Integers
    left: Integers
    flip: npt.NDArray[np.bool_]
    mix: Integers | None = None
    lam: float = 1.0
    crop_seed: int | None = None

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class BatchPlan:
    """All batches of a run.

    Epochs are permutations of all examples and follow each other without a gap: a batch may hold
    the end of one epoch and the start of the next, or span several.

    Attributes:
        num_examples: Number of examples, at least 1.
        batch_size: Examples per batch, at least 1.
        resize: Edge of the resized images.
        crop: Edge of the crop windows, 1 <= crop <= resize.
        flip: Whether half of the crops are mirrored.
        mixup_alpha: MixUp's weight is drawn from Beta(alpha, alpha) (arXiv 1710.09412); 0 turns
            MixUp off.
        seed: 0 <= seed < 2**64.
        random_resized: Whether each row has a random-resized crop of the whole image
            (`bitzoo.data.inception_crop`) instead of a window of a resized one; `resize` is then
            `crop`.

    Raises:
        UsageError: If a number is out of its range.
    """

    num_examples: int
    batch_size: int
    resize: int
    crop: int
    flip: bool = True
    mixup_alpha: float = 0.0
    seed: int = 0
    random_resized: bool = False

    def __post_init__(self) -> None:
        _require(self.num_examples >= 1, "num_examples", "at least 1", self.num_examples)
        _require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        _require(1 <= self.crop <= self.resize, "crop", f"in 1..{self.resize} (resize)", self.crop)
        if self.random_resized:
            _require(self.resize == self.crop, "resize", f"{self.crop} (crop)", self.resize)
        is_alpha = 0 <= self.mixup_alpha < math.inf
        _require(is_alpha, "mixup_alpha", "at least 0 and finite", self.mixup_alpha)
        _require(0 <= self.seed < 1 << 64, "seed", "in 0..2**64 - 1", self.seed)

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`, from 0; the same for every plan with equal attributes."""
        _require(step >= 0, "step", "at least 0", step)
        count, spare = self.batch_size, self.resize - self.crop
        random = _generator(self.seed, _AUGMENTATION, step)
        top, left = random.integers(0, spare, (2, count), dtype=np.int64, endpoint=True)
        flip = (random.random(count) < 0.5) & self.flip
        mix, lam = None, 1.0
        if self.mixup_alpha:
            random = _generator(self.seed, _MIXUP, step)
            lam = float(random.beta(self.mixup_alpha, self.mixup_alpha))
            mix = random.permutation(count)
        crop_seed = self.seed if self.random_resized else None
        return Batch(step, self._indices(step), top, left, flip, mix, lam, crop_seed)

    def _indices(self, step: int) -> Integers:
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        count = self.num_examples
        epochs = range(first // count, (last - 1) // count + 1)
        parts = []
        for epoch in epochs:
            order, start = _epoch_order(self.seed, epoch, count), epoch * count
            parts.append(order[max(0, first - start) : last - start])
        return np.concatenate(parts)


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    """Return one stream per seed, purpose and number; streams of one key are 2**192 draws apart."""
    return np.random.Generator(np.random.Philox(key=seed | purpose << 64, counter=number << 192))


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> Integers:
    order = _generator(seed, _ORDER, epoch).permutation(num_examples)
    order.setflags(write=False)  # it is shared
    return order


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise UsageError(f"A batch plan's `{name}` must be {expected}, found {found}. Change it.")
