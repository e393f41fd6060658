"""The formats that `export` writes, as data; heavy libraries are imported when a format is used."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bitzoo.errors import MissingExtraError

if TYPE_CHECKING:
    from bitzoo.models.bit import BiT

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Images (batch, channels, height, width) in [-1, 1] -> logits."""


NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class Write(Protocol):
    """Signature of a format's writer; `export_onnx` describes the arguments."""

    def __call__(
        self, model: BiT, path: Path, *, dtype: str = ..., metadata: Mapping[str, str] | None = ...
    ) -> None:
        """Write the network to `path`."""


@dataclass(frozen=True)
class Opened:
    """A written file, opened by its runtime.

    Attributes:
        run: Runs it.
        runtime: The runtime with its version and what else it was left to do.
        device: What it runs on.
        precision: What it computes in, as the runtime says; the first word is a dtype.
    """

    run: Run
    runtime: str
    device: str
    precision: str


@dataclass(frozen=True)
class Setting:
    """One way to run files of a format, under which each is judged.

    Attributes:
        name: For people.
        options: For the runtime; none for its defaults.
    """

    name: str = "defaults"
    options: Mapping[str, str] = field(default_factory=lambda: NO_OPTIONS)


Load = Callable[[Path, Mapping[str, str]], Opened]
"""Signature of the function that opens a file with its runtime, with options for it."""


@dataclass(frozen=True)
class ExportFormat:
    """One row of `FORMATS`.

    Attributes:
        module: Module with its functions, below `bitzoo.exporters`.
        write: Name of the function that writes a model to a path.
        load: Name of the function that opens a written file with its runtime.
        suffix: Required ending of the path; empty for a folder.
        beside: Names of files that may be next to it; ``{stem}`` is its name without suffix.
        contents: For a folder, the names that one to be replaced may contain; None for a file.
        settings: How a written file is judged; the runtime's defaults come first.
        exact: The line of Python that runs file ``{name}`` in float32 everywhere, if the defaults
            may not.
        not_judged: Other ways to run it that change the numbers, and how to keep them exact.
    """

    module: str
    write: str
    load: str
    suffix: str
    beside: tuple[str, ...] = ()
    contents: frozenset[str] | None = None
    settings: tuple[Setting, ...] = (Setting(),)
    exact: str = ""
    not_judged: tuple[str, ...] = ()

    def writer(self) -> Write:
        """Import and return the function that writes."""
        function: Write = getattr(self._imported(), self.write)
        return function

    def loader(self) -> Load:
        """Import and return the function that opens a file: path, options -> `Opened`."""
        function: Load = getattr(self._imported(), self.load)
        return function

    def places(self, path: Path) -> list[Path]:
        """Return all paths that an export to `path` may write; `path` itself comes last."""
        stem = path.name.removesuffix(self.suffix)
        return [*(path.with_name(name.format(stem=stem)) for name in self.beside), path]

    def _imported(self) -> Any:
        return importlib.import_module(f"bitzoo.exporters.{self.module}")


FORMATS = {
    "onnx": ExportFormat(
        "onnx",
        "export_onnx",
        "load_onnx",
        ".onnx",
        ("{stem}.onnx.data",),
        not_judged=(
            "execution providers other than the CPU's: CUDA computes in TF32 unless its option "
            "use_tf32 is 0, and others choose for themselves",
        ),
    ),
    "openvino": ExportFormat(
        "openvino",
        "export_openvino",
        "load_openvino",
        ".xml",
        ("{stem}.bin",),
        settings=(Setting(), Setting("exact", {"INFERENCE_PRECISION_HINT": "f32"})),
        exact='openvino.Core().compile_model("{name}", "CPU", '
        '{{"INFERENCE_PRECISION_HINT": "f32"}})',
        not_judged=(
            "the defaults of other versions: one that does not obey the file's marks computes in "
            "bfloat16 where the processor has it (R50x1's logits move by 5e-2)",
            "devices other than the CPU: GPUs compute in float16 by default",
        ),
    ),
    "torch-export": ExportFormat(
        "torch_export",
        "export_torch",
        "load_torch",
        ".pt2",
        not_judged=(
            "GPUs: convolutions compute in TF32 unless torch.backends.cudnn.allow_tf32 is False",
            "another torch.set_float32_matmul_precision than the one named",
            "torch.compile and AOTInductor",
        ),
    ),
    "savedmodel": ExportFormat(
        "savedmodel",
        "export_savedmodel",
        "load_savedmodel",
        "",
        contents=frozenset(
            {"saved_model.pb", "variables", "assets", "assets.extra", "fingerprint.pb"}
        ),
        not_judged=(
            "oneDNN switched the other way (TF_ENABLE_ONEDNN_OPTS): it sums in another order",
            "GPUs, which compute in TF32 unless "
            "tf.config.experimental.enable_tensor_float_32_execution(False) is called",
            "TensorFlow Lite and XLA",
        ),
    ),
}
"""Value of the option `to` -> the format."""


_REPORTERS = {"openvino": "openvino_telemetry", "nncf": "openvino_telemetry"}
"""Libraries that report how they are used to their makers -> what they do it with, if it is there.

OpenVINO does so at every conversion, unasked, by a fork of the whole process for each report.
"""


def import_extra(module: str, extra: str) -> Any:
    """Import a library that an extra installs, so that it reports nothing to its makers.

    One that the caller has imported already stays as it is.

    Raises:
        MissingExtraError: If it is not installed.
    """
    reporter = _REPORTERS.get(module)
    try:
        with _hidden(reporter) if reporter else contextlib.nullcontext():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"Writing this format needs {module}, which is not installed or cannot be loaded "
            f"({error}). Install it: pip install 'bitzoo[{extra}]'."
        ) from error


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make a module seem not to be installed, which those that would use it are written for."""
    if module in sys.modules:  # the caller's
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
