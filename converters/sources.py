"""Opening a checkpoint: the format is recognised by content, never by the file's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bitzoo.converters.npz import NpzSource
from bitzoo.converters.safetensors_file import SafetensorsSource
from bitzoo.converters.tensors import Source
from bitzoo.errors import CheckpointError

_MAGIC: list[tuple[bytes, str]] = [
    (b"\x89HDF\r\n\x1a\n", "a Keras HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a single NumPy array (.npy)"),
    (b"\x80", "a Python pickle"),
    (b"<", "a web page or XML text: the download went wrong"),
]


def open_source(path: Path) -> Source:
    """Open a checkpoint of any format that bitzoo reads: `.npz` or safetensors.

    Raises:
        CheckpointError: If there is no such file, or it is of no known format.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file" if path.exists() else "nothing"
        raise CheckpointError(
            f"{path}: expected a checkpoint file, found {what} there. Check the path."
        )
    with path.open("rb") as file:
        head = file.read(16)
    opener = _opener(head)
    if opener is None:
        found = next((what for magic, what in _MAGIC if head.startswith(magic)), None)
        raise CheckpointError(
            f"{path}: expected a BiT checkpoint (.npz or safetensors), found "
            f"{found or ('an empty file' if not head else 'bytes of no known format')}."
        )
    return opener(path)


def _opener(head: bytes) -> Callable[[Path], Source] | None:
    if head.startswith(b"PK"):
        return NpzSource
    if head[8:9] == b"{":
        return SafetensorsSource
    return None
