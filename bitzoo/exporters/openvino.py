"""Export to OpenVINO IR, converted from the `torch.export` graph, and run it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bitzoo.exporters.exact_openvino import exact_network, mark_exact
from bitzoo.exporters.export_formats import NO_OPTIONS, Opened, import_extra
from bitzoo.exporters.graph import INPUT, Graph, trace
from bitzoo.models.bit import BiT
from bitzoo.models.layers import GroupNormReLU

SECTION = "bitzoo"
"""Section of the IR's `rt_info` that has the facts."""

_NARROW = {"bf16": "bfloat16", "f16": "float16"}
_ONLY_MOVES = frozenset({"Const", "Input", "Output", "Reorder", "Reshape"})
"""Layers that compute nothing; a map of zeros passes one of them in bfloat16, without loss."""


def export_openvino(
    model: BiT, path: Path, *, dtype: str = "float32", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network as OpenVINO IR: ``NAME.xml`` and, beside it, ``NAME.bin``.

    Input and output are those of `bitzoo.exporters.onnx.export_onnx`. Its operations are marked to
    be computed in float32, also where OpenVINO would choose bfloat16 or is asked for it.

    Args:
        model: The network, folded or not; it is unchanged.
        path: The ``.xml`` to write; an existing one is replaced.
        dtype: Dtype that kernels are stored in.
        metadata: Text for the IR's `rt_info`, under ``bitzoo``.

    Raises:
        MissingExtraError: If openvino is not installed.
    """
    openvino = import_extra("openvino", "openvino")
    network = exact_network(model, dtype)
    for key, value in (metadata or {}).items():
        network.set_rt_info(value, [SECTION, key])
    openvino.save_model(network, os.fspath(path), compress_to_fp16=False)
    mark_exact(path)


def openvino_network(model: BiT, *, own_norms: bool = False) -> Any:
    """Return a network as an `openvino.Model` that computes in the precision that is asked for.

    Args:
        model: The network, folded or not; it is unchanged.
        own_norms: Whether to normalize groups by OpenVINO's own operation, where channel means are
            faster in floats.

    Raises:
        MissingExtraError: If openvino is not installed.
    """
    openvino = import_extra("openvino", "openvino")
    graph = Graph(model)
    for parent in list(graph.modules()):
        for name, child in list(parent.named_children()):
            # For groups of one channel, OpenVINO 2026.4 misinterprets the graph of the means.
            if own_norms or not isinstance(child, GroupNormReLU):
                continue
            if child.num_channels > child.num_groups:
                setattr(parent, name, _ChannelMeansNormReLU(child))
    network = openvino.convert_model(trace(graph))
    network.inputs[0].get_tensor().set_names({INPUT})
    network.outputs[0].get_tensor().set_names({graph.output})
    return network


class _ChannelMeansNormReLU(nn.Module):
    """A `GroupNormReLU` computed from channel means.

    OpenVINO stores a pixel's channels together and computes such means in place; for its own group
    normalization it reorders each map back and forth, a fifth of R50x1's time in bfloat16.
    """

    def __init__(self, plain: GroupNormReLU) -> None:
        super().__init__()
        self.groups, self.eps = plain.num_groups, plain.eps
        self.weight, self.bias = (
            nn.Parameter(parameter.detach().view(1, -1, 1, 1), requires_grad=False)
            for parameter in (plain.weight, plain.bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify `x` (batch, channels, height, width)."""
        x = x - self._of_groups(x.mean((2, 3), keepdim=True))
        variance = self._of_groups((x * x).mean((2, 3), keepdim=True))
        scale = self.weight / (variance + self.eps).sqrt()
        return F.relu(x * scale + self.bias)

    def _of_groups(self, means: Tensor) -> Tensor:
        """Give each channel its group's mean; channels of a group have equally many pixels."""
        batch, channels, *_ = means.shape
        groups = means.view(batch, self.groups, channels // self.groups, 1, 1)
        return groups.mean(2, keepdim=True).expand_as(groups).reshape(means.shape)


@cache
def openvino_core() -> Any:
    """Return the `openvino.Core` of this process, which lasts as long as the process.

    Each one gives the thread that creates it another stack for signal handlers (for the registers
    of AMX), and gives back the one before when it is removed. Two that are removed in the order in
    which they were created leave a stack that is gone, and the next Ctrl-C ends the process with a
    segmentation fault (OpenVINO 2026.4).

    Raises:
        MissingExtraError: If openvino is not installed.
    """
    return import_extra("openvino", "openvino").Core()


def load_openvino(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> Opened:
    """Open an IR with OpenVINO on the CPU.

    Args:
        path: The ``.xml``.
        options: Properties to compile with; by default OpenVINO chooses its precision.
    """
    openvino, core = import_extra("openvino", "openvino"), openvino_core()
    network = core.compile_model(os.fspath(path), "CPU", dict(options))

    def run(images: Any) -> Any:
        return network(images)[0].copy()

    return Opened(
        run,
        f"OpenVINO {openvino.__version__.partition('-')[0]}",
        core.get_property("CPU", "FULL_DEVICE_NAME"),
        _precision_of(network),
    )


def _precision_of(network: Any) -> str:
    """Return the narrowest float that a compiled network computes in.

    Its property says what was asked for, even where the file's marks keep another. Of a
    convolution, only the output tells: its own precision is what its kernel is stored in.
    """
    used = set()
    for operation in network.get_runtime_model().get_ops():
        layer = operation.get_rt_info()
        kind = layer["layerType"].astype(str)
        if kind not in _ONLY_MOVES:
            used.add(layer["outputPrecisions"].astype(str))
        if kind not in {*_ONLY_MOVES, "Convolution"}:
            used.add(layer["runtimePrecision"].astype(str))
    narrow = [name for short, name in _NARROW.items() if short in used]
    return narrow[0] if narrow else "float32"
