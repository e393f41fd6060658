"""Read and write Keras `.h5` weight files, in the form of TensorFlow 2.2.

h5py reads and writes the structure; the numbers are uncompressed and contiguous, so they are read
and written by position (others are unpacked first). The root's attribute `layer_names` lists
groups, each group's `weight_names` its data sets. Their names depend on who wrote the file; all
three forms were observed::

    TF 2.2, after build()          block1/block1/unit01/a/group_norm/gamma:0
    TF 2.2, after a call on data   block1/resnet/block1/unit01/a/group_norm/gamma:0
    TF 2.3                         block1/unit01/a/group_norm/gamma:0

Source of the names: google-research/big_transfer, bit_tf2/models.py, run with these versions.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.converters.dtypes import BrainFloatTensor
from bitzoo.converters.formats.hdf5_structure import BRAIN_FLOAT, list_tensors, unpack
from bitzoo.converters.formats.zip_members import no_space_to_unpack
from bitzoo.converters.source import Array, RawFile, RawTensor, Scratch, Source, StoredTensor
from bitzoo.converters.writer import Place, SlabWriter
from bitzoo.errors import CheckpointError, damage_reported
from bitzoo.files import sha256_of, temporary_folder
from bitzoo.limited_process import LimitedProcessError, run_limited

_PREFIX = "resnet/"
_HEAD = "head/dense"
_WEIGHTLESS = ("re_lu", "global_average_pooling2d")
_VARIABLE = ":0"
_KERAS_VERSION = "2.3.0-tf"
"""The version that `tf.keras` of TensorFlow 2.2 reports."""
_OWN = "bitzoo."
"""Prefix of the attributes that bitzoo adds."""
MAX_ATTRIBUTE = 60_000
"""Bytes of text that fit into an HDF5 attribute; the format's limit is 64 kB."""
_EXPECTED = "a Keras HDF5 file"
_LIST_SECONDS = 1.5
_LIST_MEMORY = 128 << 20
"""Bounds on reading the structure. That of the largest released network takes 0.1 s and 10 MB."""
_UNPACK_RATE = 5 << 20
"""Bytes that are unpacked per second of computing, at least; 50 times more is usual."""
_UNPACK_MEMORY = 128 << 20
_NO_PLUGINS = {"HDF5_PLUGIN_PRELOAD": "::"}
"""Keeps a file from having the HDF5 library load the code of a filter."""


def clean_name(name: str, layer: str = "") -> str:
    """Return a variable's name in the key mapping; Keras files have several forms of it.

    Args:
        name: The name in the file.
        layer: The variable's layer, if known; some names lack it.
    """
    name = name.removesuffix(_VARIABLE).removeprefix(_PREFIX)
    layer = layer.removeprefix(_PREFIX)
    if layer and not name.startswith(f"{layer}/"):
        name = f"{layer}/{name}"
    return _PREFIX + name


