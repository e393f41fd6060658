"""Keras h5 files under attack; the independent reader is h5py, as Keras uses it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from attacks.checkpoints_under_attack import PART, WHOLE, Base, CheckpointTarget
from attacks.mutations import TEXTS, damage, odd_number
from formats import write_keras

NAME = "bit.h5"


def make_bases(folder: Path) -> list[Base]:
    """Each form of names and each way to store numbers."""
    packed = {"chunks": True, "compression": "gzip"}
    forms: dict[str, dict[str, Any]] = {
        "built": {},
        "called": {"form": "tf22_called"},
        "tf23": {"form": "tf23"},
        "model": {"group": "model_weights"},
        "split": {"split": True},
        "chunked": {"chunks": True},
        "packed": packed | {"shuffle": True, "fletcher32": True},
        "float16": {"dtype": "f2"},
        "float64": {"dtype": ">f8"},
        "newest": {"libver": "latest"},
        "whole": {},
        "whole packed": packed,
    }
    bases = []
    for name, options in forms.items():
        whole, path = name.startswith("whole"), folder / f"{name}.h5"
        newest = options.pop("libver", None)
        write_keras(path, WHOLE if whole else PART, **options)
        if newest:
            _copy_newest(path)
        data = path.read_bytes()
        bases.append(Base(name, {NAME: data}, NAME, whole, {NAME: _structure(data)}))
    return bases


def _copy_newest(path: Path) -> None:
    """Write the file again in the newest form of HDF5, whose structures have checksums."""
    with (
        h5py.File(path, "r") as old,
        h5py.File(path.with_suffix(".new"), "w", libver="latest") as new,
    ):
        for key, value in old.attrs.items():
            new.attrs[key] = value
        for name in old:
            old.copy(name, new)
    path.with_suffix(".new").replace(path)


def _structure(data: bytes) -> list[tuple[int, int]]:
    """Where HDF5's own structures are: around each of their signatures."""
    found = [(0, 96)]
    for mark in (b"TREE", b"SNOD", b"HEAP", b"OHDR", b"FRHP", b"BTHD", b"GCOL", b"OCHK", b"FADB"):
        at = data.find(mark)
        while at >= 0 and len(found) < 400:
            found.append((max(0, at - 320), at + 512))
            at = data.find(mark, at + 1)
    return found


