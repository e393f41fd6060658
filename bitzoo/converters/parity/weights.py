"""The comparison of weights: every tensor mapped back to the source's order, and judged.

Numbers that the output's dtype has must be equal in every bit. Those that it has not must be the
source's rounded to nearest, which `bitzoo.converters.parity.rounding` judges by the definition of
the dtype, not by the cast that made them.
"""

from __future__ import annotations

import math
import threading
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitzoo.converters.dtypes import holds
from bitzoo.converters.identify import Inventory
from bitzoo.converters.key_mapping import layout_of, scatters
from bitzoo.converters.layouts import as_oihw, copy_blocked, out_axis
from bitzoo.converters.parity.rounding import Rounding, judge_rounding
from bitzoo.converters.source import Array, Source, StoredTensor
from bitzoo.converters.streaming import Block, Slabs, WorkerPool, plan_blocks, worker_pool
from bitzoo.files import Progress
from bitzoo.models.architecture import Slot

_PIECE = 1 << 18
NEAREST = "nearest, at most half a unit in the last place"


@dataclass(frozen=True)
class Change:
    """What happened to numbers on the way from one file to the other.

    Attributes:
        source: Their dtype in the source.
        output: Their dtype in the output.
        scale: What they were multiplied by before rounding (`eps_exact`); below 1 if the source
            is the one with scaled kernels.
    """

    source: str
    output: str
    scale: float = 1.0

    @property
    def rounded_to(self) -> str | None:
        """The dtype that they were rounded to; None if every number is the source's."""
        if self.scale < 1:
            return self.source
        return None if self.scale == 1 and holds(self.output, self.source) else self.output

    def __str__(self) -> str:
        """Return it in words, as what the output's numbers are."""
        if self.scale < 1:
            words = f"the source's are the output's times {1 / self.scale:.0f}"
            return f"{words} rounded to {self.source}: {NEAREST}"
        times = f"times {self.scale:.0f} " if self.scale != 1 else ""
        if self.rounded_to:
            return f"{times}rounded to {self.output}: {NEAREST}"
        same = "bit for bit" if self.source == self.output else "number for number"
        return same + ("" if self.source == self.output else f" ({self._way})")

    @property
    def _way(self) -> str:
        return f"{self.source} widened to {self.output}"


@dataclass(frozen=True)
class Compared:
    """The outcome for all tensors with the same `Change`.

    Attributes:
        change: What happened to their numbers.
        tensors: Tensors compared.
        params: Numbers compared.
        differing: Tensors for which that is not what happened.
        max_ulp: For rounded numbers, their largest distance in units in the last place, else None.
        infinite: For rounded numbers, how many became infinite.
    """

    change: Change
    tensors: int
    params: int
    differing: int = 0
    max_ulp: float | None = None
    infinite: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            **asdict(self.change),
            "rounded_to": self.change.rounded_to,
            "tensors": self.tensors,
            "params": self.params,
            "differing": self.differing,
            "max_ulp": self.max_ulp,
            "infinite": self.infinite,
            "found": self.found,
            "allowed": self.allowed,
        }

    @property
    def found(self) -> str:
        """What was found, as a phrase."""
        change, dtype = self.change, self.change.rounded_to
        if self.differing:
            return f"{self.differing} tensors differ"
        if dtype is None:
            same = change.source == change.output
            return "every bit equal" if same else f"every number equal, {change._way}"
        scale = max(change.scale, 1 / change.scale)
        words = f"kernels times {scale:.0f}, " if scale != 1 else ""
        words += f"rounded to {dtype}, nearest: at most {self.max_ulp:.4f} ulp"
        return words + (f", {self.infinite:,} became infinite" if self.infinite else "")

    @property
    def allowed(self) -> str:
        """The limit, as a phrase."""
        return "0.5 ulp" if self.change.rounded_to else "equal"


