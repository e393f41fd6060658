"""The formats that `export` writes, as data; heavy libraries are imported when a format is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bitzoo.errors import MissingExtraError

if TYPE_CHECKING:
    from bitzoo.models.bit import BiT

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Images (batch, channels, height, width) in [-1, 1] -> logits."""


class Write(Protocol):
    """Signature of a format's writer; `export_onnx` describes the arguments."""

    def __call__(
        self, model: BiT, path: Path, *, dtype: str = ..., metadata: Mapping[str, str] | None = ...
    ) -> None:
        """Write the network to `path`."""


@dataclass(frozen=True)
class ExportFormat:
    """One row of `FORMATS`.

    Attributes:
        module: Module with its functions, below `bitzoo.exporters`.
        write: Name of the function that writes a model to a path.
        load: Name of the function that opens a written file with its runtime.
        suffix: Required ending of the path; empty for a folder.
        beside: Names of files that may be next to it; ``{stem}`` is its name without suffix.
    """

    module: str
    write: str
    load: str
    suffix: str
    beside: tuple[str, ...] = ()

    def writer(self) -> Write:
        """Import and return the function that writes."""
        function: Write = getattr(self._imported(), self.write)
        return function

    def loader(self) -> Callable[[Path], tuple[Run, str]]:
        """Import and return the function that opens: path -> (`Run`, the runtime as a phrase)."""
        function: Callable[[Path], tuple[Run, str]] = getattr(self._imported(), self.load)
        return function

    def places(self, path: Path) -> list[Path]:
        """Return all paths that an export to `path` may write; `path` itself comes last."""
        stem = path.name.removesuffix(self.suffix)
        return [*(path.with_name(name.format(stem=stem)) for name in self.beside), path]

    def _imported(self) -> Any:
        return importlib.import_module(f"bitzoo.exporters.{self.module}")


FORMATS = {
    "onnx": ExportFormat("onnx", "export_onnx", "load_onnx", ".onnx", ("{stem}.onnx.data",)),
    "openvino": ExportFormat(
        "openvino", "export_openvino", "load_openvino", ".xml", ("{stem}.bin",)
    ),
    "torch-export": ExportFormat("torch_export", "export_torch", "load_torch", ".pt2"),
    "savedmodel": ExportFormat("savedmodel", "export_savedmodel", "load_savedmodel", ""),
}
"""Value of the option `to` -> the format."""


def import_extra(module: str, extra: str) -> Any:
    """Import a library that an extra installs.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"Writing this format needs {module}, which is not installed or cannot be loaded "
            f"({error}). Install it: pip install 'bitzoo[{extra}]'."
        ) from error
