"""Gradient accumulation over micro-batches that share the standardized kernels of a step."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bitzoo.models.layers import StdConv2d, standardize_kernel

if TYPE_CHECKING:
    from typing_extensions import Self


def standardize_once(model: nn.Module) -> SharedKernels:
    """Let the micro-batches of a step share their standardized kernels.

        kernels = standardize_once(model)
        for batch in batches:
            optimizer.zero_grad()
            with kernels:  # or kernels.begin_step() ... kernels.end_step()
                for part in batch:
                    loss(part).backward()
            gradients.finish()  # with several processes, see `GradientSum`
            optimizer.step()

    The kernels of a step take as much memory as the weights, and so do their gradients until the
    step ends: with a single micro-batch, this is not worth it. Gradients of the convolution weights
    exist only after `end_step`, so the model must not be wrapped in DistributedDataParallel, whose
    hooks wait for them in each backward pass; nor in FSDP, which shards the weights themselves.

    Args:
        model: Any module that contains `bitzoo.models.layers.StdConv2d`s; changed in place.
    """
    recast(model, StdConv2d, SharingConv2d, enable=True)
    return SharedKernels([conv for conv in model.modules() if isinstance(conv, SharingConv2d)])


class SharingConv2d(StdConv2d):
    """A convolution that uses the standardized kernel of the current step, if there is one."""

    shared: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same as `StdConv2d`."""
        if self.shared is None:
            return super().forward(x)
        y: Tensor = self._conv_forward(x, self.shared, None)
        return y


class SharedKernels:
    """Standardized kernels that last for one step; created by `standardize_once`.

    Used as a context manager, it is one step; an exception inside abandons the step, so that it can
    be repeated, for example with smaller micro-batches.
    """

    def __init__(self, convolutions: list[SharingConv2d]) -> None:
        self._convolutions = convolutions
        self._kernels: list[Tensor] = []

    def begin_step(self) -> None:
        """Standardize all kernels; forward passes use these until `end_step`."""
        self.abandon_step()
        with torch.enable_grad():
            self._kernels = [standardize_kernel(conv.weight) for conv in self._convolutions]
        for conv, kernel in zip(self._convolutions, self._kernels, strict=True):
            # The micro-batches' gradients accumulate in this leaf; it shares the kernel's memory.
            conv.shared = kernel.detach().requires_grad_(conv.weight.requires_grad)

    def end_step(self) -> None:
        """Backpropagate the kernels' gradients to the weights, adding to existing gradients."""
        while self._kernels:  # popped, so that each kernel's memory is freed after its use
            kernel, conv = self._kernels.pop(), self._convolutions[len(self._kernels)]
            leaf, conv.shared = conv.shared, None
            if leaf is not None and leaf.grad is not None:
                torch.autograd.backward(kernel, leaf.grad)

    def abandon_step(self) -> None:
        """Discard the step and its kernels' gradients; other gradients are unchanged."""
        self._kernels = []
        for conv in self._convolutions:
            conv.shared = None

    def __enter__(self) -> Self:
        self.begin_step()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.end_step()
        else:
            self.abandon_step()


def recast(model: nn.Module, plain: type, special: type, enable: bool) -> None:
    """Change modules of class `plain` to `special` in place, or back if not `enable`."""
    old, new = (plain, special) if enable else (special, plain)
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