class KerasSource(Source):
    """An open Keras `.h5` checkpoint: a weight file, or a saved model with its weights.

    h5py reads the structure in a process of its own, with bounds (see `hdf5_structure`).

    Raises:
        CheckpointError: If the file is damaged, or Keras did not write it.
    """

    names = "keras"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = RawFile(path)
        self._unpacked = _Unpacked(self._raw)
        try:
            with damage_reported(path, _EXPECTED):
                found = _ask(self._raw, list_tensors, _LIST_SECONDS, _LIST_MEMORY)
                self.metadata: Mapping[str, str] = {
                    key.removeprefix(_OWN): text for key, text in found["attributes"].items()
                }
                self.tensors = self._tensors(found["weights"])
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._raw.size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the file; the format has no checksums of its own."""
        return sha256_of(self.path, advance=advance)

    def close(self) -> None:
        """Close the file, and delete what was unpacked."""
        self._unpacked.close()
        self._raw.close()

    def _tensors(self, weights: Iterable[Mapping[str, Any]]) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        promised = 0
        for entry in weights:
            name = clean_name(entry["name"], entry["layer"])
            if name in tensors:
                raise CheckpointError(
                    f"{self.path}: expected each name once, found two weights named {name!r}. "
                    "The file is damaged or was tampered with."
                )
            tensors[name] = tensor = self._tensor(name, entry)
            promised += 0 if isinstance(tensor, _PackedTensor) else tensor.nbytes
        if promised > self.size:
            raise CheckpointError(
                f"{self.path}: its weights need {promised:,} bytes, but the file has "
                f"{self.size:,}. They overlap: the file is damaged; fetch it again."
            )
        return tensors

    def _tensor(self, name: str, entry: Mapping[str, Any]) -> StoredTensor:
        shape, stored, place = tuple(entry["shape"]), entry["type"], entry["offset"]
        is_brain = stored == BRAIN_FLOAT
        if place is None and math.prod(shape):
            dtype = np.dtype("<f4" if is_brain else stored)
            packed = _PackedTensor(name, shape, dtype, self._unpacked, stored)
            self._unpacked.add(packed, entry)
            return packed
        dtype = np.dtype("<u2" if is_brain else stored)
        end = (place or 0) + math.prod(shape) * dtype.itemsize
        if end > self.size:
            raise CheckpointError(
                f"{self.path}: {name!r} ends at byte {end:,}, but the file has {self.size:,}. "
                "It is truncated; fetch it again."
            )
        raw = RawTensor(name, shape, dtype, self._raw, place or 0)
        return BrainFloatTensor(raw) if is_brain else raw


class _Unpacked:
    """An unnamed temporary file with the numbers that do not lie in the file as they are.

    Those are chunked, perhaps compressed, or in a header; h5py unpacks all of them at once, when
    the first is read.
    """

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self._lock = threading.Lock()
        self._entries: list[tuple[str, str]] = []
        self._positions: dict[str, int] = {}
        self._size = self._largest = 0
        self._file: RawFile | None = None

    def add(self, tensor: _PackedTensor, entry: Mapping[str, Any]) -> None:
        """Add a tensor, before any is read."""
        self._positions[tensor.name] = self._size
        self._size += tensor.nbytes
        self._largest = max(self._largest, min(entry["chunk"], 2 * tensor.nbytes))
        self._entries.append((entry["layer"], entry["name"]))

    def locate(self, name: str) -> tuple[RawFile, int]:
        """Return the file and the position of a tensor's first byte in it.

        Raises:
            CheckpointError: If the tensors cannot be unpacked.
        """
        with self._lock:
            if self._file is None:
                try:
                    with temporary_folder() as folder, open(folder / "unpacked", "xb") as unpacked:
                        self._unpack(unpacked.fileno())
                        self._file = RawFile(folder / "unpacked")
                except OSError as error:
                    raise no_space_to_unpack(self._raw.path, error) from error
            return self._file, self._positions[name]

    def close(self) -> None:
        """Delete the temporary file."""
        if self._file is not None:
            self._file.close()

    def _unpack(self, output: int) -> None:
        path, seconds = self._raw.path, _LIST_SECONDS + self._size / _UNPACK_RATE
        memory = _UNPACK_MEMORY + 3 * self._largest
        try:
            with damage_reported(path, _EXPECTED):
                _ask(self._raw, unpack, seconds, memory, output, self._entries)
                if os.fstat(output).st_size != self._size:
                    raise ValueError(f"its numbers do not unpack to {self._size:,} bytes")
        except OSError as error:
            raise no_space_to_unpack(path, error) from error


@dataclass(frozen=True)
class _PackedTensor(StoredTensor):
    """A data set whose numbers must be unpacked."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unpacked: _Unpacked
    stored: str

    @property
    def stored_dtype(self) -> str:
        """The stored dtype; bfloat16 is unpacked as float32."""
        return self.stored if self.stored == BRAIN_FLOAT else self.dtype.name

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab of the unpacked numbers."""
        file, position = self.unpacked.locate(self.name)
        raw = RawTensor(self.name, self.shape, self.dtype, file, position)
        return raw.read_slab(axis, start, stop, scratch)


def _ask(
    raw: RawFile,
    function: Callable[..., Any],
    seconds: float,
    memory: int,
    output: int | None = None,
    *arguments: Any,
) -> Any:
    """Call a function of `hdf5_structure` on an open file, in a process with bounds.

    Raises:
        CheckpointError: If the function refuses the file.
        OSError: If the system refuses something else, such as space for the output.
        ValueError: If the file is damaged.
    """
    files = (raw.descriptor,) if output is None else (raw.descriptor, output)
    try:
        return run_limited(
            function,
            *files,
            *arguments,
            cpu_seconds=seconds,
            memory=memory,
            descriptors=files,
            environment=_NO_PLUGINS,
        )
    except LimitedProcessError as error:
        if error.refused:
            raise CheckpointError(f"{raw.path}: {error}") from error
        if error.errno is not None and error.errno != errno.EINVAL:
            raise OSError(error.errno, os.strerror(error.errno)) from error
        raise ValueError(str(error)) from error


class KerasWriter(SlabWriter):
    """Writes a `.h5` file as TensorFlow 2.2 writes weights after `build()`.

    h5py creates the structure and closes the file; then the numbers are written by position.
    """

    def __init__(
        self,
        path: Path,
        places: Mapping[str, Place],
        metadata: Mapping[str, str],
        dtype: str = "float32",
    ) -> None:
        """Create the file with its structure.

        Args:
            path: File to write; truncated if it exists.
            places: Name, shape and output axis of every tensor; offsets are ignored.
            metadata: Attributes to add to the root; Keras ignores them.
            dtype: Dtype of the blocks given to `write`: ``float32`` or ``float64``.
        """
        self._path = path
        number = np.dtype(dtype).newbyteorder("<")
        super().__init__(path, _lay_out(path, places, metadata, number), number.itemsize)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Add attributes to the root, and close the file."""
        self.close()
        rewrite_attributes(self._path, metadata)


