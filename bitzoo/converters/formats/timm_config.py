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
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.models.preprocessing import INTERPOLATIONS

CONFIG_NAME = "config.json"
RECORD_KEY = "model_info"
"""Under ``bitzoo`` in a `config.json`, and in a file's own metadata."""
_STATED = f"{CONFIG_NAME} next to the weights"
_ROUNDING = 1e-6
"""Prevents a crop_pct that was written as 96 / 118 from giving 117.99999999999999 pixels."""
_TIMM_NAME = re.compile(r"resnetv2_(\d+x\d+)_bit(?:\.(\w+))?", re.ASCII)


def timm_name(architecture: Architecture) -> str:
    """Return timm's name of a published architecture; ours for others, which timm lacks."""
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
    if not isinstance(names, list):
        return info
    described = words if isinstance(words, dict) else {}
    found = tuple(str(described.get(name, name)) for name in names)
    if found == info.own_names:
        return info
    return info.stating(_STATED, own_names=found, label_set=None)


def _read_preprocessing(
    pretrained: Mapping[str, Any], info: ModelInfo, recorded: bool
) -> ModelInfo:
    try:
        crop = int(pretrained["input_size"][-1])
        resize = math.floor(crop / float(pretrained.get("crop_pct") or 1) + _ROUNDING)
        interpolation = str(pretrained.get("interpolation") or "bilinear")
        statistics = {float(x) for key in ("mean", "std") for x in pretrained.get(key) or ()}
        square = pretrained.get("crop_mode") == "squash"
        if interpolation not in INTERPOLATIONS or not 1 <= crop <= resize:
            raise ValueError(f"interpolation {interpolation!r}, crop {crop} of {resize}")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        return refusing(
            info,
            f"The pretrained_cfg in {_STATED} cannot be read ({error!r}). Expected timm's keys: "
            "input_size, crop_pct, interpolation.",
        )
    if statistics - {0.5}:
        return refusing(
            info,
            f"The pretrained_cfg in {_STATED} normalizes images with mean and std "
            f"{pretrained.get('mean')} and {pretrained.get('std')}; expected 0.5 for both, because "
            "BiT reads pixels in [-1, 1]. Prepare the images yourself.",
        )
    return with_preprocessing(
        info,
        Preprocessing(crop, resize, interpolation, square, _STATED),  # type: ignore[arg-type]
        recorded=recorded,
    )


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
    if known is not None and same_pixels(found, known):
        return info
    return replace(info, preprocessing=found)


def same_pixels(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether two ways to prepare images give the same pixels, regardless of their source."""
    return replace(one, source="") == replace(other, source="")


def refusing(info: ModelInfo, why: str) -> ModelInfo:
    """Record why the stated preprocessing cannot be used."""
    return replace(info, preprocessing=None, refused={**info.refused, "preprocessing": why})


def _identity(config: Mapping[str, Any], pretrained: Mapping[str, Any]) -> Identity:
    """Return the release that timm's names refer to: ``resnetv2_50x1_bit``, tag ``goog_in21k``."""
    name, tag = str(config.get("architecture", "")), pretrained.get("tag")
    match = _TIMM_NAME.fullmatch(name)
    if not match or not (tag or match[2]):
        return Identity()
    spec = find_spec(f"resnetv2_{match[1]}_bit.{tag or match[2]}")
    return Identity(spec.name, "stated", _STATED) if spec else Identity()
