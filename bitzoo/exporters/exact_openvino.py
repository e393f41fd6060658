"""An OpenVINO graph that is computed in float32 unless asked otherwise, on every processor.

Where a processor has bfloat16, OpenVINO computes in it by default, and R50x1's logits move by 5e-2.
Of an IR's options for its runtime it does not read the precision. What it obeys are marks on single
operations, which most of its rewriting drops: an operation that is replaced by another one loses
its mark (subtraction, division, roots, group normalization, broadcasts, a pool of a newer
operation set, and the matrix product of the head). So this graph says the same in operations that
stay as they are: convolutions, means, sums, products and powers.

Observed with OpenVINO 2026.4.1 on a processor with AMX, where the defaults give every bit of
float32. Version 2025.3 still computes the powers in bfloat16: outputs move by 8e-4 instead of 6e-3.
`load_openvino` reads off what is computed in, so that this is noticed and said.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitzoo.exporters.export_formats import import_extra
from bitzoo.exporters.graph import INPUT, Graph, trace
from bitzoo.models.bit import BiT
from bitzoo.models.layers import GroupNormReLU, Head

MARK = {"name": "precise", "version": "0"}
"""Attribute of an operation that keeps its precision; OpenVINO has read it since 2022."""
_UNMARKED = frozenset({"Const", "Parameter", "Result"})


def exact_network(model: BiT, dtype: str = "float32") -> Any:
    """Return a network as an `openvino.Model` whose operations keep their marks.

    Args:
        model: The network, folded or not; it is unchanged.
        dtype: Dtype that kernels are stored in.

    Raises:
        MissingExtraError: If openvino is not installed.
    """
    openvino = import_extra("openvino", "openvino")
    graph = Graph(model, dtype)
    for parent in list(graph.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GroupNormReLU):
                setattr(parent, name, _ConvolvedMeansNormReLU(child))
            elif isinstance(child, Head) and model.num_classes:
                setattr(parent, name, _ConvolutionHead(child))
    network = openvino.convert_model(trace(graph))
    network.inputs[0].get_tensor().set_names({INPUT})
    network.outputs[0].get_tensor().set_names({graph.output})
    _use_first_pool(network)
    return network


def mark_exact(path: Path) -> None:
    """Mark each operation of an IR to be computed in the precision that it is written in.

    Args:
        path: The ``.xml``, which changes.
    """
    tree = ET.parse(path)
    for layer in tree.iterfind("./layers/layer"):
        if layer.get("type") in _UNMARKED:
            continue
        attributes = layer.find("rt_info")
        if attributes is None:
            attributes = ET.Element("rt_info")
            layer.insert(1 if layer.find("data") is not None else 0, attributes)
        ET.SubElement(attributes, "attribute", MARK)
    tree.write(os.fspath(path), encoding="utf-8", xml_declaration=True)


class _ConvolvedMeansNormReLU(nn.Module):
    """A `GroupNormReLU` whose groups are formed by convolutions of the channels' means.

    One kernel averages each group's channels, the other gives every channel its group's mean:
    without reshapes and broadcasts, and for files that take every size a quarter faster.
    """

    def __init__(self, plain: GroupNormReLU) -> None:
        super().__init__()
        self.eps = plain.eps
        groups, width = plain.num_groups, plain.num_channels // plain.num_groups
        member = torch.eye(groups).repeat_interleave(width, dim=1)[:, :, None, None]
        self.weight, self.bias, self.average, self.spread = (
            nn.Parameter(tensor.detach().contiguous(), requires_grad=False)
            for tensor in (
                plain.weight.view(1, -1, 1, 1),
                plain.bias.view(1, -1, 1, 1),
                member / width,
                member.transpose(0, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify `x` (batch, channels, height, width)."""
        x = x + self._of_groups(x, -self.spread)  # no product, which would be fused and lose marks
        scale = self.weight * (self._of_groups(x * x, self.spread) + self.eps).pow(-0.5)
        return F.relu(x * scale + self.bias)

    def _of_groups(self, x: Tensor, spread: Tensor) -> Tensor:
        """Return the mean of each channel's group: (batch, channels, 1, 1)."""
        return F.conv2d(F.conv2d(x.mean((2, 3), keepdim=True), self.average), spread)


class _ConvolutionHead(nn.Module):
    """A `Head` with classes that is traced as a convolution, not as a matrix product."""

    def __init__(self, plain: Head) -> None:
        super().__init__()
        self.fc = plain.fc

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, features, height, width) to (batch, classes)."""
        fc: Any = self.fc
        return F.conv2d(x.mean((2, 3), keepdim=True), fc.weight, fc.bias).flatten(1)


def _use_first_pool(network: Any) -> None:
    """Replace max-pools by those of OpenVINO's first operation set, which it keeps."""
    first = import_extra("openvino.opset1", "openvino")
    for pool in network.get_ops():
        if pool.get_type_name() != "MaxPool":
            continue
        known = pool.get_attributes()
        parts = ("strides", "pads_begin", "pads_end", "kernel", "rounding_type", "auto_pad")
        kept = first.max_pool(pool.input_value(0), *(known[part] for part in parts))
        for reader in pool.output(0).get_target_inputs():
            reader.replace_source_output(kept.output(0))
