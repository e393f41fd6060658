"""Export to ONNX with torch's exporter, and run the file in ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitzoo.exporters.export_formats import NO_OPTIONS, Opened, import_extra
from bitzoo.exporters.graph import INPUT, Graph, free_axes, trace
from bitzoo.exporters.this_processor import processor
from bitzoo.models.bit import BiT

OPSET = 20
EMBEDDED_BYTES = 1 << 30
"""More bytes of parameters go to a separate file, ``NAME.onnx.data``: protobuf allows 2 GiB."""


def export_onnx(
    model: BiT, path: Path, *, dtype: str = "float32", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network as ONNX with folded kernels; batch, height and width are free.

    The input ``images`` is (batch, channels, height, width), float32 in [-1, 1]; the output is
    ``logits``, or ``features`` if there is no head.

    Args:
        model: The network, folded or not; it is unchanged.
        path: The file to write; an existing one is replaced. More than 1 GiB of parameters go to a
            second file beside it.
        dtype: Dtype that kernels are stored in; computation stays in float32.
        metadata: Text for the file's metadata.

    Raises:
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
    """
    import_extra("onnxscript", "onnx")
    graph = Graph(model, dtype)
    # onnxscript 0.6 prints how many rules it applied, into what a script reads as JSON.
    with contextlib.redirect_stdout(io.StringIO()):
        program: Any = torch.onnx.export(
            trace(graph),
            input_names=[INPUT],
            output_names=[graph.output],
            dynamic_shapes=(free_axes(),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    _forget_origin(program.model)
    program.model.metadata_props.update(metadata or {})
    stored = sum(parameter.nbytes for parameter in graph.parameters())
    program.save(os.fspath(path), external_data=stored > EMBEDDED_BYTES)


def load_onnx(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> Opened:
    """Open an ONNX file with ONNX Runtime on the CPU, with its default optimizations.

    Args:
        path: The file.
        options: Entries for the session's configuration.
    """
    runtime = import_extra("onnxruntime", "onnx")
    settings = runtime.SessionOptions()
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    session = runtime.InferenceSession(
        os.fspath(path), settings, providers=["CPUExecutionProvider"]
    )

    def run(images: Any) -> Any:
        return session.run(None, {INPUT: images})[0]

    phrase = f"ONNX Runtime {runtime.__version__}, its default optimizations"
    return Opened(run, phrase, processor(), "float32")


def _forget_origin(model: Any) -> None:
    """Drop the exporter's metadata: stack traces with paths of this machine, on every node."""
    graph = model.graph
    for item in (graph, *graph.all_nodes(), *graph.inputs, *graph.initializers.values()):
        item.metadata_props.clear()
    for node in graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