@dataclass(frozen=True)
class WeightsProof:
    """Outcome of the comparison of weights.

    Attributes:
        tensors: Tensors compared.
        params: Numbers compared.
        differing: Source names of tensors of which a number is not the source's, or, if its dtype
            lacks that, not the nearest to it.
        groups: The outcome by what happened to the numbers; empty if that was not recorded.
    """

    tensors: int
    params: int
    differing: tuple[str, ...]
    groups: tuple[Compared, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every number is what it must be."""
        return not self.differing

    @property
    def rounded_to(self) -> str | None:
        """The dtypes that numbers were rounded to; None if all are the source's."""
        found = {group.change.rounded_to: None for group in self.groups}
        return " and ".join(dtype for dtype in found if dtype) or None

    @property
    def max_ulp(self) -> float:
        """Largest distance of a rounded number in units in the last place; 0 if none is rounded."""
        return max((group.max_ulp or 0.0 for group in self.groups), default=0.0)

    @property
    def rule(self) -> str:
        """What the output's numbers are to those of the source, in words."""
        if len(self.groups) < 2:
            return str(self.groups[0].change) if self.groups else "bit for bit"
        return "; ".join(f"{group.tensors} tensors {group.change}" for group in self.groups)

    def by_change(self) -> tuple[Compared, ...]:
        """Return the groups, or all tensors as one."""
        count = len(self.differing)
        whole = Compared(Change("float32", "float32"), self.tensors, self.params, count)
        return self.groups or (whole,)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "tensors": self.tensors,
            "params": self.params,
            "differing": list(self.differing),
            "passed": self.passed,
            "rounded_to": self.rounded_to,
            "max_ulp": _json_number(self.max_ulp),
            "groups": [_json_group(group) for group in self.by_change()],
        }


def _json_number(value: float | None) -> float | None:
    return value if value is None or np.isfinite(value) else None


def _json_group(group: Compared) -> dict[str, Any]:
    return group.to_dict() | {"max_ulp": _json_number(group.max_ulp)}


def change_of(
    source: Source,
    stored: StoredTensor,
    output: Source,
    written: StoredTensor,
    *,
    standardized: bool,
) -> Change:
    """Return what happens to the numbers of a tensor between two files.

    Args:
        source: The original.
        stored: The tensor there.
        output: The file made of it.
        written: The tensor there.
        standardized: Whether it is a kernel that `eps_exact` scales.
    """
    scale = output.kernel_scale / source.kernel_scale if standardized else 1.0
    return Change(stored.stored_dtype, written.stored_dtype, scale)


class BitComparison:
    """Maps blocks of an output back to the source's axis order and compares the numbers."""

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
        self._inventory, self._result = inventory, result
        self._changes = {
            slot: change_of(
                source, stored, output, result.tensors[slot], standardized=slot.role.is_standardized
            )
            for slot, stored in inventory.tensors.items()
        }
        self._lock = threading.Lock()
        self._differing: set[Slot] = set()
        self._rounding: dict[Change, Rounding] = {}

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
        mapped = pool.scratch("mapped").array(stored.shape, rows.dtype.newbyteorder("="))
        copy_blocked(as_oihw(rows, to_layout), as_oihw(mapped, from_layout))
        change = self._changes[block.slot]
        if change.rounded_to is None:
            expected = stored.astype(mapped.dtype, copy=False)
            if not _same_bits(mapped, expected):
                self._differing.add(block.slot)
            return
        found = _judge(change, stored, mapped)
        with self._lock:
            self._rounding[change] = self._rounding.get(change, Rounding()) + found
            if not found.nearest:
                self._differing.add(block.slot)

    def outcome(self) -> WeightsProof:
        """Return what the comparisons so far found; meant for when every block was compared."""
        tensors = self._inventory.tensors
        names = tuple(tensors[slot].name for slot in tensors if slot in self._differing)
        changes = dict.fromkeys(self._changes[slot] for slot in tensors)
        groups = tuple(self._compared(change) for change in changes)
        return WeightsProof(len(tensors), self._inventory.num_params, names, groups)

    def _compared(self, change: Change) -> Compared:
        slots = [slot for slot, its in self._changes.items() if its == change]
        found = self._rounding.get(change, Rounding())
        return Compared(
            change,
            len(slots),
            sum(math.prod(self._inventory.tensors[slot].shape) for slot in slots),
            len(self._differing.intersection(slots)),
            found.max_ulp if change.rounded_to else None,
            found.infinite,
        )


def _judge(change: Change, stored: Array, mapped: Array) -> Rounding:
    """Judge the rounding of scaled numbers, or of those as they are; float64 holds the products."""
    exact, rounded, scale = stored, mapped, change.scale
    if scale < 1:
        exact, rounded, scale = mapped, stored, 1 / scale
    if scale != 1:
        exact = exact.astype(np.float64) * scale
    assert change.rounded_to is not None
    return judge_rounding(exact, rounded, change.rounded_to)


def _same_bits(one: Array, other: Array) -> bool:
    """Compare in pieces that stay in the cache; a slab's padded rows make no difference."""
    bits = np.dtype(f"u{one.dtype.itemsize}")
    lines = [array.view(bits).reshape(-1, array.shape[-1]) for array in (one, other)]
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
