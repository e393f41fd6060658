"""The key mapping: each tensor's name in each naming scheme, looked up in both directions.

`TABLE` has one row per tensor role and one column per naming scheme; everything else is derived
from it. Only timm's scheme has names for the running statistics of batch normalization; the others
have no place for them. Fields of a name: block ``{b}`` (1-4), unit ``{u}`` (from 1), branch ``{x}``
(a, b, c), and the same counted differently: ``{i}`` = b - 1, ``{j}`` = u - 1, ``{n}`` = 1, 2, 3 for
a, b, c. If a scheme's names are irregular, the row has one template per branch.

=============  ====================================================================================
npz            Google's npz files and TensorFlow 1 modules and checkpoints
keras          Keras h5 files and TensorFlow 2 variables, after the readers clean their names
tf2            paths in a TensorFlow 2 object graph, for files with ambiguous variable names
bit_paper      google-research/big_vision, after the reader removes ``params/``
timm           timm, and bitzoo's own files
transformers   transformers, BitForImageClassification
bit_pytorch    the PyTorch code of the release
=============  ====================================================================================

Sources: npz and bit_pytorch from google-research/big_transfer, bit_pytorch/models.py; keras and tf2
from its bit_tf2/models.py; bit_paper from google-research/big_vision, models/bit_paper.py; timm
from timm/models/resnetv2.py; transformers from transformers/models/bit/modeling_bit.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from bitzoo.models.architecture import BRANCHES, Role, Slot

_UNIT = "resnet/block{b}/unit{u:02d}"
_OBJECT = "_blocks/{i}/layer_with_weights-{j}"
_BLOCK = "stages.{i}.blocks.{j}"
_LAYER = "bit.encoder.stages.{i}.layers.{j}"
_BODY = "body.block{b}.unit{u:02d}"
_STAGE = "block{b}/unit{u:02d}"

Template = str | Mapping[str, str]
"""A name with fields, or one such name per branch."""

TABLE: dict[Role, dict[str, Template]] = {
    Role.STEM_KERNEL: {
        "npz": "resnet/root_block/standardized_conv2d/kernel",
        "keras": "resnet/root_block/standardized_conv2d/kernel",
        "tf2": "_root/layer_with_weights-0/kernel",
        "bit_paper": "root_block/conv_root/kernel",
        "timm": "stem.conv.weight",
        "transformers": "bit.embedder.convolution.weight",
        "bit_pytorch": "root.conv.weight",
    },
    Role.NORM_SCALE: {
        "npz": _UNIT + "/{x}/group_norm/gamma",
        "keras": _UNIT + "/{x}/group_norm/gamma",
        "tf2": _OBJECT + "/_unit_{x}/layer_with_weights-0/gamma",
        "bit_paper": _STAGE + "/gn{n}/scale",
        "timm": _BLOCK + ".norm{n}.weight",
        "transformers": _LAYER + ".norm{n}.weight",
        "bit_pytorch": _BODY + ".gn{n}.weight",
    },
    Role.NORM_SHIFT: {
        "npz": _UNIT + "/{x}/group_norm/beta",
        "keras": _UNIT + "/{x}/group_norm/beta",
        "tf2": _OBJECT + "/_unit_{x}/layer_with_weights-0/beta",
        "bit_paper": _STAGE + "/gn{n}/bias",
        "timm": _BLOCK + ".norm{n}.bias",
        "transformers": _LAYER + ".norm{n}.bias",
        "bit_pytorch": _BODY + ".gn{n}.bias",
    },
    Role.NORM_MEAN: {"timm": _BLOCK + ".norm{n}.running_mean"},
    Role.NORM_VARIANCE: {"timm": _BLOCK + ".norm{n}.running_var"},
    Role.KERNEL: {
        "npz": _UNIT + "/{x}/standardized_conv2d/kernel",
        "keras": _UNIT + "/{x}/standardized_conv2d/kernel",
        "tf2": {
            "a": _OBJECT + "/_unit_a_conv/kernel",
            "b": _OBJECT + "/_unit_b/layer_with_weights-1/kernel",
            "c": _OBJECT + "/_unit_c/layer_with_weights-1/kernel",
        },
        "bit_paper": _STAGE + "/conv{n}/kernel",
        "timm": _BLOCK + ".conv{n}.weight",
        "transformers": _LAYER + ".conv{n}.weight",
        "bit_pytorch": _BODY + ".conv{n}.weight",
    },
    Role.PROJECTION: {
        "npz": _UNIT + "/a/proj/standardized_conv2d/kernel",
        "keras": _UNIT + "/a/proj/standardized_conv2d/kernel",
        "tf2": _OBJECT + "/_proj/kernel",
        "bit_paper": _STAGE + "/conv_proj/kernel",
        "timm": _BLOCK + ".downsample.conv.weight",
        "transformers": _LAYER + ".downsample.conv.weight",
        "bit_pytorch": _BODY + ".downsample.weight",
    },
    Role.FINAL_NORM_SCALE: {
        "npz": "resnet/group_norm/gamma",
        "keras": "resnet/group_norm/gamma",
        "tf2": "_pre_head/0/gamma",
        "bit_paper": "norm-pre-head/scale",
        "timm": "norm.weight",
        "transformers": "bit.norm.weight",
        "bit_pytorch": "head.gn.weight",
    },
    Role.FINAL_NORM_SHIFT: {
        "npz": "resnet/group_norm/beta",
        "keras": "resnet/group_norm/beta",
        "tf2": "_pre_head/0/beta",
        "bit_paper": "norm-pre-head/bias",
        "timm": "norm.bias",
        "transformers": "bit.norm.bias",
        "bit_pytorch": "head.gn.bias",
    },
    Role.FINAL_NORM_MEAN: {"timm": "norm.running_mean"},
    Role.FINAL_NORM_VARIANCE: {"timm": "norm.running_var"},
    Role.HEAD_KERNEL: {
        "npz": "resnet/head/conv2d/kernel",
        "keras": "resnet/head/dense/kernel",
        "tf2": "_head/kernel",
        "bit_paper": "head/kernel",
        "timm": "head.fc.weight",
        "transformers": "classifier.1.weight",
        "bit_pytorch": "head.conv.weight",
    },
    Role.HEAD_BIAS: {
        "npz": "resnet/head/conv2d/bias",
        "keras": "resnet/head/dense/bias",
        "tf2": "_head/bias",
        "bit_paper": "head/bias",
        "timm": "head.fc.bias",
        "transformers": "classifier.1.bias",
        "bit_pytorch": "head.conv.bias",
    },
}

LAYOUTS: dict[str, str] = {
    "npz": "HWIO",
    "keras": "HWIO",
    "tf2": "HWIO",
    "bit_paper": "HWIO",
    "timm": "OIHW",
    "transformers": "OIHW",
    "bit_pytorch": "OIHW",
}
"""Axis order of a kernel in each scheme (see `bitzoo.converters.layouts`)."""

HEAD_LAYOUTS: dict[str, str] = {
    "keras": "IO",
    "tf2": "IO",
    "bit_paper": "IO",
    "transformers": "OI",
}
"""The same for the head's kernel, if it is a dense layer instead of a 1x1 convolution."""

