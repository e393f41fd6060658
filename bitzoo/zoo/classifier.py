"""What functions accept as a classifier: a name, a path, or the network itself."""

from __future__ import annotations

import os

from bitzoo.errors import UsageError
from bitzoo.models.bit import BiT
from bitzoo.zoo.create import create_model

Classifier = str | os.PathLike[str] | BiT
"""A catalogue name, a checkpoint file, an address, a run folder, or a model of `create_model`."""


def load_classifier(model: Classifier, weights: str | None = None) -> BiT:
    """Return the network that `model` refers to, with its weights.

    Args:
        model: What to load; a network is returned as it is.
        weights: Which weights of a training checkpoint; as for `create_model`.

    Raises:
        UsageError: If it is a network without a classifier, or one that has its weights already.
        BitzooError: As `create_model` raises.
    """
    if isinstance(model, str | os.PathLike):
        network: object = create_model(model, pretrained=True, weights=weights)
    elif weights is None:
        network = model
    else:
        raise UsageError(
            f'`weights="{weights}"` chooses between the weights in a file, but the model is loaded '
            "already. Give it to `bitzoo.create_model` instead."
        )
    if not isinstance(network, BiT):
        raise UsageError(
            f"Expected a classifier (a name, a path, or what `bitzoo.create_model` returns without "
            f"`features_only`), found {type(network).__name__}."
        )
    return network


def title_of(model: Classifier) -> str:
    """Return what to call `model` in a message."""
    return model.architecture.name if isinstance(model, BiT) else os.fspath(model)