def structured(base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
    """Change the file through the library itself."""
    path = base.write(place)
    with h5py.File(path, "r+") as file:
        datasets: list[str] = []
        groups: list[str] = [""]
        file.visititems(
            lambda name, item: (datasets if isinstance(item, h5py.Dataset) else groups).append(name)
        )
        name = rng.choice(list(_CHANGES))
        try:
            _CHANGES[name](file, rng.choice(datasets), rng.choice(groups), rng)
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            name += f" (half done: {type(error).__name__})"  # the library has rules of its own
    if rng.random() < 0.15:
        data, more = damage(path.read_bytes(), rng, base.hot[NAME])
        path.write_bytes(data)
        name += ", " + more
    return path, name


def _again(file: h5py.File, at: str, **options: Any) -> None:
    """Write a data set anew with other options."""
    old = file[at][()]
    del file[at]
    file.create_dataset(at, **{"data": old, **options})


TYPES = (
    "i4",
    "u1",
    "f2",
    ">f4",
    "f8",
    "c8",
    "S4",
    h5py.string_dtype(),
    h5py.ref_dtype,
    "b1",
    np.dtype([("a", "f4"), ("b", "i2")]),
    np.dtype(("f4", (2,))),
    "i8",
    "u2",
)


def _type(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    kind, shape = rng.choice(TYPES), file[at].shape
    del file[at]
    file.create_dataset(at, shape, kind)


def _strange_float(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    """A float of as many bytes with its sign, exponent or mantissa elsewhere."""
    old = file[at][()]
    del file[at]
    kind = h5py.h5t.IEEE_F32LE.copy()
    bias, fields = (
        rng.choice((127, 127, 15, 128, 0)),
        rng.choice(
            (
                (31, 23, 8, 0, 23),
                (31, 25, 6, 0, 25),
                (0, 1, 8, 9, 23),
                (23, 24, 8, 0, 23),
                (31, 26, 5, 0, 10),
            )
        ),
    )
    try:
        kind.set_fields(*fields)
        kind.set_ebias(bias)
        if rng.random() < 0.3:
            kind.set_order(h5py.h5t.ORDER_BE)
        if rng.random() < 0.2:
            kind.set_precision(rng.choice((16, 24, 30, 32)))
    except (ValueError, RuntimeError):
        pass
    space = h5py.h5s.create_simple(old.shape)
    parent, _, leaf = at.rpartition("/")
    made = h5py.h5d.create(file.require_group(parent).id, leaf.encode(), kind, space)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(old, "f4"), h5py.h5t.NATIVE_FLOAT)


def _shape(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    old = file[at][()]
    sizes = list(old.shape) or [1]
    sizes[rng.randrange(len(sizes))] = rng.choice((0, 1, 5, sizes[0] + 1))
    del file[at]
    file.create_dataset(at, rng.choice((tuple(sizes), old.shape[::-1], (), (*old.shape, 1))), "f4")


def _unwritten(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    """A data set without numbers: as large as it is told, and every number its fill value."""
    shape, rank = file[at].shape, len(file[at].shape)
    huge = (rng.choice((1 << 40, 1 << 31, 1 << 24)),) * rank
    del file[at]
    file.create_dataset(
        at,
        rng.choice((shape, shape, huge)),
        "f4",
        chunks=rng.choice((True, (1,) * rank)),
        fillvalue=rng.choice((0.0, 1.5, float("nan"))),
        maxshape=rng.choice((None, (None,) * rank)),
    )


def _stored(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    rank = len(file[at].shape)
    packed = rng.choice(("gzip", "lzf", None))
    if rank == 0:
        return
    _again(
        file,
        at,
        chunks=True,
        compression=packed,
        shuffle=rng.random() < 0.5,
        fletcher32=rng.random() < 0.5,
        scaleoffset=rng.choice((None, None, 3)),
    )


def _bomb(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    """A packed chunk of zeros, far larger than its bytes."""
    del file[at]
    size = rng.choice((1 << 18, 1 << 22))
    file.create_dataset(
        at, (size,), "f4", chunks=(size,), compression="gzip", data=np.zeros(size, "f4")
    )


def _virtual(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    shape = file[at].shape
    layout = h5py.VirtualLayout(shape, "f4")
    source = rng.choice((".", "other.h5", "/etc/passwd"))
    layout[...] = h5py.VirtualSource(source, "weights", shape)
    del file[at]
    file.create_virtual_dataset(at, layout)


def _outside(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    shape = file[at].shape
    del file[at]
    where = rng.choice(("/etc/passwd", "/dev/zero", "missing", NAME))
    file.create_dataset(at, shape, "f4", external=[(where, 0, h5py.h5f.UNLIMITED)])


def _link(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    """A link in the place of a data set or of a group."""
    datasets: list[str] = []
    file.visititems(lambda name, item: datasets.append(name) if hasattr(item, "shape") else None)
    target = rng.choice((at, group)) or at
    other = rng.choice(datasets)
    links: tuple[Any, ...] = (
        h5py.SoftLink("/" + other),
        h5py.SoftLink("/" + target),
        h5py.SoftLink("/nowhere"),
        h5py.ExternalLink("/dev/zero", "/x"),
        h5py.ExternalLink(NAME, "/" + other),
        h5py.ExternalLink("missing.h5", "/"),
        file["/"],
        file[other],
    )
    del file[target]
    try:
        file[target] = rng.choice(links)
    except (KeyError, ValueError, RuntimeError):
        file[target] = h5py.SoftLink("/nowhere")


def _attribute(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    """Another value for a list of names, or for something that bitzoo writes."""
    places = [file, *(file[g] for g in _groups(file))]
    attributes = rng.choice([place.attrs for place in places])
    key = rng.choice((*attributes, "layer_names", "weight_names", "bitzoo.model", "bitzoo.bitzoo"))
    old = np.asarray(attributes[key]).reshape(-1) if key in attributes else np.array([b"x"])
    values: tuple[Any, ...] = (
        odd_number(rng) % (1 << 31),
        1.5,
        np.zeros(0),
        h5py.Empty("f4"),
        h5py.Empty("S4"),
        "text",
        [1, 2, 3],
        np.array([b"\xff\xfe", b"a"]),
        old[::-1],
        np.concatenate([old, old]),
        old[:1],
        np.array(list(map(str, old)), dtype=h5py.string_dtype()),
        np.array([b"x" * 300]),
        file.ref,
        np.array([rng.choice(TEXTS).encode(errors="replace") or b"-"]),
        b"10",
        np.array([[b"a"]]),
        np.array([b".."]),
        np.array([b"/"]),
        np.array([b"."]),
        [b"kernel_scale"],
        np.arange(5000),
    )
    if key in attributes:
        del attributes[key]
    value = rng.choice(values)
    try:
        if rng.random() < 0.9:
            attributes[key] = value
    except (TypeError, ValueError, OSError, RuntimeError):
        attributes[key] = b"-"


def _groups(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Group) else None)
    return found


def _exchange(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    datasets: list[str] = []
    file.visititems(lambda name, item: datasets.append(name) if hasattr(item, "shape") else None)
    other = rng.choice(datasets)
    if other != at:
        file.move(at, "spare")
        file.move(other, at)
        file.move("spare", other)


def _kind(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    """A group where numbers were, or numbers where a group was, or a type."""
    if rng.random() < 0.5 and group:
        del file[group]
        file.create_dataset(group, data=np.zeros(3))
    else:
        del file[at]
        if rng.random() < 0.5:
            file.create_group(at)
        else:
            file[at] = np.dtype("f4")


def _gone(file: h5py.File, at: str, group: str, rng: random.Random) -> None:
    del file[rng.choice((at, group)) or at]


_CHANGES: dict[str, Callable[[h5py.File, str, str, random.Random], None]] = {
    "type": _type,
    "strange float": _strange_float,
    "shape": _shape,
    "unwritten": _unwritten,
    "stored": _stored,
    "bomb": _bomb,
    "virtual": _virtual,
    "outside": _outside,
    "link": _link,
    "attribute": _attribute,
    "another attribute": _attribute,
    "exchange": _exchange,
    "kind": _kind,
    "gone": _gone,
}


KERAS = CheckpointTarget("keras", make_bases, structured, judge="h5")