TORCH_SCHEMES = ("timm", "transformers", "bit_pytorch")
"""Schemes that a safetensors or PyTorch file may use."""

_FIELDS = {
    "{b}": r"(?P<b>[1-4])",
    "{u:02d}": r"(?P<u>\d{2,3})",
    "{x}": r"(?P<x>[abc])",
    "{i}": r"(?P<i>[0-3])",
    "{j}": r"(?P<j>\d{1,3})",
    "{n}": r"(?P<n>[123])",
}


def layout_of(role: Role, names: str) -> str:
    """Return the axis order of kernels with that role in the scheme `names`."""
    head = HEAD_LAYOUTS.get(names) if role is Role.HEAD_KERNEL else None
    return head or LAYOUTS[names]


def scatters(names: str) -> bool:
    """Return whether kernels in the scheme `names` spread each output channel over all rows."""
    return not LAYOUTS[names].startswith("O")


def name_of(slot: Slot, names: str) -> str:
    """Return the name of the tensor at `slot` in the scheme `names`."""
    template = TABLE[slot.role][names]
    if not isinstance(template, str):
        template = template[slot.branch]
    return template.format(
        b=slot.block,
        u=slot.unit,
        x=slot.branch,
        i=slot.block - 1,
        j=slot.unit - 1,
        n=BRANCHES.index(slot.branch) + 1 if slot.branch else 0,
    )


def slot_of(name: str, names: str) -> Slot | None:
    """Return the slot with that name in the scheme `names`, or None if there is none."""
    for role, branch, pattern in _patterns(names):
        match = pattern.fullmatch(name)
        if match:
            slot = _slot(role, branch, match.groupdict())
            return slot if name_of(slot, names) == name else None
    return None


def scheme_of(found: Iterable[str], schemes: Iterable[str]) -> str:
    """Return the scheme that knows most of the names; in a tie, the first."""
    found = list(found)
    return max(schemes, key=lambda names: sum(slot_of(name, names) is not None for name in found))


def _slot(role: Role, branch: str, fields: dict[str, str]) -> Slot:
    block = int(fields["b"]) if "b" in fields else int(fields.get("i", -1)) + 1
    unit = int(fields["u"]) if "u" in fields else int(fields.get("j", -1)) + 1
    branch = branch or fields.get("x") or (BRANCHES[int(fields["n"]) - 1] if "n" in fields else "")
    return Slot(role, block, unit, "a" if role is Role.PROJECTION else branch)


@cache
def _patterns(names: str) -> list[tuple[Role, str, re.Pattern[str]]]:
    """Return role, branch (if the row has one template per branch) and pattern."""
    patterns = []
    for role, row in TABLE.items():
        if names not in row:
            continue
        template = row[names]
        by_branch = {"": template} if isinstance(template, str) else template
        patterns += [(role, branch, _compile(text)) for branch, text in by_branch.items()]
    return patterns


def _compile(template: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{[^}]*\})", template)
    return re.compile("".join(_FIELDS.get(piece, re.escape(piece)) for piece in pieces), re.ASCII)
