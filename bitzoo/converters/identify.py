"""Infer the BiT architecture of a checkpoint from its tensors, or explain the mismatch in a diff.

Only the tensors decide, never the file's name: public files are mislabelled (issue 47 of
google-research/big_transfer: ``BiT-S-R50x3.h5`` holds a width-1 root). One thing they do not show:
whether kernels are standardized. There the file must say so (`bitzoo.converters.stated_form`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from bitzoo.converters.key_mapping import LAYOUTS, layout_of, name_of, slot_of
from bitzoo.converters.layouts import LOGICAL, stored_shape
from bitzoo.converters.limits import require_plausible_source
from bitzoo.converters.source import Source, StoredTensor
from bitzoo.converters.stated_form import standardizes
from bitzoo.errors import ArchitectureError, CheckpointError, TensorMismatchError
from bitzoo.models.architecture import (
    BRANCHES,
    NUM_BLOCKS,
    STEM_CHANNELS,
    Architecture,
    Norm,
    Role,
    Slot,
)

_MAX_DIFF_LINES = 40
_MAX_IN_CHANS = 1024
"""Bound on the images' channels: a stem is read in one piece per position and channel."""
_RGB = 3
_TENSORS_PER_UNIT = 3 * len(BRANCHES)
_NETWORK_OVER_STEM = 4 * 2 ** (NUM_BLOCKS - 1)
"""Ratio of the last block's channels to the stem's: 2048 to 64."""


@dataclass(frozen=True)
class Inventory:
    """The contents of a checkpoint in terms of the network.

    Attributes:
        architecture: Depths, width, input channels and normalization, inferred from the tensors;
            whether kernels are standardized, from what the file says.
        num_classes: Outputs of the head; 0 without one.
        tensors: Every tensor of the network, in the order of the forward pass.
    """

    architecture: Architecture
    num_classes: int
    tensors: Mapping[Slot, StoredTensor]

    @property
    def title(self) -> str:
        """Architecture and classes in words."""
        head = f"{self.num_classes:,} classes" if self.num_classes else "no head"
        inputs = self.architecture.in_chans
        return f"{self.architecture.name} with {head}" + (
            f" and {inputs:,} input channels" if inputs != _RGB else ""
        )

    @property
    def num_params(self) -> int:
        """Parameters in the file."""
        return self.architecture.num_params(self.num_classes)


def identify(source: Source) -> Inventory:
    """Infer the architecture of an open checkpoint from its tensors' names and shapes.

    Raises:
        CheckpointError: If no tensor has the name of a BiT tensor, or they promise more than the
            file can hold, or it has batch normalization and does not say whether kernels are
            standardized.
        TensorMismatchError: If tensors are missing, extra or misshapen; all are listed.
    """
    require_plausible_source(source)
    found: dict[Slot, StoredTensor] = {}
    extra: list[StoredTensor] = []
    for name, tensor in source.tensors.items():
        slot = slot_of(name, source.names)
        if slot is None:
            extra.append(tensor)
        else:
            found[slot] = tensor
    if not found:
        example = name_of(Slot(Role.STEM_KERNEL), source.names)
        names = sorted(source.tensors)
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise CheckpointError(
            f"{source.path}: no tensor has a BiT name; expected names like {example}, found "
            f"{len(names)} others ({listed or 'none'}). The file is not a BiT checkpoint."
        )
    num_classes = _num_classes(found, source.names)
    architecture = min(
        _candidates(source, found),
        key=lambda candidate: len(_wrong(found, candidate.shapes(num_classes), source.names)),
    )
    expected = architecture.shapes(num_classes)
    if extra or _wrong(found, expected, source.names):
        raise TensorMismatchError(_diff(source, architecture, num_classes, found, extra))
    return Inventory(architecture, num_classes, {slot: found[slot] for slot in expected})


