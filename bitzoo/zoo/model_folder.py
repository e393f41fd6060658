"""A model as a folder: `config.json` in timm's form beside `model.safetensors`.

bitzoo, timm (``local-dir:`` and ``hf-hub:``) and transformers' timm wrapper read the same two
files. `num_classes` stands at the root only: in `model_args` transformers would pass it twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitzoo._version import __version__
from bitzoo.converters.formats.safetensors import write_safetensors
from bitzoo.files import replaced, write_json
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.zoo.resolve import CONFIG_NAME, WEIGHTS_NAME


def timm_name(architecture: Architecture) -> str:
    """Return timm's name of a published architecture; of any other, which timm lacks, ours."""
    known = ARCHITECTURES.get(architecture.name) == architecture
    return f"resnetv2_{architecture.name[1:]}_bit" if known else architecture.name


def render_config(
    model: BiT,
    transform: EvalTransform,
    *,
    class_names: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `config.json`.

    Args:
        model: The network, unfolded.
        transform: Its evaluation preprocessing.
        class_names: Names of its outputs, if known.
        facts: What else bitzoo should find again; stands under the key ``bitzoo``.
    """
    side = transform.crop
    config: dict[str, Any] = {
        "architecture": timm_name(model.architecture),
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": "avg",
        "pretrained_cfg": {
            "num_classes": model.num_classes,
            "input_size": [model.architecture.in_chans, side, side],
            "pool_size": [-(-side // 32)] * 2,
            "interpolation": transform.interpolation,
            # timm takes floor(side / crop_pct); the half keeps rounding from losing a pixel.
            "crop_pct": 1.0 if side == transform.resize else side / (transform.resize + 0.5),
            "crop_mode": "squash" if transform.square else "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "first_conv": "stem.conv",
            "classifier": "head.fc",
            "license": "apache-2.0",
        },
        "bitzoo": {"version": __version__, **(facts or {})},
    }
    if class_names is not None:
        config["label_names"] = list(class_names)
    return config


def write_model_folder(
    folder: Path, model: BiT, config: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write both files, each in one piece; weights first.

    Args:
        folder: Made if missing.
        model: The network, unfolded.
        config: What `render_config` returned.
        metadata: Text for the safetensors header, beside its format and architecture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().float().contiguous().cpu().numpy()
        for name, value in model.state_dict().items()
    }
    header = {"format": "pt", "architecture": model.architecture.name, **(metadata or {})}
    with replaced(folder / WEIGHTS_NAME) as temporary:
        write_safetensors(temporary, state, header)
    write_json(folder / CONFIG_NAME, config)
