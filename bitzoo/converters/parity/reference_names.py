"""What the references call a tensor: its name in a released npz, or a name for batch norm.

No released file has batch normalization. Its names here are those of TensorFlow's layer, in the
scope where the released files have a group normalization.
"""

from __future__ import annotations

from dataclasses import replace

from bitzoo.converters.key_mapping import name_of
from bitzoo.models.architecture import Architecture, Role, Slot

_GROUP, _BATCH = "group_norm", "batch_normalization"
_STATISTICS = {
    Role.NORM_MEAN: (Role.NORM_SCALE, "moving_mean"),
    Role.NORM_VARIANCE: (Role.NORM_SCALE, "moving_variance"),
    Role.FINAL_NORM_MEAN: (Role.FINAL_NORM_SCALE, "moving_mean"),
    Role.FINAL_NORM_VARIANCE: (Role.FINAL_NORM_SCALE, "moving_variance"),
}


def reference_name(slot: Slot, architecture: Architecture) -> str:
    """Return the name by which `reference_numpy` and `reference_tensorflow` look up a tensor."""
    role, last = _STATISTICS.get(slot.role, (slot.role, ""))
    name = name_of(replace(slot, role=role), "npz")
    if architecture.norm == "batch":
        name = name.replace(f"/{_GROUP}/", f"/{_BATCH}/")
    return f"{name.rpartition('/')[0]}/{last}" if last else name
