"""A model as a folder: `config.json` in timm's form beside `model.safetensors`.

bitzoo, timm (``local-dir:`` and ``hf-hub:``) and transformers' timm wrapper read the same two
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.converters.formats.safetensors import write_safetensors
from bitzoo.converters.formats.timm_config import CONFIG_NAME, RECORD_KEY, render_timm_config
from bitzoo.files import replaced, write_json
from bitzoo.models.bit import BiT
from bitzoo.zoo.resolve import WEIGHTS_NAME


def write_model_folder(folder: Path, model: BiT, info: ModelInfo) -> dict[str, Any]:
    """Write both files, each atomically; weights first.

    Args:
        folder: Created if missing.
        model: The network, unfolded.
        info: What is known about it.

    Returns:
        The content of `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().float().contiguous().cpu().numpy()
        for name, value in model.state_dict().items()
    }
    with replaced(folder / WEIGHTS_NAME) as temporary:
        write_safetensors(temporary, state, _header(info))
    config = render_timm_config(info)
    write_json(folder / CONFIG_NAME, config)
    return config


def _header(info: ModelInfo) -> Mapping[str, str]:
    base = {"base_model": info.base.name} if info.base and info.base.name else {}
    return {
        "format": "pt",
        "architecture": info.architecture,
        **base,
        RECORD_KEY: info.to_json(),
    }
