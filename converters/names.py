"""The name table: what each format calls each tensor, read in both directions.

One row a tensor role, one column a format; everything else is derived from it. Fields of a name:
block ``{b}`` (1-4), unit ``{u}`` (from 1), branch ``{x}`` (a, b, c), and the same counted
differently: ``{i}`` = b - 1, ``{j}`` = u - 1, ``{n}`` = 1, 2, 3 for a, b, c.

Sources: npz from google-research/big_transfer, bit_pytorch/models.py (`load_from`); timm from
timm/models/resnetv2.py.
"""

from __future__ import annotations

import re
from functools import cache

from bitzoo.arch import BRANCHES, Role, Slot

_UNIT = "resnet/block{b}/unit{u:02d}"
_BLOCK = "stages.{i}.blocks.{j}"

TABLE: dict[Role, dict[str, str]] = {
    Role.STEM_KERNEL: {
        "npz": "resnet/root_block/standardized_conv2d/kernel",
        "timm": "stem.conv.weight",
    },
    Role.NORM_SCALE: {
        "npz": _UNIT + "/{x}/group_norm/gamma",
        "timm": _BLOCK + ".norm{n}.weight",
    },
    Role.NORM_SHIFT: {
        "npz": _UNIT + "/{x}/group_norm/beta",
        "timm": _BLOCK + ".norm{n}.bias",
    },
    Role.KERNEL: {
        "npz": _UNIT + "/{x}/standardized_conv2d/kernel",
        "timm": _BLOCK + ".conv{n}.weight",
    },
    Role.PROJECTION: {
        "npz": _UNIT + "/a/proj/standardized_conv2d/kernel",
        "timm": _BLOCK + ".downsample.conv.weight",
    },
    Role.FINAL_NORM_SCALE: {"npz": "resnet/group_norm/gamma", "timm": "norm.weight"},
    Role.FINAL_NORM_SHIFT: {"npz": "resnet/group_norm/beta", "timm": "norm.bias"},
    Role.HEAD_KERNEL: {"npz": "resnet/head/conv2d/kernel", "timm": "head.fc.weight"},
    Role.HEAD_BIAS: {"npz": "resnet/head/conv2d/bias", "timm": "head.fc.bias"},
}

LAYOUTS: dict[str, str] = {"npz": "HWIO", "timm": "OIHW"}
"""How each format orders the axes of a kernel (see `bitzoo.converters.layouts`)."""

_FIELDS = {
    "{b}": r"(?P<b>[1-4])",
    "{u:02d}": r"(?P<u>\d{2,3})",
    "{x}": r"(?P<x>[abc])",
    "{i}": r"(?P<i>[0-3])",
    "{j}": r"(?P<j>\d{1,3})",
    "{n}": r"(?P<n>[123])",
}


def name_of(slot: Slot, names: str) -> str:
    """Return what the format `names` calls the tensor at `slot`."""
    return TABLE[slot.role][names].format(
        b=slot.block,
        u=slot.unit,
        x=slot.branch,
        i=slot.block - 1,
        j=slot.unit - 1,
        n=BRANCHES.index(slot.branch) + 1 if slot.branch else 0,
    )


def slot_of(name: str, names: str) -> Slot | None:
    """Return the slot that the format `names` calls `name`, or None if it calls none so."""
    for role, pattern in _patterns(names):
        match = pattern.fullmatch(name)
        if match:
            slot = _slot(role, match.groupdict())
            return slot if name_of(slot, names) == name else None
    return None


def _slot(role: Role, fields: dict[str, str]) -> Slot:
    block = int(fields["b"]) if "b" in fields else int(fields.get("i", -1)) + 1
    unit = int(fields["u"]) if "u" in fields else int(fields.get("j", -1)) + 1
    branch = fields.get("x") or (BRANCHES[int(fields["n"]) - 1] if "n" in fields else "")
    return Slot(role, block, unit, "a" if role is Role.PROJECTION else branch)


@cache
def _patterns(names: str) -> list[tuple[Role, re.Pattern[str]]]:
    return [(role, _compile(row[names])) for role, row in TABLE.items()]


def _compile(template: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{[^}]*\})", template)
    return re.compile("".join(_FIELDS.get(piece, re.escape(piece)) for piece in pieces), re.ASCII)
