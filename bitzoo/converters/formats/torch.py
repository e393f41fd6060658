"""Read and write PyTorch checkpoints (`.pth`, `.pt`, `.bin`, `.pth.tar`) without running code.

PyTorch itself does not read them: `torch.load` checks no checksum, maps the file into memory, where
one that is truncated meanwhile kills the process, and with `mmap=True` believes sizes that it would
otherwise refuse. The pickle says where each tensor's numbers are; they are read from there.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from bitzoo.converters.dtypes import BrainFloatTensor
from bitzoo.converters.formats.safetensors import SafetensorsWriter
from bitzoo.converters.formats.stored_zip import StoredZip
from bitzoo.converters.formats.torch_pickle import (
    MAX_BYTES,
    ForeignGlobalError,
    OddTensor,
    PickledTensor,
    Storage,
    read_pickle,
)
from bitzoo.converters.networks import Choice, choose_network
from bitzoo.converters.source import (
    Array,
    RawFile,
    RawTensor,
    Scratch,
    Source,
    StoredTensor,
    brief,
    read_pieces,
)
from bitzoo.converters.writer import Writer
from bitzoo.errors import CheckpointError

_MAX_NAME = 255
_MAX_SMALL = 4_096
"""Bound on the records that are no tensors and no pickle."""
_PICKLE = "data.pkl"
_NUMBERED = ("version", ".format_version", ".storage_alignment")
"""Small records that hold a number; PyTorch refuses an archive in which one does not."""
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of the format before PyTorch 1.6; torch/serialization.py."""
_FLOATS = {"float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "u2"}
_PROGRAMS: list[tuple[str, str, str]] = [
    (
        "/constants.pkl",
        "a TorchScript program (torch.jit.save)",
        "torch.jit.load(...).state_dict()",
    ),
    (
        "/archive_format",
        "an exported program (torch.export.save)",
        "torch.export.load(...).state_dict",
    ),
    (
        "/serialized_exported_program.json",
        "an exported program (torch.export.save)",
        "torch.export.load(...).state_dict",
    ),
    ("/.data/extern_modules", "a package of code (torch.package)", "the model's state_dict()"),
]
"""Records that give away PyTorch's other archives, what these are, and where their weights are."""
DIRECTORY_BYTES = 1 << 20
"""Bytes at the end of a zip file that are searched for the names in it."""
_MARKS = (_PICKLE, *(record for record, _, _ in _PROGRAMS))


class TorchSource(Source):
    """An open PyTorch checkpoint: a state dict, or a training checkpoint that contains one.

    Raises:
        CheckpointError: If the file is damaged, contains code, or has no state dict.
        UsageError: If it has several networks, of which `weights` names none.
    """

    def __init__(self, path: Path, weights: str | None = None) -> None:
        """Open a file.

        Args:
            path: The file.
            weights: Which of several sets of weights; see `choose_network`.
        """
        self.path, self.metadata = path, {}
        self._file = RawFile(path)
        try:
            is_zip = self._file.read(0, 2) == b"PK"
            if is_zip:
                self._require_no_program()
            self._zip = StoredZip(self._file) if is_zip else None
            self._order = "<"
            content, self._places = self._read_zip() if self._zip else self._read_stream()
            choice = self._choose(content, weights)
            self.names, self.taken, self.notes = choice.names, choice.taken, choice.notes
            self.tensors: Mapping[str, StoredTensor] = {
                name: self._tensor(choice.stored[name], tensor)
                for name, tensor in choice.tensors.items()
            }
            self._require_enough_bytes()
        except BaseException:
            self._file.close()
            raise
        if not self._zip:
            self.notes += (
                "The file has the format before PyTorch 1.6, which has no checksums: damage to its "
                "numbers cannot be seen.",
            )

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the file, and check the CRC-32 of every record in the same pass."""
        digest = hashlib.sha256()
        self.hash_into(digest, advance)
        return digest.hexdigest()

    def hash_into(
        self, digest: hashlib._Hash, advance: Callable[[int], None] | None = None
    ) -> None:
        """Do what `sha256` does, with a hash that may have read other files before."""
        if self._zip:
            self._zip.hash_into(digest, advance)
            return
        for piece in read_pieces(self._file, 0, self.size):
            digest.update(piece)
            if advance:
                advance(len(piece))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _require_no_program(self) -> None:
        """Refuse PyTorch's archives of programs, which have weights as well, but also code."""
        directory = self._file.read(max(0, self.size - DIRECTORY_BYTES), DIRECTORY_BYTES)
        for mark, what, weights in _PROGRAMS:
            if mark.encode() in directory:
                raise CheckpointError(
                    f"{self.path}: expected a checkpoint of weights, found {what}, which holds "
                    f"code. If you trust it, load it with PyTorch and save {weights} with "
                    "torch.save."
                )

    def _read_zip(self) -> tuple[Any, dict[str, int]]:
        """Return the object in an archive, and the position of each storage."""
        assert self._zip is not None
        records = self._zip.records
        folder = next((n.removesuffix(_PICKLE) for n in records if n.endswith(f"/{_PICKLE}")), None)
        if folder is None:
            raise self._damaged(f"it has no record {_PICKLE}")
        if (order := f"{folder}byteorder") in records:
            said = self._zip.read(order, _MAX_SMALL)
            if said not in (b"little", b"big"):
                raise self._damaged(f"its byte order is {said[:20]!r}")
            self._order = "<" if said == b"little" else ">"
        self._check_small_records(folder)
        pickled = io.BytesIO(self._zip.read(folder + _PICKLE, MAX_BYTES))
        content, storages = self._read_pickle(pickled)
        places = {}
        for key, storage in storages.items():
            stored = records.get(f"{folder}data/{key}")
            if stored is None or stored.size != storage.nbytes:
                found = "no such record" if stored is None else f"{stored.size:,}"
                raise self._damaged(
                    f"storage {key!r:.40} has {storage.nbytes:,} bytes, found {found}"
                )
            places[key] = stored.offset
        return content, places

    def _check_small_records(self, folder: str) -> None:
        """Raise if an archive is one that PyTorch refuses, whatever its tensors are."""
        assert self._zip is not None
        records = self._zip.records
        if outside := next((name for name in records if not name.startswith(folder)), None):
            raise self._damaged(f"its record {outside!r:.40} is not in its folder {folder}")
        if f"{folder}version" not in records:
            raise self._damaged("it has no record version")
        texts = (*_NUMBERED, ".data/serialization_id")
        for name in (name for name in texts if f"{folder}{name}" in records):
            said = self._zip.read(f"{folder}{name}", _MAX_SMALL)
            if name in _NUMBERED and not re.fullmatch(rb"\d{1,9}\s*", said):
                raise self._damaged(f"its record {name} is {said[:20]!r}, expected a number")
            try:
                said.decode()
            except UnicodeDecodeError as error:
                raise self._damaged(f"its record {name} is no text") from error

    def _read_stream(self) -> tuple[Any, dict[str, int]]:
        """Return the object in a file from before PyTorch 1.6, and the position of each storage."""
        stream = io.BytesIO(self._file.read(0, MAX_BYTES))
        magic, _ = self._read_pickle(stream)
        if magic != _MAGIC:
            raise CheckpointError(
                f"{self.path}: expected a checkpoint of weights, found a plain Python pickle. Load "
                "it where it was made, if you trust it, and save the state dict with torch.save "
                "or safetensors."
            )
        version, _ = self._read_pickle(stream)
        self._read_pickle(stream)  # about the system that wrote it
        content, storages = self._read_pickle(stream, views=True)
        keys, _ = self._read_pickle(stream)
        listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if version != _VERSION or not listed or sorted(keys) != sorted(storages):
            raise self._damaged("its list of storages does not fit its tensors")
        places, position = {}, stream.tell()
        for key in keys:
            storage = storages[key]
            if self._file.read(position, 8) != struct.pack("<q", storage.count):
                raise self._damaged(f"storage {key!r:.40} is not where it should be")
            places[key] = position + 8
            position += 8 + storage.nbytes
        if position != self.size:
            raise self._damaged(f"its tensors end at byte {position:,} of {self.size:,}")
        return content, places

    def _read_pickle(
        self, stream: io.BytesIO, *, views: bool = False
    ) -> tuple[Any, dict[str, Storage]]:
        try:
            return read_pickle(stream, views=views)
        except ForeignGlobalError as error:
            raise self._foreign(error.name) from error
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _foreign(self, name: str) -> CheckpointError:
        """Return the error for a pickle that asks for something else than data."""
        what = (
            f"{self.path}: expected a state dict, found a pickle that could run code: it asks for "
            f"{brief(repr(name)[1:-1])}."
        )
        if name.partition(".")[0] in sys.stdlib_module_names:
            return CheckpointError(f"{what} Do not load this file.")
        return CheckpointError(
            f"{what} Whole objects, such as a network, are pickled with their code. If you trust "
            "the file, load it where it was made and save the network's state_dict() alone; "
            "otherwise do not load it."
        )

    def _damaged(self, reason: str) -> CheckpointError:
        clean = "".join(c if c.isprintable() else " " for c in reason)
        return CheckpointError(
            f"{self.path}: expected a PyTorch checkpoint, but it cannot be read ({brief(clean)}). "
            "It is truncated or damaged; fetch it again."
        )

    def _choose(self, content: Any, weights: str | None) -> Choice[Any]:
        choice = choose_network(
            content, self.path, is_tensor=_is_tensor, is_state=_is_state, weights=weights
        )
        if choice is None or not choice.tensors:
            raise CheckpointError(
                f"{self.path}: expected a state dict, or one under model or state_dict or any "
                f"other key, found {_described(content)}. This is not a BiT checkpoint."
            )
        if not all(len(name) <= _MAX_NAME and name.isprintable() for name in choice.tensors):
            raise CheckpointError(
                f"{self.path}: expected tensor names of at most {_MAX_NAME} printable characters, "
                "found others. The file is damaged or was tampered with."
            )
        return choice

    def _tensor(self, name: str, tensor: PickledTensor | OddTensor) -> StoredTensor:
        """Return what reads a tensor.

        Raises:
            CheckpointError: If it is not made of float numbers, each in a place of its own.
        """
        if isinstance(tensor, OddTensor) or tensor.dtype not in _FLOATS:
            kind = tensor.kind if isinstance(tensor, OddTensor) else tensor.dtype
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is {brief(repr(kind)[1:-1])}; expected plain float "
                "numbers. Save dense float tensors on the CPU; a quantized network cannot be "
                "converted, only the one that it was made from."
            )
        order = _dense_order(tensor)
        if order is None:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is a view with gaps or repeats (shape "
                f"{tensor.shape}, strides {tensor.strides}); expected numbers one after the "
                "other. Save tensor.contiguous() instead."
            )
        dtype = np.dtype(f"{self._order}{_FLOATS[tensor.dtype]}")
        first, count = tensor.offset * dtype.itemsize, math.prod(tensor.shape)
        if tensor.storage.dtype not in (tensor.dtype, "bytes") or (
            first + count * dtype.itemsize > tensor.storage.nbytes
        ):
            raise self._damaged(f"tensor {name!r} reaches out of its storage")
        shape = tuple(tensor.shape[axis] for axis in order)
        place = self._places[tensor.storage.key] + first
        raw = RawTensor(name, shape, dtype, self._file, place)
        read = BrainFloatTensor(raw) if tensor.dtype == "bfloat16" else raw
        return read if order == sorted(order) else _Permuted(read, order)

    def _require_enough_bytes(self) -> None:
        """Refuse tensors that together are larger than the file, because they share memory."""
        promised = sum(tensor.nbytes for tensor in self.tensors.values())
        if promised > self.size:
            raise CheckpointError(
                f"{self.path}: its tensors have {promised:,} bytes, but the file has {self.size:,}:"
                " they share memory. Save copies (tensor.clone()) instead."
            )


