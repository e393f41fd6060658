"""The way of a block from the source to the output.

A large block is read at once where the file scatters it; then piece by piece, each in the cache, it
is transposed, looked through for NaN, rounded, written, and read back and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitzoo.models.architecture import Slot
from bitzoo.converters.streaming import Block, WorkerPool, Slabs
from bitzoo.converters.formats.checkpoint_formats import CheckpointFormat
from bitzoo.converters.layouts import as_oihw, copy_blocked, out_axis, stored_shape
from bitzoo.converters.key_mapping import layout_of, scatters
from bitzoo.converters.dtypes import RoundingError, round_to, widen
from bitzoo.converters.writer import Writer
from bitzoo.converters.source import EPS_EXACT_SCALE, Array, Source
from bitzoo.converters.parity.weights import BitComparison
from bitzoo.errors import CheckpointError
from bitzoo.catalogue.registry import ModelSpec

Labels = Callable[[ModelSpec], Sequence[str] | None]

_FINITE_STEP = 1 << 18
"""Numbers looked through at a time, for both of two looks to find them in the cache."""


@dataclass(frozen=True)
class Target:
    """What to write.

    Attributes:
        format: Which format.
        number_format: float32, or what the numbers are rounded to.
        eps_exact: Whether standardized kernels are multiplied by `EPS_EXACT_SCALE`, with which the
            eps of timm and transformers computes the released function.
        labels: Class names of a release, for formats that state them.
    """

    format: CheckpointFormat
    number_format: str = "float32"
    eps_exact: bool = False
    labels: Labels | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the output holds the very numbers of the source."""
        return self.number_format == "float32" and not self.eps_exact

    def weights_in(self, path: Path) -> Path:
        """Return the file that has the weights of the output at `path`."""
        return path / self.format.weights if self.format.weights else path


@dataclass(frozen=True)
class Mover:
    """Moves blocks, from any thread.

    Attributes:
        source: The original, open.
        target: What to write.
        names: The output's name of each tensor.
        writer: The output, open.
        pool: Lends the memory, and is told of the progress.
        deviation: Where to add up how far rounding moves the numbers, if they are rounded.
        comparison: What compares each piece once it is written, if anything does.
    """

    source: Source
    target: Target
    names: Mapping[Slot, str]
    writer: Writer
    pool: WorkerPool
    deviation: RoundingError | None = None
    comparison: BitComparison | None = None

    def move(self, block: Block) -> None:
        """Move a block.

        Raises:
            CheckpointError: If it cannot be read, or holds NaN or infinity.
        """
        layout = layout_of(block.slot.role, self.source.names)
        axis = out_axis(layout, len(block.tensor.shape))
        slabs = Slabs(block, block.tensor, axis, self.pool.scratch("stored"))
        written = self.comparison.slabs(block, self.pool) if self.comparison else None
        for piece in self._pieces(block):
            slab = slabs.of(piece)
            values = _transposed(piece, as_oihw(slab, layout), self.pool, self.target)
            self._write(piece, values)
            if self.comparison and written:
                self.comparison.compare(piece, slab, written.of(piece), self.pool)
            self.pool.advance(values.nbytes)

    def _pieces(self, block: Block) -> Iterable[Block]:
        """Cut a block, unless the output scatters it: each piece would touch every row again."""
        return [block] if scatters(self.target.format.names) else block.pieces()

    def _write(self, piece: Block, values: Array) -> None:
        number_format = self.target.number_format
        _check_finite(self.source, piece, values)
        rounded = round_to(values, number_format)
        if self.deviation:
            widened = widen(rounded, number_format)
            _check_finite(self.source, piece, widened, number_format)
            self.deviation.add(values, widened)
        self.writer.write(self.names[piece.slot], piece.start, rounded)


def _transposed(piece: Block, stored: Array, pool: WorkerPool, target: Target) -> Array:
    """Return a piece's numbers in the output's order of axes, float32, scaled if asked for."""
    layout = layout_of(piece.slot.role, target.format.names)
    values = pool.scratch("values").array(stored_shape(stored.shape, layout), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
        copy_blocked(stored, as_oihw(values, layout))
        if target.eps_exact and piece.slot.role.is_standardized:
            values *= np.float32(EPS_EXACT_SCALE)
    return values


def _check_finite(
    source: Source, piece: Block, values: Array, number_format: str = "float32"
) -> None:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _FINITE_STEP):
        part = flat[start : start + _FINITE_STEP]
        extremes = np.maximum.reduce(part), np.minimum.reduce(part)  # either is NaN if any is
        if not np.isfinite(extremes).all():
            raise CheckpointError(
                f"{source.path}: tensor {piece.tensor.name!r} holds NaN or infinite numbers (or "
                f"numbers too large for {number_format}); expected finite ones. The file is "
                "damaged, or its training diverged."
            )
