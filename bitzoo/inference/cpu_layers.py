"""Inference layers that run faster on a CPU than torch's plain ones.

In a plain call, oneDNN reorders the kernel each time it is used; for R50x1 at batch 1 that takes a
fifth of the time in bfloat16. `PackedConv2d` uses the operators that `torch.compile` uses when it
freezes a graph; a torch without them runs the plain convolutions. `WideningGroupNormReLU` is for
torch's own operators too; `PixelLinear` and `SumsGroupNormReLU` are for its compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitzoo.models.layers import GroupNormReLU

_FLOATS = (torch.float32, torch.bfloat16)
_SMALL_MAP = 1024
"""Number of pixels below which torch normalizes group by group, not pixel by pixel;
feature_map_threshold in aten/src/ATen/native/cpu/group_norm_kernel.cpp."""
_NARROW_GROUP = 16
"""Channels per group below which that was slower in bfloat16 than in float32 with both casts: at 28
px and 4 channels per group, 3.6 times slower."""


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has packed convolutions for `dtype` on this processor."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available() or dtype not in _FLOATS:
        return False
    operators = torch.ops.mkldnn
    needed = ("_reorder_convolution_weight", "_convolution_pointwise")
    if not all(hasattr(operators, name) for name in needed):
        return False
    return dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported())


def speed_up(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace plain layers with ones that run faster in eager mode, as available for `dtype`."""
    packs = can_pack(dtype)

    def faster(plain: nn.Module) -> nn.Module | None:
        if packs and type(plain) is nn.Conv2d:  # the head is of another class
            return PackedConv2d(plain)
        if dtype != torch.float32 and isinstance(plain, GroupNormReLU):
            return WideningGroupNormReLU(plain)
        return None

    _replace(network, faster)


def speed_up_compiled(network: nn.Module) -> None:
    """Replace plain layers with ones that `torch.compile` turns into faster code."""

    def faster(plain: nn.Module) -> nn.Module | None:
        if isinstance(plain, GroupNormReLU):
            return SumsGroupNormReLU(plain)
        if type(plain) is nn.Conv2d and plain.kernel_size == plain.stride == (1, 1):
            return PixelLinear(plain)
        return None

    _replace(network, faster)


def _replace(network: nn.Module, faster: Callable[[nn.Module], nn.Module | None]) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            other = faster(child)
            if other is not None:
                setattr(parent, name, other)


class PackedConv2d(nn.Module):
    """A convolution whose kernel is packed for the shape of the current images.

    The best order depends on image and batch size: in float32, R50x1 ran up to 2.7 times slower
    with the order for another batch size. So the kernel is repacked when the shape changes; a plain
    convolution does that at each call.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels = plain.in_channels
        self._window = (plain.padding, plain.stride, plain.dilation, plain.groups)
        self._packed: tuple[list[int], Tensor] = ([], plain.weight.detach())
        self.bias = plain.bias  # only where a batch normalization was folded into the kernel

    @property
    def weight(self) -> Tensor:
        """The kernel, in the order that it is packed in."""
        return self._packed[1]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (batch, in, height, width)."""
        operators, shape = torch.ops.mkldnn, list(x.shape)
        packed_for, kernel = self._packed
        if packed_for != shape:
            plain = kernel.to_dense() if packed_for else kernel
            kernel = operators._reorder_convolution_weight(plain, *self._window, shape)
            self._packed = shape, kernel
        y: Tensor = operators._convolution_pointwise(
            x, kernel, self.bias, *self._window, "none", [], ""
        )
        return y


class WideningGroupNormReLU(nn.Module):
    """A `GroupNormReLU` that computes small maps of narrow groups in float32."""

    def __init__(self, plain: GroupNormReLU) -> None:
        super().__init__()
        self.plain = plain
        self._is_narrow = plain.num_channels < _NARROW_GROUP * plain.num_groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify `x` (batch, channels, height, width)."""
        if self._is_narrow and x.shape[2] * x.shape[3] < _SMALL_MAP:
            normal = F.group_norm(
                x.float(),
                self.plain.num_groups,
                self.plain.weight,
                self.plain.bias,
                self.plain.eps,
            )
            return F.relu_(normal).to(x.dtype)
        y: Tensor = self.plain(x)
        return y


class PixelLinear(nn.Module):
    """A 1x1 convolution without stride, computed as a matrix product over the pixels.

    For R50x1 in bfloat16 on one image, oneDNN's product with a packed weight took 0.93 of the time
    of its convolution, and was nowhere slower.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(plain.weight.detach().flatten(1), requires_grad=False)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in, height, width) to (batch, out, height, width)."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class SumsGroupNormReLU(nn.Module):
    """A `GroupNormReLU` written in steps that `torch.compile` turns into good loops.

    With channels last, it compiles group normalization itself to a loop over the few channels of a
    group at each pixel, which took three times as long for R50x1 in bfloat16. Here whole rows of
    channels and their squares are summed, and the groups are computed from these sums.
    """

    def __init__(self, plain: GroupNormReLU) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify `x` (batch, channels, height, width)."""
        (count, channels, height, width), plain = x.shape, self.plain
        grouped = (plain.num_groups, channels // plain.num_groups)
        pixels = x.permute(0, 2, 3, 1).float()

        def group_mean(values: Tensor) -> Tensor:
            # Row by row of the image, which stays in the cache and splits rows among cores.
            sums = values.sum(2).sum(1).view(count, *grouped)
            return sums.sum(2, keepdim=True) / (grouped[1] * height * width)

        mean = group_mean(pixels)
        variance = (group_mean(pixels * pixels) - mean * mean).clamp_min(0)
        scale = (variance + plain.eps).rsqrt() * plain.weight.view(grouped)
        shift = plain.bias.view(grouped) - mean * scale
        # as_strided forces the tensors into memory; with a plain view, the compiler would recompute
        # scale and shift for every pixel.
        size, stride = (count, 1, 1, channels), (channels, channels, channels, 1)
        normal = pixels * scale.as_strided(size, stride) + shift.as_strided(size, stride)
        return F.relu(normal).to(x.dtype).permute(0, 3, 1, 2)
