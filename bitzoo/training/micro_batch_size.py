"""How many images fit into memory at once: an estimate beforehand, and the error when it is wrong.

The estimate counts what one more image makes the forward pass store for backward. It need not be
right: on a GPU a micro-batch that does not fit is halved. On the CPU, where the system would end
the process instead, it stays far below the memory there is, and depends on nothing that changes
from one run to the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "could not allocate")
"""In the messages of CUDA, of torch's allocator for the CPU, of cuBLAS and cuDNN, and the like."""
_CPU_SHARE, _GPU_SHARE = 0.25, 0.6
"""Of memory for stored maps; the rest is for their gradients, workspaces and other programs."""
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory, of whatever device, did not suffice."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(text in message for text in _OUT_OF_MEMORY)


def choose_micro_batch(forward: Callable[[Tensor], Tensor], image: Tensor, rows: int) -> int:
    """Images to compute at once: all `rows`, or a half, a quarter... of them.

    Args:
        forward: Of the network, in training mode.
        image: One image as the network takes it, (1, channels, height, width).
        rows: How many there are to compute, at least 1.
    """
    each = max(1, saved_bytes(forward, torch.cat([image, image])) - saved_bytes(forward, image))
    fitting = memory_for_maps(image.device) // each
    chosen = rows
    while chosen > max(1, fitting):
        chosen = -(-chosen // 2)
    return chosen


def saved_bytes(forward: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """Bytes that `forward` stores for a backward pass down to `images`."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = images.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = forward(images)  # held while counting, so that no address is used twice
    del output
    return sum(storages.values())


def memory_for_maps(device: torch.device) -> int:
    """Bytes that maps stored for backward may take on `device` in this process."""
    if device.type == "cuda":
        return int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:  # of a container
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return int(_CPU_SHARE * min(limits)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
