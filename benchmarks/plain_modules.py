"""The modules of Google's released PyTorch code, as a baseline for bitzoo's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitzoo.models.layers import GroupNormReLU, StdConv2d


class PlainStdConv2d(StdConv2d):
    """Weight standardization as in the released code: mean, variance, division."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the standardized kernel."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        kernel = (self.weight - mean) / torch.sqrt(variance + 1e-10)
        return F.conv2d(x, kernel, None, self.stride, self.padding, self.dilation)


class PlainNorm(GroupNormReLU):
    """nn.GroupNorm, then a ReLU that is not in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify."""
        return F.relu(nn.GroupNorm.forward(self, x))


def use_plain_modules(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, StdConv2d):
            module.__class__ = PlainStdConv2d
        elif isinstance(module, GroupNormReLU):
            module.__class__ = PlainNorm
