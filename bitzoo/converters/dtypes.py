"""Dtypes of stored numbers: which hold each other's numbers, rounding to them, and widening again.

bfloat16 is the upper half of a float32; NumPy has no dtype for it.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Collection

import numpy as np

from bitzoo.converters.source import Array, RawTensor, Scratch, StoredTensor

DTYPES = ("float32", "float16", "bfloat16")
"""Dtypes that numbers may be stored in, in a checkpoint or an exported file."""
CHECKPOINT_DTYPES = (*DTYPES, "float64")
"""The same for a checkpoint alone, which a float64 source may be converted to."""
_HOLDERS = {
    "float16": ("float16", "float32", "float64"),
    "bfloat16": ("bfloat16", "float32", "float64"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}
"""Dtype -> those that have all of its numbers; for any other dtype, as for float16."""


def holds(dtype: str, other: str) -> bool:
    """Whether `dtype` has every number of the dtype `other`."""
    return dtype in _HOLDERS.get(other, _HOLDERS["float16"])


def in_network(dtype: str) -> str:
    """Return what a network has numbers as that are stored as `dtype`: float32 at the most."""
    return "float32" if dtype == "float64" else dtype


def round_to(values: Array, dtype: str) -> Array:
    """Round float32 or float64 numbers to nearest (ties to even), once.

    bfloat16 is returned as uint16. Numbers too large for the dtype become infinite.
    """
    if dtype == "float64":
        return values.astype("<f8", copy=False)
    if dtype == "float32":
        with np.errstate(over="ignore"):
            return values.astype("<f4", copy=False)
    if values.dtype.itemsize > 4:
        values = _to_odd(values)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype("<f2")
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = (bits >> 16) & 1
    half += 0x7FFF
    half += bits
    half >>= 16
    return half.astype("<u2")


def _to_odd(values: Array) -> Array:
    """Round float64 to float32 such that rounding the result to 16 bits is rounding once.

    An inexact number goes to its neighbour with an odd last bit: it is then never halfway between
    two numbers of 16 bits unless it was before. (Boldo and Melquiond, IEEE TC 57(4), 2008.)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        near = values.astype(np.float32)
        bits = near.view(np.uint32)
        wide = near.astype(np.float64)
        to_odd = (wide != values) & (bits & 1 == 0) & ~np.isnan(values)
        step = np.where(np.abs(wide) > np.abs(values), -1, 1) * to_odd
    odd: Array = (bits + step.astype(np.uint32)).view(np.float32)
    return odd


def widen(stored: Array, dtype: str) -> Array:
    """Return rounded numbers as float32 (float64 as they are), exactly; inverts `round_to`."""
    if dtype == "bfloat16":
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return stored.astype(np.float64 if dtype == "float64" else np.float32, copy=False)


def list_dtypes(dtypes: Collection[str]) -> str:
    """Return dtypes as a phrase, the widest first: ``float64 and float16``."""
    return " and ".join(
        sorted(set(dtypes), key=lambda dtype: (-len(_HOLDERS.get(dtype, ())), dtype))
    )


def describe_changes(tensors: Collection[StoredTensor], dtype: str, keep: str = "") -> list[str]:
    """Return a sentence for each dtype of `tensors` that becomes another one, `dtype`.

    Args:
        tensors: Tensors of a file.
        dtype: What their numbers become.
        keep: How float64 numbers could be kept, as the end of a sentence.
    """
    counts = Counter(tensor.stored_dtype for tensor in tensors)
    sentences = []
    for found, count in sorted(counts.items()):
        if found == dtype:
            continue
        who = f"{count} of {len(tensors)} tensors are" if len(counts) > 1 else "All tensors are"
        if holds(dtype, found):
            sentences.append(f"{who} stored as {found}, whose numbers {dtype} holds exactly.")
        else:
            wide = keep if found == "float64" else ""
            sentences.append(f"{who} stored as {found}, rounded to {dtype} (nearest){wide}.")
    return sentences


class RoundingError:
    """Accumulates how far rounding moved the numbers of all tensors; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = self._whole = 0.0

    def add(self, values: Array, rounded: Array) -> None:
        """Add float32 or float64 numbers and their rounded values."""
        moved = (rounded - values).reshape(-1)
        whole = values.reshape(-1)
        with np.errstate(over="ignore"):
            sums = float(np.dot(moved, moved)), float(np.dot(whole, whole))
        if not math.isfinite(sum(sums)):  # squares beyond float32
            moved, whole = moved.astype(np.float64), whole.astype(np.float64)
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

    def __init__(self, halves: StoredTensor) -> None:
        """Wrap `halves`, a tensor of uint16 that are the upper halves of float32 numbers."""
        self.name, self.shape, self._halves = halves.name, halves.shape, halves

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as stored."""
        return self._halves.nbytes

    @property
    def offset(self) -> int:
        """Position of its first byte in an uncompressed file."""
        assert isinstance(self._halves, RawTensor)
        return self._halves.offset

    @property
    def stored_dtype(self) -> str:
        """The stored dtype, which is bfloat16."""
        return "bfloat16"

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab and widen it; `scratch` is not used."""
        return widen(self._halves.read_slab(axis, start, stop), "bfloat16")
