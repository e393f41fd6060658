"""Distributed training: join the process group, choose a device, exchange tensors and results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from bitzoo.errors import UsageError
from bitzoo.inference.devices import checked_device

_Part = TypeVar("_Part")

BUCKET_BYTES = 128 * 2**20
"""Bytes of gradients exchanged at a time: large enough for full speed, small next to the model."""


def join_processes(device: str | None = None) -> PartialState:
    """Return this process's state in the group started by ``accelerate launch`` or ``torchrun``.

    The first call joins the process group: NCCL on CUDA, gloo on the CPU. A process that was
    started alone is its only member.

    Args:
        device: ``cpu`` makes the group one of CPU processes; see `training_device`.
    """
    launched = "LOCAL_RANK" in os.environ
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    on_cpu = asked_for_cpu or (launched and (device == "cpu" or not torch.cuda.is_available()))
    return PartialState(cpu=on_cpu)


def training_device(name: str | None = None) -> torch.device:
    """Return the device on which this process trains.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None is a GPU if there is one. With several
            processes each has its own GPU, so no number may be given.

    Raises:
        UsageError: If this machine has no such device, or the processes were started for another.
    """
    device = None if name is None else checked_device(name)
    processes = join_processes(name)
    own: torch.device = processes.device
    if device is None:
        return own
    if processes.num_processes == 1:
        return device
    if name != own.type:
        raise UsageError(
            f"With {processes.num_processes} processes, each trains on its own {own.type} device: "
            f"expected `device={own.type!r}`, found {name!r}. Leave `device` out, or start the "
            "processes for another device."
        )
    return own


def in_main_process(action: Callable[[], _Part]) -> _Part:
    """Do something in the main process, and broadcast its result, or its error, to the others."""
    processes = join_processes()
    outcome: list[Any] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:  # broadcast too, or the others would wait for ever
            outcome[1] = error
    if processes.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: _Part = outcome[0]
    return result


def gather(part: _Part) -> list[_Part]:
    """Return the objects of all processes, by rank, in each of them; all of them must call this."""
    parts: list[_Part] = gather_object([part])
    return parts


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
