"""A hook of MkDocs: the tables and plots of docs/catalogue.md, from the registry and benchmarks/.

The page has comments such as ``<!-- catalogue: models -->``; each is replaced by what `PARTS`
names. docs/javascripts/catalogue.js sorts and filters the tables, which are complete without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from bitzoo import ModelSpec, get_spec, list_claims, list_models
from bitzoo.catalogue.metadata import Metric
from bitzoo.catalogue.protocols import Claim
from bitzoo.catalogue.registry import BASE_URL
from bitzoo.catalogue.vtab_tasks import TASKS
from bitzoo.runs.report.svg_elements import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    add,
    add_text,
    draw_axes,
    new_svg,
    rendered,
)

PAGE = "catalogue.md"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "RESULTS.md"
MEASURED = "One image on one core, at each checkpoint's own size, float32, cpu"
"""Heading of the table that benchmarks/speed.py writes."""

_VTAB = "BiT-M-VTAB"
_MARK = re.compile(r"^<!-- catalogue: (\w+) -->$", re.MULTILINE)
_BYTES_PER_PARAMETER = 4


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill the catalogue page in (called by MkDocs for every page)."""
    return fill(markdown) if page.file.src_uri == PAGE else markdown


def fill(markdown: str) -> str:
    """Return a page with every comment replaced by the part that it names."""
    return _MARK.sub(lambda mark: PARTS[mark[1]](), markdown)


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by: a number, or its text if there is none."""

    html: str
    value: float | None = None


@dataclass(frozen=True)
class Choice:
    """A select above a table: the rows whose `key` has its value stay.

    Attributes:
        label: What it is called.
        key: Name of the rows' value.
        chosen: What is chosen at first; "" for all.
    """

    label: str
    key: str
    chosen: str = ""


@dataclass(frozen=True)
class Row:
    """A row: its cells, the values that choices look at, and where links find it."""

    cells: Sequence[Cell]
    values: dict[str, str]
    id: str = ""


def _table(
    name: str, columns: Sequence[str], rows: Sequence[Row], choices: Sequence[Choice], unit: str
) -> str:
    """Return a table with its controls, which are hidden until the script works them.

    A link to a row shows all rows that have the row's value of the first choice.

    The roles are the elements' own; they are said again because a narrow screen shows rows as
    cards, and a browser forgets what an element is that is laid out as something else.
    """
    controls = "".join(_select(choice, rows) for choice in choices)
    head = "".join(f'<th role="columnheader" scope="col">{title}</th>' for title in columns)
    body = "\n".join(_row(row, columns) for row in rows)
    return f"""
