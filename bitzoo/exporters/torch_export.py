"""Export to a `torch.export` archive (.pt2): graph and parameters, for torch without bitzoo."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from bitzoo.exporters.export_formats import NO_OPTIONS, Opened
from bitzoo.exporters.graph import Graph, trace
from bitzoo.exporters.this_processor import processor
from bitzoo.models.bit import BiT


def export_torch(
    model: BiT, path: Path, *, dtype: str = "float32", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network as a `torch.export` archive; batch, height and width are free.

    Args:
        model: The network, folded or not; it is unchanged.
        path: The ``.pt2`` to write; an existing one is replaced.
        dtype: Dtype that kernels are stored in; computation stays in float32.
        metadata: Text to store in the archive's `extra_files`, each under its key.
    """
    program = trace(Graph(model, dtype))
    with path.open("wb") as file:
        kept = _Kept(file)
        # `write` and `seek` are all that torch calls of a BinaryIO.
        torch.export.save(program, cast("BinaryIO", kept), extra_files=dict(metadata or {}))
        kept.require()


class _Kept(io.RawIOBase):
    """Writes to a file and never raises: the first error is kept for `require`.

    torch writes archives from C++ and completes them in a destructor, where an exception ends the
    process (SIGABRT on a full disk). What comes after an error is dropped.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return offset  # torch rewinds what it has written; nobody reads it here

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def require(self) -> None:
        """Raise the first error, or that of writing what is still buffered."""
        if self._error is not None:
            raise self._error
        self._file.flush()


def load_torch(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> Opened:
    """Open an archive with `torch.export.load`.

    Args:
        path: The ``.pt2``.
        options: None: torch has its settings for the whole process.
    """
    module = torch.export.load(os.fspath(path)).module()

    def run(images: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    precision = f"float32, matmul precision {torch.get_float32_matmul_precision()}"
    return Opened(run, f"torch {torch.__version__}, torch.export.load", processor(), precision)
