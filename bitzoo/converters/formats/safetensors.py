"""Read safetensors files by position, and write them slab by slab.

The safetensors library needs all tensors in memory to write them. This writer accepts slabs in any
order, from several threads, and completes the header when the source's checksum is known. Format:
github.com/huggingface/safetensors, README ("Format").
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.converters.dtypes import BrainFloatTensor
from bitzoo.converters.key_mapping import TORCH_SCHEMES
from bitzoo.converters.networks import Choice, choose_network
from bitzoo.converters.source import (
    Array,
    RawFile,
    RawTensor,
    Source,
    StoredTensor,
    brief,
    read_pieces,
)
from bitzoo.converters.writer import Place, SlabWriter
from bitzoo.errors import CheckpointError, damage_reported, reason_of

MAX_HEADER_BYTES = 4 << 20
"""Bound on the JSON header; a released model's has 60 kB."""
_MAX_NAME = 255
_MAX_RANK = 32
_MAX_SIZE = 1 << 62
_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_NUMBERS = re.compile(r"F\d\w*|I\d+|U\d+|BOOL|C64", re.ASCII)
"""Codes of dtypes that the format has and that hold no weights of BiT, such as I64 and F8_E4M3."""
_ADVICE = "It is damaged; convert the source again."
_COUNTER = re.compile(r"(.*\.)?num_batches_tracked", re.ASCII)
"""Name of the whole number that torch's batch normalization keeps besides its weights."""
_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNMENT = 64
"""The header is padded so that tensor data starts on a cache line in a memory map."""


class SafetensorsSource(Source):
    """An open safetensors checkpoint, with names of any scheme in `TORCH_SCHEMES`.

    Raises:
        CheckpointError: If the header is malformed, or does not describe the bytes after it.
    """

    def __init__(self, path: Path, weights: str | None = None, *, own: bool = False) -> None:
        """Open the file.

        Args:
            path: The file.
            weights: Which of several sets of weights; see `choose_network`.
            own: Whether the file is private to this process, such as while it is being written;
                it is then memory-mapped.
        """
        self.path = path
        self._file = RawFile(path, own=own)
        try:
            with damage_reported(path, "a safetensors file", _ADVICE):
                header, start = _read_header(self._file)
                self.metadata = _metadata(path, header.pop("__metadata__", {}))
                self.tensors: Mapping[str, StoredTensor] = {
                    name: _tensor(self._file, name, entry, start) for name, entry in header.items()
                }
                self._check_contiguous(start)
                choice = choose_stored(self.tensors, path, weights)
        except BaseException:
            self._file.close()
            raise
        self.names, self.tensors = choice.names, choice.tensors
        self.taken, self.notes = choice.taken, choice.notes

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the file; the format has no checksums of its own."""
        digest = hashlib.sha256()
        self.hash_into(digest, advance)
        return digest.hexdigest()

    def hash_into(
        self, digest: hashlib._Hash, advance: Callable[[int], None] | None = None
    ) -> None:
        """Do what `sha256` does, with a hash that may have read other files before."""
        for piece in read_pieces(self._file, 0, self.size):
            digest.update(piece)
            if advance:
                advance(len(piece))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_contiguous(self, start: int) -> None:
        position = start
        for tensor in sorted(self.tensors.values(), key=lambda t: (_offset(t), t.nbytes)):
            if _offset(tensor) != position:
                raise CheckpointError(
                    f"{self.path}: tensor {tensor.name!r} starts at byte {_offset(tensor):,}, "
                    f"expected {position:,}. The header is damaged; convert the source again."
                )
            position += tensor.nbytes
        if position != self.size:
            raise CheckpointError(
                f"{self.path}: its tensors end at byte {position:,}, but the file has "
                f"{self.size:,}. It is truncated or damaged; convert the source again."
            )


class SafetensorsWriter(SlabWriter):
    """Writes a safetensors file in slabs along the output axis, which is the first.

    Tensors are sorted by name, as in the safetensors library. The header is written first, so that
    slabs can be read back at once. Slabs may come in any order and from any thread. Call `finish`
    when all are written.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        metadata: Mapping[str, str],
        dtype: str = "float32",
    ) -> None:
        """Reserve the file at its full size.

        Args:
            path: File to write; truncated if it exists.
            shapes: Name and shape of every tensor.
            metadata: Metadata for the header. `finish` may replace values by others of equal
                length. Characters that UTF-8 cannot encode, as in odd file names, become ``?``.
            dtype: Dtype of the blocks given to `write`, one of `DTYPES`.
        """
        self._code = _CODES[dtype]
        itemsize = _DTYPES[self._code].itemsize
        self._shapes = dict(sorted(shapes.items()))
        self._metadata = {
            key: text.encode(errors="replace").decode() for key, text in metadata.items()
        }
        header = self._header()
        places, position = {}, len(header)
        for name, shape in self._shapes.items():
            places[name] = Place(position, shape, 0)
            position += itemsize * math.prod(shape)
        self._header_bytes = len(header)
        super().__init__(path, places, itemsize, position)
        try:
            self._put(header, 0)
        except OSError:
            self.close()
            raise

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header with these values instead of the placeholders, and close the file."""
        self._metadata.update(metadata)
        header = self._header()
        if len(header) != self._header_bytes:
            raise ValueError("metadata values changed their length after the header was written")
        self._put(header, 0)
        self.close()

    def _header(self) -> bytes:
        entries: dict[str, Any] = {"__metadata__": self._metadata}
        position, itemsize = 0, _DTYPES[self._code].itemsize
        for name, shape in self._shapes.items():
            end = position + itemsize * math.prod(shape)
            entries[name] = {"dtype": self._code, "shape": shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text


def rewrite_metadata(path: Path, values: Mapping[str, str]) -> None:
    """Replace metadata values of a written file with others of equal length.

    Raises:
        ValueError: If the lengths differ.
    """
    file = RawFile(path)
    try:
        header, start = _read_header(file)
        text = file.read(8, start - 8)
    finally:
        file.close()
    for key, value in values.items():
        old = json.dumps({key: header["__metadata__"][key]}, separators=(",", ":"))[1:-1].encode()
        new = json.dumps({key: value}, separators=(",", ":"))[1:-1].encode()
        if len(old) != len(new) or text.count(old) != 1:
            raise ValueError(f"metadata {key!r} cannot be replaced in place")
        text = text.replace(old, new)
    with path.open("r+b") as out:
        out.seek(8)
        out.write(text)


def write_safetensors(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write whole tensors, float32 and C-contiguous, deterministically.

    The safetensors library writes the metadata in a different order each time.
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    writer = SafetensorsWriter(path, shapes, metadata)
    try:
        for name, array in arrays.items():
            writer.write(name, 0, array)
    finally:
        writer.close()


def choose_stored(
    tensors: Mapping[str, StoredTensor], path: Path, weights: str | None = None
) -> Choice[StoredTensor]:
    """Choose the network in a flat file, like `choose_network`; one without tensors is empty."""
    choice = choose_network(
        tensors,
        path,
        is_tensor=lambda value: isinstance(value, StoredTensor),
        is_state=lambda tensor: not tensor.shape,
        weights=weights,
    )
    return choice or Choice(TORCH_SCHEMES[0], {}, {}, None, ())


def _read_header(file: RawFile) -> tuple[dict[str, Any], int]:
    """Return the header's entries and the position of the first data byte."""
    prefix = file.read(0, 8)
    size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= size <= min(MAX_HEADER_BYTES, file.size - 8):
        raise CheckpointError(
            f"{file.path}: expected a safetensors header of at most {MAX_HEADER_BYTES:,} bytes, "
            f"found a stated length of {size:,} in a file of {file.size:,}. "
            "This is not a safetensors file, or it is damaged."
        )
    try:
        header = json.loads(file.read(8, size).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file.path}: its safetensors header is not readable JSON ({reason_of(error)}). "
            "The file is damaged; convert the source again."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{file.path}: expected a JSON object as safetensors header, found "
            f"{type(header).__name__}. The file is damaged; convert the source again."
        )
    for name in header:
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise CheckpointError(
                f"{file.path}: a tensor is named {name[:40]!r} ({len(name):,} characters), "
                f"expected at most {_MAX_NAME} printable characters. "
                "The file is damaged or was tampered with."
            )
    return header, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name appears twice")
    return entries