<div class="catalogue" data-unit="{unit}" data-by="{choices[0].key}">
<form class="catalogue-controls" hidden>
<label>Filter <input type="search" autocomplete="off" placeholder="words of a row"></label>
{controls}<output aria-live="polite"></output>
</form>
<table class="catalogue-table" role="table" aria-label="{name}">
<thead role="rowgroup"><tr role="row">{head}</tr></thead>
<tbody role="rowgroup">
{body}
</tbody>
</table>
</div>
"""


def _select(choice: Choice, rows: Sequence[Row]) -> str:
    values = dict.fromkeys(row.values[choice.key] for row in rows)
    options = ['<option value="">all</option>'] + [
        f'<option value="{escape(value)}"{" selected" * (value == choice.chosen)}>'
        f"{escape(value)}</option>"
        for value in values
    ]
    key = f'data-key="{choice.key}"'
    return f"<label>{choice.label} <select {key}>{''.join(options)}</select></label>\n"


def _row(row: Row, columns: Sequence[str]) -> str:
    values = "".join(f' data-{key}="{escape(value)}"' for key, value in row.values.items())
    place = f' id="{row.id}"' if row.id else ""
    cells = []
    for number, (cell, column) in enumerate(zip(row.cells, columns, strict=True)):
        sorted_by = "" if cell.value is None else f' data-value="{cell.value!r}"'
        kind, role = ("td", "cell") if number else ('th scope="row"', "rowheader")
        cells.append(
            f'<{kind} role="{role}" data-label="{column}"{sorted_by}>{cell.html}</{kind[:2]}>'
        )
    return f'<tr role="row"{place}{values}>{"".join(cells)}</tr>'


# --- checkpoints ----------------------------------------------------------------------------------

_SETS = {
    "ilsvrc-2012": "ILSVRC-2012",
    "imagenet-21k": "ImageNet-21k",
    "jft-300m": "JFT-300M",
    "oxford_flowers102": "Oxford Flowers-102",
    "oxford_iiit_pet": "Oxford-IIIT Pets",
    "food101": "Food-101",
    "sun397": "SUN397",
}
"""What the catalogue calls data -> what readers call it."""


def models() -> str:
    """Return the table of all checkpoints but those of VTAB-1k."""
    columns = ["Model", "Trained on", "Predicts", "Classes", "Parameters", "Size", "Image"]
    columns += ["ImageNet top-1", "CPU", "Published", "Files"]
    rows = [_model_row(spec) for spec in _specs() if spec.family != _VTAB]
    choices = [Choice("Family", "family"), Choice("Network", "network")]
    return _table("Checkpoints", columns, rows, choices, "checkpoints")


def vtab() -> str:
    """Return the table of the checkpoints that were fine-tuned on VTAB-1k."""
    columns = ["Model", "Task", "Group", "Classes", "Parameters", "Size", "Image", "Files"]
    rows = [_vtab_row(spec) for spec in _specs() if spec.family == _VTAB]
    choices = [Choice("Network", "network", "R50x1"), Choice("Run", "run", "0")]
    choices.append(Choice("Group", "group"))
    table = _table("Checkpoints fine-tuned on VTAB-1k", columns, rows, choices, "checkpoints")
    # three hundred rows of names that differ little would drown what the search is asked for
    return table.replace('<div class="catalogue"', '<div class="catalogue" data-search-exclude', 1)


def _specs() -> Iterator[ModelSpec]:
    return map(get_spec, list_models())


def _model_row(spec: ModelSpec) -> Row:
    figure, speed = own_accuracy(spec), None
    if figure is not None:
        speed = measured_seconds().get((spec.arch_name, figure.resolution or 0))
    count = len(spec.metrics)
    published = f"{count}&nbsp;figure{'s' * (count > 1)}"
    cells = [
        Cell(f"<code>{spec.name}</code>"),
        Cell(_SETS[spec.dataset]),
        Cell(f"{_SETS[spec.task]}, {spec.activation}"),
        *_sizes(spec),
        Cell(f"{figure.value:.1f}&nbsp;%", figure.value) if figure else Cell(""),
        Cell(f"{speed:.3g}&nbsp;s", speed) if speed else Cell(""),
        Cell(f'<a href="#{figures_id(spec.name)}">{published}</a>', count) if count else Cell(""),
        Cell(_files(spec)),
    ]
    return Row(cells, {"family": spec.family, "network": spec.arch_name})


def _vtab_row(spec: ModelSpec) -> Row:
    task = TASKS[spec.task.removeprefix("vtab/")]
    run = re.search(r"-run(\d)-", spec.name)
    assert run
    values = {"network": spec.arch_name, "run": run[1], "group": task.group}
    name, group = Cell(f"<code>{spec.name}</code>"), Cell(task.group)
    return Row([name, Cell(task.name), group, *_sizes(spec), Cell(_files(spec))], values)


def _sizes(spec: ModelSpec) -> list[Cell]:
    count = spec.num_params
    return [
        Cell(f"{spec.num_classes:,}", spec.num_classes),
        Cell(f"{count / 1e6:,.1f}&nbsp;M", count),
        Cell(_bytes(_BYTES_PER_PARAMETER * count), count),
        Cell(f"{spec.resolution}&nbsp;px", spec.resolution),
    ]


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f}&nbsp;GB" if size >= 1e9 else f"{size / 1e6:.0f}&nbsp;MB"


def _files(spec: ModelSpec) -> str:
    links = [
        # a folder of the bucket has no page; its files are below it
        kind if kind == "tfhub" else f'<a href="{BASE_URL}{path}">{kind}</a>'
        for kind, path in spec.files.items()
    ]
    return ", ".join(links) or "never released"


# --- published figures ----------------------------------------------------------------------------

_PLACES = {
    "https://arxiv.org/abs/1912.11370": "BiT paper",
    "https://arxiv.org/abs/2106.05237": "distillation paper",
    "https://github.com/google-research/big_transfer": "big_transfer",
    "https://github.com/google-research/big_vision": "big_vision",
    "https://github.com/huggingface/pytorch-image-models": "timm",
}
_ADDRESS = re.compile(r"https://\S+")


def figures() -> str:
    """Return the table of all published figures."""
    columns = ["Model", "Measured on", "Figure", "How", "Source", "To measure it again"]
    seen: set[str] = set()
    rows = []
    for claim in list_claims():
        rows.append(_figure_row(claim, figures_id(claim.model) * (claim.model not in seen)))
        seen.add(claim.model)
    chosen = "BiT-M-R50x1-ILSVRC2012"
    choices = [Choice("Model", "model", chosen), Choice("Data", "data")]
    return _table("Published figures", columns, rows, choices, "figures")


def figures_id(model: str) -> str:
    """Return the anchor of a model's figures."""
    return f"figures-{model.lower().replace('_', '-')}"


