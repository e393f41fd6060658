"""Config and image processor of transformers: the files next to the weights in its folders.

Keys and values are those that BitConfig and BitImageProcessor read (transformers/models/bit/). The
width is in the channel counts, and `width_factor` is 1, because transformers would multiply by it
again. `global_padding` None is the release's zero padding; "SAME" pads differently and was 11 to
16 % off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bitzoo._version import __version__
from bitzoo.catalogue.metadata import DEFAULT_PREPROCESSING, Preprocessing
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.converters.formats.timm_config import (
    RECORD_KEY,
    in_order,
    refusing,
    with_preprocessing,
)
from bitzoo.converters.source import KERNEL_SCALE, brief
from bitzoo.errors import CheckpointError, damage_reported
from bitzoo.models.architecture import GROUPS, NUM_BLOCKS, Architecture

PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json")
"""Files with the processor; transformers 5 writes the second, under the key `PROCESSOR_KEY`."""
PROCESSOR_KEY = "image_processor"
_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""
_CONFIG = "config.json of transformers"
_ACTIVATIONS = {
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}
"""`problem_type` -> activation of the outputs."""
_NO_NAME = re.compile(r"LABEL_\d+", re.ASCII)
"""What transformers calls classes without names."""


def render_hf_config(info: ModelInfo) -> dict[str, Any]:
    """Return `config.json` for BitForImageClassification; unknown names are ``LABEL_0`` and so on.

    May import timm, for the names of a published list.
    """
    architecture = Architecture.parse(info.architecture, info.in_chans)
    names = info.class_names or [f"LABEL_{number}" for number in range(info.num_classes)]
    problem = next((p for p, name in _ACTIVATIONS.items() if name == info.activation), None)
    made = info.provenance
    scale = made.kernel_scale if made else 1
    return {
        "architectures": ["BitForImageClassification"],
        "model_type": "bit",
        "depths": list(architecture.depths),
        "num_channels": architecture.in_chans,
        "embedding_size": architecture.stem_channels,
        "hidden_sizes": [architecture.block_channels(b) for b in range(1, NUM_BLOCKS + 1)],
        "width_factor": 1,
        "num_groups": GROUPS,
        "layer_type": "preactivation",
        "hidden_act": "relu",
        "global_padding": None,
        "embedding_dynamic_padding": False,
        "output_stride": 32,
        "drop_path_rate": 0.0,
        "dtype": made.dtype if made else "float32",
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        **({"problem_type": problem} if problem else {}),
        "bitzoo": {
            "version": __version__,
            **({KERNEL_SCALE: str(scale)} if scale != 1 else {}),
            RECORD_KEY: info.to_dict(),
        },
    }


def render_processor(info: ModelInfo) -> dict[str, Any]:
    """Return `preprocessor_config.json`: RGB, resize, centre crop, [-1, 1].

    transformers loads no pipeline without one, so the file has `DEFAULT_PREPROCESSING` if nothing
    is known; bitzoo's record in `config.json` then says so.
    """
    way = info.preprocessing or DEFAULT_PREPROCESSING
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": way.resize, "width": way.resize}
        if way.square
        else {"shortest_edge": way.resize},
        "resample": _RESAMPLE[way.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": way.crop, "width": way.crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * info.in_chans,
        "image_std": [0.5] * info.in_chans,
    }


def is_hf_config(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is in transformers' form."""
    return "model_type" in config or "id2label" in config


def read_hf_config(config: Mapping[str, Any], info: ModelInfo) -> ModelInfo:
    """Add what transformers' `config.json` says to what is known: class names and activation."""
    activation = _ACTIVATIONS.get(str(config.get("problem_type")))
    if activation and activation != info.activation:
        info = info.stating(_CONFIG, activation=activation)
    try:
        with damage_reported(f"id2label in {_CONFIG}", "a name for each output"):
            names = _names(config.get("id2label"), info.num_classes)
    except CheckpointError as error:
        return refusing(info, "class_names", error)
    if names is None or names == info.own_names:
        return info
    if info.label_set is not None and names == info.class_names:
        return info
    return info.stating(_CONFIG, own_names=names, label_set=None)


def _names(labels: Any, count: int) -> tuple[str, ...] | None:
    """Return `id2label` in the order of the outputs; None if it is missing or has no real names.

    Raises:
        ValueError: If it names other outputs than the head has, or its names are no text.
    """
    if labels is None or not count:
        return None
    names = tuple(in_order(labels))
    if not all(isinstance(name, str) for name in names):
        raise ValueError("it has names that are no text")
    if all(_NO_NAME.fullmatch(name) for name in names):
        return None
    if len(names) != count:
        raise ValueError(f"it has {len(names):,} names, and the head {count:,} outputs")
    return names


def read_processor(
    processor: Mapping[str, Any], name: str, info: ModelInfo, *, recorded: bool
) -> ModelInfo:
    """Add what an image processor says to what is known.

    Args:
        processor: The processor's settings.
        name: The file that they are from, for messages.
        info: What is known.
        recorded: Whether that includes bitzoo's own record.
    """
    place = f"{name} next to the weights"
    keys = "the keys of BitImageProcessor: size, crop_size, resample"
    try:
        with damage_reported(place, keys, "Prepare the images yourself, or correct the file."):
            found = _preprocessing(processor, name)
            wrong = _wrong_range(processor)
    except CheckpointError as error:
        return refusing(info, "preprocessing", error)
    if wrong:
        return refusing(
            info,
            "preprocessing",
            f"{name} next to the weights {wrong}; expected pixels scaled by 1/255, then mean and "
            "std 0.5, because BiT reads pixels in [-1, 1]. Prepare the images yourself.",
        )
    return with_preprocessing(info, found, recorded=recorded)


def _preprocessing(processor: Mapping[str, Any], name: str) -> Preprocessing:
    resize, square = _side(processor["size"])
    interpolations = {number: word for word, number in _RESAMPLE.items()}
    interpolation = interpolations[processor.get("resample", 3)]
    crop = resize
    if processor.get("do_center_crop", True):
        crop, _ = _side(processor["crop_size"])
    elif not square:
        raise ValueError("no centre crop after resizing the shorter edge: images of any size")
    if not processor.get("do_resize", True):
        raise ValueError("no resize: images of any size")
    return Preprocessing(crop, resize, interpolation, square, name)  # type: ignore[arg-type]


def _side(size: Any) -> tuple[int, bool]:
    """Return a size in transformers' form as pixels, and whether it applies to both edges."""
    if isinstance(size, int):
        return size, False
    if not isinstance(size, dict):
        raise ValueError(f"a size that is {type(size).__name__}")
    if "shortest_edge" in size:
        return size["shortest_edge"], False
    if size["height"] != size["width"]:
        raise ValueError(f"height {size['height']!r:.20} and width {size['width']!r:.20} differ")
    return size["height"], True


def _wrong_range(processor: Mapping[str, Any]) -> str:
    """Return why a processor's pixels are not in [-1, 1]; empty if they are."""
    for key in ("image_mean", "image_std"):
        values = processor.get(key)
        numbers = values if isinstance(values, list) else [values]
        if any(value != 0.5 for value in numbers):
            return f"normalizes images with {key} {brief(values)}"
    if not (processor.get("do_normalize", True) and processor.get("do_rescale", True)):
        return "disables do_normalize or do_rescale"
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, (int, float)) or abs(factor - 1 / 255) > 1e-9:
        return f"rescales pixels by {brief(factor)}"
    return ""
