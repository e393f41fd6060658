"""Training with batch normalization: statistics over several processes, and what depends on them.

Group normalization sees one image at a time, so neither the size of a micro-batch nor the number of
processes affects a result beyond rounding. Batch normalization sees all images that are computed at
once: the micro-batches of all processes together, if `synchronize_statistics` says so.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import _functions as torch_functions

from bitzoo.errors import UsageError
from bitzoo.models.architecture import Architecture
from bitzoo.models.batch_norm import MOMENTUM, BatchNormReLU
from bitzoo.training.gradient_accumulation import recast

STRIDE = 32
"""Pixels of an image, in each direction, for one value of the last map."""


def synchronize_statistics(model: nn.Module, enable: bool = True) -> None:
    """Take a batch's statistics over all processes of the default group, as in one process.

    Every forward pass in training mode then waits for all other processes, and so does every
    backward pass: each process must compute equally many micro-batches, in the same order, and none
    may leave early. Their sizes may differ. Modules change class in place, so names and copies stay
    as they are; a network without batch normalization does not change.

    Args:
        model: Any module.
        enable: False restores the plain layers.
    """
    recast(model, BatchNormReLU, SynchronizedBatchNormReLU, enable)


def dependence_on_micro_batch(
    architecture: Architecture, batch_size: int, micro_batch: int, processes: int = 1
) -> str | None:
    """Return a sentence on what a result depends on, to be said before training; None for nothing.

    Args:
        architecture: The network.
        batch_size: Images of a step, of all processes together.
        micro_batch: Most images that a process computes at once.
        processes: How many processes train, with synchronized statistics.
    """
    if architecture.norm != "batch":
        return None
    at_once = min(batch_size, micro_batch * processes)
    size = f"{at_once:,} image{'s' if at_once > 1 else ''}"
    if at_once == batch_size:
        return (
            f"Batch normalization takes its statistics over the whole batch of {size}: smaller "
            "micro-batches, also those after memory ran out, would give another result."
        )
    where = f", {micro_batch:,} in each of {processes:,} processes" if processes > 1 else ""
    return (
        f"Batch normalization takes its statistics over the {size} that are computed at once"
        f"{where}, not over the batch of {batch_size:,}: the result depends on that number. Give "
        f"`micro_batch={micro_batch}` to get the same elsewhere."
    )


def require_values_to_normalize(
    architecture: Architecture, crop: int, images: int, *, is_frozen: bool = False
) -> None:
    """Refuse micro-batches whose last maps have a single value per channel, the same as its mean.

    Args:
        architecture: The network.
        crop: Side of the images.
        images: Fewest images that are normalized together, over all processes.
        is_frozen: Whether only the head is trained, so that running statistics normalize.

    Raises:
        UsageError: If batch normalization would have nothing to compare a value with.
    """
    side = -(-crop // STRIDE)
    if architecture.norm == "batch" and not is_frozen and images * side * side < 2:
        raise UsageError(
            f"Batch normalization needs at least two values for a mean, found one: images of "
            f"{crop} x {crop} end in maps of one pixel, and there are micro-batches of one image. "
            "Choose `batch_size` and `micro_batch` so that none is left alone, larger images, or "
            "a network with group normalization."
        )


def require_equal_shares(batch_size: int, processes: int) -> None:
    """Refuse a batch that the processes cannot share equally, so that all make the same passes.

    Args:
        batch_size: Images of a step, of all processes together.
        processes: How many processes train, with synchronized statistics.

    Raises:
        UsageError: If one would have more images than another.
    """
    if batch_size % processes:
        raise UsageError(
            "Batch normalization takes the images of all processes at once, so each must have the "
            f"same number of them: expected a `batch_size` that {processes} divides, found "
            f"{batch_size}. Use {batch_size - batch_size % processes or processes}, or another "
            "number of processes."
        )


class SynchronizedBatchNormReLU(BatchNormReLU):
    """Batch normalization with the statistics of all processes of the default group, then ReLU."""

    def normalize(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize `x` with the given scale and shift instead of the layer's own."""
        if not self.takes_batch:
            return super().normalize(x, weight, bias)
        running = self.running_mean, self.running_var
        if not self.tracks:
            running = running[0].clone(), running[1].clone()
        if x.is_cuda:
            group: Any = dist.group.WORLD
            everywhere: Tensor = torch_functions.SyncBatchNorm.apply(
                x, weight, bias, *running, self.eps, MOMENTUM, group, dist.get_world_size()
            )
            return everywhere
        y: Tensor = _Synchronized.apply(x, weight, bias, *running, self.eps)
        return y


class _Synchronized(torch.autograd.Function):
    """What torch's SyncBatchNorm computes, which is for GPUs only, in plain operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
    ) -> Tensor:
        wide = _widened(x)
        own_mean = wide.mean((0, 2, 3))
        own_squares = (wide - _by_channel(own_mean)).square().sum((0, 2, 3))
        own_count = wide.new_full((1,), wide.numel() / wide.shape[1])
        own = torch.cat([own_count, own_mean, own_squares])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        # Chan, Golub and LeVeque 1979: each part's squares are around its own mean.
        table = torch.stack(parts)
        counts, (means, squares) = table[:, :1], table[:, 1:].chunk(2, dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        total = (squares + counts * (means - mean).square()).sum(0)
        scale = (total / count + eps).rsqrt()
        running_mean.lerp_(mean.to(running_mean.dtype), MOMENTUM)
        running_var.lerp_((total / (count - 1)).to(running_var.dtype), MOMENTUM)
        ctx.save_for_backward(x, weight, mean, scale, count)
        normal = (wide - _by_channel(mean)) * _by_channel(scale)
        y = normal * _by_channel(weight.to(wide.dtype)) + _by_channel(bias.to(wide.dtype))
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        wide = _widened(grad)
        normal = (_widened(x) - _by_channel(mean)) * _by_channel(scale)
        grad_bias = wide.sum((0, 2, 3))
        grad_weight = (wide * normal).sum((0, 2, 3))
        sums = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(sums)
        of_shift, of_scale = (_by_channel(part) for part in (sums / count).chunk(2))
        factor = _by_channel(weight.to(wide.dtype) * scale)
        grad_x = (wide - of_shift - normal * of_scale) * factor
        return (
            grad_x.to(x.dtype),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            None,
            None,
            None,
        )


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _by_channel(vector: Tensor) -> Tensor:
    return vector[:, None, None]
