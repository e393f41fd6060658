"""What an open checkpoint says of the model in it, as a `ModelInfo`.

bitzoo's own record stands in a file's metadata or in the `config.json` beside it. What the format's
own keys say (timm's, transformers') counts where they differ from the record: other tools read and
change those. What a file says of its identity is a claim, because anyone can write it; only who has
compared bytes (a download, a manifest) may state a firmer one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.registry import ModelSpec, find_spec
from bitzoo.converters.formats.hf_config import (
    PROCESSOR_KEY,
    PROCESSOR_NAMES,
    is_hf_config,
    read_hf_config,
    read_processor,
)
from bitzoo.converters.formats.hf_folder import read_json
from bitzoo.converters.formats.timm_config import (
    CONFIG_NAME,
    RECORD_KEY,
    is_timm_config,
    own_record,
    read_timm_config,
)
from bitzoo.converters.identify import Inventory
from bitzoo.converters.source import Source
from bitzoo.errors import CheckpointError

COMPANIONS = (CONFIG_NAME, *PROCESSOR_NAMES)
"""Files beside the weights that say what the model is."""


def read_info(
    source: Source, inventory: Inventory, identity: Identity | None = None
) -> tuple[ModelInfo, tuple[str, ...]]:
    """Return all that is known of the model in a checkpoint, and what a user should know of that.

    Args:
        source: An open checkpoint.
        inventory: What `identify` found in it.
        identity: What the caller knows of its identity from the bytes; None for nothing.

    Raises:
        CheckpointError: If a file beside the weights is no JSON object.
    """
    config = _companion(source.folder, CONFIG_NAME)
    record, notes = _record(source, inventory, config)
    blank = ModelInfo(
        inventory.architecture.name, inventory.num_classes, inventory.architecture.in_chans
    )
    info = record or blank
    if is_timm_config(config):
        info = read_timm_config(config, info, recorded=record is not None)
    elif is_hf_config(config):
        info = read_hf_config(config, info)
    for name in PROCESSOR_NAMES:
        settings = _companion(source.folder, name)
        settings = settings.get(PROCESSOR_KEY, settings)
        if isinstance(settings, dict) and settings:
            info = read_processor(settings, name, info, recorded=record is not None)
    known, told = _identity(source, inventory, info, identity)
    info = replace(info, identity=known, path=str(source.path)).completed_by_catalogue()
    return info, (*notes, *told)


def recognised(source: Source, inventory: Inventory) -> tuple[Identity, tuple[str, ...]]:
    """Return which release a file says it is, by its metadata or its name, and notes about it.

    Nothing is said of a file whose network or class count is not that of the release.
    """
    said = source.metadata.get("model")
    name, basis = (said, "stated") if said else (source.path.stem, "file name")
    spec = find_spec(str(name))
    if spec is None:
        return Identity(), ()
    if not spec.fits(inventory.architecture, inventory.num_classes):
        return Identity(), (differs_from(spec, inventory),)
    evidence = f"{source.path.name} says so" if said else source.path.name
    return Identity(spec.name, basis, evidence), ()  # type: ignore[arg-type]


def differs_from(spec: ModelSpec, inventory: Inventory) -> str:
    """Say that a file which is named like a release holds another network."""
    return (
        f"Named like {spec.name} ({spec.arch_name}, {spec.num_classes:,} classes), but its tensors "
        f"are {inventory.title}. The tensors decide."
    )


def _identity(
    source: Source, inventory: Inventory, info: ModelInfo, known: Identity | None
) -> tuple[Identity, tuple[str, ...]]:
    if known is not None:
        return known, ()
    if info.identity.name is not None:
        spec = info.identity.spec
        if spec is not None and spec.fits(inventory.architecture, inventory.num_classes):
            return info.identity.as_claim(source.path.name), ()
        return Identity(), ()
    if info.base or info.run:  # a model of someone's own, whatever its file is called
        return info.identity, ()
    return recognised(source, inventory)


def _record(
    source: Source, inventory: Inventory, config: dict[str, Any]
) -> tuple[ModelInfo | None, tuple[str, ...]]:
    """Return bitzoo's own record, if there is one and it is about this network."""
    try:
        text = source.metadata.get(RECORD_KEY)
        own = ModelInfo.from_dict(json.loads(text)) if text else None
        own = own_record(config) or own
    except (CheckpointError, ValueError, RecursionError) as error:
        return None, (f"What {source.path.name} records of itself cannot be read: {error}",)
    if own is None:
        return None, ()
    if own.architecture != inventory.architecture.name:
        return None, (
            f"{source.path.name} records a network {own.architecture}, but its tensors are "
            f"{inventory.title}. The tensors decide, and the record is left out.",
        )
    if own.num_classes != inventory.num_classes:
        changed = own.with_head(inventory.num_classes) if inventory.num_classes else None
        own = changed or own.without_head()
    return replace(own, in_chans=inventory.architecture.in_chans), ()


def _companion(folder: Path | None, name: str) -> dict[str, Any]:
    """The JSON object in a file beside the weights; an empty one if there is no such file."""
    if folder is None or not (folder / name).is_file():
        return {}
    return read_json(folder / name)
