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
    from bitzoo.catalogue.model_info import ModelInfo
    from bitzoo.catalogue.registry import ModelSpec, get_spec, list_claims, list_models
    from bitzoo.hub.publish import card, publish
    from bitzoo.inference.evaluate import evaluate
    from bitzoo.inference.exports import export
    from bitzoo.inference.optimize import optimize
    from bitzoo.inference.predict import predict
    from bitzoo.runs.distill import distill
    from bitzoo.runs.fewshot import fewshot
    from bitzoo.runs.finetune import finetune
    from bitzoo.runs.forecast import forecast
    from bitzoo.runs.pretrain import pretrain
    from bitzoo.runs.probing import probe
    from bitzoo.runs.reproduce import reproduce
    from bitzoo.runs.resume import resume
    from bitzoo.runs.study import study
    from bitzoo.runs.vtab import vtab
    from bitzoo.training.hyperrule import hyperrule
    from bitzoo.zoo.conversion import convert, verify
    from bitzoo.zoo.create import create_model, fold
    from bitzoo.zoo.info import create_transform, info, labels

_HOMES = {
    "ModelInfo": "catalogue.model_info",
    "ModelSpec": "catalogue.registry",
    "card": "hub.publish",
    "convert": "zoo.conversion",
    "create_model": "zoo.create",
    "create_transform": "zoo.info",
    "distill": "runs.distill",
    "evaluate": "inference.evaluate",
    "export": "inference.exports",
    "fewshot": "runs.fewshot",
    "finetune": "runs.finetune",
    "fold": "zoo.create",
    "forecast": "runs.forecast",
    "get_spec": "catalogue.registry",
    "hyperrule": "training.hyperrule",
    "info": "zoo.info",
    "labels": "zoo.info",
    "list_claims": "catalogue.registry",
    "list_models": "catalogue.registry",
    "optimize": "inference.optimize",
    "predict": "inference.predict",
    "pretrain": "runs.pretrain",
    "probe": "runs.probing",
    "publish": "hub.publish",
    "reproduce": "runs.reproduce",
    "resume": "runs.resume",
    "study": "runs.study",
    "verify": "zoo.conversion",
    "vtab": "runs.vtab",
}

__all__ = [
    "ModelInfo",
    "ModelSpec",
    "__version__",
    "card",
    "convert",
    "create_model",
    "create_transform",
    "distill",
    "evaluate",
    "export",
    "fewshot",
    "finetune",
    "fold",
    "forecast",
    "get_spec",
    "hyperrule",
    "info",
    "labels",
    "list_claims",
    "list_models",
    "optimize",
    "predict",
    "pretrain",
    "probe",
    "publish",
    "reproduce",
    "resume",
    "study",
    "verify",
    "vtab",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitzoo' has no attribute {name!r}")
    return getattr(import_module(f"bitzoo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