def _metadata(path: Path, entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
        raise CheckpointError(
            f"{path}: expected safetensors metadata that maps text to text, found something else. "
            "The file is damaged; convert the source again."
        )
    try:
        "".join((*entry, *entry.values())).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{path}: its safetensors metadata has half a character (a lone surrogate, "
            f"{error.object[error.start]!r}), expected text. The file is damaged; convert the "
            "source again."
        ) from error
    return entry


def _tensor(file: RawFile, name: str, entry: Any, start: int) -> StoredTensor:
    code = entry.get("dtype") if isinstance(entry, dict) else None
    dtypes = _DTYPES
    if code == "I64" and _COUNTER.fullmatch(name) and entry.get("shape") == []:
        dtypes = {"I64": np.dtype("<i8")}  # skipped as the state of a training
    elif isinstance(code, str) and code not in _DTYPES and _NUMBERS.fullmatch(code):
        raise CheckpointError(
            f"{file.path}: tensor {name!r} is stored as {code}, expected plain floats (F32; F16, "
            "BF16 and F64 are converted). Quantized numbers are not the weights, and other state "
            "of a training does not belong to them: save the weights again as floats."
        )
    try:
        dtype, shape = dtypes[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if len(shape) > _MAX_RANK:
            raise ValueError(f"{len(shape):,} dimensions")
        for number in (*shape, begin, end):
            if type(number) is not int or not 0 <= number < _MAX_SIZE:
                raise ValueError("a size or offset that is not a whole number in range")
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"shape {shape} does not fill bytes {begin:,} to {end:,}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path}: safetensors entry {name!r} cannot be read ({brief(repr(error))}); "
            f"expected a dtype of {sorted(_DTYPES)}, a shape and two offsets. "
            "The file is damaged; convert the source again."
        ) from error
    tensor = RawTensor(name, shape, dtype, file, start + begin)
    return BrainFloatTensor(tensor) if entry["dtype"] == "BF16" else tensor


def _offset(tensor: StoredTensor) -> int:
    assert isinstance(tensor, RawTensor | BrainFloatTensor)
    return tensor.offset
