"""What is known about a model: its record, its preprocessing, and its class names."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitzoo.catalogue.metadata import DEFAULT_PREPROCESSING
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.registry import find_spec, get_spec
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.converters.identify import identify
from bitzoo.converters.model_record import read_info, recognised, with_taken
from bitzoo.converters.open import open_source
from bitzoo.errors import CheckpointError, damage_reported, reason_of
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.small_files import read_json
from bitzoo.zoo.resolve import is_location, locate

if TYPE_CHECKING:
    from bitzoo.models.bit import Backbone

EXPORT_REPORT_SUFFIX = ".export.json"
"""Appended to an exported file's name: the report on what it is and how far it deviates."""
_log = logging.getLogger(__name__)


def info(model: Backbone | str | os.PathLike[str]) -> ModelInfo:
    """Return everything that is known about a model, and who says so.

    Args:
        model: A model from `create_model`; a catalogue name; a checkpoint file of any format, a
            run folder, an exported file, an address, or ``hub:organisation/name``.

    Returns:
        The record. What is not known is None; for a network that was built without `create_model`
        that is everything but its architecture and class count.

    Raises:
        UnknownModelError: If it is not a catalogue name and there is no such file.
        CheckpointError: If the file cannot be read.
    """
    if not isinstance(model, (str, os.PathLike)):
        if isinstance(model.info, ModelInfo):
            return model.info
        form = model.architecture
        return ModelInfo(form.name, getattr(model, "num_classes", 0), form.in_chans)
    if not is_location(model):
        return ModelInfo.of_release(get_spec(str(model)))
    if exported := _of_export(Path(model)):
        return exported
    place = locate(model)
    with open_source(place.path) as source:
        return with_taken(read_info(source, identify(source), place.identity)[0], source)


def create_transform(model: Backbone | str | os.PathLike[str]) -> EvalTransform:
    """Return the evaluation preprocessing of a model: RGB, resize, crop, [-1, 1].

    Args:
        model: As for `info`.

    Returns:
        A callable from an image (path, PIL image, uint8 array) to a float32 tensor (3, s, s). A
        model that does not state its preprocessing gets `DEFAULT_PREPROCESSING`, with a warning in
        the log.

    Raises:
        UnknownModelError: If there is no such name.
        CheckpointError: If the preprocessing that is stated with the weights cannot be used.
    """
    return transform_of(info(model))


def transform_of(known: ModelInfo) -> EvalTransform:
    """Return the evaluation preprocessing that a record states; raises like `create_transform`."""
    if reason := known.refused.get("preprocessing"):
        raise CheckpointError(reason)
    way = known.preprocessing
    if way is None:
        way = DEFAULT_PREPROCESSING
        _log.warning("The model does not state how to prepare images; using %s.", way.in_words())
    return EvalTransform(way.crop, way.resize, way.interpolation, way.square, way.bit_depth)


def labels(model: Backbone | str | os.PathLike[str]) -> list[str] | None:
    """Return the class names of a model's outputs, or None; the reason is then logged.

    Args:
        model: As for `info`.
    """
    names, reason = info(model).names_or_reason()
    if names is None:
        _log.warning("%s", reason)
    return None if names is None else list(names)


def describe(model: str) -> dict[str, Any]:
    """Return a catalogue entry, or the contents of a file, as JSON-ready data.

    Raises:
        UnknownModelError: If it is neither.
        CheckpointError: If the file cannot be read.
    """
    if not is_location(model):
        return get_spec(model).to_dict() | {"info": info(model).to_dict()}
    if exported := _of_export(Path(model)):
        return {"file": model, "info": exported.to_dict()}
    place = locate(model)
    with open_source(place.path) as source:
        inventory = identify(source)
        dtypes = Counter(tensor.stored_dtype for tensor in inventory.tensors.values())
        known, notes = read_info(source, inventory, place.identity)
        known = with_taken(known, source)
        said = find_spec(source.metadata.get("model") or source.path.stem)
        own = {key: text for key, text in source.metadata.items() if key != RECORD_KEY}
        return {
            "file": str(place.path),
            "bytes": source.size,
            "names": source.names,
            "architecture": inventory.architecture.name,
            "depths": list(inventory.architecture.depths),
            "width": inventory.architecture.width,
            "in_chans": inventory.architecture.in_chans,
            "num_classes": inventory.num_classes,
            "num_params": inventory.num_params,
            "tensors": len(inventory.tensors),
            "dtypes": dict(dtypes),
            "metadata": own,
            "model_by_name": said.name if said else None,
            "agrees_with_name": said and recognised(source, inventory)[0].name == said.name,
            "info": known.to_dict(),
            "refused": dict(known.refused),
            "notes": [*source.notes, *notes],
        }


def _of_export(path: Path) -> ModelInfo | None:
    """Return the record in the report next to an exported file; None if there is no report."""
    report = path.with_name(path.name + EXPORT_REPORT_SUFFIX)
    if not report.is_file():
        return None
    advice = "Export the model again."
    with damage_reported(report, "the report of a bitzoo export", advice):
        record = read_json(report)["model_info"]
    try:
        return ModelInfo.from_dict(record)
    except CheckpointError as error:
        raise CheckpointError(
            f"{report}: expected bitzoo's record about the model, but it cannot be read "
            f"({reason_of(error.__cause__ or error)}). {advice}"
        ) from error
