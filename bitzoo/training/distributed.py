"""Distributed training: the same weights in all processes, and the sum of their gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitzoo.inference.processes import abandon_group

if TYPE_CHECKING:
    from typing_extensions import Self

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients exchanged at a time: enough for full speed, and few enough that the first are
on their way early in the backward pass. torch's DistributedDataParallel has the same default."""

IN_FLIGHT = 4
"""Buckets that are exchanged at once; bounds the memory of their copies."""


def is_alone() -> bool:
    """Whether no other process computes with this one."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def send_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process; all processes must call this."""
    if not is_alone():
        for tensor in tensors:
            copy = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(copy, src=0)
            tensor.detach().copy_(copy)


class GradientSum:
    """Sums gradients over the default process group, while the backward pass computes others.

        with GradientSum(model) as gradients:  # in every process, or none of this does anything
            for batch in batches:
                for part in batch:
                    if part is batch[-1]:
                        gradients.follow()
                    loss(part).backward()
                gradients.finish()
                optimizer.step()

    Gradients travel in buckets, whose content and order are fixed: that of the parameters from last
    to first, about that in which a backward pass computes them. A bucket leaves as soon as its
    gradients and all buckets before it are there, so every process sends the same ones in the same
    order, and the sums do not depend on who was first: they are the same bit for bit whether or
    not `follow` was called. A process that has nothing to add, or that failed, sends zeros.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take note of the parameters that are trained; they must stay the same tensors."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buckets = [] if is_alone() else _buckets(trained[::-1])
        self._bucket_of = {
            parameter: number for number, bucket in enumerate(self._buckets) for parameter in bucket
        }
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._has_gradient)
            for parameter in self._bucket_of
        ]
        self._missing: list[int] = []
        self._sent = 0
        self._sending: deque[tuple[list[nn.Parameter], Tensor, dist.Work]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._sending:
            abandon_group()

    def follow(self) -> None:
        """Send gradients as they appear: from here on, each appears once until `finish`."""
        self._missing = [len(bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """Send the rest, and wait until every gradient is the sum; all processes must call this."""
        self._missing = [0] * len(self._buckets)
        self._send_complete()
        while self._sending:
            self._receive()
        self._missing, self._sent = [], 0

    def _has_gradient(self, parameter: Tensor) -> None:
        if self._missing:
            number = self._bucket_of[parameter]  # type: ignore[index]
            assert number >= self._sent, "a gradient that was sent has changed"
            self._missing[number] -= 1
            self._send_complete()

    def _send_complete(self) -> None:
        while self._sent < len(self._buckets) and self._missing[self._sent] <= 0:
            if len(self._sending) == IN_FLIGHT:
                self._receive()
            bucket = self._buckets[self._sent]
            flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
            work = dist.all_reduce(flat, async_op=True)
            assert work is not None
            self._sending.append((bucket, flat, work))
            self._sent += 1

    def _receive(self) -> None:
        bucket, flat, work = self._sending.popleft()
        work.wait()
        parts = torch.split(flat, [parameter.numel() for parameter in bucket])
        for parameter, part in zip(bucket, parts, strict=True):
            _gradient(parameter).copy_(part.view(parameter.shape))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:  # a process without rows must still take part
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = BUCKET_BYTES
    for parameter in parameters:
        if size >= BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return buckets
