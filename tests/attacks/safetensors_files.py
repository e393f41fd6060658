"""Safetensors files under attack; the independent reader is the library, written in Rust."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacks.checkpoints_under_attack import PART, WHOLE, Base, CheckpointTarget
from attacks.judges import Arrays
from attacks.mutations import TEXTS, change_json, damage, dump_json, odd_number, odd_value
from checkpoints import as_timm
from formats import as_bit_pytorch
from safetensors.torch import load_file, save

TRANSFORMERS = {
    "stem.conv.weight": "bit.embedder.convolution.weight",
    "stages.0.blocks.0.norm1.weight": "bit.encoder.stages.0.layers.0.norm1.weight",
    "stages.0.blocks.0.norm1.bias": "bit.encoder.stages.0.layers.0.norm1.bias",
    "stages.0.blocks.0.conv1.weight": "bit.encoder.stages.0.layers.0.conv1.weight",
    "norm.weight": "bit.norm.weight",
    "head.fc.weight": "classifier.1.weight",
    "head.fc.bias": "classifier.1.bias",
}
"""As transformers/models/bit/modeling_bit.py names what timm calls otherwise."""


def timm_tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in as_timm(arrays).items()}


def transformers_tensors() -> dict[str, torch.Tensor]:
    named = {TRANSFORMERS[name]: tensor for name, tensor in timm_tensors(PART).items()}
    head = named["classifier.1.weight"]
    return named | {"classifier.1.weight": head.reshape(head.shape[:2]).clone()}


def make_bases(folder: Path) -> list[Base]:
    """Each naming scheme and each number format, as the library writes them."""
    part = timm_tensors(PART)
    forms = {
        "timm": part,
        "transformers": transformers_tensors(),
        "bit_pytorch": dict(as_bit_pytorch(PART)),
        "wrapped": {f"module.{name}": tensor for name, tensor in part.items()},
        "float16": {name: tensor.half() for name, tensor in part.items()},
        "bfloat16": {name: tensor.bfloat16() for name, tensor in part.items()},
        "float64": {name: tensor.double() for name, tensor in part.items()},
        "whole": timm_tensors(WHOLE),
        "whole bfloat16": {n: t.bfloat16() for n, t in timm_tensors(WHOLE).items()},
    }
    metadata = {
        "format": "pt",
        "model": "nobody/knows",
        "bitzoo": json.dumps({"architecture": "x"}),
    }
    bases = []
    for name, tensors in forms.items():
        data = save(tensors, metadata)
        (size,) = struct.unpack("<Q", data[:8])
        hot = [(0, 8), (8, 8 + size), (8, 8 + size)]
        whole = name.startswith("whole")
        bases.append(
            Base(
                name, {"bit.safetensors": data}, "bit.safetensors", whole, {"bit.safetensors": hot}
            )
        )
    return bases


def structured(base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
    """Change what the header says; its length stays right, most of the time."""
    data = base.files["bit.safetensors"]
    (size,) = struct.unpack("<Q", data[:8])
    text, label = changed_header(data[8 : 8 + size], rng)
    body = data[8 + size :]
    length, kind = len(text), rng.random()
    if kind < 0.05:
        length = odd_number(rng, length) % (1 << 64)
        label += ", length"
    elif kind < 0.1:
        body = rng.choice((body[:-1], body + b"\0", body + body[:64], body[4:]))
        label += ", body"
    elif kind < 0.15:
        text, more = damage(text, rng)
        length, label = len(text), f"{label}, {more}"
    return base.write(place, {"bit.safetensors": struct.pack("<Q", length) + text + body}), label


_CODES = ("F32", "F16", "BF16", "F64", "I64", "I8", "BOOL", "F8_E4M3", "f32", "", "F4", "C64", "U8")


def changed_header(  # noqa: C901 - one case per kind of damage
    text: bytes, rng: random.Random
) -> tuple[bytes, str]:
    """Return another JSON header."""
    header = json.loads(text)
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    kind = rng.choice(
        (
            "dtype",
            "shape",
            "turned",
            "offset",
            "swap",
            "name",
            "metadata",
            "gone",
            "twice",
            "json",
            "json",
            "padding",
            "split",
        )
    )
    if kind == "dtype":
        entry["dtype"] = rng.choice(_CODES)
    elif kind == "shape":
        at = rng.randrange(len(entry["shape"]))
        entry["shape"][at] = odd_number(rng, entry["shape"][at])
    elif kind == "turned":
        entry["shape"] = rng.choice(
            (entry["shape"][::-1], [], [1, *entry["shape"]], [*entry["shape"], 1])
        )
    elif kind == "offset":
        at = rng.randrange(2)
        entry["data_offsets"][at] = odd_number(rng, entry["data_offsets"][at])
    elif kind == "swap":
        header[other]["data_offsets"], entry["data_offsets"] = (
            entry["data_offsets"],
            header[other]["data_offsets"],
        )
    elif kind == "name":
        header[rng.choice((*TEXTS, name + ":0", name + " "))] = header.pop(name)
    elif kind == "metadata":
        key = rng.choice((*header.get("__metadata__", {}), rng.choice(TEXTS), "kernel_scale"))
        header.setdefault("__metadata__", {})[key] = rng.choice(
            (odd_value(rng), rng.choice(TEXTS), "10")
        )
        if rng.random() < 0.2:
            header["__metadata__"] = odd_value(rng)
    elif kind == "gone":
        del header[name]
    elif kind == "json":
        header, what = change_json(header, rng)
        return _fit(dump_json(header), rng), what
    elif kind == "split":
        start, stop = entry["data_offsets"]
        middle = (start + stop) // 8 * 4
        entry["data_offsets"] = [start, middle]
        header["extra"] = {
            "dtype": "F32",
            "shape": [(stop - middle) // 4],
            "data_offsets": [middle, stop],
        }
    written = dump_json(header)
    if kind == "twice":
        again = json.dumps({name: header[other]}).encode()
        written = b"{" + again[1:-1] + b"," + written[1:]
    if kind == "padding":
        written = rng.choice(
            (b" " + written, written + b"\0" * 8, written + b"\n" * 3, b"\xef\xbb\xbf" + written)
        )
        return written, kind
    return _fit(written, rng), f"{kind} {name}"


def _fit(text: bytes, rng: random.Random) -> bytes:
    return text + b" " * (-len(text) % 8) if rng.random() < 0.9 else text


def read_here(path: Path) -> Arrays:
    """As the library reads it."""
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in load_file(path).items()
    }


SAFETENSORS = CheckpointTarget("safetensors", make_bases, structured, judge_here=read_here)
