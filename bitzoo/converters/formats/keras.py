"""Read and write Keras `.h5` weight files, in the form of TensorFlow 2.2.

h5py reads and writes the structure; the numbers are uncompressed and contiguous, so they are read
and written by position. The root's attribute `layer_names` lists groups, each group's
`weight_names` its data sets. Their names depend on who wrote the file; all three forms were
observed::

    TF 2.2, after build()          block1/block1/unit01/a/group_norm/gamma:0
    TF 2.2, after a call on data   block1/resnet/block1/unit01/a/group_norm/gamma:0
    TF 2.3                         block1/unit01/a/group_norm/gamma:0

Source of the names: google-research/big_transfer, bit_tf2/models.py, run with these versions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.converters.source import Array, RawFile, RawTensor, Scratch, Source, StoredTensor, brief
from bitzoo.converters.writer import Place, SlabWriter
from bitzoo.errors import CheckpointError
from bitzoo.files import sha256_of

_PREFIX = "resnet/"
_HEAD = "head/dense"
_WEIGHTLESS = ("re_lu", "global_average_pooling2d")
_VARIABLE = ":0"
_KERAS_VERSION = "2.3.0-tf"
"""The version that `tf.keras` of TensorFlow 2.2 reports."""
_OWN = "bitzoo."
"""Prefix of the attributes that bitzoo adds."""
_MAX_NAMES = 20_000
MAX_ATTRIBUTE = 60_000
"""Bytes of text that fit into an HDF5 attribute; the format's limit is 64 kB."""
_MAX_NAME = 255
_FLOATS = {np.dtype(code) for code in ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")}


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

    Raises:
        CheckpointError: If the file is damaged, or Keras did not write it.
    """

    names = "keras"

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        self.metadata: Mapping[str, str] = {}
        self._raw = RawFile(path)
        self._lock = threading.Lock()
        try:
            self._h5 = h5py.File(path, "r")
        except (OSError, RuntimeError, ValueError) as error:
            self._raw.close()
            raise _damaged(path, error) from error
        try:
            self.metadata = self._read_metadata()
            self.tensors = self._read_structure()
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            self.close()
            if isinstance(error, CheckpointError):
                raise
            raise _damaged(path, error) from error

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._raw.size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the file; the format has no checksums of its own."""
        return sha256_of(self.path, advance=advance)

    def close(self) -> None:
        """Close the file."""
        self._h5.close()
        self._raw.close()

    def _read_metadata(self) -> dict[str, str]:
        own = [key for key in self._h5.attrs if key.startswith(_OWN)]
        texts = {key.removeprefix(_OWN): self._h5.attrs[key] for key in own}
        return {
            key: text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            for key, text in texts.items()
        }

    def _read_structure(self) -> dict[str, StoredTensor]:
        root = self._h5.get("model_weights", self._h5)
        if "layer_names" not in root.attrs and "layer_names0" not in root.attrs:
            found = ", ".join(sorted(map(str, root))[:5])
            raise CheckpointError(
                f"{self.path}: expected Keras's attribute 'layer_names' in the HDF5 file, found "
                f"only {brief(found) or 'an empty file'}. This is not a Keras weight file."
            )
        tensors: dict[str, StoredTensor] = {}
        for layer in _texts(self.path, root.attrs, "layer_names"):
            group = root[layer]
            for weight in _texts(self.path, group.attrs, "weight_names"):
                name = clean_name(weight, layer)
                if name in tensors:
                    raise CheckpointError(
                        f"{self.path}: expected each name once, found two weights named {name!r}. "
                        "The file is damaged or was tampered with."
                    )
                tensors[name] = self._tensor(name, group[weight])
        return tensors

    def _tensor(self, name: str, dataset: Any) -> StoredTensor:
        import h5py

        if not isinstance(dataset, h5py.Dataset) or dataset.dtype not in _FLOATS:
            found = getattr(dataset, "dtype", type(dataset).__name__)
            raise CheckpointError(
                f"{self.path}: {name!r} is stored as {brief(found)}, expected float32 numbers "
                "(float16 and float64 are converted). This is not a BiT checkpoint."
            )
        elsewhere = dataset.file.filename != self._h5.filename
        if elsewhere or dataset.external or dataset.is_virtual:
            raise CheckpointError(
                f"{self.path}: the numbers of {name!r} are in other files, expected them in this "
                "one. Save the weights again with Keras."
            )
        place = dataset.id.get_offset()
        if place is None:  # chunked, perhaps compressed, or never written
            return _ChunkedTensor(self.path, name, dataset, self._lock)
        end = place + math.prod(dataset.shape) * dataset.dtype.itemsize
        if end > self.size:
            raise CheckpointError(
                f"{self.path}: {name!r} ends at byte {end:,}, but the file has {self.size:,}. "
                "It is truncated; fetch it again."
            )
        return RawTensor(name, dataset.shape, dataset.dtype, self._raw, place)


class _ChunkedTensor(StoredTensor):
    """A data set that only the HDF5 library can read, one thread at a time."""

    def __init__(self, path: Path, name: str, dataset: Any, lock: threading.Lock) -> None:
        self.name, self.shape, self.dtype = name, dataset.shape, dataset.dtype
        self._path, self._dataset, self._lock = path, dataset, lock

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read a slab through h5py; `scratch` is not used."""
        try:
            with self._lock:
                slab: Array = self._dataset[(slice(None),) * axis + (slice(start, stop),)]
        except (OSError, RuntimeError, ValueError) as error:
            raise _damaged(self._path, error) from error
        return slab


class KerasWriter(SlabWriter):
    """Writes a `.h5` file as TensorFlow 2.2 writes weights after `build()`, float32.

    h5py creates the structure and closes the file; then the numbers are written by position.
    """

    def __init__(
        self, path: Path, places: Mapping[str, Place], metadata: Mapping[str, str]
    ) -> None:
        """Create the file with its structure.

        Args:
            path: File to write; truncated if it exists.
            places: Name, shape and output axis of every tensor; offsets are ignored.
            metadata: Attributes to add to the root; Keras ignores them.
        """
        self._path = path
        super().__init__(path, _lay_out(path, places, metadata), 4)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Add attributes to the root, and close the file."""
        import h5py

        self.close()
        with h5py.File(self._path, "r+", libver="earliest", locking=False) as file:
            for key, text in metadata.items():
                file.attrs[_OWN + key] = text.encode(errors="replace")


def _lay_out(
    path: Path, places: Mapping[str, Place], metadata: Mapping[str, str]
) -> dict[str, Place]:
    import h5py

    layers: dict[str, list[str]] = {}
    for name in places:
        layers.setdefault(_layer_of(name), []).append(name)
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
                dataset = h5py.h5d.create(where, leaf.encode(), h5py.h5t.IEEE_F32LE, space, create)
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


def _texts(path: Path, attributes: Any, key: str) -> Iterator[str]:
    """Yield the texts of an attribute, which Keras splits into `key0`, `key1` if it is long."""
    keys = [key] if key in attributes else []
    while f"{key}{len(keys)}" in attributes and key not in attributes:
        keys.append(f"{key}{len(keys)}")
    count = 0
    for part in keys:
        for text in np.asarray(attributes[part]).reshape(-1):
            name = text.decode() if isinstance(text, bytes) else str(text)
            count += 1
            if count > _MAX_NAMES or len(name) > _MAX_NAME or not name.isprintable():
                raise CheckpointError(
                    f"{path}: {key} has {brief(repr(name))} as entry {count:,}, expected at most "
                    f"{_MAX_NAMES:,} printable names of up to {_MAX_NAME} characters. The file is "
                    "damaged; fetch it again."
                )
            yield name


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(
        f"{path}: expected a Keras HDF5 file, but it cannot be read ({brief(reason)}). "
        "It is truncated or damaged; fetch it again."
    )
