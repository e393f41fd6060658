"""Repositories that others keep on the Hub, as small as the networks of this world.

A page is given one by ``given: [hub:NAME]``. Names of tensors and keys of configs are those that
timm and transformers publish; what bitzoo adds to its own repositories is not in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
from checkpoints import as_timm
from safetensors.numpy import save

Arrays = Mapping[str, np.ndarray]
"""A released file's."""


def _timm(arrays: Arrays) -> dict[str, bytes]:
    state = as_timm(arrays)
    classes, features, *_ = state["head.fc.weight"].shape
    config = {
        "architecture": "resnetv2_50x1_bit",
        "num_classes": classes,
        "num_features": features,
        "pretrained_cfg": {
            "tag": "goog_in21k_ft_in1k",
            "custom_load": False,
            "input_size": [3, 448, 448],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": classes,
            "pool_size": [14, 14],
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        },
    }
    return _files(config, state)


def _transformers(arrays: Arrays) -> dict[str, bytes]:
    state = as_timm(arrays)
    stages = {name.split(".")[1] for name in state if name.startswith("stages.")}
    counts = [len({n.split(".")[3] for n in state if n.startswith(f"stages.{i}.")}) for i in stages]
    assert set(counts) == {1}, "the names below are those of one unit a stage"
    channels = [state[f"stages.{i}.blocks.0.conv3.weight"].shape[0] for i in range(4)]
    classes = state["head.fc.bias"].size
    config = {
        "architectures": ["BitForImageClassification"],
        "model_type": "bit",
        "depths": [1, 1, 1, 1],
        "embedding_size": state["stem.conv.weight"].shape[0],
        "hidden_sizes": channels,
        "width_factor": 1,
        "num_groups": 32,
        "layer_type": "preactivation",
        "hidden_act": "relu",
        "global_padding": None,
        "embedding_dynamic_padding": False,
        "id2label": {str(number): f"LABEL_{number}" for number in range(classes)},
        "label2id": {f"LABEL_{number}": number for number in range(classes)},
    }
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 448},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": 448, "width": 448},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    names = {"stem.conv.weight": "bit.embedder.convolution.weight"}
    names |= {f"norm.{end}": f"bit.norm.{end}" for end in ("weight", "bias")}
    names |= {f"head.fc.{end}": f"classifier.1.{end}" for end in ("weight", "bias")}
    theirs = {
        names.get(name) or "bit.encoder." + name.replace("blocks", "layers"): array.reshape(
            classes, -1
        )
        if name == "head.fc.weight"
        else array
        for name, array in state.items()
    }
    more = {"preprocessor_config.json": json.dumps(processor).encode()}
    return _files(config, theirs) | more


def _files(config: Mapping[str, object], state: Arrays) -> dict[str, bytes]:
    tensors = {name: np.ascontiguousarray(array) for name, array in state.items()}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(tensors, {"format": "pt"}),
    }


PEERS: dict[str, tuple[str, Callable[[Arrays], dict[str, bytes]]]] = {
    "timm/resnetv2_50x1_bit.goog_in21k_ft_in1k": ("BiT-M-R50x1-ILSVRC2012", _timm),
    "google/bit-50": ("BiT-M-R50x1-ILSVRC2012", _transformers),
}
"""Repository -> the release that it has, and what makes its files of that."""
