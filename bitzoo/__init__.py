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
    from bitzoo.finetune import finetune
    from bitzoo.finetune.hyperrule import hyperrule
    from bitzoo.inference.optimize import optimize
    from bitzoo.registry import ModelSpec, get_spec, list_models
    from bitzoo.zoo import create_model, create_transform, fold, labels

_HOMES = {
    "ModelSpec": "registry",
    "create_model": "zoo",
    "create_transform": "zoo",
    "finetune": "finetune",
    "fold": "zoo",
    "get_spec": "registry",
    "hyperrule": "finetune.hyperrule",
    "labels": "zoo",
    "list_models": "registry",
    "optimize": "inference.optimize",
}

__all__ = [
    "ModelSpec",
    "__version__",
    "create_model",
    "create_transform",
    "finetune",
    "fold",
    "get_spec",
    "hyperrule",
    "labels",
    "list_models",
    "optimize",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitzoo' has no attribute {name!r}")
    module = import_module(f"bitzoo.{_HOMES[name]}")
    return module if name == _HOMES[name] else getattr(module, name)  # a package can be called


def __dir__() -> list[str]:
    return sorted(__all__)