def rewrite_attributes(path: Path, metadata: Mapping[str, str]) -> None:
    """Add attributes to the root of a written file, or replace them."""
    import h5py

    with h5py.File(path, "r+", libver="earliest", locking=False) as file:
        for key, text in metadata.items():
            file.attrs[_OWN + key] = text.encode(errors="replace")


def _lay_out(
    path: Path, places: Mapping[str, Place], metadata: Mapping[str, str], number: np.dtype[Any]
) -> dict[str, Place]:
    import h5py

    layers: dict[str, list[str]] = {}
    for name in places:
        layers.setdefault(_layer_of(name), []).append(name)
    stored = h5py.h5t.py_create(number)
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_layout(h5py.h5d.CONTIGUOUS)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    placed = {}
    # nobody else knows the file, and locks fail on some network drives
    with h5py.File(path, "w", libver="earliest", locking=False) as file:
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = _KERAS_VERSION.encode()
        file.attrs["layer_names"] = _bytes(_with_weightless(list(layers)))
        for key, text in metadata.items():
            file.attrs[_OWN + key] = text.encode(errors="replace")
        for layer in _with_weightless(list(layers)):
            group, weights = file.require_group(layer), []
            for name in sorted(layers.get(layer, []), key=_keras_order):
                weight = name.removeprefix(_PREFIX) + _VARIABLE
                weights.append(weight)
                space = h5py.h5s.create_simple(places[name].shape)
                parent, _, leaf = weight.rpartition("/")
                where = group.require_group(parent).id
                dataset = h5py.h5d.create(where, leaf.encode(), stored, space, create)
                placed[name] = Place(dataset.get_offset(), places[name].shape, places[name].axis)
            group.attrs["weight_names"] = _bytes(weights)
    return placed


def _keras_order(name: str) -> tuple[str, bool]:
    """Return a sort key: Keras loads by position, and builds a unit's projection last."""
    unit = name.split("/")[2] if "/unit" in name else ""
    return unit, "/proj/" in name


def _layer_of(name: str) -> str:
    path = name.removeprefix(_PREFIX)
    return _HEAD if path.startswith(f"{_HEAD}/") else path.split("/")[0]


def _with_weightless(layers: list[str]) -> list[str]:
    """Insert the layers without weights at their position: after the last normalization."""
    after = layers.index("group_norm") + 1
    return [*layers[:after], *_WEIGHTLESS, *layers[after:]]


def _bytes(texts: list[str]) -> Array:
    return np.array([text.encode() for text in texts], "S" if texts else "S1")
