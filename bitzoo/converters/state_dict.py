"""Read a network's state dict from an open checkpoint, memory-mapped if possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bitzoo.converters.formats.safetensors import SafetensorsSource
from bitzoo.converters.identify import Inventory
from bitzoo.converters.key_mapping import layout_of, name_of
from bitzoo.converters.layouts import as_oihw, copy_blocked, out_axis
from bitzoo.converters.source import Array, Source
from bitzoo.converters.streaming import Block, plan_blocks, worker_pool
from bitzoo.files import Progress

if TYPE_CHECKING:
    import torch


def read_state_dict(
    source: Source,
    inventory: Inventory,
    progress: Progress | None = None,
    *,
    scaled: bool = False,
    mmap: bool = True,
) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors under timm's names, float32, OIHW.

    A float32 safetensors file is memory-mapped: its numbers are read from disk when used, and
    writing to the tensors changes memory, never the file. Other files are read and transposed.

    Args:
        source: An open checkpoint.
        inventory: The result of `identify` for it.
        progress: Called as bytes are read.
        scaled: Whether to accept scaled kernels (`eps_exact`) and return them as they are.
        mmap: Whether to map the file if possible; False always reads it into memory.

    Raises:
        CheckpointError: If kernels are scaled, or a checksum inside the file does not match.
    """
    import torch
    from safetensors.torch import load_file

    if not scaled:
        source.require_unscaled()
    as_stored = isinstance(source, SafetensorsSource) and all(
        (tensor.stored_dtype, tensor.name) == ("float32", name_of(slot, "timm"))
        for slot, tensor in inventory.tensors.items()
    )
    if as_stored and len(inventory.tensors) == len(source.tensors):
        backend = "mmap" if mmap else "pread"
        tensors: dict[str, torch.Tensor] = load_file(source.path, backend=backend)
        return tensors
    arrays = read_arrays(source, inventory, progress, scaled=scaled)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def read_arrays(
    source: Source,
    inventory: Inventory,
    progress: Progress | None = None,
    *,
    scaled: bool = False,
) -> dict[str, Array]:
    """Return the checkpoint's tensors as new arrays under timm's names, float32, OIHW.

    Arguments and errors are those of `read_state_dict`.
    """
    if not scaled:
        source.require_unscaled()
    shapes = inventory.architecture.shapes(inventory.num_classes)
    arrays = {slot: np.empty(shape, np.float32) for slot, shape in shapes.items()}

    def read(block: Block) -> None:
        layout = layout_of(block.slot.role, source.names)
        axis = out_axis(layout, len(block.tensor.shape))
        slab = block.tensor.read_slab(axis, block.start, block.stop, pool.scratch("stored"))
        copy_blocked(as_oihw(slab, layout), arrays[block.slot][block.start : block.stop])
        pool.advance(slab.nbytes)

    total = source.size + sum(tensor.nbytes for tensor in inventory.tensors.values())
    with worker_pool("load", total, progress) as pool:
        checked = pool.hash(source)
        pool.each(read, plan_blocks(inventory.tensors, shapes))
        checked.result()
    return {name_of(slot, "timm"): array for slot, array in arrays.items()}
