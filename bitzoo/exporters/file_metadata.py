"""What an exported file says of itself: what it reads, what its outputs mean, whose it is."""

from __future__ import annotations

import json
from dataclasses import asdict

from bitzoo._version import __version__
from bitzoo.models.bit import BiT
from bitzoo.zoo.create import Origin, create_transform, labels

INPUT_RANGE = "RGB in [-1, 1]: (pixels from 0 to 255) / 127.5 - 1"


def facts_of(model: BiT, dtype: str = "float32") -> dict[str, str]:
    """Return key -> text; what is not known has no key.

    `preprocessing` is the JSON of an `EvalTransform`, `class_names` a JSON list in the order of
    the outputs, `activation` what turns logits into scores.

    Args:
        model: A model from `create_model`.
        dtype: What its kernels are stored in.
    """
    origin = model.origin if isinstance(model.origin, Origin) else Origin()
    own = origin.config.get("bitzoo")
    activation = origin.spec.activation if origin.spec else None
    if isinstance(own, dict):
        activation = own.get("activation", activation)
    names = labels(model) if model.num_classes else None
    facts = {
        "bitzoo_version": __version__,
        "model": origin.spec.name if origin.spec else None,
        "architecture": model.architecture.name,
        "num_classes": str(model.num_classes),
        "input": INPUT_RANGE,
        "preprocessing": json.dumps(asdict(create_transform(model))),
        "activation": str(activation) if activation else None,
        "class_names": json.dumps(names) if names else None,
        "kernels": f"standardized once, stored as {dtype}; for inference only",
    }
    return {key: value for key, value in facts.items() if value is not None}
