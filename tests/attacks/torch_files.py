"""PyTorch checkpoints under attack; the independent reader is `torch.load` without a memory map."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pathlib
import pickletools
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacks.checkpoints_under_attack import PART, WHOLE, Base, CheckpointTarget
from attacks.mutations import TEXTS, Member, change_zip, damage, odd_number, write_zip
from attacks.npz_files import zip_ranges
from attacks.safetensors_files import timm_tensors, transformers_tensors
from formats import as_bit_pytorch

NAME = "bit.pth"


def make_bases(folder: Path) -> list[Base]:
    """State dicts and training checkpoints, as archives and as the pickles of old."""
    part = OrderedDict(timm_tensors(PART))
    contents: dict[str, Any] = {
        "timm": part,
        "transformers": OrderedDict(transformers_tensors()),
        "bit_pytorch": as_bit_pytorch(PART),
        "wrapped": OrderedDict((f"module.{name}", tensor) for name, tensor in part.items()),
        "views": _views(part),
        "half": OrderedDict((name, tensor.half()) for name, tensor in part.items()),
        "bfloat16": OrderedDict((name, tensor.bfloat16()) for name, tensor in part.items()),
        "double": OrderedDict((name, tensor.double()) for name, tensor in part.items()),
        "training": _training(part),
        "averaged": {"state_dict": part, "state_dict_ema": {n: t + 9 for n, t in part.items()}},
        "trainer": _training(part) | _objects(),
        "whole": OrderedDict(timm_tensors(WHOLE)),
    }
    bases = []
    for name, content in contents.items():
        new, old = io.BytesIO(), io.BytesIO()
        torch.save(content, new)
        bases.append(_archive(name, new.getvalue()))
        if name in ("timm", "bfloat16", "views", "training", "trainer"):
            torch.save(content, old, _use_new_zipfile_serialization=False)
            bases.append(_pickles(f"{name} pickled", old.getvalue(), part))
    return bases


def _views(part: dict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """Tensors that share one storage, one of them transposed."""
    every = torch.cat([tensor.reshape(-1) for tensor in part.values()])
    views: OrderedDict[str, torch.Tensor] = OrderedDict()
    start = 0
    for name, tensor in part.items():
        piece = every[start : start + tensor.numel()]
        views[name], start = piece.view(tensor.shape), start + tensor.numel()
    kernel = part["head.fc.weight"]
    views["head.fc.weight"] = kernel.transpose(0, 1).contiguous().transpose(0, 1)
    return views


def _training(part: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What a trainer saves beside the network."""
    return {
        "epoch": 3,
        "model": part,
        "optimizer": {"state": {0: {"momentum_buffer": part["norm.weight"] * 2}}, "lr": 0.1},
    }


def _objects() -> dict[str, Any]:
    """Objects that only hold data, as trainers save them too."""
    return {
        "args": argparse.Namespace(lr=0.1, name="run", out=pathlib.PurePosixPath("out")),
        "counts": collections.defaultdict(dict, a={"b": 1}),
        "best": np.float64(0.5),
        "when": datetime.datetime(2020, 1, 2, 3, 4),
        "rng": torch.arange(64, dtype=torch.uint8),
    }


def _archive(name: str, data: bytes) -> Base:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [
            Member(info.filename.encode(), archive.read(info), padding=64)
            for info in archive.infolist()
        ]
    hot = [*zip_ranges(data), *[_pickle_range(data)] * len(members)]
    return Base(name, {NAME: data}, NAME, name == "whole", {NAME: hot}, members)


def _pickle_range(data: bytes) -> tuple[int, int]:
    start = data.index(b"\x80\x02")
    return start, data.index(b"PK", start)


def _pickles(name: str, data: bytes, part: dict[str, torch.Tensor]) -> Base:
    end = data.rindex(b"e.") + 2  # of the list of storages, which precede the numbers
    return Base(name, {NAME: data}, NAME, False, {NAME: [(0, end)]}, end)


