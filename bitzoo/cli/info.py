"""`bitzoo list` and `bitzoo info`: the catalogue, and what is known about a name or a file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import click

from bitzoo.cli.command import Command
from bitzoo.cli.completers import complete_model
from bitzoo.cli.console import print_facts, print_json, print_table, say
from bitzoo.cli.options import debug_option, json_option
from bitzoo.display import shortened

Facts = list[tuple[str, object]]
_LONG = 1_000
"""Characters that are shown of one value from a file; ``--json`` has all of it."""


@click.command("list", cls=Command, logs=False)
@click.argument("pattern", default="*", shell_complete=complete_model)
@click.option("--released", is_flag=True, help="Only models that Google released.")
@json_option
@debug_option
def list_command(pattern: str, released: bool, json: bool) -> None:
    """List the catalogue's models, all or those that match PATTERN.

    PATTERN is a part of the name, such as R50, or has shell wildcards, such as 'BiT-M-*'.
    """
    from bitzoo.catalogue import registry

    names = registry.list_models(pattern, released=True if released else None)
    specs = [registry.get_spec(name) for name in names]
    if json:
        print_json([spec.to_dict() for spec in specs])
        return
    if specs:
        print_table(
            ("name", "classes", "px", "parameters", "files"),
            [
                (
                    spec.name,
                    spec.num_classes,
                    spec.resolution,
                    spec.num_params,
                    " ".join(spec.files) or "unreleased",
                )
                for spec in specs
            ],
        )
        say(f"{len(specs)} model{'s' * (len(specs) != 1)}", error=True)
    else:
        kind = "released model's name" if released else "name"
        say(f"0 models: no {kind} matches {pattern!r}. `bitzoo list` shows all.", error=True)


@click.command("info", cls=Command, logs=False)
@click.argument("model", shell_complete=complete_model)
@json_option
@debug_option
def info(model: str, json: bool) -> None:
    """Show what is known about MODEL, a catalogue name or a file, and on what basis."""
    record = describe(model)
    if json:
        print_json(record)
    else:
        print_facts(facts(record))


def describe(model: str) -> dict[str, Any]:
    """Return what is known about a catalogue name, a file or a folder, as JSON-ready data.

    Raises:
        UnknownModelError: If it is none of these.
        CheckpointError: If the file cannot be read.
    """
    from bitzoo.catalogue.registry import find_spec

    if spec := find_spec(model):  # fast: no import of code that reads files
        return spec.to_dict()
    from bitzoo.zoo.info import describe

    return describe(model)


def facts(record: dict[str, Any]) -> Facts:
    """Return what `describe` found as readable names and values, without empty ones."""
    lines = _file_facts(record) if "file" in record else _model_facts(record)
    return [(name, value) for name, value in lines if value not in ("", [])]


def _model_facts(record: dict[str, Any]) -> Facts:
    classes, params = record["num_classes"], record["num_params"]
    released = "yes" if record["released"] else "never; only the architecture is known"
    return [
        ("name", record["name"]),
        ("also called", list(record["aliases"])),
        ("released", f"{released} ({record['license']})" if record["released"] else released),
        ("network", f"{record['arch_name']}, {params:,} parameters"),
        ("head", f"{classes:,} classes of {record['task']}, {record['activation']}"),
        ("class names", record["label_set"] or f"none: {record['label_note']}"),
        ("trained on", record["dataset"]),
        ("images", _preprocessing(record["preprocessing"])),
        ("files", _aligned(record["urls"].items())),
        ("elsewhere", _places(record["places"])),
        ("scores", _scores(record["metrics"])),
        ("unverified", record["unverified"]),
        ("sources", record["sources"]),
    ]


def _preprocessing(facts: dict[str, Any]) -> list[str]:
    edges = "both edges" if facts["square"] else "the shorter edge"
    crop, resize = facts["crop"], facts["resize"]
    how = f"{edges} resized to {resize} px ({facts['interpolation']})"
    if crop != resize or not facts["square"]:
        how += f", central {crop} x {crop} px"
    return [f"RGB, {how}, scaled to [-1, 1]", f"source: {facts['source']}"]


def _places(places: list[dict[str, Any]]) -> list[str]:
    """Return a line per place, and then what is to be known about all with the same source."""
    lines = []
    for source, group in groupby(places, key=lambda place: str(place["source"])):
        same = list(group)
        for place in same:
            kaggle = f", at Kaggle {place['kaggle']}" if place["kaggle"] else ""
            lines.append(f"{place['url']} ({place['outputs']}){kaggle}")
        about = f"images in {same[0]['images']}; source: {source}; unverified: "
        lines.append(about + same[0]["unverified"])
    return lines


def _scores(metrics: list[dict[str, Any]]) -> list[str]:
    """Return two lines per score, the second with the command that measures it again.

    Scores are grouped by source, each group followed by its source.
    """
    from bitzoo.catalogue.metadata import Metric

    lines = []
    for source, group in groupby(metrics, key=lambda metric: str(metric["source"])):
        for score in (Metric(**metric) for metric in group):
            size = f" at {score.resolution} px" if score.resolution else ""
            lines.append(f"{score.name} {score.value:g} % on {score.dataset}{size}: {score.how}")
            lines.append(f"  {score.again}")
        lines.append(f"source: {source}")
    return lines


def _file_facts(record: dict[str, Any]) -> Facts:
    known = [row for row in _known_facts(record) if row[0] != "network"]
    if "tensors" not in record:  # an exported file, described by the report next to it
        return [("file", record["file"]), *_known_facts(record)]
    classes, params = record["num_classes"], record["num_params"]
    metadata = [(shortened(key, 100), text) for key, text in record["metadata"].items()]
    head = f"{classes:,} classes" if classes else "no head"
    channels = "" if record["in_chans"] == 3 else f", {record['in_chans']} input channels"
    names = {"npz": "Google's", "timm": "timm's"}.get(record["names"], record["names"])
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in record["dtypes"].items())
    return [
        ("file", record["file"]),
        ("size", f"{record['bytes']:,} bytes"),
        ("network", f"{record['architecture']}, {head}, {params:,} parameters{channels}"),
        ("tensors", f"{dtypes}, with {names} names"),
        *known,
        ("note", record["notes"]),
        ("metadata", _aligned((key, shortened(text, _LONG)) for key, text in metadata)),
    ]


def _known_facts(record: dict[str, Any]) -> Facts:
    """Return what is known about the model in a file, and who says so."""
    from bitzoo.catalogue.model_info import ModelInfo

    known = ModelInfo.from_dict(record["info"])
    refused = record.get("refused", {}).items()
    rows: Facts = [*known.display_rows(), *((f"refused {key}", why) for key, why in refused)]
    return [(name, shortened(str(value), _LONG)) for name, value in rows]


def _aligned(rows: Iterable[Iterable[object]]) -> list[str]:
    """Join the cells of each row, padded to their column's width, except the last column."""
    table = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
