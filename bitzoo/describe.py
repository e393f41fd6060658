"""What `bitzoo info` tells of a catalogue entry or a checkpoint file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bitzoo.registry import find_spec, get_spec


def describe(model: str) -> dict[str, Any]:
    """Return all that is known of a catalogue name or a file, as JSON-ready data.

    Raises:
        UnknownModelError: If it is neither.
        CheckpointError: If the file cannot be read.
    """
    path = Path(model)
    if path.is_file() or (find_spec(model) is None and path.suffix):
        return _describe_file(path)
    return get_spec(model).to_dict()


def _describe_file(path: Path) -> dict[str, Any]:
    from bitzoo.converters.inventory import identify
    from bitzoo.converters.sources import open_source

    with open_source(path) as source:
        inventory = identify(source)
        dtypes = Counter(str(tensor.dtype) for tensor in inventory.tensors.values())
        spec = find_spec(source.metadata.get("model") or path.stem)
        return {
            "file": str(path),
            "bytes": source.size,
            "names": source.names,
            "architecture": inventory.architecture.name,
            "depths": list(inventory.architecture.depths),
            "width": inventory.architecture.width,
            "num_classes": inventory.num_classes,
            "num_params": inventory.num_params,
            "tensors": len(inventory.tensors),
            "dtypes": dict(dtypes),
            "metadata": dict(source.metadata),
            "model_by_name": spec.name if spec else None,
            "agrees_with_name": spec
            and (spec.architecture, spec.num_classes)
            == (inventory.architecture, inventory.num_classes),
        }


def facts(record: dict[str, Any]) -> list[tuple[str, object]]:
    """Return a record as lines for people: empty entries left out, tables flattened."""
    lines: list[tuple[str, object]] = []
    for key, value in record.items():
        if value in (None, "", [], {}):
            continue
        lines.append((key.replace("_", " "), _text(value)))
    return lines


def _text(value: Any) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return [f"{key}: {item}" for key, item in value.items() if item not in (None, "")]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [
            ", ".join(f"{k} {v}" for k, v in item.items() if v not in (None, "")) for item in value
        ]
    return value
