"""Distributed training: the same weights in all processes, and the sum of their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 128 * 2**20
"""Bytes of gradients exchanged at a time: large enough for full speed, small next to the model."""


def send_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process; all processes must call this."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            copy = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(copy, src=0)
            tensor.detach().copy_(copy)


def sum_gradients(model: nn.Module) -> None:
    """Replace each gradient with its sum over the default process group, if there is one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for bucket in _buckets(model):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))


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
