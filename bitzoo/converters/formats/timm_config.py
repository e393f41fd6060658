"""`config.json` in timm's form, which bitzoo, timm and transformers' timm wrapper read.

`num_classes` is only at the root: if it were in `model_args` too, transformers would pass it twice.
bitzoo's own record is under the key ``bitzoo``; where timm's keys differ from it, they take
precedence, because other tools read and change them.

Keys: timm/models/_hub.py and timm/models/_pretrained.py. The resize rounds down, as in
timm/data/transforms_factory.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bitzoo._version import __version__
from bitzoo.catalogue.metadata import DEFAULT_PREPROCESSING, Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.registry import find_spec
from bitzoo.converters.source import brief
from bitzoo.errors import CheckpointError, damage_reported
from bitzoo.models.architecture import ARCHITECTURES, Architecture

CONFIG_NAME = "config.json"
RECORD_KEY = "model_info"
"""Under ``bitzoo`` in a `config.json`, and in a file's own metadata."""
_STATED = f"{CONFIG_NAME} next to the weights"
_ADVICE = "Prepare the images yourself, or correct the file."
_ROUNDING = 1e-6
"""Prevents a crop_pct that was written as 96 / 118 from giving 117.99999999999999 pixels."""
_TIMM_NAME = re.compile(r"resnetv2_(\d+x\d+)_bit(?:\.(\w+))?", re.ASCII)


def timm_name(architecture: Architecture) -> str:
    """Return timm's name of a published architecture; ours for others, which timm lacks.

    timm's ``resnetv2_50`` is none: with the tensors of R50x1-BN-noWS it computes something else.
    """
    known = ARCHITECTURES.get(architecture.name) == architecture
    return f"resnetv2_{architecture.name[1:]}_bit" if known else architecture.name


