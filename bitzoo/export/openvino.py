"""OpenVINO's IR, converted from the `torch.export` graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitzoo.export.formats import Run, import_extra
from bitzoo.export.graph import INPUT, Graph, trace
from bitzoo.model import BiT

SECTION = "bitzoo"
"""Where the facts stand in the IR's `rt_info`."""


def export_openvino(
    model: BiT, path: Path, *, dtype: str = "float32", facts: Mapping[str, str] | None = None
) -> None:
    """Write a network as OpenVINO IR: ``NAME.xml`` and, beside it, ``NAME.bin``.

    Input and output as of `bitzoo.export.onnx.export_onnx`. OpenVINO itself chooses what it
    computes in (bfloat16 where the processor has it) unless told ``INFERENCE_PRECISION_HINT``.

    Args:
        model: The network, folded or not; it stays as it is.
        path: The ``.xml`` to write, replaced if there is one.
        dtype: What kernels are stored in.
        facts: Text for the IR's `rt_info`, under ``bitzoo``.

    Raises:
        MissingExtraError: If openvino is not installed.
    """
    openvino = import_extra("openvino", "openvino")
    graph = Graph(model, dtype)
    network = openvino.convert_model(trace(graph))
    network.inputs[0].get_tensor().set_names({INPUT})
    network.outputs[0].get_tensor().set_names({graph.output})
    for key, value in (facts or {}).items():
        network.set_rt_info(value, [SECTION, key])
    openvino.save_model(network, os.fspath(path), compress_to_fp16=False)


def load_openvino(path: Path) -> tuple[Run, str]:
    """Open an IR with OpenVINO on the CPU, told to compute in float32."""
    openvino = import_extra("openvino", "openvino")
    network = openvino.Core().compile_model(
        os.fspath(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(images: Any) -> Any:
        return network(images)[0].copy()

    return run, f"OpenVINO {openvino.__version__.partition('-')[0]}, float32"
