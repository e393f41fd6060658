"""Whether numbers are others rounded to nearest, judged from the definition of the format.

It exists to judge the casts of `bitzoo.converters.dtypes`, so it shares nothing with them: a stored
number is decoded from its sign, exponent and fraction, and its two neighbours likewise. It is the
nearest if the exact number is at most half the gap to the neighbour on that side away; at exactly
half, if its last bit is 0 (ties to even).

Source: IEEE 754-2019, sections 3.4 and 4.3.1. bfloat16 is the same form with 8 bits of exponent and
7 of fraction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from bitzoo.converters.source import Array

_FIELDS = {"float16": (5, 10), "bfloat16": (8, 7), "float32": (8, 23)}
"""Bits of exponent and of fraction."""
_PIECE = 1 << 16
"""Numbers at a time, so that the intermediate results stay in the processor's cache."""


@dataclass(frozen=True)
class Rounding:
    """How far rounded numbers are from the exact ones.

    Attributes:
        nearest: Whether every number is the exact one rounded to nearest, ties to even.
        max_ulp: Largest distance in units in the last place, of the finite numbers: the distance
            over the gap between the two neighbours that enclose the exact number. At most 0.5.
        infinite: Finite numbers that became infinite, because the format does not reach them.
    """

    nearest: bool = True
    max_ulp: float = 0.0
    infinite: int = 0

    def __add__(self, other: Rounding) -> Rounding:
        """Return the judgement of both."""
        return Rounding(
            self.nearest and other.nearest,
            max(self.max_ulp, other.max_ulp),
            self.infinite + other.infinite,
        )


def judge_rounding(exact: Array, rounded: Array, dtype: str) -> Rounding:
    """Compare exact numbers with rounded ones of the same shape.

    Args:
        exact: The numbers before rounding; float64 holds those of every dtype exactly.
        rounded: The numbers after it; bfloat16 as the float32 numbers of the same values.
        dtype: What they were rounded to: ``float16``, ``bfloat16`` or ``float32``. Nothing is known
            to be the nearest in another one.
    """
    if dtype not in _FIELDS:
        return Rounding(nearest=False, max_ulp=math.inf)
    found = Rounding()
    lines, columns = exact.reshape(-1, exact.shape[-1]), exact.shape[-1]
    others = rounded.reshape(lines.shape)
    step = max(1, _PIECE // max(columns, 1))
    for row in range(0, len(lines), step):
        found += _judge(lines[row : row + step], others[row : row + step], dtype)
    return found


def _judge(exact: Array, rounded: Array, dtype: str) -> Rounding:
    exponent_bits, fraction_bits = _FIELDS[dtype]
    infinity = ((1 << exponent_bits) - 1) << fraction_bits
    magnitude = _magnitude(rounded, dtype)
    numbers = np.abs(exact.astype(np.float64, copy=False))
    comparable = (magnitude <= infinity) & ~np.isnan(numbers)
    if not (comparable | (magnitude > infinity) & np.isnan(numbers)).all():
        return Rounding(nearest=False, max_ulp=math.inf)
    same_sign = np.signbit(exact) == np.signbit(rounded)
    below = magnitude - (magnitude > 0)
    value = _decode(magnitude, dtype)  # of infinity: the next power of two, as if it went on
    with np.errstate(invalid="ignore"):
        distance = numbers - value
        gap = np.where(distance >= 0, _gap(magnitude, dtype), _gap(below, dtype))
        ulps = np.abs(distance) / gap
    ulps[(magnitude == infinity) & (distance >= 0)] = 0  # nothing is nearer to what is beyond
    ulps[~comparable] = 0
    nearest = (ulps < 0.5) | ((ulps == 0.5) & (magnitude & 1 == 0))
    nearest &= same_sign | ~comparable
    became = (magnitude == infinity) & np.isfinite(numbers)
    finite = ulps[magnitude < infinity]
    return Rounding(
        bool(nearest.all()), float(finite.max()) if finite.size else 0.0, int(became.sum())
    )


def _magnitude(rounded: Array, dtype: str) -> Array:
    """Return exponent and fraction as stored, one whole number each."""
    if dtype == "float16":
        halves: Array = np.ascontiguousarray(rounded, "<f2").view("<u2") & 0x7FFF
        return halves.astype(np.int32)
    words: Array = (np.ascontiguousarray(rounded, "<f4").view("<u4") & 0x7FFFFFFF).astype(np.int32)
    if dtype == "float32":
        return words
    # bits that bfloat16 lacks make it none of its numbers: beyond infinity
    upper: Array = np.where(words & 0xFFFF, 0x7FFF, words >> 16)
    return upper


def _decode(magnitude: Array, dtype: str) -> Array:
    fraction_bits = _FIELDS[dtype][1]
    exponent = magnitude >> fraction_bits
    fraction = magnitude & ((1 << fraction_bits) - 1)
    significand = fraction + ((exponent > 0).astype(np.int32) << fraction_bits)
    value: Array = significand * _gap(magnitude, dtype)
    return value


def _gap(magnitude: Array, dtype: str) -> Array:
    """Return the distance from a number to the next larger one."""
    gap: Array = _gaps(dtype)[magnitude >> _FIELDS[dtype][1]]
    return gap


@cache
def _gaps(dtype: str) -> Array:
    """Return the distance of neighbours by stored exponent; subnormal numbers share the first."""
    exponent_bits, fraction_bits = _FIELDS[dtype]
    exponents = np.maximum(np.arange(1 << exponent_bits), 1)
    bias = (1 << (exponent_bits - 1)) - 1
    gaps: Array = np.ldexp(1.0, exponents - bias - fraction_bits)
    return gaps
