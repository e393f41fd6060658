"""The BiT network in torch: a ResNet-v2 with group normalization and weight standardization.

The paper's ablation is there too: batch normalization, and kernels as they are, in any combination.

arXiv 1912.11370 (Big Transfer), section 3.2, based on arXiv 1603.05027 (pre-activation ResNet),
1803.08494 (group normalization) and 1903.10520 (weight standardization). Numbers follow Google's
release (google-research/big_transfer, bit_pytorch/models.py); parameter names are timm's, so one
weight file works in both libraries. `bitzoo.models.layers` has the layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bitzoo.errors import ArchitectureError, FoldedModelError, UsageError
from bitzoo.models.architecture import NUM_BLOCKS, Architecture
from bitzoo.models.batch_norm import AffineReLU, BatchNormReLU, recomputation_of
from bitzoo.models.layers import (
    REFERENCE_EPS,
    GroupNormReLU,
    Head,
    PlainConv2d,
    StdConv2d,
    Stem,
    Unit,
    ZeroConv2d,
    adapt_stem_kernel,
    standardize_kernel,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "REFERENCE_EPS",
    "Backbone",
    "BiT",
    "FeatureExtractor",
    "FeatureInfo",
    "StdConv2d",
    "adapt_stem_kernel",
    "fold",
    "standardize_kernel",
]

OUTPUT_STRIDES = (8, 16, 32)

NORMS: dict[str, type[GroupNormReLU | BatchNormReLU]] = {
    "group": GroupNormReLU,
    "batch": BatchNormReLU,
}
"""The layer of each `Architecture.norm`."""


class Stage(nn.Module):
    """The units of one block; the first changes stride and channels."""

    def __init__(self, units: Iterable[Unit]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(units)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Pass `x` through the units, storing only their inputs with `grad_checkpointing`."""
        for unit in self.blocks:
            if not torch.jit.is_scripting() and self.grad_checkpointing and self.training:
                x = _recompute(unit, x)
            else:
                x = unit(x)
        return x


def _recompute(unit: nn.Module, x: Tensor) -> Tensor:
    how = recomputation_of(unit)
    is_plain = how and torch.compiler.is_compiling()  # that cannot recompute changes of statistics
    y: Tensor = unit(x) if is_plain else checkpoint(unit, x, use_reentrant=False, **how)
    return y


class FeatureInfo(list[dict[str, Any]]):
    """Describes each feature map: `num_chs`, `reduction` (stride) and `module`, as in timm."""

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """Return the stride of each map."""
        return [info["reduction"] for info in self]


