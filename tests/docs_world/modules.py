"""A TF-Hub module as Google released them beside the npz files, without TensorFlow.

Its graph is empty: what TensorFlow would run is tested where there is TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bundles as bundles_module

bundles: Any = bundles_module  # its functions have no annotations

PARTS = (
    "saved_model.pb",
    "tfhub_module.pb",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
)
"""The files of a module's folder."""


def write_module(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Write `PARTS` below a folder, which is made."""
    variables = folder / "variables" / "variables"
    variables.parent.mkdir(parents=True, exist_ok=True)
    entries, data = [(b"", bundles.header())], b""
    for name, array in sorted(arrays.items()):
        content = array.tobytes()
        place = {"offset": len(data), "size": len(content), "crc": bundles.masked(content)}
        entries.append((name.encode(), bundles.entry(shape=array.shape, **place)))
        data += content
    bundles.write(variables, bundles.table([entries]), data)
    (folder / "saved_model.pb").touch()
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
