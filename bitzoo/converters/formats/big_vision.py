"""Read what google-research/big_vision saves: `.npz` files of its BiT, `models/bit_paper.py`.

They hold a tree whose paths are the names: the parameters below ``params/`` (``opt/target/`` in
older files; none if only they were published), and next to them whatever the run needs to continue.
bfloat16 is stored as NumPy's ``V2``. Normalizations have the shape (1, 1, 1, channels).

Sources: big_vision models/bit_paper.py (names, shapes, pooling), models/bit.py (the other network),
utils.py (`load_params`, `recover_dtype`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.converters.key_mapping import name_of, slot_of
from bitzoo.converters.source import Array, Scratch, StoredTensor, brief
from bitzoo.errors import CheckpointError
from bitzoo.models.architecture import Role, Slot

SCHEME = "bit_paper"
_PREFIXES = ("params/", "opt/target/")
_STEM = name_of(Slot(Role.STEM_KERNEL), SCHEME)
_OTHER_NETWORK = ("conv_root/kernel", "gn_root/scale", "block1/unit1/conv1/kernel")
"""Names of `models/bit.py`, none of which `models/bit_paper.py` has."""
_SHOWN = 5
_POOL_NOTE = (
    "The file has big_vision's names. Its code pads the maximum pool of the root with minus "
    "infinity (models/bit_paper.py), the released networks and bitzoo with zeros: the converted "
    "network, and the proof of its logits, compute the released function, from which that of "
    "big_vision is 1e-5 to 1e-3 away (relative L2 of the logits)."
)


def find_prefix(path: Path, names: Collection[str]) -> str:
    """Return what the names of the parameters begin with; empty for files with nothing else.

    Args:
        path: The file, for messages.
        names: All names in it.

    Raises:
        CheckpointError: If they are those of big_vision's other network.
    """
    for prefix in (*_PREFIXES, ""):
        if any(prefix + name in names for name in _OTHER_NETWORK):
            raise CheckpointError(
                f"{path}: expected BiT as released (a ResNet-v2, which normalizes before each "
                "convolution), found big_vision's models/bit.py: a ResNet-v1, which normalizes "
                "after it, with another weight standardization. Its weights compute nothing of "
                "use in a BiT network; run them in big_vision."
            )
        if prefix + _STEM in names:
            return prefix
    return ""


def as_bit_paper(
    tensors: Mapping[str, StoredTensor], prefix: str, others: Collection[str]
) -> tuple[str, dict[str, StoredTensor], tuple[str, ...]]:
    """Return the naming scheme of an `.npz` file's tensors, the tensors under its names, and notes.

    Args:
        tensors: The parameters by name.
        prefix: What `find_prefix` found.
        others: Names of the members that are no parameters.
    """
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if _STEM not in plain:
        return "npz", dict(tensors), ()
    notes = [_POOL_NOTE]
    if others:
        listed = ", ".join(brief(name) for name in sorted(others)[:_SHOWN])
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        notes.append(f"Left out, because they are no parameters: {listed}{more}.")
    flat = {name: _flat(name, tensor) for name, tensor in plain.items()}
    return SCHEME, flat, tuple(notes)


def is_brain_float(dtype: np.dtype[Any]) -> bool:
    """Whether NumPy stored bfloat16, which it does not know, as two bytes of anything."""
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None


def _flat(name: str, tensor: StoredTensor) -> StoredTensor:
    """Return the parameters of a normalization as a vector."""
    slot = slot_of(name, SCHEME)
    if slot is None or slot.role in (Role.STEM_KERNEL, Role.KERNEL, Role.PROJECTION):
        return tensor
    if len(tensor.shape) == 4 and tensor.shape[:3] == (1, 1, 1):
        return FlatTensor(tensor)
    return tensor


class FlatTensor(StoredTensor):
    """A tensor of shape (1, 1, 1, n) as one of shape (n,)."""

    def __init__(self, tensor: StoredTensor) -> None:
        """Wrap `tensor`."""
        self._tensor = tensor
        self.name, self.shape, self.dtype = tensor.name, tensor.shape[3:], tensor.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as stored."""
        return self._tensor.nbytes

    @property
    def stored_dtype(self) -> str:
        """The stored dtype."""
        return self._tensor.stored_dtype

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Read some of its numbers."""
        return self._tensor.read_slab(3, start, stop, scratch).reshape(-1)
