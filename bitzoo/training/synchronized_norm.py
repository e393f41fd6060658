"""Batch normalization by the images of all processes, which then agree on its statistics.

The counterpart of `torch.nn.SyncBatchNorm`, which computes on GPUs only ("expected input tensor to
be on GPU", torch 2.14); this is one function for every device and backend. Like torch's it
exchanges mean, variance and count of each process, and in the backward pass two sums a channel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bitzoo.models.batch_norm import MOMENTUM, BatchNormReLU
from bitzoo.training.gradient_accumulation import recast

_PLACES = (0, 2, 3)


def synchronize_norms(model: nn.Module, enable: bool = True) -> None:
    """Let batch normalizations take the statistics of all processes of the default group.

    All of them must then make the same passes in training mode, in the same order, each with at
    least one image. The gradients of scales and shifts are those of a process's own images, as all
    others are.

    Args:
        model: Any module that contains `bitzoo.models.batch_norm.BatchNormReLU`s; changed in place.
        enable: False restores the plain ones.
    """
    recast(model, BatchNormReLU, SynchronizedNormReLU, enable)


def normalizes_batches(model: nn.Module) -> bool:
    """Whether images of a micro-batch affect each other when the model trains."""
    return any(
        isinstance(module, BatchNormReLU) and module.weight.requires_grad
        for module in model.modules()
    )


class SynchronizedNormReLU(BatchNormReLU):
    """A batch normalization whose batch is that of all processes."""

    def normalize(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize `x` with the given scale and shift instead of the layer's own."""
        if not (self.training and self.weight.requires_grad):
            return super().normalize(x, weight, bias)
        y: Tensor = _Normalize.apply(x, weight, bias, self)
        return y


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: SynchronizedNormReLU
    ) -> Tensor:
        variance, mean = torch.var_mean(_wide(x), _PLACES, correction=0)
        count = variance.new_full((1,), x.numel() // x.shape[1])
        # The pooled variance is that within the processes plus that between them.
        variances, means, counts = _gathered(variance, mean, count)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        if norm.tracks:
            unbiased = variance * (total / (total - 1))
            norm.running_mean.lerp_(mean.to(norm.running_mean), MOMENTUM)
            norm.running_var.lerp_(unbiased.to(norm.running_var), MOMENTUM)
        mean, variance = mean.to(norm.running_mean), variance.to(norm.running_mean)
        ctx.save_for_backward(x, weight, mean, (variance + norm.eps).rsqrt(), total)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, norm.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        wide = _wide(grad)
        normalized = (_wide(x) - _spread(mean)) * _spread(scale)
        shift_grad, scale_grad = wide.sum(_PLACES), (wide * normalized).sum(_PLACES)
        sums = [(found.sum(0) / total).to(wide) for found in _gathered(shift_grad, scale_grad)]
        wide = wide - _spread(sums[0]) - normalized.mul_(_spread(sums[1]))
        x_grad = wide.mul_(_spread(weight * scale)).to(x.dtype)
        return x_grad, scale_grad.to(weight.dtype), shift_grad.to(weight.dtype), None


def _gathered(*vectors: Tensor) -> list[Tensor]:
    """Return of each vector a float64 matrix with the vectors of all processes, in their order."""
    own = torch.cat(vectors).double()
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own)
    return list(torch.stack(rows).split([len(vector) for vector in vectors], dim=1))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _spread(vector: Tensor) -> Tensor:
    return vector[:, None, None]