def structured(base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
    """Change the pickle under a right checksum, a record, or the archive's headers."""
    if isinstance(base.make, int):
        data = base.files[NAME]
        head, label = changed_pickles(data[: base.make], rng)
        return base.write(place, {NAME: head + data[base.make :]}), label
    members = [Member(m.name, m.data, padding=64) for m in base.make]
    kind = rng.choice(("pickle", "pickle", "pickle", "record", "zip", "zip"))
    if kind == "zip":
        data, label = change_zip(members, rng)
        return base.write(place, {NAME: data}), label
    if kind == "pickle":
        member = next(m for m in members if m.name.endswith(b"/data.pkl"))
        member.data, label = changed_pickles(member.data, rng)
    else:
        label = _change_record(members, rng)
    return base.write(place, {NAME: write_zip(members)}), label


def _change_record(members: list[Member], rng: random.Random) -> str:
    member = rng.choice(members)
    kind = rng.choice(
        ("cut", "grown", "renamed", "byteorder", "version", "gone", "damaged", "twice")
    )
    if kind == "cut":
        member.data = member.data[: rng.randrange(len(member.data) + 1)]
    elif kind == "grown":
        member.data += bytes(rng.choice((1, 4, 64, 4096)))
    elif kind == "renamed":
        member.name = (
            member.name.rpartition(b"/")[0] + b"/" + rng.choice((b"0", b"data/9", b"data/00"))
        )
    elif kind in ("byteorder", "version"):
        for other in members:
            if other.name.endswith(kind.encode()):
                other.data = rng.choice((b"big", b"little", b"", b"9" * 30, b"middle", b"-1\n"))
    elif kind == "gone":
        members.remove(member)
    elif kind == "twice":
        members.append(Member(member.name, rng.randbytes(len(member.data)), padding=64))
    else:
        member.data, more = damage(member.data, rng)
        kind += f" {more}"
    return f"record {member.name.decode()} {kind}"


# --- pickles ------------------------------------------------------------------------------------

GLOBALS = (
    b"torch FloatStorage",
    b"torch DoubleStorage",
    b"torch HalfStorage",
    b"torch IntStorage",
    b"torch CharStorage",
    b"torch BFloat16Storage",
    b"torch ComplexFloatStorage",
    b"torch QInt8Storage",
    b"torch BoolStorage",
    b"torch.storage UntypedStorage",
    b"torch._utils _rebuild_tensor_v2",
    b"torch._utils _rebuild_parameter",
    b"torch._utils _rebuild_sparse_tensor",
    b"torch._utils _rebuild_qtensor",
    b"torch._utils _rebuild_meta_tensor_no_storage",
    b"torch Size",
    b"torch Tensor",
    b"torch float8_e4m3fn",
    b"torch.nn.parameter Parameter",
    b"collections OrderedDict",
    b"collections Counter",
    b"os system",
    b"builtins eval",
    b"posix system",
    b"torch.hub load",
    b"numpy ndarray",
    b"numpy.core.multiarray _reconstruct",
    b"argparse Namespace",
    b"pathlib PosixPath",
    b"datetime datetime",
    b"collections defaultdict",
    b"builtins dict",
    b"torch._tensor _rebuild_from_type_v2",
    b"__builtin__ bytearray",
    b"builtins getattr",
)
_SIMPLE = b"()]}0.012NKtesubaRQ\x85\x86\x87\x88\x89\x8a\x81\x93\x94h"


def changed_pickles(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return pickles, one after the other, with other numbers, texts, classes or opcodes."""
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        operations = _operations(data)
        if not operations:
            break
        wanted = rng.choice(
            ("number", "number", "text", "class", "opcode", "delete", "repeat", "move")
        )
        kinds = {"number": _NUMBERS, "text": _TEXTS, "class": ("GLOBAL",)}.get(wanted)
        fitting = [op for op in operations if kinds is None or op[0] in kinds] or operations
        kind, value, start, stop = rng.choice(fitting)
        piece = data[start:stop]
        if wanted == "number" and kind in _NUMBERS:
            piece = _number(odd_number(rng, int(value or 0)), rng)
        elif wanted == "text" and kind in _TEXTS:
            texts = [op[1] for op in operations if op[0] in _TEXTS]
            text = rng.choice((*texts, *texts, *TEXTS)).encode(errors="surrogatepass")
            piece = b"X" + struct.pack("<I", len(text)) + text
        elif wanted == "class" and kind == "GLOBAL":
            module, _, name = rng.choice(GLOBALS).partition(b" ")
            piece = b"c" + module + b"\n" + name + b"\n"
        elif wanted == "delete":
            piece = b""
        elif wanted == "repeat":
            piece *= rng.choice((2, 2, 50))
        elif wanted == "move":
            _, _, there, end = rng.choice(operations)
            piece = data[there:end]
        else:
            piece = bytes([rng.choice(_SIMPLE)]) + piece[1:]
        data = data[:start] + piece + data[stop:]
        names.append(f"{wanted} {kind} {str(value)[:30]}")
    return data, ", ".join(names)


_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE")
_TEXTS = ("BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE")


def _operations(data: bytes) -> list[tuple[str, Any, int, int]]:
    """Name, argument, start and end of every opcode, as far as they can be read."""
    found: list[tuple[str, Any, int, int]] = []
    stream = io.BytesIO(data)
    try:
        while stream.tell() < len(data):
            for opcode, argument, position in pickletools.genops(stream):
                assert position is not None
                found.append((opcode.name, argument, position, stream.tell()))
    except Exception:  # what was changed before may have broken the rest
        pass
    return found


def _number(value: int, rng: random.Random) -> bytes:
    if 0 <= value < 256 and rng.random() < 0.5:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31 and rng.random() < 0.8:
        return b"J" + struct.pack("<i", value)
    size = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


TORCH = CheckpointTarget("torch", make_bases, structured, judge="torch")