def _figure_row(claim: Claim, place: str) -> Row:
    parts = ", ".join(f"{name} {value:g}" for name, value in claim.parts.items())
    size = f", {claim.resolution} px" * (claim.resolution is not None)
    notes = [claim.note + size, *filter(None, [parts]), *claim.remarks]
    again = f"<code>{claim.command}</code>" if claim.command else escape(claim.reason)
    cells = [
        Cell(f"<code>{claim.model}</code>"),
        Cell(f"{escape(claim.dataset)}, {claim.metric}"),
        Cell(escape(claim.published).replace(" %", "&nbsp;%"), claim.value),
        Cell(escape("; ".join(notes))),
        Cell(source_links(claim.source)),
        Cell(again),
    ]
    return Row(cells, {"model": claim.model, "data": claim.dataset}, place)


def source_links(source: str) -> str:
    """Return a citation as HTML, its addresses as links with a short name."""

    def link(address: re.Match[str]) -> str:
        names = (name for place, name in _PLACES.items() if address[0].startswith(place))
        return f'<a href="{escape(address[0])}">{next(names)}</a>'

    return _ADDRESS.sub(link, source)


# --- plots ----------------------------------------------------------------------------------------


def own_accuracy(spec: ModelSpec) -> Metric | None:
    """Return the published top-1 on ILSVRC-2012 of exactly these weights.

    That of timm is preferred: it evaluated most of them, and all in the same way.
    """
    own = [
        figure
        for figure in spec.metrics
        if (figure.name, figure.dataset) == ("top-1", "ILSVRC-2012")
        and figure.note.startswith("these weights")
    ]
    return min(own, key=lambda figure: "timm" not in figure.note, default=None)


def measured_seconds() -> dict[tuple[str, int], float]:
    """Return (architecture, pixels) -> seconds an image, as benchmarks/RESULTS.md has them."""
    _, _, section = RESULTS.read_text(encoding="utf-8").partition(f"### {MEASURED}\n")
    table = section.partition("\n#")[0]
    found = re.findall(r"^\| (R\d+x\d+), (\d+) px +\| +([\d.]+) ", table, re.MULTILINE)
    return {(arch, int(side)): float(seconds) for arch, side, seconds in found}


