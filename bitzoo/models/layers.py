"""The layers of a BiT network, from the standardized convolution to the bottleneck unit.

Numbers and structure follow Google's release (google-research/big_transfer,
bit_pytorch/models.py); module names are timm's. The paper's ablation of normalization replaces
`GroupNormReLU` by `bitzoo.models.batch_norm.BatchNormReLU`, and `StdConv2d` by `PlainConv2d`.

`torch.fx` traces the layers and `torch.jit.script` compiles them. What depends on shapes or dtypes
is therefore a function that a tracer records as one step (`torch.fx.wrap`), and `raise` with a
message stands where a script does not compile it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitzoo.errors import ArchitectureError, LayoutError
from bitzoo.models.architecture import GROUPS
from bitzoo.models.image_input import require_images

REFERENCE_EPS = 1e-10
"""Added to a kernel's variance in the release; timm and transformers add 1e-8."""

_RGB = 3


torch.fx.wrap("require_images")


@torch.fx.wrap
def standardize_kernel(weight: Tensor, eps: float = REFERENCE_EPS) -> Tensor:
    """Give each output filter zero mean and unit variance.

    The variance is the biased estimate over (in, height, width). Half-precision kernels are
    computed in float32, whatever autocast says. Changing eps shifts the logits of released weights.

    Args:
        weight: Kernel in OIHW order, shape (out, in, height, width).
        eps: Added to the variance, not to the standard deviation.

    Returns:
        The standardized kernel; same shape, dtype and memory format, input untouched.

    Raises:
        LayoutError: If `weight` is not 4-D.

    Source: arXiv 1903.10520; eps from google-research/big_transfer, bit_pytorch/models.py.
    """
    if not torch.jit.is_scripting():
        _require_4d(weight, "standardize")
    kernel = weight if weight.dtype == torch.float64 else weight.float()
    # Layer normalization without scale and shift computes exactly this formula in one pass, several
    # times faster than separate mean, variance and division. The order of a filter's elements does
    # not matter, so a channels_last kernel is normalized without a copy.
    if kernel.is_contiguous():
        kernel = F.layer_norm(kernel, kernel.shape[1:], eps=eps)
    else:
        kernel = kernel.permute(0, 2, 3, 1)
        kernel = F.layer_norm(kernel, kernel.shape[1:], eps=eps).permute(0, 3, 1, 2)
    return kernel.to(weight.dtype)


class PlainConv2d(nn.Conv2d):
    """A convolution without bias that keeps height and width, but for its stride."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        # Keeps height and width, except for the stride: 3 for the 7x7 stem, dilation for a 3x3.
        padding = dilation * (size - 1) // 2
        super().__init__(inputs, outputs, size, stride, padding, dilation, bias=False)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw a He-normal kernel by fan-in; standardization makes its scale irrelevant."""
        if not self.weight.is_meta:  # drawing nothing would still cost seconds of torch imports
            nn.init.kaiming_normal_(self.weight, nonlinearity="relu", generator=generator)

    def kernel(self) -> Tensor:
        """Return the kernel that `forward` convolves with."""
        return self.weight

    def folded(self, scale: Tensor | None = None, shift: Tensor | None = None) -> nn.Conv2d:
        """Return the same function as a plain convolution whose kernel is computed once.

        Args:
            scale: Factor of each output channel, float64; None for 1.
            shift: What is added to each output channel, float64; None leaves the bias out.
        """
        # In the kernel's own dtype: computing in float64 did not change the logits' error
        # measurably (R50x1, relative L2 8.8e-6 against 9.1e-6), and this way folding changes no
        # bit.
        kernel = self.kernel().detach()
        if scale is not None:
            kernel = (kernel.double() * scale[:, None, None, None]).to(kernel.dtype)
        with torch.device("meta"):  # draws no random kernel, which would be replaced at once
            plain = nn.Conv2d(
                self.in_channels,
                self.out_channels,
                self.kernel_size[0],
                self.stride[0],
                self.padding[0],
                self.dilation[0],
                bias=shift is not None,
            )
        plain.weight = nn.Parameter(kernel, requires_grad=False)
        if shift is not None:
            plain.bias = nn.Parameter(shift.to(kernel.dtype), requires_grad=False)
        return plain


