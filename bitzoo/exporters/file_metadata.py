"""The metadata of an exported file: its inputs, what its outputs mean, and its licence."""

from __future__ import annotations

import json
from dataclasses import asdict

from bitzoo._version import __version__
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.exporters.graph import MIN_SIDE
from bitzoo.models.bit import BiT
from bitzoo.models.image_input import words_for_channels
from bitzoo.zoo.info import info, transform_of

INPUT_RANGE = "{channels} in [-1, 1]: (pixels from 0 to 255) / 127.5 - 1"
EXACT_KEY = "exact_with"
"""Key of the line of Python that runs the file in float32, where the defaults may not."""


def metadata_of(model: BiT, dtype: str = "float32") -> dict[str, str]:
    """Return key -> text; what is not known has no key.

    `preprocessing` is the JSON of an `EvalTransform`, `class_names` a JSON list in the order of
    the outputs, `activation` the function from logits to scores, `model_info` bitzoo's own record.

    Args:
        model: A model from `create_model`.
        dtype: Dtype that its kernels are stored in.
    """
    known = info(model)
    names = known.class_names
    usable = known.preprocessing is not None and "preprocessing" not in known.refused
    metadata = {
        "bitzoo_version": __version__,
        "model": known.identity.name,
        "architecture": known.architecture,
        "num_classes": str(known.num_classes),
        "input": INPUT_RANGE.format(channels=words_for_channels(model.architecture.in_chans)),
        "shapes": f"any number of images; height and width of {MIN_SIDE} px and more",
        "preprocessing": json.dumps(_without_none(asdict(transform_of(known)))) if usable else None,
        "activation": known.activation,
        "class_names": json.dumps(names) if names else None,
        "license": known.license,
        "kernels": f"{_made(model)}, stored as {dtype}; for inference only",
        RECORD_KEY: known.to_json(),
    }
    return {key: value for key, value in metadata.items() if value is not None}


def _made(model: BiT) -> str:
    """Return what folding does to the kernels, in words."""
    form = model.architecture
    made = "standardized once" if form.weight_standardization else "not standardized"
    return made + (", with batch normalization folded into them" if form.norm == "batch" else "")


def _without_none(facts: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in facts.items() if value is not None}
