"""Rename a network's tensors to the names of the reference implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.converters.key_mapping import layout_of, name_of
from bitzoo.converters.layouts import as_layout
from bitzoo.converters.parity.reference_names import reference_name
from bitzoo.errors import FoldedModelError
from bitzoo.models.bit import BiT
from bitzoo.models.layers import PlainConv2d


def google_tensors(model: BiT, *, standardized: bool = False) -> dict[str, npt.NDArray[Any]]:
    """Return npz name -> float32 array, kernels HWIO; views if the model is float32.

    Args:
        model: The network; folded or not.
        standardized: Whether to return the kernels that the network convolves with.

    Raises:
        FoldedModelError: If batch normalization was folded, so that its tensors are gone.
    """
    form, state = model.architecture, dict(model.state_dict())
    if model.folded and form.norm == "batch":
        raise FoldedModelError(
            "Expected an unfolded network: in a folded one, batch normalization has become part of "
            "its kernels. Use the network before `fold`."
        )
    if standardized:
        for name, module in model.named_modules():
            if isinstance(module, PlainConv2d):
                state[f"{name}.weight"] = module.kernel()
    slots = form.shapes(model.num_classes)
    arrays = {slot: state[name_of(slot, "timm")].detach().cpu().float().numpy() for slot in slots}
    return {
        reference_name(slot, form): as_layout(np.asarray(array), layout_of(slot.role, "npz"))
        for slot, array in arrays.items()
    }