def render_timm_config(info: ModelInfo) -> dict[str, Any]:
    """Return the content of `config.json` for a model.

    timm cannot express that the preprocessing is not known; its keys then have
    `DEFAULT_PREPROCESSING`, and bitzoo's record says that nothing is known.
    """
    architecture = Architecture.parse(info.architecture, info.in_chans)
    way = info.preprocessing or DEFAULT_PREPROCESSING
    side = way.crop
    pretrained: dict[str, Any] = {
        "num_classes": info.num_classes,
        "input_size": [info.in_chans, side, side],
        "pool_size": [-(-side // 32)] * 2,
        "interpolation": way.interpolation,
        # timm computes floor(side / crop_pct); the half prevents rounding from losing a pixel.
        "crop_pct": 1.0 if side == way.resize else side / (way.resize + 0.5),
        "crop_mode": "squash" if way.square else "center",
        "mean": [0.5] * info.in_chans,
        "std": [0.5] * info.in_chans,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }
    if info.license:
        pretrained["license"] = info.license
    config: dict[str, Any] = {
        "architecture": timm_name(architecture),
        "num_classes": info.num_classes,
        "num_features": architecture.num_features,
        "global_pool": "avg",
        "pretrained_cfg": pretrained,
        "bitzoo": {"version": __version__, RECORD_KEY: info.to_dict()},
    }
    # timm has the names of published lists; it and transformers find them by the class count.
    if info.own_names is not None:
        config["label_names"] = list(info.own_names)
    return config


def is_timm_config(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is in timm's form."""
    return "pretrained_cfg" in config or "label_names" in config


def own_record(config: Mapping[str, Any]) -> ModelInfo | None:
    """Return bitzoo's record in a `config.json`; None if there is none.

    Raises:
        CheckpointError: If it cannot be read.
    """
    entry = config.get("bitzoo")
    record = entry.get(RECORD_KEY) if isinstance(entry, dict) else None
    return None if record is None else ModelInfo.from_dict(record)


def read_timm_config(config: Mapping[str, Any], info: ModelInfo, *, recorded: bool) -> ModelInfo:
    """Add what a `config.json` in timm's form says to what is known.

    Args:
        config: The file's content.
        info: What is known from bitzoo's own record, or only from the tensors.
        recorded: Whether there is such a record.
    """
    info = _read_names(config, info)
    pretrained = config.get("pretrained_cfg")
    if pretrained is not None:
        info = _read_preprocessing(pretrained, info, recorded)
    if not isinstance(pretrained, dict):
        return info
    stated = pretrained.get("license")
    if isinstance(stated, str) and stated.lower() != info.license:
        info = info.stating(_STATED, license=stated.lower())
    if info.identity.name is None and info.base is None and not recorded:
        info = replace(info, identity=_identity(config, pretrained))
    return info


def _read_names(config: Mapping[str, Any], info: ModelInfo) -> ModelInfo:
    """Read `label_names`, replaced by `label_descriptions` where there are any."""
    names, words = config.get("label_names"), config.get("label_descriptions")
    if names is None:
        return info
    try:
        with damage_reported(f"label_names in {_STATED}", "a list of names"):
            listed = names if isinstance(names, list) else in_order(names)
            described = {} if words is None else words
            if not isinstance(described, dict):
                raise ValueError(f"label_descriptions is {type(words).__name__}, not an object")
            found = tuple(described.get(name, name) for name in listed)
            if not all(isinstance(name, str) for name in found):
                wrong = next(name for name in found if not isinstance(name, str))
                raise ValueError(f"it has {wrong!r:.40} as a name")
    except CheckpointError as error:
        return refusing(info, "class_names", error)
    if found == info.own_names:
        return info
    return info.stating(_STATED, own_names=found, label_set=None)


def in_order(labels: Mapping[str, Any]) -> list[Any]:
    """Return the values of ``{"0": ..., "1": ...}`` in the order of the outputs.

    Raises:
        KeyError: If the keys are not 0, 1, 2 and so on.
    """
    return [labels[str(number)] for number in range(len(labels))]


def _read_preprocessing(pretrained: Any, info: ModelInfo, recorded: bool) -> ModelInfo:
    place = f"The pretrained_cfg in {_STATED}"
    try:
        with damage_reported(place, "timm's keys: input_size, crop_pct, interpolation", _ADVICE):
            crop, other = pretrained["input_size"][-1], pretrained["input_size"][-2]
            if crop != other:
                raise ValueError(f"input_size {crop!r:.20} x {other!r:.20} is not a square")
            resize = math.floor(crop / float(pretrained.get("crop_pct") or 1) + _ROUNDING)
            found = Preprocessing(
                crop,
                resize,
                pretrained.get("interpolation") or "bilinear",
                pretrained.get("crop_mode") == "squash",
                _STATED,
            )
            statistics = {float(x) for key in ("mean", "std") for x in pretrained.get(key) or ()}
    except CheckpointError as error:
        return refusing(info, "preprocessing", error)
    if statistics - {0.5}:
        return refusing(
            info,
            "preprocessing",
            f"{place} normalizes images with mean and std {brief(pretrained.get('mean'))} and "
            f"{brief(pretrained.get('std'))}; expected 0.5 for both, because BiT reads pixels in "
            "[-1, 1]. Prepare the images yourself.",
        )
    return with_preprocessing(info, found, recorded=recorded)


def with_preprocessing(info: ModelInfo, found: Preprocessing, *, recorded: bool) -> ModelInfo:
    """Add the preprocessing of a format's own keys, unless bitzoo's record already has it.

    Args:
        info: What is known.
        found: What the format's own keys say.
        recorded: Whether there is a record of bitzoo, whose "not known" the format can only express
            as `DEFAULT_PREPROCESSING`.
    """
    known = info.preprocessing
    if known is None and recorded and same_pixels(found, DEFAULT_PREPROCESSING):
        return info
    if known is not None:
        found = replace(found, bit_depth=known.bit_depth)  # for which the formats have no key
        if same_pixels(found, known):
            return info
    return replace(info, preprocessing=found)


def same_pixels(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether two ways to prepare images give the same pixels, regardless of their source."""
    return replace(one, source="") == replace(other, source="")


def refusing(info: ModelInfo, what: str, why: object) -> ModelInfo:
    """Record why what is stated cannot be used, instead of a value.

    Args:
        info: What is known.
        what: ``preprocessing`` or ``class_names``.
        why: The reason.
    """
    names: dict[str, Any] = {"own_names": None, "label_set": None}
    nothing = names if what == "class_names" else {what: None}
    return replace(info, **nothing, refused={**info.refused, what: str(why)})


def _identity(config: Mapping[str, Any], pretrained: Mapping[str, Any]) -> Identity:
    """Return the release that timm's names refer to: ``resnetv2_50x1_bit``, tag ``goog_in21k``."""
    name, tag = str(config.get("architecture", "")), pretrained.get("tag")
    match = _TIMM_NAME.fullmatch(name)
    if not match or not (tag or match[2]):
        return Identity()
    spec = find_spec(f"resnetv2_{match[1]}_bit.{tag or match[2]}")
    return Identity(spec.name, "stated", _STATED) if spec else Identity()
