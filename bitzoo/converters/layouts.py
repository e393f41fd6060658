"""Axis orders of kernels; the only module that transposes tensors.

A layout is a word over the axes out (O), in (I), height (H) and width (W), slowest first: ``HWIO``
in TensorFlow's files, ``OIHW`` in PyTorch's, ``IO`` for a dense kernel. Vectors have no layout.
"""

from __future__ import annotations

import math

import numpy as np

from bitzoo.converters.source import Array
from bitzoo.errors import LayoutError

LOGICAL = "OIHW"

_BLOCK_OUT = 256
_BLOCK_REST = 512
_PADDING = 16
"""Elements: blocks of 256 outputs by 512 inputs fit the second-level cache, and the padding keeps
their rows out of each other's cache sets (1.4 GB/s, against 0.3 for NumPy's own strided copy)."""


def stored_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Convert an OIHW `shape` to `layout`; vector shapes are unchanged.

    Raises:
        LayoutError: If `layout` lacks an axis that is longer than 1.
    """
    if len(shape) != len(LOGICAL):
        return shape
    sizes = dict(zip(LOGICAL, shape, strict=True))
    lost = {axis: size for axis, size in sizes.items() if axis not in layout and size != 1}
    if lost:
        raise LayoutError(f"Layout {layout} has no axis for {lost} of the OIHW shape {shape}.")
    return tuple(sizes[axis] for axis in layout)


def out_axis(layout: str, rank: int) -> int:
    """Return the position of the output axis in a stored tensor of `rank` dimensions."""
    return layout.index("O") if rank > 1 else 0


def as_oihw(array: Array, layout: str) -> Array:
    """Return a view of a stored kernel in OIHW order; vectors are unchanged. Nothing is copied.

    Raises:
        LayoutError: If the number of dimensions is not that of `layout`.
    """
    if array.ndim == 1:
        return array
    if array.ndim != len(layout):
        raise LayoutError(
            f"A kernel in layout {layout} has {len(layout)} dimensions, found {array.shape}."
        )
    axes = layout + "".join(axis for axis in LOGICAL if axis not in layout)
    full: Array = array.reshape(array.shape + (1,) * (len(axes) - array.ndim))
    return full.transpose([axes.index(axis) for axis in LOGICAL])


def as_layout(oihw: Array, layout: str) -> Array:
    """Return a view of an OIHW kernel in `layout`; vectors are unchanged. Inverts `as_oihw`."""
    if oihw.ndim == 1:
        return oihw
    axes = layout + "".join(axis for axis in LOGICAL if axis not in layout)
    ordered = oihw.transpose([LOGICAL.index(axis) for axis in axes])
    stored: Array = ordered.reshape(stored_shape(oihw.shape, layout))
    return stored


def copy_blocked(source: Array, target: Array) -> None:
    """Copy between two views of the same OIHW shape, block by block if their orders differ.

    Args:
        source: Array to read; in memory order OIHW or with the output axis fastest.
        target: Array of the same shape to write; values are converted to its dtype.
    """
    if source.ndim == 1 or _out_is_fastest(source) == _out_is_fastest(target):
        np.copyto(target, source, casting="same_kind")
        return
    outs, ins, *window = source.shape
    step = max(1, _BLOCK_REST // math.prod(window))
    scratch = _scratch(source, (min(_BLOCK_OUT, outs), min(step, ins), *window))
    for o in range(0, outs, _BLOCK_OUT):
        for i in range(0, ins, step):
            piece = source[o : o + _BLOCK_OUT, i : i + step]
            block = scratch[: piece.shape[0], : piece.shape[1]]
            np.copyto(block, piece)
            np.copyto(target[o : o + _BLOCK_OUT, i : i + step], block, casting="same_kind")


def _out_is_fastest(oihw: Array) -> bool:
    return oihw.strides[0] == oihw.itemsize and math.prod(oihw.shape[1:]) > 1


def _scratch(source: Array, shape: tuple[int, ...]) -> Array:
    """Return an uninitialised OIHW view with padded rows, each a piece of a row of `source`.

    Filling it copies whole rows; the transposed read then comes from the cache. Rows of outputs are
    in the target's order IHW, so that copying to the target is one matrix transpose.
    """
    outs, ins, height, width = shape
    if _out_is_fastest(source):
        columns = np.empty((ins, height, width, outs + _PADDING), source.dtype)
        return as_oihw(columns[..., :outs], "IHWO")
    rows = np.empty((outs, ins * height * width + _PADDING), source.dtype)
    return rows[:, : ins * height * width].reshape(shape)
