"""The parity oracle: BiT's forward pass in NumPy float64, straight from the released names.

It exists to judge the converter and the torch model, so it shares nothing with either: it spells
the npz names itself, keeps TensorFlow's layouts (images NHWC, kernels HWIO) from end to end and
finds the depths in the file. A mistake in the key mapping, in a layout or in the model therefore
shows as a difference of logits and cannot cancel out.

Source of every formula: google-research/big_transfer, bit_tf2/models.py and
bit_tf2/normalization.py; arXiv 1912.11370, 1903.10520 (weight standardization) and 1803.08494
(group normalization). For networks of the paper's ablation, which nobody released: arXiv 1502.03167
and the defaults of TensorFlow's `BatchNormalization`, under the names of its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bitzoo.errors import LayoutError, TensorMismatchError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

STRIDES = (1, 2, 2, 2)
"""Stride of each block's first unit."""
GROUPS = 32
GROUP_NORM_EPS = 1e-5
BATCH_NORM_EPS = 1e-3
EPS = 1e-10
"""What the released networks add to a kernel's variance."""
BLOCK_BYTES = 32 << 20
"""Most bytes of a kernel held in float64 at once; R152x4's head would take 1.4 GB."""


def forward(
    tensors: Mapping[str, Any], images: np.ndarray[Any, Any], *, eps: float | None = 1e-10
) -> Array:
    """Compute the logits of a BiT checkpoint in float64.

    Each tensor is looked up once, when its layer is reached, and no more than `BLOCK_BYTES` of a
    kernel is held in float64; a lazy mapping thus bounds memory by one tensor. If `tensors` has a
    method ``read_columns(name, start, stop)``, kernels are read through it in slices of their last
    axis, and memory is bounded by a block. The forward pass does not know where a kernel ends: it
    asks on until a slice comes back short, so bounds beyond the end must be cut off as in Python.

    Args:
        tensors: npz name to tensor, as in a released npz file; an array or whatever slices like
            one (a memory map, an HDF5 data set). The head kernel may also be 2-D, as Keras has it.
        images: RGB in [-1, 1], shape (batch, height, width, 3); any size.
        eps: Added to the variance of each kernel in weight standardization; the released
            networks use 1e-10. None for kernels that are used as they are.

    Returns:
        Logits, shape (batch, classes); where the file has no head, the pooled features,
        shape (batch, features).

    Raises:
        LayoutError: If `images` is not 4-D.
        TensorMismatchError: If a tensor is missing or misshapen, or belongs to no layer.

    Source: google-research/big_transfer, bit_tf2/models.py.
    """
    if images.ndim != 4:
        raise LayoutError(
            "images must have the shape (batch, height, width, channels), found "
            f"{images.shape}; put the channels last."
        )
    net = _Network(tensors, eps)
    x = net.conv(images.astype(np.float64), "resnet/root_block", size=7, stride=2)
    x = max_pool(x)
    for block, stride in enumerate(STRIDES, start=1):
        for unit in range(1, net.count_units(block) + 1):
            scope = f"resnet/block{block}/unit{unit:02d}"
            x = _bottleneck(net, x, scope, stride if unit == 1 else 1, project=unit == 1)
    x = net.norm_relu(x, "resnet").mean(axis=(1, 2))
    if "resnet/head/conv2d/kernel" in net.unread:
        x = net.dense(x, "resnet/head/conv2d")
    net.check_all_read()
    return x


def _bottleneck(net: _Network, x: Array, scope: str, stride: int, *, project: bool) -> Array:
    """A pre-activation unit; the projection starts from the activation, the identity does not."""
    h = net.norm_relu(x, f"{scope}/a")
    shortcut = net.conv(h, f"{scope}/a/proj", size=1, stride=stride) if project else x
    h = net.conv(h, f"{scope}/a", size=1)
    h = net.norm_relu(h, f"{scope}/b")
    h = net.conv(h, f"{scope}/b", size=3, stride=stride)
    h = net.norm_relu(h, f"{scope}/c")
    h = net.conv(h, f"{scope}/c", size=1)
    h += shortcut
    return h


