"""Distributed training: join the process group, and sum gradients over its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

BUCKET_BYTES = 128 * 2**20
"""Bytes of gradients exchanged at a time: large enough for full speed, small next to the model."""


def join_processes() -> PartialState:
    """Return this process's state in the group started by ``accelerate launch`` or ``torchrun``.

    The first call joins the process group: NCCL on CUDA, gloo on the CPU. A process that was
    started alone is its only member.
    """
    launched = "LOCAL_RANK" in os.environ
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    return PartialState(cpu=asked_for_cpu or (launched and not torch.cuda.is_available()))


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
