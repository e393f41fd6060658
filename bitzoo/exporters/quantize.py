"""Turn an exported float32 file into one whose convolutions compute in int8.

The kernels that are rounded are those of the folded graph: standardized once, so that what int8 has
to hold are the numbers that are convolved with, not those that are standardized at each use. Only
convolutions are quantized, which are nearly all of the arithmetic. Group normalization divides by
the deviation of its own input, which would enlarge what rounding did to it, and the head is a
thousandth of the work: both stay in float32.

OpenVINO's own group normalization is left whole here: written as channel means, which is faster in
floats, the rounding of its result is fused into that arithmetic, and the distance is 0.07, not 0.02
(2026.4, R(1,1,1,1)x0.5 on digits of 40 px, weights of 7 bits).

Kernels have a scale for each output channel, because standardized kernels of one layer differ in
the gains that were folded into them. They use 7 of their 8 bits: processors without VNNI (AVX2)
add two products of 8 bits in 16, which overflows, so that the same file would compute another
function there. For the same network on such a processor, ONNX Runtime's logits are 0.07 away with 8
bits and 0.03 with 7.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.exporters.export_formats import import_extra
from bitzoo.exporters.graph import INPUT
from bitzoo.exporters.onnx import EMBEDDED_BYTES
from bitzoo.exporters.openvino import SECTION, openvino_core, openvino_network
from bitzoo.models.bit import BiT

Images = Iterable[npt.NDArray[np.float32]]
"""Batches (n, channels, height, width) in [-1, 1]."""


@dataclass(frozen=True)
class Quantization:
    """How a file was made int8.

    Attributes:
        method: What was done, as a phrase.
        libraries: The library that did it and those that it needed -> version.
        kernels: How many kernels of convolutions are stored in int8.
        of: How many there are.
    """

    method: str
    libraries: Mapping[str, str]
    kernels: int
    of: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "method": self.method,
            "libraries": dict(self.libraries),
            "kernels_in_int8": self.kernels,
            "kernels": self.of,
        }


Quantize = Callable[[BiT, Path, Path, Images, int, Mapping[str, str]], Quantization]
"""Signature of a quantizer; `quantize_onnx` describes the arguments."""


def quantize_onnx(
    model: BiT,
    source: Path,
    path: Path,
    images: Images,
    count: int,
    metadata: Mapping[str, str],
) -> Quantization:
    """Quantize an ONNX file with ONNX Runtime's static quantization, into QDQ form.

    Args:
        model: The network.
        source: Its file of `bitzoo.exporters.onnx.export_onnx` in float32; its metadata change.
        path: The file to write.
        images: What activations' ranges are measured on.
        count: How many images these are.
        metadata: Text for the file's metadata.

    Raises:
        MissingExtraError: If onnx or onnxruntime is not installed.
    """
    onnx, runtime = (import_extra(name, "onnx") for name in ("onnx", "onnxruntime"))
    quantization = import_extra("onnxruntime.quantization", "onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._batches = iter(images)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    _mark_prepared(onnx, source)
    beside = source.with_name(f"{source.name}.data")
    floats = sum(file.stat().st_size for file in (source, beside) if file.exists())
    with _silenced():
        quantization.quantize_static(
            os.fspath(source),
            os.fspath(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            use_external_data_format=floats > EMBEDDED_BYTES,
        )
    network = onnx.load(os.fspath(path), load_external_data=False)
    del network.metadata_props[:]
    onnx.helper.set_model_props(network, dict(metadata))
    onnx.save(network, os.fspath(path))
    return Quantization(
        "static quantization of ONNX Runtime in QDQ form: int8 kernels of 7 bits with a scale per "
        f"output channel; inputs and outputs of convolutions in uint8, from the least and largest "
        f"values on {count:,} calibration images; normalization, pooling and the head in float32",
        {"onnxruntime": runtime.__version__, "onnx": onnx.__version__},
        *kernels_of_onnx(path),
    )


def quantize_openvino(
    model: BiT,
    source: Path,
    path: Path,
    images: Images,
    count: int,
    metadata: Mapping[str, str],
) -> Quantization:
    """Quantize a network for OpenVINO with NNCF; arguments as for `quantize_onnx`.

    Raises:
        MissingExtraError: If nncf or openvino is not installed.
    """
    openvino = import_extra("openvino", "openvino")
    nncf, advanced = _nncf()
    network = openvino_network(model, own_norms=True)
    others = {operation.get_type_name() for operation in network.get_ops()} - _QUANTIZED
    with _silenced():
        quantized = nncf.quantize(
            network,
            nncf.Dataset([*_one_by_one(images)]),
            subset_size=count,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(types=sorted(others & _FLOATING), validate=False),
            advanced_parameters=advanced.AdvancedQuantizationParameters(
                overflow_fix=advanced.OverflowFix.ENABLE
            ),
        )
    for key, text in metadata.items():
        quantized.set_rt_info(text, [SECTION, key])
    openvino.save_model(quantized, os.fspath(path), compress_to_fp16=False)
    return Quantization(
        "post-training quantization of NNCF: int8 kernels of 7 bits with a scale per output "
        f"channel; inputs of convolutions in 8 bits, from their ranges on {count:,} calibration "
        "images; normalization, pooling and the head in float32",
        {"nncf": nncf.__version__, "openvino": openvino.__version__.partition("-")[0]},
        *kernels_of_openvino(path),
    )


QUANTIZERS: Mapping[str, Quantize] = MappingProxyType(
    {"onnx": quantize_onnx, "openvino": quantize_openvino}
)
"""Format -> what makes its files int8."""


def require_quantizer(to: str) -> None:
    """Raise if the libraries of a format's quantizer are not installed.

    Args:
        to: A key of `QUANTIZERS`.

    Raises:
        MissingExtraError: If so.
    """
    if to == "openvino":
        import_extra("openvino", "openvino")
        _nncf()
    else:
        import_extra("onnxruntime.quantization", "onnx")


_QUANTIZED = frozenset({"Convolution"})
_FLOATING = frozenset(
    {
        *("Add", "Divide", "GroupNormalization", "MatMul", "MaxPool", "Maximum", "Multiply"),
        *("MVN", "ReduceMean", "Relu", "Sqrt", "Subtract"),
    }
)
"""Operations of the exported graphs that NNCF would quantize too."""
_TELEMETRY = "NNCF_CI"
"""NNCF tells its makers of each use unless this variable is set when it is imported."""


def kernels_of_onnx(path: Path) -> tuple[int, int]:
    """Return how many of an ONNX file's convolutions have int8 kernels, and how many there are."""
    onnx = import_extra("onnx", "onnx")
    graph = onnx.load(os.fspath(path), load_external_data=False).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    widened = {
        node.output[0]: stored.get(node.input[0])
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    kinds = [widened.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]
    return kinds.count(onnx.TensorProto.INT8), len(kinds)


def kernels_of_openvino(path: Path) -> tuple[int, int]:
    """Return how many of an IR's convolutions have int8 kernels, and how many there are."""
    network = openvino_core().read_model(os.fspath(path))
    kernels = [
        _constant_behind(operation.input_value(1).get_node())
        for operation in network.get_ops()
        if operation.get_type_name() == "Convolution"
    ]
    return kernels.count("i8"), len(kernels)


def _constant_behind(node: Any) -> str:
    """Return the type of the constant that a chain of operations widens and scales."""
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return str(node.get_element_type().get_type_name())


def _one_by_one(images: Images) -> Iterator[npt.NDArray[np.float32]]:
    for batch in images:
        for row in range(len(batch)):
            yield batch[row : row + 1]


def _nncf() -> tuple[Any, Any]:
    """Import NNCF so that it tells nobody, and leaves the program's loggers as they are."""
    kind, before = logging.getLoggerClass(), os.environ.get(_TELEMETRY)
    os.environ[_TELEMETRY] = "1"
    try:
        nncf = import_extra("nncf", "int8")
        return nncf, import_extra("nncf.quantization.advanced_parameters", "int8")
    finally:
        logging.setLoggerClass(kind)
        if before is None:
            del os.environ[_TELEMETRY]
        else:
            os.environ[_TELEMETRY] = before


def _mark_prepared(onnx: Any, path: Path) -> None:
    """Say in a file that its graph is prepared, as ONNX Runtime otherwise advises loudly."""
    network = onnx.load(os.fspath(path), load_external_data=False)
    entry = network.metadata_props.add()
    entry.key, entry.value = "onnx.quant.pre_process", "onnxruntime.quant"
    onnx.save(network, os.fspath(path))


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep the libraries' bars, remarks and warnings off the program's output."""
    logs = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