class _Permuted(StoredTensor):
    """A tensor whose axes are stored in another order, such as one in channels-last format."""

    def __init__(self, stored: StoredTensor, order: Sequence[int]) -> None:
        """Wrap `stored`, whose axis ``i`` is axis ``order[i]`` of this tensor."""
        self._stored, self._axes = stored, np.argsort(order)
        self.name, self.dtype = stored.name, stored.dtype
        self.shape = tuple(stored.shape[axis] for axis in self._axes)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as stored."""
        return self._stored.nbytes

    @property
    def stored_dtype(self) -> str:
        """The stored dtype."""
        return self._stored.stored_dtype

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab along the stored axis, and view it in this tensor's order."""
        slab = self._stored.read_slab(int(self._axes[axis]), start, stop, scratch)
        return slab.transpose(self._axes)


class TorchWriter(Writer):
    """Writes a PyTorch state dict, float32 or float64.

    Tensors are collected in a temporary file next to it, in the same workspace; PyTorch saves them
    from its memory map.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32"
    ) -> None:
        """Reserve space for the tensors.

        Args:
            path: File to write; the temporary ``<path>.gathered`` is removed at the end.
            shapes: Name and shape of every tensor, in the order to save them.
            dtype: Dtype of the blocks given to `write`.
        """
        self._path, self._order = path, list(shapes)
        self._temporary = path.with_name(f"{path.name}.gathered")
        self._writer = SafetensorsWriter(self._temporary, shapes, {}, dtype)

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


def is_torch_archive(directory: bytes) -> bool:
    """Whether the end of a zip file, which has the names, is that of an archive of PyTorch."""
    return any(mark.encode() in directory for mark in _MARKS)


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


def _is_tensor(value: Any) -> bool:
    return isinstance(value, PickledTensor | OddTensor)


def _is_state(tensor: PickledTensor | OddTensor) -> bool:
    """Whether a tensor cannot be weights: a counter, a generator's state."""
    return isinstance(tensor, OddTensor) or not tensor.shape or tensor.dtype not in _FLOATS


def _described(content: Any) -> str:
    if isinstance(content, Mapping) and set(content) == {"state", "param_groups"}:
        return "the state of an optimizer; the weights are in another file"
    if isinstance(content, Mapping) and content:
        return brief(", ".join(repr(key) for key in list(content)[:5]))
    return type(content).__name__


def _dense_order(tensor: PickledTensor) -> list[int] | None:
    """Return the axes in the order in which they are stored; None if numbers are not in a row."""
    sizes, strides = tensor.shape, tensor.strides
    order = sorted(range(len(sizes)), key=lambda axis: (-strides[axis], axis))
    expected = 1
    if 0 in sizes or all(size == 1 for size in sizes):
        return list(range(len(sizes)))
    for axis in reversed(order):
        if sizes[axis] == 1:
            continue
        if strides[axis] != expected:
            return None
        expected *= sizes[axis]
    return order
