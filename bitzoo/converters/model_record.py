"""What an open checkpoint says about its model, as a `ModelInfo`.

bitzoo's own record is in a file's metadata or in the `config.json` next to it. Where the format's
own keys (timm's, transformers') differ from the record, they take precedence, because other tools
read and change them. What a file says about its identity is a claim, because anyone can write it;
only callers that have compared bytes (a download, a manifest) may state a stronger one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bitzoo.catalogue.model_info import Basis, Identity, ModelInfo, Provenance
from bitzoo.catalogue.registry import ModelSpec, find_spec
from bitzoo.converters.dtypes import describe_changes, holds
from bitzoo.converters.formats.hf_config import (
    PROCESSOR_KEY,
    PROCESSOR_NAMES,
    is_hf_config,
    read_hf_config,
    read_processor,
)
from bitzoo.converters.formats.timm_config import (
    CONFIG_NAME,
    RECORD_KEY,
    is_timm_config,
    own_record,
    read_timm_config,
)
from bitzoo.converters.identify import Inventory
from bitzoo.converters.source import Source
from bitzoo.errors import CheckpointError, damage_reported
from bitzoo.small_files import parse_json, read_json

COMPANIONS = (CONFIG_NAME, *PROCESSOR_NAMES)
"""Files next to the weights that describe the model."""


def read_info(
    source: Source, inventory: Inventory, identity: Identity | None = None
) -> tuple[ModelInfo, tuple[str, ...]]:
    """Return everything that is known about the model in a checkpoint, and notes for the user.

    Args:
        source: An open checkpoint.
        inventory: What `identify` found in it.
        identity: Which release it is, if the caller knows it from the bytes, else None.

    Raises:
        CheckpointError: If a file next to the weights is not a JSON object.
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
    known, more_notes = _identity(source, inventory, info, identity)
    info = replace(info, identity=known, path=str(source.path)).completed_by_catalogue()
    return info, (*notes, *more_notes)


def as_loaded(info: ModelInfo, inventory: Inventory) -> tuple[ModelInfo, tuple[str, ...]]:
    """Return the record of a network that has the numbers as float32, and notes for the user.

    Args:
        info: What is known about the file.
        inventory: Its tensors.
    """
    made, tensors = info.provenance, inventory.tensors.values()
    if all(holds("float32", tensor.stored_dtype) for tensor in tensors):
        return info, ()
    if made:
        earlier = made.rounded_from and f"{made.rounded_from} to {made.dtype}"
        rounded = replace(made, dtype="float32", rounded_from=earlier or "float64")
        info = replace(info, provenance=replace(rounded, weights_relative_l2=None))
    return info, tuple(describe_changes(tensors, "float32"))


def with_taken(info: ModelInfo, source: Source) -> ModelInfo:
    """Add which of several sets of weights were taken to a record that knows no provenance."""
    if source.taken is None or info.provenance is not None:
        return info
    return replace(info, provenance=Provenance(source.path.name, weights=source.taken))


def recognised(source: Source, inventory: Inventory) -> tuple[Identity, tuple[str, ...]]:
    """Return which release a file claims to be, by its metadata or its name, and notes about it.

    The identity is unknown if architecture or class count are not those of the release.
    """
    said = source.metadata.get("model")
    name, basis = (said, "stated") if said else (source.path.stem, "file name")
    spec = find_spec(str(name))
    if spec is None:
        return Identity(), ()
    if not spec.fits(inventory.architecture, inventory.num_classes):
        return Identity(), (differs_from(spec, inventory, basis),)  # type: ignore[arg-type]
    evidence = f"{source.path.name} says so" if said else source.path.name
    return Identity(spec.name, basis, evidence), ()  # type: ignore[arg-type]


def differs_from(spec: ModelSpec, inventory: Inventory, basis: Basis) -> str:
    """Return a note that a file is said to be a release but contains another network.

    Args:
        spec: The release.
        inventory: What the file contains.
        basis: Who says that it is the release.
    """
    said = {
        "google": "Fetched from Google as",
        "mirror": "Fetched as",
        "manifest": "Listed in its manifest as",
        "vouched": "Vouched for as",
        "stated": "Said to be",
    }.get(basis, "Named like")
    return (
        f"{said} {spec.name} ({spec.arch_name}, {spec.num_classes:,} classes), but its tensors "
        f"are {inventory.title}. The tensors decide."
    )


def _identity(
    source: Source, inventory: Inventory, info: ModelInfo, known: Identity | None
) -> tuple[Identity, tuple[str, ...]]:
    if known is None and info.identity.name is not None:
        known = info.identity.as_claim(source.path.name)
    if known is not None:
        spec = known.spec
        if spec is None:
            return (Identity() if known.name else known), ()
        if spec.fits(inventory.architecture, inventory.num_classes):
            return known, ()
        return Identity(), (differs_from(spec, inventory, known.basis),)
    if info.base or info.run:  # someone's own model, regardless of its file name
        return info.identity, ()
    return recognised(source, inventory)


def _record(
    source: Source, inventory: Inventory, config: dict[str, Any]
) -> tuple[ModelInfo | None, tuple[str, ...]]:
    """Return bitzoo's own record, if there is one and it is about this network."""
    try:
        with damage_reported(RECORD_KEY, "bitzoo's record about a model", "It is ignored."):
            text = source.metadata.get(RECORD_KEY)
            own = ModelInfo.from_dict(parse_json(text)) if text else None
            own = own_record(config) or own
    except CheckpointError as error:
        return None, (f"bitzoo's record in {source.path.name} cannot be read: {error}",)
    if own is None:
        return None, ()
    if own.architecture != inventory.architecture.name:
        return None, (
            f"bitzoo's record in {source.path.name} is about {own.architecture}, but the tensors "
            f"are {inventory.title}. The record is ignored.",
        )
    if own.num_classes != inventory.num_classes:
        changed = own.with_head(inventory.num_classes) if inventory.num_classes else None
        own = changed or own.without_head()
    return replace(own, in_chans=inventory.architecture.in_chans), ()


def _companion(folder: Path | None, name: str) -> dict[str, Any]:
    """Return the JSON object in a file next to the weights; empty if there is no such file."""
    if folder is None:
        return {}
    try:
        return read_json(folder / name)
    except FileNotFoundError:
        return {}
