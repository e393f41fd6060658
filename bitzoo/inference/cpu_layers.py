"""Layers that a CPU runs faster than torch's plain ones, for inference.

Called plainly, oneDNN reorders a kernel each time it is used; of R50x1 at batch 1 that is a fifth
of the time in bfloat16. `PackedConv2d` uses the operators that `torch.compile` uses when it freezes
a graph; a torch without them runs the plain convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitzoo.layers import GroupNormReLU

_FLOATS = (torch.float32, torch.bfloat16)
_SMALL_MAP = 1024
"""Pixels below which torch normalizes group by group, not pixel by pixel; feature_map_threshold in
aten/src/ATen/native/cpu/group_norm_kernel.cpp."""
_NARROW_GROUP = 16
"""Channels below which that was slower in bfloat16 than in float32 with both casts: at 28 px, 4
channels a group, 3.6 times slower."""


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch, on this processor, has such convolutions for `dtype`."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available() or dtype not in _FLOATS:
        return False
    operators = torch.ops.mkldnn
    needed = ("_reorder_convolution_weight", "_convolution_pointwise")
    if not all(hasattr(operators, name) for name in needed):
        return False
    return dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported())


def speed_up(network: nn.Module, dtype: torch.dtype) -> None:
    """Put the faster layers in place of plain ones, those that there are for `dtype`."""
    packs = can_pack(dtype)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if packs and isinstance(child, nn.Conv2d) and child.bias is None:
                setattr(parent, name, PackedConv2d(child))
            elif dtype != torch.float32 and isinstance(child, GroupNormReLU):
                setattr(parent, name, WideningGroupNormReLU(child))


class PackedConv2d(nn.Module):
    """The function of a convolution without bias, its kernel packed for the images at hand.

    The best order depends on the size of images and batch: in float32, R50x1 ran up to 2.7 times
    slower with the order of another batch size. So the kernel is packed anew when the size changes,
    which is what a plain convolution does at each call.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels = plain.in_channels
        self._window = (plain.padding, plain.stride, plain.dilation, plain.groups)
        self._packed: tuple[list[int], Tensor] = ([], plain.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (batch, in, height, width)."""
        operators, shape = torch.ops.mkldnn, list(x.shape)
        packed_for, kernel = self._packed
        if packed_for != shape:
            plain = kernel.to_dense() if packed_for else kernel
            kernel = operators._reorder_convolution_weight(plain, *self._window, shape)
            self._packed = shape, kernel
        y: Tensor = operators._convolution_pointwise(x, kernel, None, *self._window, "none", [], "")
        return y


class WideningGroupNormReLU(nn.Module):
    """The function of a `GroupNormReLU`; small maps of narrow groups pass through in float32."""

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
