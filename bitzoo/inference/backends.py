"""Inference backends as data: the name, dtypes and devices of each way to run a network.

A backend turns a model into a function from images (batch, channels, height, width), float32 in
[-1, 1] on the device, to float32 logits on the device. The model is unchanged.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from bitzoo.files import temporary_folder
from bitzoo.inference.cpu_layers import speed_up, speed_up_compiled
from bitzoo.models.bit import BiT, fold
from bitzoo.openmp_waiting import sleeps_at_once

Run = Callable[[Tensor], Tensor]


def _eager(model: BiT, device: torch.device, dtype: torch.dtype) -> Run:
    network = _prepare(model, device, dtype)
    if device.type == "cpu":
        speed_up(network, dtype)
    return _runner(network, network.forward_features, dtype)


def _compile(model: BiT, device: torch.device, dtype: torch.dtype) -> Run:
    network = _prepare(model, device, dtype)
    if device.type == "cpu":
        speed_up_compiled(network)
    # Specialized on the size of the images, because code for any size is slower.
    compiled = torch.compile(network.forward_features, dynamic=False)
    run = _runner(network, compiled, dtype)
    return _padded(_frozen(run) if device.type == "cpu" else run)


def _frozen(run: Run) -> Run:
    """Make the kernels constants of the compiled code, packed in advance for their layers.

    Passing "freezing" as an option of torch.compile comes too late: the tracer reads the
    configuration, and kernels would stay arguments that are reordered at every call.
    """
    from torch._inductor import config

    def frozen(images: Tensor) -> Tensor:
        with config.patch(freezing=True, cpp_wrapper=True):
            return run(images)

    return frozen


def _padded(run: Run) -> Run:
    """Pad a smaller batch to the size of the last: compiling each new size takes a minute.

    No image's logits depend on the others.
    """
    usual: dict[torch.Size, int] = {}

    def padded(images: Tensor) -> Tensor:
        count = usual.get(images.shape[1:], 0)
        if len(images) >= count:
            usual[images.shape[1:]] = len(images)
            return run(images)
        rows = torch.arange(count, device=images.device) % len(images)
        return run(images[rows])[: len(images)]

    return padded


def _onnxruntime(model: BiT, device: torch.device, dtype: torch.dtype) -> Run:
    from bitzoo.exporters.export_formats import NO_OPTIONS
    from bitzoo.exporters.onnx import export_onnx, load_onnx

    # Beside a program that needs the same processors, its spinning threads took 1.6 times as long.
    settings = _NO_SPINNING if sleeps_at_once(os.environ) else NO_OPTIONS
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        export_onnx(model, path)
        run = load_onnx(path, settings).run
    return lambda images: torch.from_numpy(run(images.numpy()))


def _openvino(model: BiT, device: torch.device, dtype: torch.dtype) -> Run:
    from bitzoo.exporters.openvino import openvino_core, openvino_network

    network, core = openvino_network(model), openvino_core()
    hints = {"INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[dtype]}

    @lru_cache(_SHAPES)
    def compiled(shape: tuple[int, ...]) -> Any:
        fixed = network.clone()
        fixed.reshape(list(shape))
        return core.compile_model(fixed, "CPU", hints)

    return lambda images: torch.from_numpy(compiled(tuple(images.shape))(images.numpy())[0].copy())


_NO_SPINNING = {"session.intra_op.allow_spinning": "0"}

_SHAPES = 4
"""How many image shapes stay compiled for OpenVINO; kernels for any shape would be slower."""

_OPENVINO_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Backend:
    """One row of `BACKENDS`.

    Attributes:
        build: Turns model, device and dtype into the function that runs the model.
        dtypes: Supported compute dtypes.
        has_one_shape: Whether a batch of another size than before costs seconds of preparation.
        devices: Supported device types; empty for all of torch's.
    """

    build: Callable[[BiT, torch.device, torch.dtype], Run]
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[str, ...] = ()
    has_one_shape: bool = False


_ALL = (torch.float32, torch.bfloat16, torch.float16)

BACKENDS = {
    "eager": Backend(_eager, _ALL),
    "compile": Backend(_compile, _ALL),
    "onnxruntime": Backend(_onnxruntime, (torch.float32,), ("cpu",)),
    "openvino": Backend(_openvino, tuple(_OPENVINO_PRECISIONS), ("cpu",), has_one_shape=True),
}
"""Name -> backend; ``eager`` needs only torch."""


def _prepare(model: BiT, device: torch.device, dtype: torch.dtype) -> BiT:
    """Return a folded copy on the device, in its best memory format, with features in `dtype`."""
    network = fold(model) if not model.folded else _copy_folded(model)
    # Channels last took 0.4 to 0.75 of the time on CPUs. With it torch normalizes with sums of
    # squares, not Welford's updates: R50x1's logits are 3e-5 from float64 (relative L2), not 5e-6.
    # CUDA's group normalization has no channels-last kernel.
    on_cpu = device.type == "cpu"
    layout = torch.channels_last if on_cpu else torch.contiguous_format
    network.to(device, torch.float32, memory_format=layout)  # type: ignore[call-overload]
    for part in (network.stem, network.stages, network.norm):
        for layer in part.modules():
            # The CPU normalizes half-precision maps with float32 parameters, which is faster and
            # more accurate.
            if isinstance(layer, nn.Conv2d) or not on_cpu:
                layer.to(dtype)
    return network


def _copy_folded(model: BiT) -> BiT:
    """Copy a folded model, so that moving the copy's parameters does not move the original's."""
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo=shared)


def _runner(network: BiT, features: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Run:
    def run(images: Tensor) -> Tensor:
        with torch.no_grad():  # inference mode would prevent freezing the graph
            return network.forward_head(features(images.to(dtype)).float())

    return run
