"""Rename a network's tensors to Google's names, for the reference implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.converters.key_mapping import layout_of, name_of
from bitzoo.converters.layouts import as_layout
from bitzoo.models.bit import BiT


def google_tensors(model: BiT) -> dict[str, npt.NDArray[Any]]:
    """Return npz name -> float32 array, kernels HWIO; views if the model is float32."""
    state = model.state_dict()
    slots = model.architecture.shapes(model.num_classes)
    arrays = {slot: state[name_of(slot, "timm")].detach().cpu().float().numpy() for slot in slots}
    return {
        name_of(slot, "npz"): as_layout(np.asarray(array), layout_of(slot.role, "npz"))
        for slot, array in arrays.items()
    }