def size_plot() -> str:
    """Return the plot of accuracy against parameters."""
    dots = [_dot(spec, figure, spec.num_params / 1e6) for spec, figure in _classifiers()]
    return _plot("Top-1 on ILSVRC-2012 against parameters", dots, "million parameters")


def speed_plot() -> str:
    """Return the plot of accuracy against measured speed."""
    seconds = measured_seconds()
    dots = [
        _dot(spec, figure, seconds[key])
        for spec, figure in _classifiers()
        if (key := (spec.arch_name, figure.resolution or 0)) in seconds
    ]
    return _plot("Top-1 on ILSVRC-2012 against time", dots, "seconds an image, one core")


def _classifiers() -> Iterator[tuple[ModelSpec, Metric]]:
    for spec in _specs():
        figure = own_accuracy(spec)
        if figure:
            yield spec, figure


@dataclass(frozen=True)
class Dot:
    """A checkpoint in a plot: its label, what is said when it is pointed at, and its place."""

    label: str
    name: str
    x: float
    percent: float
    style: str


def _dot(spec: ModelSpec, figure: Metric, x: float) -> Dot:
    distilled = spec.family != "BiT-M-ILSVRC2012"
    label = spec.arch_name + f" {figure.resolution}" * distilled
    name = f"{spec.name} at {figure.resolution} px"
    return Dot(label, name, x, figure.value, "b" if distilled else "a")


def _plot(title: str, dots: Sequence[Dot], unit: str) -> str:
    """Draw the dots with their labels; a pointer tells each one's name and figures."""
    svg = new_svg(WIDTH, HEIGHT, title)
    x = Axis.over([dot.x for dot in dots], LEFT + 12, WIDTH - RIGHT - 12, log=True)
    y = Axis.over([dot.percent for dot in dots], HEIGHT - BOTTOM, TOP)
    draw_axes(svg, x, y, "top-1, %", percent=False, label=unit)
    places = [(x.at(dot.x), y.at(dot.percent)) for dot in dots]
    taken = [(left - _DOT, top - _DOT, left + _DOT, top + _DOT) for left, top in places]
    for dot, (left, top) in zip(dots, places, strict=True):
        mark = add(svg, "circle", cx=left, cy=top, r=_DOT, class_=f"dot {dot.style}")
        said = f"{dot.name}: {dot.percent:.4g} %, {dot.x:,.3g} {unit}"
        ET.SubElement(mark, "title").text = said
        width = LETTER * len(dot.label)
        edge, base, style, box = next(
            place for place in _label_places(left, top, width) if _is_free(place[3], taken)
        )
        taken.append(box)
        add_text(svg, dot.label, edge, base, f"legend {style}")
    return f'\n<figure class="chart">{rendered(svg)}</figure>\n'


_DOT = 4
_Box = tuple[float, float, float, float]
"""Left, top, right and bottom of what is drawn."""


def _label_places(
    left: float, top: float, width: float
) -> Iterator[tuple[float, float, str, _Box]]:
    """Yield where a label may stand beside its dot: its edge, base line, style and box."""
    for away in range(6):  # the further away, the later
        for base in (top + 4 - 9 * away, top + 4 + 9 * away):
            for edge, style, start in (
                (left + 8, "", left + 8),
                (left - 8, "end", left - 8 - width),
            ):
                yield edge, base, style, (start, base - 9, start + width, base + 2)


def _is_free(box: _Box, taken: Sequence[_Box]) -> bool:
    left, top, right, bottom = box
    return (
        left > LEFT
        and right < WIDTH
        and bottom < HEIGHT - BOTTOM
        and not any(left < c and a < right and top < d and b < bottom for a, b, c, d in taken)
    )


PARTS = {
    "models": models,
    "vtab": vtab,
    "figures": figures,
    "size": size_plot,
    "speed": speed_plot,
}
"""What a comment of the page may name."""
