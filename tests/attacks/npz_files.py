"""NumPy archives under attack; the independent readers are NumPy and `zipfile`."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from attacks.checkpoints_under_attack import PART, WHOLE, Base, CheckpointTarget
from attacks.judges import Arrays
from attacks.mutations import TEXTS, Member, Ranges, change_zip, damage, odd_number, write_zip


def make_bases(folder: Path) -> list[Base]:
    """The same numbers as NumPy writes them: stored, packed, with zip64, in other dtypes."""
    forms = {
        "stored": [_member(n, a) for n, a in PART.items()],
        "packed": [_member(n, a, method=8) for n, a in PART.items()],
        "zip64": [_member(n, a, zip64=True) for n, a in PART.items()],
        "float16": [_member(n, a.astype("f2")) for n, a in PART.items()],
        "float64": [_member(n, a.astype("f8")) for n, a in PART.items()],
        "big-endian": [_member(n, a.astype(">f4")) for n, a in PART.items()],
        "fortran": [_member(n, np.asfortranarray(a)) for n, a in PART.items()],
        "renumbered": [
            _member(n.replace("a/standardized_conv2d", "a/standardized_conv2d_1"), a)
            for n, a in PART.items()
        ],
        "whole": [_member(n, a) for n, a in WHOLE.items()],
        "whole packed": [_member(n, a, method=8) for n, a in WHOLE.items()],
    }
    return [_base(name, members) for name, members in forms.items()]


def _member(name: str, array: np.ndarray, *, method: int = 0, zip64: bool = False) -> Member:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return Member(f"{name}.npy".encode(), out.getvalue(), method, zip64=zip64)


def _base(name: str, members: list[Member]) -> Base:
    data = write_zip(members)
    return Base(
        name,
        {"bit.npz": data},
        "bit.npz",
        whole=name.startswith("whole"),
        hot={"bit.npz": zip_ranges(data)},
        make=members,
    )


def zip_ranges(data: bytes) -> Ranges:
    """Where an archive's headers are, each member's own first bytes included."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        starts = [(info.header_offset, info.header_offset + 250) for info in archive.infolist()]
        directory = (archive.start_dir, len(data))
    return [*starts, *[directory] * len(starts)]


def structured(base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
    """Damage the zip headers, or an array's header under a right checksum."""
    members = list(base.make)
    if rng.random() < 0.5:
        data, label = change_zip(members, rng)
    else:
        at = rng.randrange(len(members))
        head, label = _changed_header(members[at].data, rng)
        members[at] = Member(members[at].name, head, members[at].method, zip64=members[at].zip64)
        data = write_zip(members)
    if rng.random() < 0.1:
        data, more = damage(data, rng, base.hot["bit.npz"])
        label += ", " + more
    return base.write(place, {"bit.npz": data}), label


DTYPES: tuple[Any, ...] = (
    "<f4",
    ">f4",
    "<f2",
    "<f8",
    "<i4",
    "|u1",
    "|V2",
    "|O",
    "<c8",
    "<U1",
    "|b1",
    "<f3",
    "<M8[s]",
    "f",
    "<f4,<f4",
    "",
    "|S4",
    "<f16",
    "<g",
    ("<f4", (2,)),
    [("a", "<f4")],
    [],
    None,
    4,
)
SHAPES = (
    "True",
    "(True, 3)",
    "(-1,)",
    "()",
    "(1 << 70,)",
    "(4704.0,)",
    "('a',)",
    "(0,)",
    "[32]",
    "32",
    "(32, )",
    "(2147483648, 2147483648, 4)",
    "(" * 300 + ")" * 300,
    "((32,),)",
    "(1e3,)",
    "(32, 0)",
    "(1,) * 9",
    "None",
    "(" + "1," * 40 + ")",
    "(0x20,)",
    "(3_2,)",
    "(1j,)",
)


def _changed_header(  # noqa: C901 - one case per kind of damage
    data: bytes, rng: random.Random
) -> tuple[bytes, str]:
    """Return an array file whose header says something else."""
    array = np.load(io.BytesIO(data))
    start = len(data) - array.nbytes
    body = data[start:]
    said = {
        "descr": repr(array.dtype.str),
        "fortran_order": str(bool(not array.flags.c_contiguous)),
        "shape": repr(array.shape),
    }
    kind = rng.choice(
        ("dtype", "shape", "shape", "sizes", "order", "keys", "version", "length", "text")
    )
    version, length = b"\1\0", None
    if kind == "dtype":
        said["descr"] = repr(rng.choice(DTYPES))
    elif kind == "shape":
        said["shape"] = rng.choice(SHAPES)
    elif kind == "sizes":
        sizes = list(array.shape)
        at = rng.randrange(len(sizes))
        sizes[at] = odd_number(rng, sizes[at])
        if rng.random() < 0.3:
            sizes = sizes[::-1]
        said["shape"] = repr(tuple(sizes))
    elif kind == "order":
        said["fortran_order"] = rng.choice(("True", "False", "None", "1", "'C'", "[]"))
    elif kind == "keys":
        said.pop(rng.choice(list(said)))
        said.update(rng.choice(({}, {"extra": "1"}, {rng.choice(TEXTS)[:50]: "2"})))
    elif kind == "version":
        version = rng.choice((b"\2\0", b"\3\0", b"\0\0", b"\xff\xff", b"\1\1"))
    elif kind == "length":
        length = odd_number(rng, 118) & 0xFFFF
    text = "{" + "".join(f"{key!r}: {value}, " for key, value in said.items()) + "}"
    if kind == "text":
        text = rng.choice(
            (text[:-1], text + ")", "{", "__import__('os')", "\0" * 9, text * 2, "#", "-")
        )
    head = text.encode() + b" " * rng.choice((0, 1, 30, 4_000)) + b"\n"
    size = (len(head) if length is None else length).to_bytes(4 if version[0] > 1 else 2, "little")
    if rng.random() < 0.15:
        body = body[: len(body) // 2]
    return b"\x93NUMPY" + version + size + head + body, f"header {kind} {text[:80]}"


def read_here(path: Path) -> Arrays:
    """As NumPy reads it, with all checksums."""
    with zipfile.ZipFile(path) as archive:
        if bad := archive.testzip():
            raise ValueError(f"CRC-32 of {bad}")
    with np.load(path, allow_pickle=False) as file:
        return {name: _numbers(file[name]) for name in file.files}


def _numbers(array: np.ndarray) -> np.ndarray:
    """An array as it is; two bytes without a type are bfloat16, as JAX saves it."""
    if array.dtype != np.dtype("V2"):
        return array
    return (array.view("<u2").astype(np.uint32) << 16).view(np.float32)


NPZ = CheckpointTarget("npz", make_bases, structured, judge_here=read_here)
