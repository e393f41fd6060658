"""The comparison of weights: every tensor mapped back to the source's order, every bit equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitzoo.converters.dtypes import round_to, widen
from bitzoo.converters.identify import Inventory
from bitzoo.converters.key_mapping import layout_of, scatters
from bitzoo.converters.layouts import as_oihw, copy_blocked, out_axis
from bitzoo.converters.source import Array, Source
from bitzoo.converters.streaming import Block, Slabs, WorkerPool, plan_blocks, worker_pool
from bitzoo.files import Progress
from bitzoo.models.architecture import Slot

_PIECE = 1 << 18


@dataclass(frozen=True)
class WeightsProof:
    """Outcome of the comparison of weights.

    Attributes:
        tensors: Tensors compared.
        params: Numbers compared.
        differing: Source names of tensors that differ in at least one bit.
    """

    tensors: int
    params: int
    differing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every bit is equal."""
        return not self.differing


class BitComparison:
    """Maps blocks of an output back to the source's axis order and compares the bits."""

    def __init__(
        self, source: Source, inventory: Inventory, output: Source, result: Inventory
    ) -> None:
        """Compare nothing yet.

        Args:
            source: The original, open.
            inventory: What `identify` found in it.
            output: The file made of it, open.
            result: What `identify` found there; the same architecture and classes.
        """
        self._names = source.names, output.names
        self._factors = _factors(source, output)
        self._inventory, self._result = inventory, result
        self._differing: set[Slot] = set()

    def slabs(self, block: Block, pool: WorkerPool) -> Slabs:
        """Return what reads the output's numbers of a block."""
        tensor = self._result.tensors[block.slot]
        axis = out_axis(layout_of(block.slot.role, self._names[1]), len(tensor.shape))
        return Slabs(block, tensor, axis, pool.scratch("rows"))

    def compare(self, block: Block, stored: Array, rows: Array, pool: WorkerPool) -> None:
        """Compare a block or a piece of one; called from any thread.

        Args:
            block: Which outputs of which tensor.
            stored: The source's numbers, in its own axis order.
            rows: The output's, in its own.
            pool: Lends the memory.
        """
        from_layout, to_layout = (layout_of(block.slot.role, names) for names in self._names)
        tensor = self._result.tensors[block.slot]
        expected = stored.astype(np.float32, copy=False)
        mapped = pool.scratch("mapped").array(stored.shape, np.float32)
        copy_blocked(as_oihw(rows, to_layout), as_oihw(mapped, from_layout))
        if block.slot.role.is_standardized and self._factors:
            expected, mapped = expected * self._factors[0], mapped * self._factors[1]
        if tensor.stored_dtype in ("float16", "bfloat16"):
            rounded = round_to(np.ascontiguousarray(expected), tensor.stored_dtype)
            expected = widen(rounded, tensor.stored_dtype)
        if not _same_bits(mapped, expected):
            self._differing.add(block.slot)

    def outcome(self) -> WeightsProof:
        """Return what the comparisons so far found; meant for when every block was compared."""
        tensors = self._inventory.tensors
        names = tuple(tensors[slot].name for slot in tensors if slot in self._differing)
        return WeightsProof(len(tensors), self._inventory.num_params, names)


def _factors(source: Source, output: Source) -> tuple[np.float32, np.float32] | None:
    """Return what to multiply either side's kernels with to make them equal, if anything."""
    one, other = source.kernel_scale, output.kernel_scale
    return None if one == other else (np.float32(other), np.float32(one))


def _same_bits(one: Array, other: Array) -> bool:
    """Compare in pieces that stay in the cache; a slab's padded rows make no difference."""
    lines = [array.view(np.uint32).reshape(-1, array.shape[-1]) for array in (one, other)]
    step = max(1, _PIECE // one.shape[-1])
    return all(
        np.array_equal(lines[0][row : row + step], lines[1][row : row + step])
        for row in range(0, len(lines[0]), step)
    )


def prove_weights(
    source: Source,
    inventory: Inventory,
    output: Source,
    result: Inventory,
    progress: Progress | None = None,
) -> WeightsProof:
    """Compare every tensor of two open files by `BitComparison`; its arguments, and progress."""
    comparison = BitComparison(source, inventory, output, result)

    def compare(block: Block) -> None:
        layout = layout_of(block.slot.role, source.names)
        axis = out_axis(layout, len(block.tensor.shape))
        slabs = Slabs(block, block.tensor, axis, pool.scratch("stored"))
        results = comparison.slabs(block, pool)
        for piece in block.pieces():
            stored = slabs.of(piece)
            comparison.compare(piece, stored, results.of(piece), pool)
            pool.advance(stored.nbytes)

    total = sum(tensor.nbytes for tensor in inventory.tensors.values())
    with worker_pool("compare", total, progress) as pool:
        shapes = inventory.architecture.shapes(inventory.num_classes)
        held = scatters(source.names) + scatters(output.names) or 1
        pool.each(compare, plan_blocks(inventory.tensors, shapes, held))
    return comparison.outcome()
