"""`bitzoo list` and `bitzoo info`: the catalogue, and what is known of a name or a file."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from bitzoo.cli.command import Command
from bitzoo.cli.console import print_facts, print_json, print_table
from bitzoo.cli.options import debug_option, json_option

Facts = list[tuple[str, object]]
_LINE = 100


@click.command("list", cls=Command)
@click.argument("pattern", default="*")
@click.option("--released", is_flag=True, help="Only what Google released.")
@json_option
@debug_option
def list_command(pattern: str, released: bool, json: bool) -> None:
    """List the catalogue, or what of it matches PATTERN, such as 'BiT-M-*'."""
    from bitzoo.catalogue import registry

    names = registry.list_models(pattern, released=True if released else None)
    specs = [registry.get_spec(name) for name in names]
    if json:
        print_json([spec.to_dict() for spec in specs])
        return
    headers = ("name", "network", "classes", "task", "px", "parameters", "files")
    print_table(
        headers,
        [
            (
                spec.name,
                spec.arch_name,
                spec.num_classes,
                spec.task,
                spec.resolution,
                spec.num_params,
                " ".join(spec.files) or "never released",
            )
            for spec in specs
        ],
    )
    print(f"{len(specs)} models", file=sys.stderr)


@click.command("info", cls=Command)
@click.argument("model")
@json_option
@debug_option
def info(model: str, json: bool) -> None:
    """Show all that is known of MODEL, a catalogue name or a checkpoint file."""
    record = describe(model)
    if json:
        print_json(record)
    else:
        print_facts(facts(record))


def describe(model: str) -> dict[str, Any]:
    """Return all that is known of a catalogue name, a file or a folder, as JSON-ready data.

    Raises:
        UnknownModelError: If it is none of these.
        CheckpointError: If the file cannot be read.
    """
    from bitzoo.catalogue.registry import find_spec, get_spec

    if find_spec(model) is None:
        from bitzoo.zoo.resolve import is_location, locate

        if is_location(model):
            return _describe_file(locate(model).path)
    return get_spec(model).to_dict()


def _describe_file(path: Path) -> dict[str, Any]:
    from bitzoo.catalogue.registry import find_spec
    from bitzoo.converters.identify import identify
    from bitzoo.converters.open import open_source

    with open_source(path) as source:
        inventory = identify(source)
        dtypes = Counter(tensor.number_format for tensor in inventory.tensors.values())
        spec = find_spec(source.metadata.get("model") or path.stem)
        return {
            "file": str(path),
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
            "metadata": dict(source.metadata),
            "model_by_name": spec.name if spec else None,
            "agrees_with_name": spec
            and (spec.architecture, spec.num_classes)
            == (inventory.architecture, inventory.num_classes),
        }


def facts(record: dict[str, Any]) -> Facts:
    """Return what `describe` found as lines for people: names and values, empty ones left out."""
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
        ("class names", record["label_set"] or _wrapped([f"none: {record['label_note']}"])),
        ("trained on", record["dataset"]),
        ("images", _preprocessing(record["preprocessing"])),
        ("files", _aligned(record["urls"].items())),
        ("scores", _scores(record["metrics"])),
        ("unverified", _wrapped(record["unverified"])),
        ("sources", record["sources"]),
    ]


def _preprocessing(facts: dict[str, Any]) -> list[str]:
    edges = "both edges" if facts["square"] else "the shorter edge"
    crop, resize = facts["crop"], facts["resize"]
    how = f"{edges} resized to {resize} px ({facts['interpolation']})"
    if crop != resize or not facts["square"]:
        how += f", central {crop} x {crop} px"
    return [f"RGB, {how}, scaled to [-1, 1]", *_wrapped([f"source: {facts['source']}"])]


def _scores(metrics: list[dict[str, Any]]) -> list[str]:
    """One line a score, under each other what belongs together, and then their source."""
    lines = []
    for source, group in groupby(metrics, key=lambda metric: str(metric["source"])):
        rows = []
        for metric in group:
            size = f" at {metric['resolution']} px" if metric["resolution"] else ""
            where = f"on {metric['dataset']}{size}"
            rows.append((metric["name"], f"{metric['value']:g} %", where, metric["note"]))
        lines += [*_aligned(rows), f"source: {source}"]
    return lines


def _file_facts(record: dict[str, Any]) -> Facts:
    classes, params = record["num_classes"], record["num_params"]
    head = f"{classes:,} classes" if classes else "no head"
    channels = "" if record["in_chans"] == 3 else f", {record['in_chans']} input channels"
    names = {"npz": "Google's", "timm": "timm's"}.get(record["names"], record["names"])
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in record["dtypes"].items())
    return [
        ("file", record["file"]),
        ("size", f"{record['bytes']:,} bytes"),
        ("network", f"{record['architecture']}, {head}, {params:,} parameters{channels}"),
        ("tensors", f"{dtypes}, with {names} names"),
        ("model", _by_name(record)),
        ("metadata", _aligned(record["metadata"].items())),
    ]


def _by_name(record: dict[str, Any]) -> str:
    if not record["model_by_name"]:
        return "not a released file, as far as its name says"
    if record["agrees_with_name"]:
        return f"{record['model_by_name']}, by its name; network and classes agree"
    return f"named like {record['model_by_name']}, but its network or classes are others"


def _aligned(rows: Iterable[Iterable[object]]) -> list[str]:
    """Join the cells of each row, as wide as the widest of their column; the last stays ragged."""
    table = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _wrapped(sentences: Iterable[str]) -> list[str]:
    return [line for text in sentences for line in textwrap.wrap(text, _LINE)]
