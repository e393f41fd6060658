"""Activation checkpointing: the same function and gradients, with less stored for backward.

- `recompute_norms`: everything between a normalization's input and its convolution is recomputed
  during backward instead of stored. Halves the stored bytes for a few percent more time.
- `checkpoint_blocks`: only the input of a block is stored. Needs the least memory, for one more
  forward pass.

They can be combined with each other and with `bitzoo.training.gradient_accumulation`. Modules
change class in place: parameters and names stay, pickling and copying work as before. Only training
with gradients computes differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bitzoo.errors import UsageError
from bitzoo.models.batch_norm import BatchNormReLU, recomputation_of, statistics_kept
from bitzoo.models.bit import Stage
from bitzoo.models.layers import (
    GroupNormReLU,
    PlainConv2d,
    StdConv2d,
    Stem,
    Unit,
    standardize_kernel,
)
from bitzoo.training.gradient_accumulation import SharingConv2d, recast

_Norm = GroupNormReLU | BatchNormReLU

UNITS_PER_SEGMENT = 4
"""With 4, recomputing a segment needs no more memory than recomputing the first block, whose three
units have the largest maps. With 6, ResNet-152 would need 369 MB instead of 268 MB at its peak
(width 1, 128 px, batch 32; counted from the shapes); with 2, it would store twice as much."""


def recompute_norms(model: nn.Module, enable: bool = True) -> None:
    """Store only the input of each normalization in a unit, and recompute what follows from it.

    Backward recomputes normalization, ReLU and standardized kernel with the same operations, and
    leaves the running statistics of a batch normalization as the first pass made them: gradients
    equal those of the plain network up to rounding, and bit for bit on one thread. For
    the stem, whose maps are the largest, only the images are stored. Under autocast the stored
    inputs are the half-precision ones. `torch.compile` makes such choices itself, so compiled units
    stay plain. Hooks on the norms and convolutions inside a unit do not run while this is on.

    Args:
        model: Any module that contains `bitzoo.models.layers.Unit`s; changed in place.
        enable: False restores the plain units.
    """
    recast(model, Unit, RecomputingUnit, enable)
    recast(model, Stem, RecomputingStem, enable)


def checkpoint_blocks(
    model: nn.Module, enable: bool = True, *, units: int = UNITS_PER_SEGMENT
) -> None:
    """Store only the input of each block, and recompute the block during backward.

    Blocks of more than `units` units are recomputed in segments. Together with `recompute_norms`,
    the segment being recomputed needs half the memory too. Replaces
    `Backbone.set_grad_checkpointing`, which stores the input of every unit.

    With batch normalization, compiled blocks stay plain: `torch.compile` cannot recompute what
    changes running statistics.

    Args:
        model: Any module that contains `bitzoo.models.bit.Stage`s; changed in place.
        enable: False restores the plain blocks.
        units: Most units per segment.

    Raises:
        UsageError: If `units` is below 1.
    """
    if units < 1:
        raise UsageError(
            f"A recomputed segment must have at least 1 unit, found `units={units!r}`."
        )
    recast(model, Stage, CheckpointedStage, enable)
    for module in model.modules():
        if isinstance(module, CheckpointedStage):
            module.units = units


class RecomputingUnit(Unit):
    """A unit that stores the input of each normalization and recomputes what follows."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same as `Unit`."""
        if not _trains(self) or torch.compiler.is_compiling():
            return super().forward(x)
        if self.downsample is None:
            shortcut = x
            (y,) = _normalize_and_convolve(x, self.norm1, self.conv1)
        else:
            y, shortcut = _normalize_and_convolve(x, self.norm1, self.conv1, *self.downsample)
        (y,) = _normalize_and_convolve(y, self.norm2, self.conv2)
        (y,) = _normalize_and_convolve(y, self.norm3, self.conv3)
        return y + shortcut


def _normalize_and_convolve(x: Tensor, norm: _Norm, *convolutions: nn.Module) -> tuple[Tensor, ...]:
    plans, weights = [], []
    for conv in convolutions:
        assert isinstance(conv, PlainConv2d)
        shared = conv.shared if isinstance(conv, SharingConv2d) else None
        standardize = isinstance(conv, StdConv2d) and shared is None
        plans.append(_Convolution(conv.stride, conv.padding, conv.dilation, standardize))
        weights.append(conv.weight if shared is None else shared)
    outputs: tuple[Tensor, ...] = _NormalizeAndConvolve.apply(
        norm, plans, x, norm.weight, norm.bias, *weights
    )
    return outputs


