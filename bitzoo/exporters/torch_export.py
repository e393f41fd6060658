"""Export to a `torch.export` archive (.pt2): graph and parameters, for torch without bitzoo."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitzoo.exporters.export_formats import Run
from bitzoo.exporters.graph import Graph, trace
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
    torch.export.save(trace(Graph(model, dtype)), os.fspath(path), extra_files=dict(metadata or {}))


def load_torch(path: Path) -> tuple[Run, str]:
    """Open an archive with `torch.export.load`."""
    module = torch.export.load(os.fspath(path)).module()

    def run(images: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run, f"torch {torch.__version__}, torch.export.load"
