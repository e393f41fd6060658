"""The home of Google's Big Transfer (BiT) models: by name, converted with proof, ready to use.

>>> import bitzoo
>>> model = bitzoo.create_model("BiT-M-R101x1", pretrained=True)  # doctest: +SKIP

Names are loaded when they are first used, so that importing bitzoo costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bitzoo._version import __version__

if TYPE_CHECKING:
    from bitzoo.registry import ModelSpec, get_spec, list_models
    from bitzoo.zoo import create_model, create_transform, fold, labels

_HOMES = {
    "ModelSpec": "registry",
    "create_model": "zoo",
    "create_transform": "zoo",
    "fold": "zoo",
    "get_spec": "registry",
    "labels": "zoo",
    "list_models": "registry",
}

__all__ = [
    "ModelSpec",
    "__version__",
    "create_model",
    "create_transform",
    "fold",
    "get_spec",
    "labels",
    "list_models",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitzoo' has no attribute {name!r}")
    return getattr(import_module(f"bitzoo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
