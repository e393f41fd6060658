"""Turn planned batches into tensors, prefetching the next ones in threads.

The plan (`bitzoo.data.sampler`) decides on images, crop windows and mixtures; here images are
cropped, mirrored, scaled to [-1, 1] and mixed on the training device. The result for a row does not
depend on which rows are computed with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitzoo.data.decode_workers import Pixels8
from bitzoo.data.image_store import Pixels
from bitzoo.data.inception_crop import CropKey
from bitzoo.data.label_sets import LabelSets
from bitzoo.data.sampler import Batch, BatchPlan
from bitzoo.errors import UsageError

__all__ = ["Batch", "BatchPlan", "Feed", "Labels", "MicroBatch", "materialize", "prefetch"]


Labels: TypeAlias = "npt.NDArray[np.integer] | LabelSets"


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch, ready for the network.

    Attributes:
        batch: The whole batch.
        rows: The rows of the batch in this micro-batch.
        images: (n, 3, crop, crop) in [-1, 1].
        targets: float32 (n, classes): 1 for each class of the image, else 0, mixed as the images.
    """

    batch: Batch
    rows: slice
    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Feed:
    """Where images and labels come from, and the form in which the network takes them.

    Attributes:
        pixels: Images, resized as the plan says.
        labels: Class of each image, (len(pixels),), or the classes of each.
        num_classes: Width of the targets.
        device: Where the tensors go.
        dtype: Dtype of the images; they are computed in float32 and rounded once.
        memory_format: Memory format of the images.
    """

    pixels: Pixels
    labels: Labels
    num_classes: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format


def materialize(
    batch: Batch,
    rows: slice,
    pixels: Pixels,
    labels: Labels,
    num_classes: int,
    crop: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """Turn rows of a batch into the tensors that the network and the loss take.

    Each row depends only on the batch, not on which rows are computed with it: MixUp partners are
    taken from the whole batch, and all arithmetic is elementwise. So on one device, rows are equal
    bit for bit however a batch is split.

    Args:
        batch: From `BatchPlan.batch`.
        rows: Which rows; a micro-batch or ``slice(rank, None, world)``.
        pixels: See `Feed`, also for the other arguments.
        labels: Class of each image, or the classes of each.
        num_classes: Width of the targets.
        crop: Edge of the images.
        device: Where the tensors go; everything after decoding is computed there.
        dtype: Dtype of the images.
        memory_format: Memory format of the images.

    Returns:
        Images (n, 3, crop, crop), RGB in [-1, 1], and targets float32 (n, num_classes): lam for the
        row's own class plus 1 - lam for its partner's.
    """
    feed = Feed(pixels, labels, num_classes, torch.device(device), dtype, memory_format)
    return _Prepared(batch, rows, crop, feed).finish()


def prefetch(
    plan: BatchPlan, work: Iterable[tuple[int, slice]], feed: Feed, *, depth: int = 2
) -> Generator[MicroBatch, None, None]:
    """Yield micro-batches in order while threads prepare the next ones.

    For a GPU the threads decode or copy images into pinned memory; for the CPU they do all of
    `materialize`. GPU work is queued by the caller's thread, so that streams, graphs and
    out-of-memory errors stay where the caller expects them.

    Close the iterator (`contextlib.closing`) when leaving early; that ends the threads.

    Args:
        plan: The run's batches.
        work: Step and rows of each micro-batch.
        feed: See `Feed`.
        depth: How many micro-batches are prepared at a time; bounds the memory.

    Yields:
        One `MicroBatch` per item of `work`; the same as `materialize` returns.

    Raises:
        UsageError: If the plan and the images do not fit each other.
        Exception: Any error of a thread, at its position in the order.
    """
    count, size = len(feed.pixels), feed.pixels.size
    if (count, size) != (plan.num_examples, plan.resize):
        raise UsageError(
            f"The images must be those that the batches were planned for: expected "
            f"{plan.num_examples} of edge {plan.resize}, found {count} of edge {size}. Open the "
            "pixels with the plan's `resize`."
        )

    def prepare(step: int, rows: slice) -> _Prepared:
        return _Prepared(plan.batch(step), rows, plan.crop, feed)

    items, ahead = iter(work), deque[Future[_Prepared]]()
    pool = ThreadPoolExecutor(depth, thread_name_prefix="bitzoo-prefetch")
    try:
        ahead.extend(pool.submit(prepare, *item) for item in islice(items, depth))
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(prepare, *item) for item in islice(items, 1))
            yield MicroBatch(done.batch, done.rows, *done.finish())
    finally:
        pool.shutdown(cancel_futures=True)