class StdConv2d(PlainConv2d):
    """A convolution without bias whose kernel is standardized each time it is used."""

    def kernel(self) -> Tensor:
        """Return the standardized kernel."""
        return standardize_kernel(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (batch, in, height, width) with the standardized kernel."""
        y: Tensor = self._conv_forward(x, standardize_kernel(self.weight), None)
        return y


class GroupNormReLU(nn.GroupNorm):
    """Group normalization (32 groups, eps 1e-5), then ReLU; precedes each convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify `x` (batch, channels, height, width)."""
        return self.rectified(x, self.weight, self.bias)

    def rectified(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the same with the given scale and shift instead of the layer's own."""
        return F.relu_(self.normalize(x, weight, bias))

    def normalize(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize `x` with the given scale and shift, without rectifying it."""
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class Stem(nn.Module):
    """7x7 convolution with stride 2, then a 3x3 max-pool with stride 2.

    Attributes:
        border: What the map is padded with before the pool.
    """

    def __init__(self, inputs: int, outputs: int, conv: type[PlainConv2d] = StdConv2d) -> None:
        super().__init__()
        self.conv: nn.Conv2d = conv(inputs, outputs, 7, stride=2)
        self.border = 0.0

    def convolve(self, x: Tensor) -> Tensor:
        """Map images to stride 2, the network's first intermediate.

        Raises:
            LayoutError: If `x` is not (batch, channels, height, width) with the right channels,
                and of the kernels' dtype.
        """
        require_images(x, self.conv.in_channels, self.conv.weight.dtype)
        y: Tensor = self.conv(x)
        return y

    def pool(self, x: Tensor) -> Tensor:
        """Pool the map from stride 2 to stride 4."""
        # The release pads with zeros *before* the pool, and there is no ReLU before that: where a
        # border window has only negative values, the zero wins. A pool's own padding is -inf.
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=self.border), kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, in, height, width) to stride 4."""
        return self.pool(self.convolve(x))


class Unit(nn.Module):
    """One pre-activation bottleneck: 1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(
        self,
        inputs: int,
        mid: int,
        outputs: int,
        *,
        stride: int,
        dilation: int,
        project: bool,
        norm: Callable[[int], Any] = GroupNormReLU,
        conv: type[PlainConv2d] = StdConv2d,
    ) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = conv(inputs, mid, 1)
        self.norm2 = norm(mid)
        # The release has the stride here; the authors of arXiv 1603.05027 have it on the first 1x1.
        self.conv2 = conv(mid, mid, 3, stride=stride, dilation=dilation)
        self.norm3 = norm(mid)
        self.conv3 = conv(mid, outputs, 1)
        projection = conv(inputs, outputs, 1, stride=stride) if project else None
        self.downsample = nn.Sequential(OrderedDict(conv=projection)) if projection else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in, height, width) to (batch, out, height/stride, width/stride)."""
        y: Tensor = self.norm1(x)
        # A projected shortcut starts from the normalized input, a plain one from the input itself.
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.norm2(y))
        y = self.conv3(self.norm3(y))
        return y + shortcut


class ZeroConv2d(nn.Conv2d):
    """A 1x1 convolution that starts at zero, as new heads do (arXiv 1912.11370, section 3.3)."""

    def __init__(self, inputs: int, outputs: int, **factory: Any) -> None:
        super().__init__(inputs, outputs, 1, **factory)

    def reset_parameters(self) -> None:
        """Set kernel and bias to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in, height, width) to (batch, out, height, width)."""
        return pixelwise(x, self.weight, self.bias)


@torch.fx.wrap
def pixelwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve `x` (batch, in, height, width) with a 1x1 kernel (out, in, 1, 1)."""
    if x.shape[2] != 1 or x.shape[3] != 1:
        return F.conv2d(x, weight, bias)
    # oneDNN's convolution would take four times as long for 8 pooled maps and 21,843 classes.
    y = F.linear(x.flatten(1), weight.flatten(1), bias)
    return y[:, :, None, None]


class Head(nn.Module):
    """Global average pool, then a 1x1 convolution with bias if there are classes."""

    def __init__(self, features: int, num_classes: int, **factory: Any) -> None:
        super().__init__()
        if num_classes < 0:
            raise ArchitectureError(
                f"`num_classes` must be 0 (no head) or more, found {num_classes!r}."
            )
        self.fc = ZeroConv2d(features, num_classes, **factory) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (batch, features, height, width) to (batch, classes or features)."""
        x = x.mean((2, 3), keepdim=True)
        x = x if pre_logits else self.fc(x)
        return x.flatten(1)


def adapt_stem_kernel(weight_oihw: Tensor, in_chans: int) -> Tensor:
    """Adapt the stem kernel of RGB weights to another number of input channels.

    One channel gets the sum over RGB; more get RGB repeated and cut, times 3 / in_chans, as in
    timm. Without standardization, an image with equal channels would then give the same result as
    in RGB. Standardization rescales each filter, so:

    - 6, 9, ... channels: all filters are rescaled by the same factor, which the next normalization
      cancels. The network computes the same as on RGB (up to that normalization's eps).
    - 1 channel: each filter's map on gray images is multiplied by a factor of its own: 1/3 for a
      filter with equal colors, larger the more they differ (23 was observed). Pooled features of
      random R50x1 networks moved by 6 to 36 %. The weights are a starting point for training; to
      use them as they are, repeat gray images to three channels.
    - Other counts: the mean of filters changes too. Also only a starting point for training.

    Args:
        weight_oihw: Kernel, shape (out, 3, height, width).
        in_chans: Channels of the images; 3 returns the kernel unchanged.

    Returns:
        Shape (out, in_chans, height, width), same dtype.

    Raises:
        LayoutError: If the kernel has another shape.
        ArchitectureError: If `in_chans` is below 1.
    """
    _require_4d(weight_oihw, "adapt")
    if weight_oihw.shape[1] != _RGB:
        raise LayoutError(
            f"Only a stem kernel with {_RGB} input channels can be adapted, found shape "
            f"{tuple(weight_oihw.shape)}. Start from weights for RGB."
        )
    if in_chans < 1:
        raise ArchitectureError(f"`in_chans` must be at least 1, found {in_chans!r}.")
    if in_chans == _RGB:
        return weight_oihw
    if in_chans == 1:
        return weight_oihw.sum(1, keepdim=True)
    repeats = -(-in_chans // _RGB)
    return weight_oihw.repeat(1, repeats, 1, 1)[:, :in_chans] * (_RGB / in_chans)


def _require_4d(weight: Tensor, action: str) -> None:
    if weight.ndim != 4:
        raise LayoutError(
            f"A kernel to {action} must have 4 dimensions (out, in, height, width), found shape "
            f"{tuple(weight.shape)}. Reshape a matrix to (out, in, 1, 1)."
        )
