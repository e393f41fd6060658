"""Convolutions whose kernels lie in memory as oneDNN wants them, for inference on a CPU.

Called plainly, oneDNN reorders a kernel each time it is used; of R50x1 at batch 1 that is a fifth
of the time in bfloat16. These are the operators that `torch.compile` uses when it freezes a graph;
a torch without them runs the plain convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_FLOATS = (torch.float32, torch.bfloat16)


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


class PackedConv2d(nn.Module):
    """The function of a convolution without bias; its kernel is packed at the first call.

    The best order depends on the size of the images, so it is that of the first ones. Other sizes
    are computed too, reordered at each call where another order is better.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels = plain.in_channels
        self._window = (plain.padding, plain.stride, plain.dilation, plain.groups)
        self._plain: Tensor | None = plain.weight.detach()
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (batch, in, height, width)."""
        operators = torch.ops.mkldnn
        packed = self._packed
        if packed is None:
            packed = operators._reorder_convolution_weight(
                self._plain, *self._window, list(x.shape)
            )
            self._packed, self._plain = packed, None
        y: Tensor = operators._convolution_pointwise(x, packed, None, *self._window, "none", [], "")
        return y


def pack(network: nn.Module) -> None:
    """Put packed convolutions in place of all plain ones without bias."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.bias is None:
                setattr(parent, name, PackedConv2d(child))
