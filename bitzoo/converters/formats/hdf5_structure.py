"""Read the structure of a Keras HDF5 file with h5py, in a process with bounds.

The HDF5 library trusts what it reads: a damaged attribute makes it loop without end, or allocate
gigabytes. So this module is called by `limited_process.run_limited` only. It returns names, types
and positions; `keras` reads the numbers itself, from the positions.

Nothing outside the file is opened: links are looked at before they are followed, and only those to
an object of the file itself are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bitzoo.limited_process import RefusedError

MAX_NAMES = 20_000
MAX_NAME = 255
MAX_TEXT = 4 << 20
"""Bound on the text of all attributes; one has at most 64 kB in Keras's form."""
BRAIN_FLOAT = "bfloat16"
_PIECE = 16 << 20
_AGAIN = "The file is damaged; fetch it again."
_ELSEWHERE = "are in other files, expected them in this one. Save the weights again with Keras."

_IEEE = {
    "<f2": "IEEE_F16LE",
    ">f2": "IEEE_F16BE",
    "<f4": "IEEE_F32LE",
    ">f4": "IEEE_F32BE",
    "<f8": "IEEE_F64LE",
    ">f8": "IEEE_F64BE",
}
"""NumPy's code -> HDF5's name of the stored type. A type is compared as a whole: h5py
says float32 also of floats with other fields, which it would convert."""


def list_tensors(descriptor: int) -> dict[str, Any]:
    """Return the weights that a Keras file lists.

    Args:
        descriptor: Of the open file.

    Returns:
        ``attributes``: the root's texts that bitzoo wrote, by name; ``weights``: per weight its
        layer, name, type (a NumPy code, or ``bfloat16``), shape, position in the file (None if
        its numbers do not lie there as they are), and the bytes of its largest chunk.

    Raises:
        RefusedError: If this is not a Keras file, or it refers to other files.
    """
    with _open(descriptor) as file:
        own = [key for key in file.attrs if key.startswith("bitzoo.")]
        attributes = {key: _text(file.attrs[key]) for key in own}
        if sum(map(len, (*attributes, *attributes.values()))) > MAX_TEXT:
            raise RefusedError(f"its attributes have more than {MAX_TEXT:,} characters. {_AGAIN}")
        root = _root(file)
        if not _lists_layers(root):
            found = ", ".join(sorted(map(str, root))[:5])[:200]
            raise RefusedError(
                "expected Keras's attribute 'layer_names' in the HDF5 file, found only "
                f"{found or 'an empty file'}. This is not a Keras weight file."
            )
        weights = []
        for layer in _names(root, "layer_names"):
            group = _find(root, layer)
            for name in _names(group, "weight_names"):
                weights.append({"layer": layer, "name": name, **_place(_find(group, name), name)})
        return {"attributes": attributes, "weights": weights}


