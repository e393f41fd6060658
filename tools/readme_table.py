"""The README's catalogue table, from the registry; run as a script to write it there."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from bitzoo import get_spec, list_models

README = Path(__file__).parents[1] / "README.md"
TABLE = re.compile(r"(<!-- catalogue: .*? -->\n).*?(<!-- end of catalogue -->)", re.DOTALL)


def render() -> str:
    """Return a Markdown table with a row a family."""
    lines = [
        "| family | models | architectures | head | trained on | files |",
        "|---|---:|---|---|---|---|",
    ]
    specs = [get_spec(name) for name in list_models()]
    for family, group in groupby(specs, key=lambda spec: spec.family):
        members = list(group)
        archs = dict.fromkeys(spec.arch_name for spec in members)
        classes = sorted({spec.num_classes for spec in members})
        head = f"{classes[0]:,}" + (f" to {classes[-1]:,}" if len(classes) > 1 else "")
        activation = "/".join(dict.fromkeys(spec.activation for spec in members))
        datasets = ", ".join(dict.fromkeys(spec.dataset for spec in members))
        files = ", ".join(dict.fromkeys(kind for spec in members for kind in spec.files))
        lines.append(
            f"| {family}, e.g. `{members[0].name}` | {len(members)} | {' '.join(archs)} "
            f"| {head} classes, {activation} | {datasets} | {files or 'never released'} |"
        )
    released = sum(spec.released for spec in specs)
    return "\n".join(lines) + f"\n\n{released} released checkpoints, {len(specs)} names.\n"


def write() -> None:
    """Put the table into the README."""
    text = README.read_text(encoding="utf-8")
    README.write_text(TABLE.sub(lambda m: m[1] + render() + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    write()