class _Convolution(NamedTuple):
    """The parameters of a convolution, and its forward and backward functions."""

    stride: Any
    padding: Any
    dilation: Any
    standardize: bool

    def kernel(self, weight: Tensor) -> Tensor:
        return standardize_kernel(weight) if self.standardize else weight

    def __call__(self, x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(x, kernel, None, self.stride, self.padding, self.dilation)

    def backward(
        self, grad: Tensor, x: Tensor, kernel: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of input and kernel, in the dtype that the convolution ran in."""
        wanted = [x.requires_grad, kernel.requires_grad, False]
        grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
            grad,
            x.detach().to(grad.dtype),
            kernel.detach().to(grad.dtype),
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            1,
            wanted,
        )
        return grad_x, grad_kernel


class _NormalizeAndConvolve(torch.autograd.Function):
    """relu(norm(x)) followed by one or two convolutions; stores only x and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: _Norm,
        convolutions: list[_Convolution],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.norm, ctx.convolutions = norm, convolutions
        ctx.save_for_backward(*tensors)
        ctx.autocast = _autocast_state(tensors[0].device.type)
        # Detached, because autocast would cache a leaf's half-precision copy, which is made without
        # gradient in here, and reuse it for convolutions that need its gradient.
        y, kernels = _prepare(norm, convolutions, [tensor.detach() for tensor in tensors])
        return tuple(conv(y, kernel) for conv, kernel in zip(convolutions, kernels, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        leaves = [
            tensor.detach().requires_grad_(wanted)
            for tensor, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        with torch.enable_grad(), torch.autocast(**ctx.autocast), statistics_kept(ctx.norm):
            y, kernels = _prepare(ctx.norm, ctx.convolutions, leaves)
        grad_y: Tensor | None = None
        grad_kernels = []
        with torch.autocast(leaves[0].device.type, enabled=False):
            for conv, grad, kernel in zip(ctx.convolutions, grads, kernels, strict=True):
                part, grad_kernel = conv.backward(grad, y, kernel)
                grad_kernels.append(grad_kernel)
                if part is not None:
                    grad_y = part.to(y.dtype) if grad_y is None else grad_y.add_(part)
        return None, None, *_backward_to(leaves, [y, *kernels], [grad_y, *grad_kernels])


def _prepare(
    norm: _Norm, convolutions: list[_Convolution], tensors: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    x, weight, bias, *weights = tensors
    y = norm.rectified(x, weight, bias)
    return y, [conv.kernel(w) for conv, w in zip(convolutions, weights, strict=True)]


def _backward_to(
    leaves: list[Tensor], outputs: list[Tensor], grads: list[Tensor | None]
) -> list[Tensor | None]:
    """Return the gradients of the `leaves` that require one, and None for the others."""
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs]))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _autocast_state(device: str) -> dict[str, Any]:
    return {
        "device_type": device,
        "dtype": torch.get_autocast_dtype(device),
        "enabled": torch.is_autocast_enabled(device),
    }


class CheckpointedStage(Stage):
    """A block that is recomputed as a whole, or in segments of at most `units` units."""

    units = UNITS_PER_SEGMENT

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same as `Stage`."""
        how = recomputation_of(self)
        if not _trains(self) or (how and torch.compiler.is_compiling()):
            return super().forward(x)
        for start in range(0, len(self.blocks), self.units):
            segment = self.blocks[start : start + self.units]
            x = _recompute(_run, segment, x, **how)
        return x


def _run(units: nn.ModuleList, x: Tensor) -> Tensor:
    for unit in units:
        x = unit(x)
    return x


class RecomputingStem(Stem):
    """A stem that stores only the images."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same as `Stem`."""
        if not _trains(self) or torch.compiler.is_compiling():
            return super().forward(x)
        return _recompute(super().forward, x)


def _recompute(function: Callable[..., Tensor], *inputs: Any, **how: Any) -> Tensor:
    # Nothing in the network draws random numbers, so the generator states need not be stored.
    y: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **how)
    return y


def _trains(module: nn.Module) -> bool:
    return module.training and torch.is_grad_enabled()