def unpack(descriptor: int, output: int, weights: list[tuple[str, str]]) -> None:
    """Write the numbers of weights to an open file one after the other, in their stored type.

    Args:
        descriptor: Of the open HDF5 file.
        output: Of the file to write.
        weights: Layers and names.
    """
    with _open(descriptor) as file, open(output, "wb", closefd=False) as out:
        root = _root(file)
        for layer, name in weights:
            dataset = _find(_find(root, layer), name)
            row = dataset.dtype.itemsize * math.prod(dataset.shape[1:])
            chunk = dataset.chunks[0] if dataset.chunks else 1
            step = max(_PIECE // max(row, 1) // chunk, 1) * chunk  # no chunk is unpacked twice
            for start in range(0, dataset.shape[0], step):
                out.write(np.ascontiguousarray(dataset[start : start + step]).data)


def _root(file: Any) -> Any:
    """Return the group with the weights; in the file of a whole model it is below the root.

    Source: keras-team/keras, keras/saving/hdf5_format.py (`load_weights`).
    """
    return (
        file if _lists_layers(file) or "model_weights" not in file else _find(file, "model_weights")
    )


def _lists_layers(group: Any) -> bool:
    return "layer_names" in group.attrs or "layer_names0" in group.attrs


def _open(descriptor: int) -> Any:
    import h5py

    # By descriptor: exactly the file that the parent reads. Some file systems have no locks.
    return h5py.File(f"/dev/fd/{descriptor}", "r", locking=False)


def _find(group: Any, path: str) -> Any:
    """Return an object of the file by its path, which may lead only through hard links."""
    import h5py

    place = group
    for part in path.split("/"):
        if not isinstance(place, h5py.Group):
            raise RefusedError(f"{path!r} is inside {place.name!r}, which is no group. {_AGAIN}")
        if not part:
            raise RefusedError(f"{path!r} is not a path in an HDF5 file. {_AGAIN}")
        link = place.get(part, getlink=True)
        if link is None:
            raise ValueError(f"it lists {path!r}, which is not there")
        if not isinstance(link, h5py.HardLink):
            raise RefusedError(f"the numbers of {path!r}, a {type(link).__name__}, {_ELSEWHERE}")
        place = place[part]
    return place


def _place(dataset: Any, name: str) -> dict[str, Any]:
    """Return type, shape and position of a weight.

    Raises:
        RefusedError: If it has no plain numbers in this file.
    """
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise _not_float(name, type(dataset).__name__)
    kind = _kind(dataset.id.get_type())
    if not kind:
        raise _not_float(name, _describe(dataset))
    created = dataset.id.get_create_plist()
    layout = created.get_layout()
    if layout == h5py.h5d.VIRTUAL or created.get_external_count():
        raise RefusedError(f"the numbers of {name!r} {_ELSEWHERE}")
    shape = dataset.shape
    if shape is None:
        raise _not_float(name, "nothing (a null data space)")
    size = int(kind.strip("<>f")) if kind != BRAIN_FLOAT else 2
    promised = size * math.prod(shape)
    stored = dataset.id.get_storage_size()
    place = dataset.id.get_offset() if layout == h5py.h5d.CONTIGUOUS else None
    largest, whole = 0, stored == promised and (place is not None or not promised)
    if layout == h5py.h5d.COMPACT:
        largest, whole = promised, stored == promised
    elif layout == h5py.h5d.CHUNKED:
        chunk = created.get_chunk()
        largest = size * math.prod(chunk)
        expected = math.prod(-(-side // step) for side, step in zip(shape, chunk, strict=True))
        whole = dataset.id.get_num_chunks() == expected
    if not whole:
        raise RefusedError(
            f"the numbers of {name!r} are not all there: shape {shape} needs {promised:,} bytes, "
            f"found {stored:,}, some of them never written. Save the weights again with Keras."
        )
    return {"type": kind, "shape": shape, "offset": place, "chunk": largest}


def _kind(stored: Any) -> str:
    """Return the name of a float type that can be read as it is stored; else an empty string."""
    import h5py

    for code, name in _IEEE.items():
        if stored.equal(getattr(h5py.h5t, name)):
            return code
    brain = h5py.h5t.IEEE_F16LE.copy()
    brain.set_fields(15, 7, 8, 0, 7)
    brain.set_ebias(127)
    return BRAIN_FLOAT if stored.equal(brain) else ""


def _describe(dataset: Any) -> str:
    import h5py

    stored = dataset.id.get_type()
    if stored.get_class() == h5py.h5t.FLOAT:
        _, _, exponent, _, mantissa = stored.get_fields()
        return (
            f"floats of {8 * stored.get_size()} bits with {exponent} for the exponent and "
            f"{mantissa} for the mantissa, which is not an IEEE type"
        )
    return str(dataset.dtype)[:100]


def _not_float(name: str, found: str) -> RefusedError:
    return RefusedError(
        f"{name!r} is stored as {found}, expected float32 numbers (float16, bfloat16 and float64 "
        "are converted). This is not a BiT checkpoint."
    )


def _names(group: Any, key: str) -> Iterator[str]:
    """Yield the texts of an attribute, which Keras splits into `key0`, `key1` if it is long."""
    attributes = group.attrs
    keys = [key] if key in attributes else []
    while f"{key}{len(keys)}" in attributes and key not in attributes:
        keys.append(f"{key}{len(keys)}")
    count = 0
    for part in keys:
        for text in np.asarray(attributes[part]).reshape(-1):
            name = _text(text)
            count += 1
            if count > MAX_NAMES or len(name) > MAX_NAME or not name.isprintable():
                raise RefusedError(
                    f"{key} has {name[:200]!r} as entry {count:,}, expected at most "
                    f"{MAX_NAMES:,} printable names of up to {MAX_NAME} characters. {_AGAIN}"
                )
            yield name


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