def _candidates(source: Source, found: Mapping[Slot, StoredTensor]) -> list[Architecture]:
    """Return one candidate architecture per hint at the width in the file."""
    layout = LAYOUTS[source.names]
    units = {block: Counter[int]() for block in range(1, NUM_BLOCKS + 1)}
    for slot in found:
        if slot.block and not slot.role.is_statistic:
            units[slot.block][slot.unit] += 1
    depths = (_depth(units[1]), _depth(units[2]), _depth(units[3]), _depth(units[4]))
    stem = found.get(Slot(Role.STEM_KERNEL))
    hints, in_chans = [], _RGB
    if stem is not None and _is_kernel(stem):
        hints.append(stem.shape[layout.index("O")])
        inputs = stem.shape[layout.index("I")]
        in_chans = inputs if 1 <= inputs <= _MAX_IN_CHANS else _RGB
    norm = found.get(Slot(Role.FINAL_NORM_SCALE))
    if norm is not None and len(norm.shape) == 1:
        hints.append(norm.shape[0] // _NETWORK_OVER_STEM)
    first = found.get(Slot(Role.NORM_SCALE, 1, 1, "a"))
    if first is not None and len(first.shape) == 1:
        hints.append(first.shape[0])
    norm_kind: Norm = "batch" if any(slot.role.is_statistic for slot in found) else "group"
    is_standardized = standardizes(source, norm_kind)
    problem = "expected a stem kernel or a normalization to infer the width from, found neither"
    architectures = []
    for channels in dict.fromkeys(hints):
        try:
            architectures.append(
                Architecture(depths, channels / STEM_CHANNELS, in_chans, norm_kind, is_standardized)
            )
        except ArchitectureError as error:
            problem = str(error)
    if not architectures:
        raise CheckpointError(f"{source.path}: its tensors do not form a BiT network: {problem}")
    return architectures


def _depth(units: Counter[int]) -> int:
    """Return the depth with the fewest missing and extra tensors of a block.

    Args:
        units: Number of tensors in the file per unit.
    """
    steps = (2 * units[unit] - _TENSORS_PER_UNIT for unit in range(1, max((1, *units)) + 1))
    gains = list(accumulate(steps))
    return max(range(1, len(gains) + 1), key=lambda depth: (gains[depth - 1], depth))


def _is_kernel(tensor: StoredTensor) -> bool:
    return len(tensor.shape) == len(LOGICAL)


def _num_classes(found: Mapping[Slot, StoredTensor], names: str) -> int:
    kernel, bias = found.get(Slot(Role.HEAD_KERNEL)), found.get(Slot(Role.HEAD_BIAS))
    layout = layout_of(Role.HEAD_KERNEL, names)
    if bias is not None and len(bias.shape) == 1:
        return bias.shape[0]
    if kernel is not None and len(kernel.shape) == len(layout):
        return kernel.shape[layout.index("O")]
    return 0


def _wrong(
    found: Mapping[Slot, StoredTensor], expected: Mapping[Slot, tuple[int, ...]], names: str
) -> set[Slot]:
    shapes = {
        slot: stored_shape(shape, layout_of(slot.role, names)) for slot, shape in expected.items()
    }
    return {
        slot
        for slot in found.keys() | shapes.keys()
        if slot not in found or found[slot].shape != shapes.get(slot)
    }


def _diff(
    source: Source,
    architecture: Architecture,
    num_classes: int,
    found: Mapping[Slot, StoredTensor],
    extra: Iterable[StoredTensor],
) -> str:
    expected = architecture.shapes(num_classes)
    lines = [(tensor.name, "+", tensor.shape) for tensor in extra]
    for slot in _wrong(found, expected, source.names):
        if slot in expected:
            shape = stored_shape(expected[slot], layout_of(slot.role, source.names))
            lines.append((name_of(slot, source.names), "-", shape))
        if slot in found:
            lines.append((found[slot].name, "+", found[slot].shape))
    lines.sort(key=lambda line: (line[0], line[1] == "+"))
    shown = [f"  {sign} {name} {shape}" for name, sign, shape in lines[:_MAX_DIFF_LINES]]
    if len(lines) > _MAX_DIFF_LINES:
        shown.append(f"  ... and {len(lines) - _MAX_DIFF_LINES} more")
    return (
        f"{source.path}: its tensors are closest to {architecture.name} with {num_classes} "
        "classes, but do not fit it. Expected (-) and found (+):\n" + "\n".join(shown) + "\n"
        "The file is damaged, incomplete, or belongs to another network."
    )
