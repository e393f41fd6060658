"""Read and write PyTorch checkpoints (`.pth`, `.pt`, `.bin`, `.pth.tar`) without running code.

Files are opened with `torch.load(weights_only=True)`, which creates only tensors and plain
containers. They are memory-mapped if their format allows it.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from bitzoo.converters.formats.safetensors import SafetensorsWriter, as_scheme
from bitzoo.converters.source import Array, Scratch, Source, StoredTensor, brief
from bitzoo.converters.writer import Writer
from bitzoo.errors import CheckpointError
from bitzoo.files import sha256_of

if TYPE_CHECKING:
    import torch

_STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
"""Keys of the network in training checkpoints: bit_pytorch/train.py, timm/utils/checkpoint_saver.py
and others."""
_MAX_NAME = 255
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)", re.ASCII)
"""Finds, in PyTorch's message, the function or class that a refused pickle asks for."""


class TorchSource(Source):
    """An open PyTorch checkpoint: a state dict, or a training checkpoint that contains one.

    Raises:
        CheckpointError: If the file is damaged, contains code, or has no state dict.
    """

    def __init__(self, path: Path) -> None:
        import torch

        self.path, self.metadata = path, {}
        content = _load(path)
        state, skipped = _state_dict(path, content)
        if not all(_is_name(name) for name in state):
            raise CheckpointError(
                f"{path}: expected tensor names of at most {_MAX_NAME} printable characters, found "
                "others. The file is damaged or was tampered with."
            )
        tensors: dict[str, StoredTensor] = {}
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                _check_plain(path, name, value)
                tensors[name] = _TorchTensor(name, value.detach())
        self.names, self.tensors, self.notes = as_scheme(tensors)
        if skipped:
            self.notes += (f"Skipped training state: {', '.join(skipped)}.",)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the file; PyTorch checks the file's own checksums, if any."""
        return sha256_of(self.path, advance=advance)

    def close(self) -> None:
        """Release the tensors, which closes the file."""
        self.tensors = {}


class _TorchTensor(StoredTensor):
    def __init__(self, name: str, value: torch.Tensor) -> None:
        import torch

        halves = value.dtype == torch.bfloat16
        self.name, self.shape, self._value = name, tuple(value.shape), value
        self._format = str(value.dtype).removeprefix("torch.")
        is_float = value.is_floating_point() and value.element_size() > 1
        self.dtype = np.dtype(np.float32 if halves or not is_float else self._format)

    @property
    def stored_dtype(self) -> str:
        """The stored dtype."""
        return self._format

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Return a view of the tensor's memory, which may be mapped from the file."""
        import torch

        stop = min(stop, self.shape[axis])
        slab = self._value.narrow(axis, min(start, stop), max(stop - start, 0))
        widened = slab.to(torch.float32) if self.dtype.name != self._format else slab
        array: Array = widened.numpy()
        return array


class TorchWriter(Writer):
    """Writes a PyTorch state dict, float32.

    Tensors are collected in a temporary file next to it, in the same workspace; PyTorch saves them
    from its memory map.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Reserve space for the tensors.

        Args:
            path: File to write; the temporary ``<path>.gathered`` is removed at the end.
            shapes: Name and shape of every tensor, in the order to save them.
        """
        self._path, self._order = path, list(shapes)
        self._temporary = path.with_name(f"{path.name}.gathered")
        self._writer = SafetensorsWriter(self._temporary, shapes, {})

    def write(self, name: str, start: int, block: Array) -> None:
        """Write some outputs of a tensor; may be called from any thread."""
        self._writer.write(name, start, block)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Save the state dict; metadata is not stored."""
        import torch
        from safetensors.torch import load_file

        self._writer.finish({})
        tensors = load_file(self._temporary)
        with self._path.open("wb") as file:
            kept = _KeepingError(file)
            state = OrderedDict((name, tensors[name]) for name in self._order)
            try:
                torch.save(state, cast("IO[bytes]", kept))
            except RuntimeError as error:  # what PyTorch makes of it does not give the reason
                raise kept.error or error from error
        self.close()

    def close(self) -> None:
        """Remove the temporary file."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)


class _KeepingError:
    """A file that remembers why it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles and tensors that are refused here
            return _load_data(path)
    except Exception as error:  # PyTorch raises many kinds for a damaged file
        match = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if match:
            raise CheckpointError(
                f"{path}: expected a state dict, found a pickle that could run code: it asks for "
                f"{brief(match[1])}. Do not load this file."
            ) from error
        words = "".join(c if c.isprintable() else " " for c in str(error)).split()
        reason = " ".join(words).rpartition("WeightsUnpickler error: ")[2]
        raise CheckpointError(
            f"{path}: expected a PyTorch checkpoint, but it cannot be read ({brief(reason)}). "
            "It is truncated or damaged; fetch it again."
        ) from error


def _load_data(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError) as error:
        if "mmap" not in str(error):  # only files older than PyTorch 1.6 cannot be mapped
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(path: Path, content: Any) -> tuple[Mapping[Any, Any], list[str]]:
    """Return the state dict in a file's content, and the keys next to it."""
    import torch

    if isinstance(content, Mapping):
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            return content, []
        for key in _STATE_KEYS:
            if isinstance(content.get(key), Mapping):
                others = [brief(repr(name)) for name in content if name != key]
                return content[key], others[:10]
    found = ", ".join(map(repr, list(content)[:5])) if isinstance(content, Mapping) else ""
    raise CheckpointError(
        f"{path}: expected a state dict, or one under {' or '.join(_STATE_KEYS)}, found "
        f"{brief(found) or type(content).__name__}. This is not a BiT checkpoint."
    )


def _check_plain(path: Path, name: str, value: torch.Tensor) -> None:
    import torch

    plain = value.layout == torch.strided and value.device.type == "cpu"
    if not plain or value.is_quantized or value.is_complex():
        raise CheckpointError(
            f"{path}: tensor {name!r} is {value.dtype}, {value.layout}, on {value.device}; "
            "expected plain float numbers. Save dense float tensors on the CPU."
        )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= _MAX_NAME and name.isprintable()
