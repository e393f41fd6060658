"""The graph to export: the folded network, written so that runtimes' optimizers keep it correct.

It differs from `bitzoo.models.bit` in one thing. The release pads the root's map with zeros and
then pools without padding. An optimizer may fuse such a pad into the pool, whose own padding is
-inf: ONNX Runtime 1.23 does (R50x1's logits move by 6e-3), 1.32 does not. So this graph
intentionally pools with -inf and takes the maximum with zero wherever a window reaches over the
border. That is the same function, bit for bit, with nothing to fuse.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.nn import functional as F
from torch.nn.utils import parametrize

from bitzoo.converters.dtypes import DTYPES
from bitzoo.errors import UsageError
from bitzoo.models.bit import BiT, fold

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MIN_SIDE = 32
"""Smallest image side that the files are declared, and tested, to take."""
INPUT = "images"
_TRACED = (2, 64)
"""Batch size and side of the images to trace with; any numbers but 0 and 1 keep the axes free."""


class Graph(nn.Module):
    """A classifier for tracing: images (batch, channels, height, width) in [-1, 1] -> logits.

    Args:
        model: The network, folded or not; it is unchanged.
        dtype: Dtype that kernels are stored in, one of `DTYPES`. Norms, biases and all computation
            stay in float32.

    Raises:
        UsageError: If `dtype` is not one of `DTYPES`.
    """

    def __init__(self, model: BiT, dtype: str = "float32") -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise UsageError(f"`dtype` must be one of {', '.join(DTYPES)}, found {dtype!r}.")
        folded = fold(model)
        self.in_chans = folded.architecture.in_chans
        self.output = "logits" if folded.num_classes else "features"
        parts = nn.ModuleList([folded.stem, folded.stages, folded.norm, folded.head])
        shared = {id(parameter): parameter for parameter in parts.parameters()}
        parts = copy.deepcopy(parts, memo=shared)  # new layers that share the model's parameters
        if dtype != "float32":
            _store_kernels(parts, getattr(torch, dtype))
        self.stem: Any
        self.stem, self.stages, self.norm, self.head = parts
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, or pooled features if the model has no head."""
        x = self.stem.convolve(images)
        if self.stem.border == 0:
            x = pool_over_zeros(x)
        else:  # -inf, a pool's own padding
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for stage in self.stages.children():
            x = stage(x)
        y: Tensor = self.head(self.norm(x))
        return y


def trace(graph: Graph) -> ExportedProgram:
    """Trace the graph with `torch.export`; batch, height and width are free.

    Height and width are at least `MIN_SIDE`.
    """
    batch, side = _TRACED
    images = torch.zeros(batch, graph.in_chans, side, side)
    # Else the tracer takes a last map of one pixel (images of 32 px) for another program.
    one_pixel: Any = _config
    with torch.no_grad(), one_pixel.patch(backed_size_oblivious=True):
        program = torch.export.export(graph, (images,), dynamic_shapes=(free_axes(),))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains paths of this machine
    return program


def free_axes() -> dict[int, torch.export.Dim]:
    """Return axis -> dimension for the axes of the input that are free."""
    sides = {2: "height", 3: "width"}
    return {0: torch.export.Dim("batch", min=1)} | {
        axis: torch.export.Dim(name, min=MIN_SIDE) for axis, name in sides.items()
    }


def pool_over_zeros(x: Tensor) -> Tensor:
    """Max-pool 3x3 windows at stride 2, including a border of zeros around `x` in the maximum.

    Equal to ``max_pool2d(pad(x, (1, 1, 1, 1)), 3, 2)`` bit for bit.

    Source: google-research/big_transfer, bit_pytorch/models.py, for the zeros.
    """
    pooled = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    rows = _zero_where_windows_leave(x.shape[2], pooled.shape[2], x)
    columns = _zero_where_windows_leave(x.shape[3], pooled.shape[3], x)
    return torch.maximum(torch.maximum(pooled, rows[:, None]), columns)


def _zero_where_windows_leave(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """Return 0 for windows that reach over the border of the inputs, -inf for the others."""
    index = torch.arange(outputs, device=like.device)
    leaves = (index == 0) | (2 * index + 1 >= inputs)
    return torch.where(leaves, 0.0, float("-inf")).to(like.dtype)


class _Widen(nn.Module):
    """Widens a kernel that is stored in fewer bits, when its layer reads it."""

    def forward(self, kernel: Tensor) -> Tensor:
        return kernel.float()


def _store_kernels(parts: nn.Module, dtype: torch.dtype) -> None:
    for layer in [module for module in parts.modules() if isinstance(module, nn.Conv2d)]:
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        parametrize.register_parametrization(layer, "weight", _Widen(), unsafe=True)
