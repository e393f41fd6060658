"""Dtypes narrower than float32: round to them and widen again.

bfloat16 is the upper half of a float32; NumPy has no dtype for it.
"""

from __future__ import annotations

import math
import threading

import numpy as np

from bitzoo.converters.source import Array, RawTensor, Scratch, StoredTensor

DTYPES = ("float32", "float16", "bfloat16")
"""Dtypes that numbers may be stored in, in a checkpoint or an exported file."""


def round_to(values: Array, dtype: str) -> Array:
    """Round float32 numbers to nearest (ties to even); bfloat16 is returned as uint16.

    Numbers too large for float16 become infinite.
    """
    if dtype == "float32":
        return values
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype("<f2")
    bits = values.view(np.uint32)
    half = (bits >> 16) & 1
    half += 0x7FFF
    half += bits
    half >>= 16
    return half.astype("<u2")


def widen(stored: Array, dtype: str) -> Array:
    """Return rounded numbers as float32, exactly; inverts `round_to` for representable numbers."""
    if dtype == "bfloat16":
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return stored.astype(np.float32, copy=False)


class RoundingError:
    """Accumulates how far rounding moved the numbers of all tensors; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = self._whole = 0.0

    def add(self, values: Array, rounded: Array) -> None:
        """Add float32 numbers and their rounded values."""
        moved = (rounded - values).reshape(-1)
        whole = values.reshape(-1)
        sums = float(np.dot(moved, moved)), float(np.dot(whole, whole))
        with self._lock:
            self._moved += sums[0]
            self._whole += sums[1]

    @property
    def relative_l2(self) -> float:
        """Distance of the rounded numbers from the original ones, over the original ones' norm."""
        return math.sqrt(self._moved / (self._whole or 1.0))


class BrainFloatTensor(StoredTensor):
    """A bfloat16 tensor, read as float32 numbers of exactly the same values."""

    dtype = np.dtype(np.float32)

    def __init__(self, halves: RawTensor) -> None:
        """Wrap `halves`, a tensor of uint16 that are the upper halves of float32 numbers."""
        self.name, self.shape, self._halves = halves.name, halves.shape, halves

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as stored."""
        return self._halves.nbytes

    @property
    def offset(self) -> int:
        """Position of its first byte."""
        return self._halves.offset

    @property
    def stored_dtype(self) -> str:
        """The stored dtype, which is bfloat16."""
        return "bfloat16"

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab and widen it; `scratch` is not used."""
        return widen(self._halves.read_slab(axis, start, stop), "bfloat16")
