"""What functions accept as a classifier: a name, a path, or the network itself."""

from __future__ import annotations

import os

from bitzoo.errors import UsageError
from bitzoo.models.bit import BiT
from bitzoo.zoo.create import create_model

Classifier = str | os.PathLike[str] | BiT
"""A catalogue name, a checkpoint file, an address, a run folder, or a model of `create_model`."""


def load_classifier(model: Classifier) -> BiT:
    """Return the network that `model` refers to, with its weights.

    Raises:
        UsageError: If it is a network without a classifier.
        BitzooError: As `create_model` raises.
    """
    network = (
        create_model(model, pretrained=True) if isinstance(model, str | os.PathLike) else model
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