class Backbone(nn.Module):
    """Stem and blocks, which classifier and feature extractor have in common.

    Args:
        architecture: Depths, width, input channels, and how to normalize.
        output_stride: 8, 16 or 32. Below 32, later blocks keep the resolution and dilate their 3x3
            convolutions instead, with the same weights (arXiv 1706.05587).
        num_blocks: How many of the four blocks to build.

    Raises:
        ArchitectureError: If `output_stride` is another number.
    """

    __jit_unused_properties__ = ("folded", "num_classes")  # not compiled by torch.jit.script
    __jit_ignored_attributes__ = ("info",)

    info: Any = None
    """What is known of the model, a `bitzoo.catalogue.model_info.ModelInfo`, if `create_model` made
    it; nothing in this file reads it."""

    def __init__(
        self, architecture: Architecture, output_stride: int = 32, num_blocks: int = NUM_BLOCKS
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise ArchitectureError(
                f"`output_stride` must be one of {OUTPUT_STRIDES}, found {output_stride!r}."
            )
        self.architecture = architecture
        self.output_stride = output_stride
        self._norm = NORMS[architecture.norm]
        self._conv = StdConv2d if architecture.weight_standardization else PlainConv2d
        self.stem = Stem(architecture.in_chans, architecture.stem_channels, self._conv)
        self.stages = nn.ModuleList()
        self.feature_info = FeatureInfo()
        self._describe_map("stem.conv", reduction=2)
        reduction, dilation = 4, 1
        for block in range(1, num_blocks + 1):
            stride, first_dilation = (1 if block == 1 else 2), dilation
            if reduction * stride > output_stride:
                stride, dilation = 1, dilation * stride
            self.stages.append(Stage(self._units(block, stride, first_dilation, dilation)))
            reduction *= stride
            self._describe_map(f"stages.{block - 1}", reduction)

    def _units(self, block: int, stride: int, first_dilation: int, dilation: int) -> Iterator[Unit]:
        channels = self.architecture.block_channels
        mid, out = self.architecture.bottleneck_channels(block), channels(block)
        yield Unit(
            channels(block - 1),
            mid,
            out,
            stride=stride,
            dilation=first_dilation,
            project=True,
            norm=self._norm,
            conv=self._conv,
        )
        for _ in range(1, self.architecture.depths[block - 1]):
            yield Unit(
                out,
                mid,
                out,
                stride=1,
                dilation=dilation,
                project=False,
                norm=self._norm,
                conv=self._conv,
            )

    def _describe_map(self, module: str, reduction: int) -> None:
        channels = self.architecture.block_channels(len(self.feature_info))
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": module})

    def forward_intermediates(
        self, x: Tensor, indices: Iterable[int] | None = None
    ) -> list[Tensor]:
        """Return intermediate feature maps, before any final normalization.

        Args:
            x: Images, shape (batch, channels, height, width), RGB scaled to [-1, 1].
            indices: 0 for the stem's convolution at stride 2 (before its pool, as in timm), 1 to 4
                for the outputs of the blocks; negative numbers count from the end; None for all.

        Returns:
            The maps in the order of `indices`. Blocks after the last requested one do not run.

        Raises:
            UsageError: If an index is out of range or there is none.
            LayoutError: If `x` has the wrong dimensions, channels or dtype.
        """
        return self._maps(x, _resolve_indices(indices, len(self.stages) + 1))

    def _maps(self, x: Tensor, wanted: list[int]) -> list[Tensor]:
        x = self.stem.convolve(x)
        maps = {0: x}
        last = max(wanted)
        if last > 0:
            x = self.stem.pool(x)
        for index, stage in enumerate(self.stages, start=1):
            if index <= last:
                x = stage(x)
            if index in wanted:
                maps[index] = x
        return [maps[index] for index in wanted]

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialize all parameters: He-normal kernels, norm scales 1 and shifts 0, head 0.

        Running statistics of batch normalizations start at mean 0 and variance 1.

        For a model with uninitialized storage, as after `to_empty`.

        Args:
            generator: Random generator for the kernels, on the parameters' device; torch's default
                if None.

        Raises:
            FoldedModelError: If the kernels are folded.
        """
        self._refuse_if_folded("cannot draw new kernels")
        for module in self.modules():
            if isinstance(module, PlainConv2d):
                module.reset_parameters(generator)
            elif isinstance(module, (GroupNormReLU, BatchNormReLU, ZeroConv2d)):
                module.reset_parameters()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute units during backward instead of storing activations; only in training."""
        for stage in self.stages.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    @property
    def folded(self) -> bool:
        """Whether `fold` has made the kernels constants; such a model is for inference only."""
        return not isinstance(self.stem.conv, PlainConv2d)

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or back to evaluation mode.

        Raises:
            FoldedModelError: If the model is folded: training would not keep it what it is.
        """
        if mode:
            self._refuse_if_folded("cannot train")
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load parameters by timm's names; see `nn.Module.load_state_dict` for the details.

        Raises:
            FoldedModelError: If the model is folded: it has other tensors than the original.
        """
        self._refuse_if_folded("cannot load weights")
        return super().load_state_dict(state_dict, strict, assign)

    def _refuse_if_folded(self, what: str) -> None:
        if self.folded:
            raise FoldedModelError(
                f"A folded model {what}: its kernels were computed once and are constants. "
                "Use the original model (fold leaves it unchanged) and fold it again afterwards."
            )


class BiT(Backbone):
    """A BiT classifier, or with `num_classes=0` an encoder that returns pooled features.

    Args:
        architecture: Depths, width and input channels.
        num_classes: Outputs of the head, which starts at zero; 0 leaves the head out.
        output_stride: 8, 16 or 32; see `Backbone`.

    Raises:
        ArchitectureError: If a number is out of range.
    """

    def __init__(
        self, architecture: Architecture, num_classes: int = 0, *, output_stride: int = 32
    ) -> None:
        super().__init__(architecture, output_stride)
        self.num_features = architecture.num_features
        self.norm = self._norm(self.num_features)
        self.head = Head(self.num_features, num_classes)

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 without one."""
        fc = self.head.fc
        return fc.out_channels if isinstance(fc, nn.Conv2d) else 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images, or pooled features if there is no head.

        Args:
            x: Images, shape (batch, channels, height, width), RGB scaled to [-1, 1], in the
                parameters' dtype (under autocast also in others). The scale is not checked.

        Returns:
            Shape (batch, num_classes), or (batch, num_features) without a head.

        Raises:
            LayoutError: If `x` has the wrong dimensions, channels or dtype.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, normalized and rectified: (batch, num_features, h/32, w/32)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        y: Tensor = self.norm(x)
        return y

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the output of `forward_features` to logits, or with `pre_logits` to its pool."""
        logits: Tensor = self.head(x, pre_logits)
        return logits

    def get_classifier(self) -> nn.Module:
        """Return the last layer: a 1x1 convolution, or `nn.Identity` without a head."""
        return self.head.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head with a zero head of `num_classes` outputs; 0 removes the head.

        Raises:
            ArchitectureError: If `num_classes` is negative.
        """
        like = self.norm.weight
        head = Head(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        self.head = head.train(self.training)


class FeatureExtractor(Backbone):
    """Feature maps for dense tasks; contains only the layers that the maps need.

    Its parameters keep their names, so a classifier's weights load with `strict=False`.

    Args:
        architecture: Depths, width and input channels.
        out_indices: Which maps to return, in order; see `Backbone.forward_intermediates`.
        output_stride: 8, 16 or 32; see `Backbone`.

    Attributes:
        feature_info: The maps' channels and strides, in the order of `forward`.

    Raises:
        UsageError: If an index is out of range or there is none.
        ArchitectureError: If `output_stride` is another number.
    """

    def __init__(
        self,
        architecture: Architecture,
        out_indices: Iterable[int] = range(NUM_BLOCKS + 1),
        *,
        output_stride: int = 32,
    ) -> None:
        indices = _resolve_indices(out_indices, NUM_BLOCKS + 1)
        super().__init__(architecture, output_stride, num_blocks=max(indices))
        self.out_indices = tuple(indices)
        self._wanted = indices  # a list, which a script can search
        self.feature_info = FeatureInfo(self.feature_info[i] for i in indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of images (batch, channels, height, width), ordered as `out_indices`."""
        return self._maps(x, self._wanted)


def _resolve_indices(indices: Iterable[int] | None, count: int) -> list[int]:
    wanted = tuple(range(count) if indices is None else indices)
    if not wanted or not all(-count <= index < count for index in wanted):
        raise UsageError(
            f"Feature indices must be from 0 to {count - 1}, or from {-count} to -1 to count from "
            f"the end, and at least one is needed; found {wanted!r}."
        )
    return [index % count for index in wanted]


AnyBackbone = TypeVar("AnyBackbone", bound=Backbone)


def fold(model: AnyBackbone) -> AnyBackbone:
    """Compute once what inference would compute again for each image.

    - Standardized kernels become constants.
    - A batch normalization that directly follows a convolution (the second and third of a unit)
      becomes part of it, which gives the convolution a bias. ReLU stands between a normalization
      and the convolution after it, so it cannot become part of that one. The first of a unit, whose
      input the shortcut takes too, and the last of the network become one scale and one shift.
    - Group normalization depends on the image and stays.

    Without batch normalization, no bit of a result changes; with it, results change by rounding
    (scales and shifts are computed in float64). What is not new is shared with `model`, which is
    unchanged. Fold again after changing `model`.

    Args:
        model: A classifier or feature extractor; an already folded one is returned as it is.

    Returns:
        A model that computes the same function, in evaluation mode and without gradients. Its
        `train` and `load_state_dict` raise FoldedModelError.
    """
    if model.folded:
        return model
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    folded = copy.deepcopy(model, memo=shared)  # copies the modules; parameters are in the memo
    with torch.no_grad():
        for module in list(folded.modules()):
            if isinstance(module, Unit):
                _join(module, "conv1", "norm2")
                _join(module, "conv2", "norm3")
        for parent in list(folded.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, PlainConv2d):
                    setattr(parent, name, child.folded())
                elif isinstance(child, BatchNormReLU):
                    scale, shift = (vector.to(child.weight.dtype) for vector in child.affine())
                    setattr(parent, name, AffineReLU(scale, shift))
    return folded.eval()


def _join(unit: Unit, convolution: str, follower: str) -> None:
    """Make a batch normalization part of the convolution before it; of both, only ReLU remains."""
    conv, norm = getattr(unit, convolution), getattr(unit, follower)
    if isinstance(norm, BatchNormReLU):
        setattr(unit, convolution, conv.folded(*norm.affine()))
        setattr(unit, follower, nn.ReLU(inplace=True))