class _Network:
    """The layers, each finding its own tensors by name.

    Attributes:
        unread: Names that no layer has asked for yet.
    """

    def __init__(self, tensors: Mapping[str, Any], eps: float | None) -> None:
        self._tensors = tensors
        self._eps = eps
        self.unread = set(tensors)

    def count_units(self, block: int) -> int:
        """Units of a block, at least one; a gap in their numbers shows as a missing tensor."""
        scope = f"resnet/block{block}/"
        names = (name.split("/") for name in self._tensors if name.startswith(scope))
        return max(1, len({parts[2] for parts in names}))

    def conv(self, x: Array, scope: str, *, size: int, stride: int = 1) -> Array:
        name = f"{scope}/standardized_conv2d/kernel"
        blocks, eps = self._kernel_blocks(name, (size, size, x.shape[-1])), self._eps
        if eps is None:
            return convolve(x, blocks, size, stride)
        return convolve(x, (standardize(block, eps) for block in blocks), size, stride)

    def norm_relu(self, x: Array, scope: str) -> Array:
        if f"{scope}/batch_normalization/gamma" in self.unread:
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            vectors = [
                self._vector(f"{scope}/batch_normalization/{name}", x.shape[-1]) for name in names
            ]
            x = batch_norm(x, *vectors)
            return np.maximum(x, 0, out=x)
        gamma = self._vector(f"{scope}/group_norm/gamma", x.shape[-1])
        beta = self._vector(f"{scope}/group_norm/beta", x.shape[-1])
        x = group_norm(x, gamma, beta)
        return np.maximum(x, 0, out=x)

    def dense(self, x: Array, scope: str) -> Array:
        rows = x.shape[-1]
        blocks = self._kernel_blocks(f"{scope}/kernel", (1, 1, rows), (rows,))
        y: Array = np.concatenate([x @ block.reshape(rows, -1) for block in blocks], axis=-1)
        return y + self._vector(f"{scope}/bias", y.shape[-1])

    def check_all_read(self) -> None:
        """Refuse a file with tensors that the forward pass has no place for."""
        if self.unread:
            raise TensorMismatchError(
                f"the checkpoint has {len(self.unread)} tensor(s) that no layer of BiT reads:\n"
                + "\n".join(f"+ {name}" for name in sorted(self.unread))
                + "\nRemove them, or check that they bear the names of a released npz file."
            )

    def _vector(self, name: str, channels: int) -> Array:
        vector = np.asarray(self._find(name), dtype=np.float64)
        _check_shape(name, vector.shape, (channels,))
        return vector

    def _kernel_blocks(self, name: str, *layouts: tuple[int, ...]) -> Iterator[Array]:
        """Slices of output channels in float64; every layout ends in an axis of any length."""
        read = self._column_reader(name)
        columns = max(1, BLOCK_BYTES // (8 * math.prod(layouts[0])))
        start, block = 0, None
        while block is None or block.shape[-1] == columns:
            block = np.array(read(start, start + columns), dtype=np.float64)
            _check_shape(name, block.shape[:-1], *layouts, suffix=", any")
            yield block
            start += columns

    def _column_reader(self, name: str) -> Callable[[int, int], Any]:
        read_columns = getattr(self._tensors, "read_columns", None)
        if read_columns is None:
            tensor = self._find(name)
            return lambda start, stop: tensor[..., start:stop]
        self._mark_read(name)
        return lambda start, stop: read_columns(name, start, stop)

    def _find(self, name: str) -> Any:
        self._mark_read(name)
        return self._tensors[name]

    def _mark_read(self, name: str) -> None:
        if name not in self.unread:
            raise TensorMismatchError(
                f"the checkpoint lacks a tensor that its other tensors call for:\n- {name}\n"
                "It must bear the names of a released npz file; check that it is complete."
            )
        self.unread.remove(name)


def convolve(x: Array, kernels: Iterator[Array], size: int, stride: int) -> Array:
    """Convolve NHWC `x`, zero-padded by size // 2 on each side, with a kernel that comes in blocks.

    One matrix product per kernel row: the `size` pixels under a row, with all their channels, are
    neighbours in NHWC memory, and so are the row's weights in HWIO.

    Args:
        x: Shape (batch, height, width, channels).
        kernels: Consecutive slices of output channels, each (size, size, channels, outputs).
        size: Height and width of the kernel, odd.
        stride: Step along both axes.

    Returns:
        Shape (batch, ceil(height / stride), ceil(width / stride), all outputs).
    """
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x
    batch, height, width, channels = x.shape
    lines = x.reshape(batch, height, width * channels)
    windows = sliding_window_view(lines, size * channels, axis=2)[:, :, :: stride * channels]
    tops = range(0, height - size + 1, stride)

    def apply(kernel: Array) -> Array:
        y = np.zeros((batch * len(tops) * windows.shape[2], kernel.shape[-1]))
        for row, weights in enumerate(kernel):
            patches = windows[:, row : row + tops[-1] + 1 : stride]
            y += patches.reshape(len(y), -1) @ weights.reshape(size * channels, -1)
        return y.reshape(batch, len(tops), windows.shape[2], -1)

    return np.concatenate([apply(kernel) for kernel in kernels], axis=-1)


def standardize(kernel: Array, eps: float) -> Array:
    """Give each output filter of an HWIO kernel zero mean and unit variance, in place.

    The variance is the biased one; `eps` is added to it (arXiv 1903.10520 as in bit_tf2).
    """
    kernel -= kernel.mean(axis=(0, 1, 2))
    sum_of_squares = np.einsum("hwio,hwio->o", kernel, kernel)  # keeps no squares in memory
    kernel /= np.sqrt(sum_of_squares / math.prod(kernel.shape[:-1]) + eps)
    return kernel


def group_norm(x: Array, gamma: Array, beta: Array) -> Array:
    """Normalize NHWC `x` over space and the channels of each of 32 groups; scale and shift.

    The groups are runs of neighbouring channels and the variance is the biased one
    (arXiv 1803.08494; bit_tf2/normalization.py).
    """
    batch, height, width, channels = x.shape

    def over_groups(per_channel: Array) -> Array:
        mean: Array = per_channel.reshape(batch, GROUPS, -1).mean(axis=-1)
        return mean.repeat(channels // GROUPS, axis=-1)[:, None, None, :]

    y: Array = x - over_groups(x.mean(axis=(1, 2)))
    variance = over_groups(np.einsum("bhwc,bhwc->bc", y, y) / (height * width))
    y *= gamma / np.sqrt(variance + GROUP_NORM_EPS)
    y += beta
    return y


def batch_norm(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array) -> Array:
    """Normalize NHWC `x` with given statistics of each channel; scale and shift."""
    y: Array = (x - mean) / np.sqrt(variance + BATCH_NORM_EPS)
    y *= gamma
    y += beta
    return y


def max_pool(x: Array) -> Array:
    """Pad NHWC `x` with zeros by 1, then take the maximum of 3x3 windows at stride 2.

    The padding takes part in the maximum: there is no ReLU before, so where all values near the
    border are negative the result is 0, which a pool that pads with -inf does not give.
    """
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (1, 2):
        stop = x.shape[axis] - 2
        first, second, third = (
            x[(slice(None),) * axis + (slice(tap, stop + tap, 2),)] for tap in range(3)
        )
        x = np.maximum(np.maximum(first, second), third)
    return x


def _check_shape(
    name: str, found: tuple[int, ...], *expected: tuple[int, ...], suffix: str = ""
) -> None:
    if found not in expected:
        wanted = " or ".join(f"({', '.join(map(str, shape))}{suffix})" for shape in expected)
        raise TensorMismatchError(
            f"{name} must have the shape {wanted}, found ({', '.join(map(str, found))}{suffix}); "
            "check that the file keeps TensorFlow's layout (height, width, in, out)."
        )
