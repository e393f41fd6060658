"""Gradients gathered from micro-batches and from processes.

`standardize_once` shares the standardized kernels of a step among its micro-batches;
`average_gradients` and `sum_gradients` make the gradients of several processes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitzoo.layers import StdConv2d, standardize_kernel

if TYPE_CHECKING:
    from typing_extensions import Self

BUCKET_BYTES = 128 * 2**20
"""Gradients exchanged at a time: large enough for full speed, small beside the model."""


def standardize_once(model: nn.Module) -> SharedKernels:
    """Let the micro-batches of a step share their standardized kernels.

        kernels = standardize_once(model)
        for batch in batches:
            optimizer.zero_grad()
            with kernels:  # or kernels.begin_step() ... kernels.end_step()
                for part in batch:
                    loss(part).backward()
            average_gradients(model, world)  # with several processes
            optimizer.step()

    The kernels of a step are as large as the weights, and so are their gradients until the step
    ends: with a single micro-batch, do without. Gradients of the convolutions' weights exist only
    after `end_step`, so the model must not be wrapped in DistributedDataParallel, whose hooks wait
    for them in each backward; nor in FSDP, which shards the weights themselves.

    Args:
        model: Any module that holds `bitzoo.layers.StdConv2d`s; changed in place.
    """
    recast(model, StdConv2d, SharingConv2d, enable=True)
    return SharedKernels([conv for conv in model.modules() if isinstance(conv, SharingConv2d)])


def average_gradients(model: nn.Module, world: int) -> None:
    """Replace each gradient by its mean over the processes of the default group.

    For losses that are means over each process's own rows, all having equally many. With uneven
    rows, divide losses by the whole batch's size instead and use `sum_gradients`.

    Args:
        model: The same model on every process, not wrapped; its backward is over.
        world: Number of processes; nothing happens if it is 1.
    """
    if world > 1:
        for bucket in _summed_buckets(model):
            for gradient in bucket:
                gradient.div_(world)


def sum_gradients(model: nn.Module) -> None:
    """Replace each gradient by its sum over the processes of the default group, if there is one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for _ in _summed_buckets(model):
            pass


class SharingConv2d(StdConv2d):
    """A convolution that uses the step's standardized kernel while there is one."""

    shared: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as `StdConv2d` does."""
        if self.shared is None:
            return super().forward(x)
        y: Tensor = self._conv_forward(x, self.shared, None)
        return y


class SharedKernels:
    """Standardized kernels that last for a step; made by `standardize_once`.

    As a context manager it is one step; an exception inside abandons the step, so that it can be
    begun again, for example with smaller micro-batches.
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
            # The micro-batches' gradients add up in this leaf, which shares the kernel's memory.
            conv.shared = kernel.detach().requires_grad_(conv.weight.requires_grad)

    def end_step(self) -> None:
        """Turn the kernels' gradients into the weights', adding to those that are there."""
        while self._kernels:  # popped, so that a kernel's memory is free once it is done with
            kernel, conv = self._kernels.pop(), self._convolutions[len(self._kernels)]
            leaf, conv.shared = conv.shared, None
            if leaf is not None and leaf.grad is not None:
                torch.autograd.backward(kernel, leaf.grad)

    def abandon_step(self) -> None:
        """Forget the step and its kernels' gradients; other gradients stay as they are."""
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


def _summed_buckets(model: nn.Module) -> Iterator[list[Tensor]]:
    """Sum gradients over the processes, a bucket at a time; yields the gradients of each."""
    for bucket in _buckets(model):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))
        yield bucket


def _buckets(model: nn.Module) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:  # a process without rows must still take part
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.grad.nbytes
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def recast(model: nn.Module, plain: type, special: type, enable: bool) -> None:
    """Give modules of exactly one of two classes the other: `special` if `enable`, else `plain`."""
    old, new = (plain, special) if enable else (special, plain)
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
