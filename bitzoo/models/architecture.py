"""BiT architectures as data: depths and width determine channels, tensors and their shapes.

A BiT network is a pre-activation bottleneck ResNet of four blocks (arXiv 1912.11370, section 3.2;
google-research/big_transfer, bit_pytorch/models.py). Its depths (units per block) and its width
factor determine all channels: block b has bottleneck width ``f = 64 * width * 2**(b - 1)`` and
``4 * f`` output channels. The paper's ablation (section 4.3, tables 4 and 5) changes two more
things, the normalization and whether kernels are standardized. This module does not use torch.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from bitzoo.errors import ArchitectureError

NUM_BLOCKS = 4
GROUPS = 32
"""Groups of every GroupNorm; each channel count must be a multiple of it."""
BRANCHES = ("a", "b", "c")
"""The three convolutions of a unit in order: 1x1 reduce, 3x3, 1x1 expand."""
EXPANSION = 4
STEM_CHANNELS = 64
MAX_UNITS = 999
Norm = Literal["group", "batch"]
"""What normalizes: groups of channels of one image, or each channel over a batch."""
MAX_CHANNELS = 1 << 20
"""Bounds on what a file may ask for; the widest released network has 8192 channels."""


class Role(enum.Enum):
    """A tensor's function in the network; with block, unit and branch it identifies one tensor."""

    STEM_KERNEL = "stem kernel"
    NORM_SCALE = "norm scale"
    NORM_SHIFT = "norm shift"
    NORM_MEAN = "norm running mean"
    NORM_VARIANCE = "norm running variance"
    KERNEL = "kernel"
    PROJECTION = "projection kernel"
    FINAL_NORM_SCALE = "final norm scale"
    FINAL_NORM_SHIFT = "final norm shift"
    FINAL_NORM_MEAN = "final norm running mean"
    FINAL_NORM_VARIANCE = "final norm running variance"
    HEAD_KERNEL = "head kernel"
    HEAD_BIAS = "head bias"

    @property
    def is_kernel(self) -> bool:
        """Whether the tensor is a convolution kernel (4-D) rather than a vector."""
        return self in _KERNELS

    @property
    def is_standardized(self) -> bool:
        """Whether a network with weight standardization standardizes it before it convolves."""
        return self in _KERNELS and self is not Role.HEAD_KERNEL

    @property
    def is_statistic(self) -> bool:
        """Whether it is a running statistic of a batch normalization, which is no parameter."""
        return self in _STATISTICS


_STATISTICS = {
    Role.NORM_MEAN,
    Role.NORM_VARIANCE,
    Role.FINAL_NORM_MEAN,
    Role.FINAL_NORM_VARIANCE,
}
_KERNELS = {Role.STEM_KERNEL, Role.KERNEL, Role.PROJECTION, Role.HEAD_KERNEL}


@dataclass(frozen=True)
class Slot:
    """One tensor's position in the network, independent of its name in any file.

    Attributes:
        role: The tensor's function.
        block: 1 to 4 for tensors of a unit, else 0.
        unit: 1 and up for tensors of a unit, else 0.
        branch: ``a``, ``b`` or ``c`` for tensors of a unit's branch, else empty.
    """

    role: Role
    block: int = 0
    unit: int = 0
    branch: str = ""


