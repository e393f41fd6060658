"""`bitzoo study`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.completers import complete_path
from bitzoo.cli.console import (
    print_facts,
    print_json,
    print_table,
    progress_bar,
    prose_to_stderr,
    say,
    say_wrapped,
)
from bitzoo.cli.options import PATH, debug_option, json_option

if TYPE_CHECKING:
    from bitzoo.runs.study_result import StudyResult


def _parse_data(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, mark, source) in zip(texts, pairs, strict=True):
        if not (name and mark and source):
            raise click.BadParameter(f"expected NAME=SOURCE, found {text!r}")
    return {name: source for name, _, source in pairs}


@click.command("study", cls=Command, no_args_is_help=True)
@click.argument("file", shell_complete=complete_path)
@click.option("--out", type=PATH, required=True, help="Folder of the study.")
@click.option("--scale", help="A scale of the file, as tiny; default: the file as it is.")
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=SOURCE",
    callback=_parse_data,
    help="Use SOURCE for the data that the file calls NAME; as often as needed.",
)
@click.option("--processes", type=int, default=1, show_default=True, help="How many cells at once.")
@click.option("--device", help="cpu, cuda, cuda:1 or mps; with commas, processes take turns.")
@click.option("--cell", metavar="NAME", help="Do this cell alone.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@debug_option
def study(
    file: str,
    out: Path,
    scale: str | None,
    data: dict[str, str],
    processes: int,
    device: str | None,
    cell: str | None,
    dry_run: bool,
    json: bool,
) -> None:
    """Pre-train and transfer a grid of networks, and compare them.

    FILE is a TOML file, or one of the studies that come with bitzoo: norm-ws, size-data,
    schedule-decay. The same command goes on where it was stopped or killed; what is done stays
    done.

    Example: bitzoo study norm-ws --scale tiny --out studies/norm --processes 2
    """
    from bitzoo.runs import study as runs

    with prose_to_stderr(json), progress_bar() as progress:
        result = runs.study(
            file,
            out,
            scale=scale,
            data=data,
            processes=processes,
            device=device,
            cell=cell,
            dry_run=dry_run,
            progress=progress,
            say=_say,
        )
    if json:
        print_json(result.to_dict())
    elif dry_run:
        _print_plan(result)
    else:
        _print_result(result, cell)
    if result.failed and cell is None:
        sys.exit(1)


def _say(text: str) -> None:
    """Print a sentence in lines that fit; a table as it is."""
    (say if "\n" in text else say_wrapped)(as_flags(text))


def _print_plan(result: StudyResult) -> None:
    say_wrapped(result.plan.title)
    say_wrapped(f"{len(result.plan.cells)} cells:")
    print_table(("architecture", "cell"), [(cell.arch, cell.name) for cell in result.plan.cells])


def _print_result(result: StudyResult, cell: str | None) -> None:
    plan = result.plan
    done = [cell] if cell else [own.name for own in plan.cells]
    missing = [name for name in done if name not in result.scores]
    if cell is None:
        _print_tables(result)
    else:
        for metric, score in result.scores.get(cell, {}).items():
            say(f"{cell}: {metric}: top-1 {score.top1:.2%}")
    if missing:
        what = f"{cell} is" if cell else f"{len(missing)} of {len(plan.cells)} cells are"
        how = "Stopped: " if result.stopped else ""
        if result.failed:
            how = f"{len(result.failed)} cells failed. "
        say_wrapped(f"{how}{what} not done. The same command goes on.")
    if cell is None:
        folder = result.folder
        print_facts([("report", folder / "report.html"), ("results", folder / "results.csv")])


def _print_tables(result: StudyResult) -> None:
    for metric in result.metrics:
        say("")
        say_wrapped(result.title_of(metric))
        print_table(*result.table(metric))
    say("")
    for note in result.notes:
        say_wrapped(note)
    for claim in result.plan.claims:
        say_wrapped(f"Published: {claim}.")
