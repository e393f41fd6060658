"""Choose a micro-batch size that fits into memory, and recognize out-of-memory errors.

The estimate counts the bytes that one more image makes the forward pass store for backward. It need
not be exact: on a GPU, a micro-batch that does not fit is halved. On the CPU, where the system
would kill the process instead, it stays far below the available memory, and does not depend on
anything that changes from run to run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bitzoo.portable import physical_memory

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "could not allocate")
"""Occur in the messages of CUDA, torch's CPU allocator, cuBLAS, cuDNN and the like."""
_CPU_SHARE, _GPU_SHARE = 0.25, 0.6
"""Share of memory for stored maps; the rest is for gradients, workspaces and other programs."""
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device, of any kind, ran out of memory."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(text in message for text in _OUT_OF_MEMORY)


def choose_micro_batch(forward: Callable[[Tensor], Tensor], images: Tensor, rows: int) -> int:
    """Return the number of images to compute at once: `rows`, or a half, a quarter, ... of it.

    Args:
        forward: The network's forward function, in training mode.
        images: A few images as the network takes them, (n, channels, height, width).
        rows: Number of images to compute, at least 1.
    """
    return fitting(image_bytes(forward, images), rows, images.device)


def image_bytes(forward: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """Return the bytes that one more image stores for a backward pass, at least 1; as above."""
    twice = torch.cat([images, images])
    all_of_them = saved_bytes(forward, twice) - saved_bytes(forward, images)
    return max(1, all_of_them // len(images))


def fitting(each: int, rows: int, device: torch.device) -> int:
    """Return how many images to compute at once: `rows`, or a half, a quarter, ... of it.

    Args:
        each: Bytes that an image stores.
        rows: Number of images to compute, at least 1.
        device: Where they are stored.
    """
    most = memory_for_maps(device) // each
    chosen = rows
    while chosen > max(1, most):
        chosen = -(-chosen // 2)
    return chosen


def saved_bytes(forward: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """Return the bytes that `forward` stores for a backward pass down to `images`."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = images.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = forward(images)  # kept alive while counting, so that no address is reused
    del output
    return sum(storages.values())


def memory_for_maps(device: torch.device) -> int:
    """Return the bytes that this process may use on `device` for maps stored for backward."""
    if device.type == "cuda":
        return int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    limits = [physical_memory()]
    for path in _CGROUP_LIMITS:  # of a container
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return int(_CPU_SHARE * min(limits)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