class _Prepared:
    """Rows of a batch, read on creation (in any thread) and finished on the device."""

    def __init__(self, batch: Batch, rows: slice, crop: int, feed: Feed) -> None:
        self.batch, self.rows, self._crop, self._feed = batch, rows, crop, feed
        own = np.arange(len(batch))[rows]
        sides = np.stack([own] if batch.mix is None else [own, batch.mix[rows]])
        if batch.crop_seed is None:  # an image that several rows use is read once
            needed, positions = np.unique(batch.indices[sides], return_inverse=True)
        else:  # each row has a crop of its own
            needed, positions = np.unique(sides, return_inverse=True)
        windows = (batch.top[sides], batch.left[sides], batch.flip[sides])
        crops = np.stack([positions.reshape(sides.shape), *windows])
        self._host: tuple[Tensor, ...]  # pinned for a GPU, so that copying need not wait
        if feed.device.type == "cpu":
            decoded = self._read(needed)
            images = _mix_on_cpu(decoded, crops, batch.lam, crop, feed.memory_format)
            self._host = images, _mix_targets(feed, batch, sides)
        else:
            shape, pin = (len(needed), *(feed.pixels.size,) * 2, 3), feed.device.type == "cuda"
            raw = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
            for place, image in zip(raw.numpy(), self._read(needed), strict=True):
                place[...] = image
            rest = torch.from_numpy(crops), _mix_targets(feed, batch, sides)
            self._host = (raw, *(part.pin_memory() if pin else part for part in rest))

    def _read(self, needed: npt.NDArray[np.int64]) -> Sequence[Pixels8]:
        """Return images by number, or with random-resized crops those of rows."""
        batch, pixels = self.batch, self._feed.pixels
        if batch.crop_seed is None:
            return pixels.rows(needed)
        keys = [CropKey(batch.crop_seed, batch.step, row) for row in needed.tolist()]
        return pixels.crops(batch.indices[needed], keys)

    def finish(self) -> tuple[Tensor, Tensor]:
        feed = self._feed
        sent = [part.to(feed.device, non_blocking=True) for part in self._host]
        images, targets = sent[0], sent[-1]
        if feed.device.type != "cpu":
            images = _mix_on_device(images, sent[1], self.batch.lam, self._crop)
        return images.to(feed.dtype, memory_format=feed.memory_format), targets


# The same arithmetic twice: for a GPU one operation over all rows; for the CPU one image after the
# other, so that it stays in the core's cache. MixUp multiplies and adds in separate operations:
# with fused ones, rounding may depend on an element's position in the tensor.
#
# `crops` is int64 (4, sides, n): position among the decoded images, top, left and flip, for the
# rows to make and, with MixUp, for the rows to mix into them.


def _mix_on_device(raw: Tensor, crops: Tensor, lam: float, crop: int) -> Tensor:
    """Return images (n, 3, crop, crop), float32, from decoded ones, uint8 (m, size, size, 3)."""
    steps = torch.arange(crop, device=raw.device)

    def scaled(position: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        lines = top[:, None] + steps
        columns = left[:, None] + torch.where(flip[:, None] != 0, steps.flip(0), steps)
        windows = raw[position[:, None, None], lines[:, :, None], columns[:, None, :]]
        return windows.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)

    images, *others = (scaled(*side) for side in crops.unbind(1))
    for other in others:
        images.mul_(lam).add_(other.mul_(1 - lam))
    return images


def _mix_on_cpu(
    decoded: Sequence[Pixels8],
    crops: npt.NDArray[np.int64],
    lam: float,
    crop: int,
    memory_format: torch.memory_format,
) -> Tensor:
    """Return the same images as `_mix_on_device`, in either memory format."""

    def scale(where: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        position, top, left, flip = where.tolist()
        view = decoded[position][top : top + crop, left : left + crop].transpose(2, 0, 1)
        if flip:
            for plane, source in zip(out, view, strict=True):  # all at once loops over 3: slow
                plane[...] = source[:, ::-1]
        else:
            out[...] = view
        out /= np.float32(127.5)
        out -= np.float32(1)

    shape = (crops.shape[-1], 3, crop, crop)
    images = torch.empty(shape, memory_format=memory_format)
    partner = torch.empty_like(images[:1]).numpy()[0]
    for number, image in enumerate(images.numpy()):
        scale(crops[:, 0, number], image)
        for side in range(1, crops.shape[1]):
            scale(crops[:, side, number], partner)
            image *= np.float32(lam)
            partner *= np.float32(1 - lam)
            image += partner
    return images


def _mix_targets(feed: Feed, batch: Batch, sides: npt.NDArray[np.int64]) -> Tensor:
    """Return the targets of images that have been read: another may stand in for one of them."""
    targets = np.zeros((sides.shape[1], feed.num_classes), np.float32)
    for rows, weight in zip(sides, (batch.lam, 1 - batch.lam), strict=False):
        images = feed.pixels.used(batch.indices[rows])
        if isinstance(feed.labels, LabelSets):
            targets += feed.labels.targets(images, feed.num_classes) * np.float32(weight)
        else:
            targets[np.arange(len(rows)), feed.labels[images]] += np.float32(weight)
    return torch.from_numpy(targets)
