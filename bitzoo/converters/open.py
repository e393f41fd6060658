"""Open a checkpoint of any format, recognized by content, never by the file's name."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bitzoo.converters.averages import RAW, no_such_weights
from bitzoo.converters.formats.foreign import name_file, name_folder
from bitzoo.converters.formats.hf_folder import (
    WEIGHT_NAMES,
    FolderSource,
    find_weights,
    marks,
)
from bitzoo.converters.formats.keras import KerasSource
from bitzoo.converters.formats.npz import NpzSource
from bitzoo.converters.formats.safetensors import SafetensorsSource
from bitzoo.converters.formats.tar import ArchiveSource, is_tar
from bitzoo.converters.formats.tensorflow import TensorFlowSource, find_prefix
from bitzoo.converters.formats.timm_config import CONFIG_NAME
from bitzoo.converters.formats.torch import DIRECTORY_BYTES, TorchSource, is_torch_archive
from bitzoo.converters.source import RawFile, Source
from bitzoo.errors import CheckpointError

KNOWN = ".npz, safetensors, Keras .h5, PyTorch, TensorFlow checkpoint, or a folder of these"
_SUFFIXES = (".npz", ".safetensors", ".h5", ".hdf5", ".pth", ".pt", ".bin", ".tar", ".gz", ".ckpt")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_Opener = Callable[[Path, str | None], Source]
_HDF5_STARTS = (0, 512, 1024, 2048)
"""Positions where the HDF5 library looks for a superblock; a user block may precede it."""


def open_source(path: Path, *, unpack: bool = True, weights: str | None = None) -> Source:
    """Open a checkpoint of any format that bitzoo reads.

    Args:
        path: A file; a folder of transformers, timm or bitzoo; a SavedModel or TF-Hub module, or
            such a module in a tar archive; the prefix of a TensorFlow checkpoint.
        unpack: Whether to accept an archive.
        weights: Which weights of a training checkpoint: ``ema`` (averages), ``raw``, or the name of
            their place in the file; None for averages if there are any.

    Raises:
        CheckpointError: If there is no such file, or its format is unknown.
        UsageError: If it lacks such weights, or has several networks and `weights` names none.
    """
    if path.is_dir() and (file := find_weights(path)):
        return FolderSource(path, file, weights)
    if prefix := find_prefix(path):
        return TensorFlowSource(path, prefix, weights)
    if not path.is_file():
        what, advice = "a special file there", "Check the path."
        if path.is_dir():
            what, advice = name_folder(path) or ("a folder", "Check the path.")
            what += " there"
        elif not path.exists():
            what = "nothing there: no such file or folder"
        raise CheckpointError(
            f"{path}: expected a checkpoint file, found {what}. {advice}{_hub_hint(path)}"
        )
    with closing(RawFile(path)) as raw:
        head, tail = (
            raw.read(0, 4096),
            raw.read(max(0, raw.size - DIRECTORY_BYTES), DIRECTORY_BYTES),
        )
    opener = _opener(path, head, tail)
    if opener is None or (opener is _open_archive and not unpack):
        what, advice = name_file(head)
        raise CheckpointError(
            f"{path}: expected a BiT checkpoint ({KNOWN}), found {what}. {advice}"
        )
    return opener(path, weights)


def _hub_hint(path: Path) -> str:
    """Return a hint for what looks like the name of a repository on the Hub."""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.exists()
    if not is_name or path.suffix.lower() in _SUFFIXES:
        return ""
    return f" For a repository of the Hugging Face Hub, write hub:{path}."


@contextmanager
def opened(source: Path | Source) -> Iterator[Source]:
    """Yield an open checkpoint; one given as a path is closed afterwards."""
    if isinstance(source, Source):
        yield source
        return
    with open_source(source) as own:
        yield own


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder has the files of a checkpoint that `open_source` can open.

    Raises:
        CheckpointError: If it holds several TensorFlow checkpoints.
    """
    return bool(find_weights(path) or find_prefix(path))


def _opener(path: Path, head: bytes, tail: bytes) -> _Opener | None:
    if head.startswith(b"PK"):
        first = _first_member(head)  # all that is left of a truncated file
        is_torch = first.endswith("/data.pkl") or is_torch_archive(tail)
        return TorchSource if is_torch and not first.endswith(".npy") else _open_npz
    if any(head[start:].startswith(_HDF5) for start in _HDF5_STARTS):
        return _open_keras
    if head.startswith(b"\x1f\x8b") or is_tar(path):
        return _open_archive
    if head[8:9] == b"{":
        return _open_safetensors
    if head.startswith(b"{") and path.name.endswith(".index.json"):
        return lambda index, weights: FolderSource(index, index, weights)
    return TorchSource if head.startswith(b"\x80") else None


def _open_npz(path: Path, weights: str | None) -> Source:
    _require_single(path, weights)
    return NpzSource(path)


def _open_keras(path: Path, weights: str | None) -> Source:
    _require_single(path, weights)
    return KerasSource(path)


def _require_single(path: Path, weights: str | None) -> None:
    """Refuse to choose in a file of a format that holds one set of weights."""
    if weights not in (None, RAW):
        raise no_such_weights(path, weights, [])


def _open_safetensors(path: Path, weights: str | None) -> Source:
    source = SafetensorsSource(path, weights)
    if path.name in WEIGHT_NAMES:
        source.folder = path.parent
        source.metadata = {**source.metadata, **marks(path.with_name(CONFIG_NAME))}
    return source


def _open_archive(path: Path, weights: str | None) -> Source:
    return ArchiveSource(path, lambda inner: open_source(inner, unpack=False, weights=weights))


def _first_member(head: bytes) -> str:
    """Return the name of a zip file's first member."""
    if len(head) < 30:
        return ""
    (size,) = struct.unpack_from("<H", head, 26)
    return head[30 : 30 + size].decode(errors="replace")