@dataclass(frozen=True)
class Architecture:
    """Depths and width of a BiT network, and how it normalizes.

    Attributes:
        depths: Units per block, for each of the four blocks at least 1.
        width: Width factor: the stem has ``64 * width`` channels, a multiple of 32.
        in_chans: Input channels; 3 in every released file.
        norm: ``group`` as in every released file, or ``batch``.
        weight_standardization: Whether all kernels but the head's are standardized, as in every
            released file.
    """

    depths: tuple[int, int, int, int]
    width: float = 1.0
    in_chans: int = 3
    norm: Norm = "group"
    weight_standardization: bool = True

    def __post_init__(self) -> None:
        depths = tuple(self.depths)
        if len(depths) != NUM_BLOCKS or not all(
            isinstance(d, int) and 1 <= d <= MAX_UNITS for d in depths
        ):
            raise ArchitectureError(
                f"`depths` must be four whole numbers from 1 to {MAX_UNITS}, found {self.depths!r}."
            )
        channels = STEM_CHANNELS * self.width
        if not (0 < channels <= MAX_CHANNELS) or channels % GROUPS:
            raise ArchitectureError(
                f"`width` must give a multiple of {GROUPS} stem channels, found "
                f"{self.width!r}, which gives {channels:g}. Use a positive multiple of "
                f"{GROUPS / STEM_CHANNELS:g}."
            )
        if self.in_chans < 1:
            raise ArchitectureError(f"`in_chans` must be at least 1, found {self.in_chans!r}.")
        if self.norm not in get_args(Norm):
            raise ArchitectureError(
                f"`norm` must be one of {', '.join(get_args(Norm))}, found {self.norm!r}."
            )
        if not isinstance(self.weight_standardization, bool):
            raise ArchitectureError(
                "`weight_standardization` must be True or False, found "
                f"{self.weight_standardization!r}."
            )
        object.__setattr__(self, "depths", depths)

    @classmethod
    def parse(cls, name: str, in_chans: int = 3) -> Architecture:
        """Return the architecture of a name: ``R50x1``, or ``R(2,1,1,1)x0.5`` for any depths.

        ``-BN`` after it stands for batch normalization, ``-noWS`` for kernels that are not
        standardized: ``R50x1-BN``, ``R50x1-noWS``, ``R50x1-BN-noWS``.

        Raises:
            ArchitectureError: If the name is of another form, or no network can be built from it.
        """
        match = _NAME.fullmatch(name)
        depths = DEPTHS.get(match[1]) if match else None
        if match and match[2]:
            depths = tuple(int(depth) for depth in match[2].split(","))  # type: ignore[assignment]
        if match is None or depths is None:
            raise ArchitectureError(
                f"{name!r} names no architecture; expected {', '.join(DEPTHS)} with a width, as in "
                "R50x1, or four depths, as in R(2,1,1,1)x0.5; then -BN for batch normalization and "
                "-noWS for no weight standardization, as in R50x1-BN-noWS."
            )
        norm: Norm = "batch" if match[4] else "group"
        return cls(depths, float(match[3]), in_chans, norm, match[5] is None)

    @property
    def name(self) -> str:
        """``R50x1`` for the published depths, ``R(2,1,1,1)x0.5`` for any others; see `parse`."""
        known = _NAME_OF_DEPTHS.get(self.depths)
        depth = known or f"R({','.join(map(str, self.depths))})"
        norm = "-BN" if self.norm == "batch" else ""
        kernels = "" if self.weight_standardization else "-noWS"
        return f"{depth}x{self.width:g}{norm}{kernels}"

    @property
    def stem_channels(self) -> int:
        """Output channels of the 7x7 stem convolution."""
        return round(STEM_CHANNELS * self.width)

    @property
    def num_features(self) -> int:
        """Output channels of the last block, which are the inputs of the head."""
        return self.block_channels(NUM_BLOCKS)

    def bottleneck_channels(self, block: int) -> int:
        """Return the channels inside the units of `block` (1 to 4)."""
        return self.stem_channels << (block - 1)

    def block_channels(self, block: int) -> int:
        """Return the output channels of `block` (1 to 4), or of the stem for 0."""
        return EXPANSION * self.bottleneck_channels(block) if block else self.stem_channels

    def shapes(self, num_classes: int) -> dict[Slot, tuple[int, ...]]:
        """Return the shapes of the network's tensors, in the order of the forward pass.

        Args:
            num_classes: Outputs of the head; 0 leaves the head out.

        Returns:
            Slot to shape; kernels in OIHW order (out, in, height, width), vectors as (channels,).
        """
        return dict(self._shapes(num_classes))

    def num_params(self, num_classes: int) -> int:
        """Return the number of parameters with a head of `num_classes` outputs.

        Running statistics of batch normalization are none.
        """
        return _headless_params(self) + num_classes * (self.num_features + 1)

    def _shapes(self, num_classes: int) -> Iterator[tuple[Slot, tuple[int, ...]]]:
        yield Slot(Role.STEM_KERNEL), (self.stem_channels, self.in_chans, 7, 7)
        for block, depth in enumerate(self.depths, start=1):
            for unit in range(1, depth + 1):
                yield from self._unit_shapes(block, unit)
        features = self.num_features
        yield Slot(Role.FINAL_NORM_SCALE), (features,)
        yield Slot(Role.FINAL_NORM_SHIFT), (features,)
        if self.norm == "batch":
            yield Slot(Role.FINAL_NORM_MEAN), (features,)
            yield Slot(Role.FINAL_NORM_VARIANCE), (features,)
        if num_classes:
            yield Slot(Role.HEAD_KERNEL), (num_classes, features, 1, 1)
            yield Slot(Role.HEAD_BIAS), (num_classes,)

    def _unit_shapes(self, block: int, unit: int) -> Iterator[tuple[Slot, tuple[int, ...]]]:
        mid, out = self.bottleneck_channels(block), self.block_channels(block)
        inputs = self.block_channels(block - 1) if unit == 1 else out
        kernels = {"a": (mid, inputs, 1, 1), "b": (mid, mid, 3, 3), "c": (out, mid, 1, 1)}
        for branch, kernel in kernels.items():
            channels = kernel[1]  # normalization precedes the convolution
            yield Slot(Role.NORM_SCALE, block, unit, branch), (channels,)
            yield Slot(Role.NORM_SHIFT, block, unit, branch), (channels,)
            if self.norm == "batch":
                yield Slot(Role.NORM_MEAN, block, unit, branch), (channels,)
                yield Slot(Role.NORM_VARIANCE, block, unit, branch), (channels,)
            yield Slot(Role.KERNEL, block, unit, branch), kernel
            if branch == "a" and unit == 1:
                yield Slot(Role.PROJECTION, block, unit, branch), (out, inputs, 1, 1)


@cache
def _headless_params(architecture: Architecture) -> int:
    shapes = architecture.shapes(0)
    return sum(math.prod(shape) for slot, shape in shapes.items() if not slot.role.is_statistic)


DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "R50": (3, 4, 6, 3),
    "R101": (3, 4, 23, 3),
    "R152": (3, 8, 36, 3),
}
"""Units per block of the published depths (arXiv 1912.11370, section 3.2)."""

_NAME = re.compile(
    r"(R\d{1,4}|R\((\d{1,3}(?:,\d{1,3}){3})\))x(\d{1,4}(?:\.\d{1,4})?)(-BN)?(-noWS)?", re.ASCII
)

_NAME_OF_DEPTHS = {depths: name for name, depths in DEPTHS.items()}

ARCHITECTURES: dict[str, Architecture] = {
    f"{depth}x{width}": Architecture(DEPTHS[depth], width)
    for depth, width in [("R50", 1), ("R50", 3), ("R101", 1), ("R101", 3), ("R152", 2), ("R152", 4)]
}
"""The six published architectures by the names that the released files use."""
