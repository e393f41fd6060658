"""What lies beside the weights in a folder that transformers loads: its config and processor.

Keys and values as transformers' BitConfig and BitImageProcessor read them
(transformers/models/bit/). The width stands in the channel counts, with `width_factor` 1:
transformers would multiply by it once more. `global_padding` None is the release's zero padding;
"SAME" pads otherwise and was 11 to 16 % off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitzoo._version import __version__
from bitzoo.models.architecture import GROUPS, NUM_BLOCKS
from bitzoo.converters.identify import Inventory
from bitzoo.converters.source import KERNEL_SCALE
from bitzoo.catalogue.registry import ModelSpec, Preprocessing

DEFAULT_PREPROCESSING = Preprocessing(
    224, 256, "bilinear", False, "the resolution of BiT's pre-training"
)
_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""


def render_config(
    inventory: Inventory,
    *,
    labels: Sequence[str] | None = None,
    scale: str = "",
    number_format: str = "float32",
    sigmoid: bool = False,
) -> dict[str, Any]:
    """Return `config.json` for BitForImageClassification.

    Args:
        inventory: The network.
        labels: Names of its classes, in order; ``LABEL_0`` and so on without.
        scale: What its kernels were multiplied with, if by `eps_exact`.
        number_format: Of the weights.
        sigmoid: Whether each class is a question of its own.
    """
    architecture = inventory.architecture
    count = inventory.num_classes
    names = list(labels or (f"LABEL_{number}" for number in range(count)))
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
        "dtype": number_format,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        **({"problem_type": "multi_label_classification"} if sigmoid else {}),
        "bitzoo": {"version": __version__, **({KERNEL_SCALE: scale} if scale else {})},
    }


def render_processor(facts: Preprocessing) -> dict[str, Any]:
    """Return `preprocessor_config.json`: RGB, resize, centre crop, [-1, 1]."""
    resize = (
        {"height": facts.resize, "width": facts.resize}
        if facts.square
        else {"shortest_edge": facts.resize}
    )
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": resize,
        "resample": _RESAMPLE[facts.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": facts.crop, "width": facts.crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def write_companions(
    folder: Path,
    inventory: Inventory,
    spec: ModelSpec | None,
    labels: Sequence[str] | None,
    metadata: Mapping[str, str],
) -> None:
    """Write both files beside the weights.

    Args:
        folder: Where.
        inventory: The network.
        spec: The catalogue's entry of it, if it is known.
        labels: Names of its classes, if known and as many.
        metadata: What the weights' own file says of them.
    """
    config = render_config(
        inventory,
        labels=labels if labels and len(labels) == inventory.num_classes else None,
        scale=metadata.get(KERNEL_SCALE, ""),
        number_format=metadata.get("dtype", "float32"),
        sigmoid=bool(spec and spec.activation == "sigmoid"),
    )
    processor = render_processor(spec.preprocessing if spec else DEFAULT_PREPROCESSING)
    for name, content in {"config.json": config, "preprocessor_config.json": processor}.items():
        text = json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
