"""`bitzoo vtab`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.console import (
    print_facts,
    print_json,
    print_table,
    progress_bar,
    prose_to_stderr,
    say,
    say_wrapped,
)
from bitzoo.cli.finetune import finetune, parse_resolution
from bitzoo.cli.options import PATH, debug_option, json_option, model_parameter, options_of

if TYPE_CHECKING:
    from bitzoo.runs.vtab_result import VtabResult


@click.command("vtab", cls=Command, no_args_is_help=True)
@model_parameter("model", help="The same as MODEL.")
@click.option("--out", type=PATH, required=True, help="Folder of all runs.")
@click.option(
    "--tasks",
    metavar="NAMES",
    help="Tasks or groups (natural, specialized, structured), with commas; default: all 19.",
)
@click.option("--runs", type=int, default=3, show_default=True, help="Runs of each task.")
@options_of(
    finetune,
    *("edition", "pretrained", "steps", "epochs", "batch_size", "lr", "mixup", "resolution"),
    *("flip", "seed", "cache_gb", "workers", "dtype", "device", "freeze", "micro_batch"),
    *("channels_last", "compile", "recompute_norms", "checkpoint_blocks", "checkpoint_every"),
    *("class_weights", "log"),
)
@json_option
@debug_option
def vtab(model: str, out: Path, json: bool, **options: Any) -> None:
    """Fine-tune MODEL on the 19 tasks of VTAB-1k, and average its scores.

    By the protocol of BiT's paper: 1,000 training images of each task, BiT-HyperRule, the full test
    split, three runs. Options of the recipe depart from it, which the result says. The data sets
    must have been prepared by TensorFlow Datasets; tasks without are skipped. Run the same command
    again to go on with what is not finished.

    Example: bitzoo vtab BiT-M-R50x1 --out runs/vtab --tasks natural
    """
    from bitzoo.inference.processes import join_processes
    from bitzoo.runs import vtab as runs
    from bitzoo.runs.config import Callbacks

    options["resolution"] = parse_resolution(options["resolution"])
    if not join_processes(options["device"]).is_main_process:
        runs.vtab(model, out, **options, progress=False, callbacks=Callbacks())
        return
    callbacks = Callbacks(say=_say)
    with prose_to_stderr(json), progress_bar() as progress:
        result = runs.vtab(model, out, **options, progress=progress, callbacks=callbacks)
    if json:
        print_json(result.to_dict())
    else:
        _print_result(result)


def _say(text: str) -> None:
    """Print a sentence in lines that fit; a table as it is."""
    (say if "\n" in text else say_wrapped)(as_flags(text))


def _print_result(result: VtabResult) -> None:
    """Print the table, the means and what they may be called, and what is missing."""
    from bitzoo.data.vtab_data import find_task, preparing

    say("")
    if result.tasks:
        _print_scores(result)
        _print_published()
    if result.skipped:
        say(f"\nSkipped, as their data are not prepared ({len(result.skipped)}):")
        for name in result.skipped:
            say(f"  {name}: {preparing(find_task(name))}")
    if result.stopped:
        say_wrapped("Stopped. Run the same command again to go on.")
    print_facts([("report", result.folder / "report.html")])


def _print_scores(result: VtabResult) -> None:
    from bitzoo.runs.vtab_result import MEDIAN_RULE

    scores = [*result.tasks.values()]
    print_table(
        ("task", "group", "version", "images", "top-1", "runs"),
        [
            (
                score.name,
                score.task.group,
                f"{score.version}{'*' if score.notes else ''}",
                score.runs[0].count,
                f"{score.top1:6.2%}",
                " ".join(f"{100 * run.top1:.2f}" for run in score.runs),
            )
            for score in scores
        ],
    )
    for note in dict.fromkeys(note for score in scores for note in score.notes):
        say_wrapped(f"* {note}")
    say("")
    for group, mean in result.groups.items():
        say(f"{group}, mean of {mean.tasks} of {mean.of}: {mean.top1:.2%}")
    if overall := result.overall:
        say_wrapped(f"{result.claim}: {overall.top1:.2%}")
        if overall.readings_differ:
            say_wrapped(f"{MEDIAN_RULE} The median of the means is {overall.of_runs:.2%}.")
    for sentence in result.departures:
        say_wrapped(f"Departure: {sentence}.")


def _print_published() -> None:
    from bitzoo.catalogue.vtab_published import DISAGREEMENTS, PUBLISHED
    from bitzoo.catalogue.vtab_tasks import GROUPS

    say("\nPublished, in percent:")
    print_table(
        ("model", "mean", *GROUPS, "how"),
        [
            (
                row.model,
                f"{row.mean:.2f}",
                *(f"{row.groups[g]:.2f}" if g in row.groups else "-" for g in GROUPS),
                row.note,
            )
            for row in PUBLISHED
        ],
    )
    for sentence in DISAGREEMENTS:
        say_wrapped(sentence)
