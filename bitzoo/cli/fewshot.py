"""`bitzoo fewshot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.completers import complete_path
from bitzoo.cli.console import (
    in_line,
    print_facts,
    print_json,
    print_table,
    progress_bar,
    prose_to_stderr,
    say,
    say_wrapped,
)
from bitzoo.cli.finetune import finetune, parse_resolution
from bitzoo.cli.options import (
    PATH,
    debug_option,
    edition_option,
    json_option,
    model_parameter,
    options_of,
)

_SHOTS = "1,5,10,25,100"


def _parse_shots(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in parts):
        raise click.BadParameter(f"expected whole numbers with commas, as {_SHOTS}, found {text!r}")
    return tuple(map(int, parts))


@click.command("fewshot", cls=Command, no_args_is_help=True)
@model_parameter("model", help="The same as MODEL.")
@click.option(
    "--data", required=True, shell_complete=complete_path, help="Labelled images, as for finetune."
)
@click.option("--out", type=PATH, required=True, help="Folder for the results and the runs.")
@click.option(
    "--shots",
    default=_SHOTS,
    show_default=True,
    callback=_parse_shots,
    help="Numbers of images per class.",
)
@click.option(
    "--runs", type=int, default=5, show_default=True, help="Runs for each, with other images."
)
@click.option(
    "--method",
    type=click.Choice(["finetune", "ridge"]),
    default="finetune",
    show_default=True,
    help="BiT-HyperRule, as in the paper; or a closed-form probe, in minutes.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first run.")
@edition_option
@click.option("--steps", type=int, help="Length of training; the schedule keeps its shape.")
@click.option(
    "--epochs", type=float, help="Length in passes over the training images, instead of --steps."
)
@click.option("--batch-size", type=int, help="Effective batch size.")
@click.option("--lr", type=float, help="Base learning rate.")
@click.option("--mixup", type=float, help="Alpha of MixUp; 0 for none.")
@click.option("--resolution", help="CROP or RESIZE,CROP in pixels.")
@click.option("--flip/--no-flip", default=None, help="Mirror images at random.")
@click.option("--freeze", is_flag=True, help="Train only the head, on cached features.")
@click.option(
    "--val-fraction",
    type=float,
    help="Fraction to hold out; default 0.1 if the data has no split.",
)
@click.option("--skip-bad", is_flag=True, help="Skip images that cannot be used.")
@options_of(finetune, "recheck")
@click.option(
    "--cache-gb",
    type=float,
    default=20.0,
    show_default=True,
    help="Disk space for decoded images, and as much for features.",
)
@click.option("--workers", type=int, help="Processes that decode; default: one per core.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Dtype of activations.",
)
@click.option("--device", help="cpu, cuda, cuda:1 or mps; default: a GPU if there is one.")
@click.option("--micro-batch", type=int, help="Images computed at once; default: what fits.")
@click.option(
    "--recompute-norms", is_flag=True, help="Half the activation memory, a few percent slower."
)
@click.option(
    "--checkpoint-blocks", is_flag=True, help="A quarter of the activation memory, slower."
)
@click.option(
    "--checkpoint-every",
    type=int,
    default=100,
    show_default=True,
    help="Steps between checkpoints; 0 writes one only at the end.",
)
@click.option(
    "--discard-weights", is_flag=True, help="Remove each run's weights once its score is recorded."
)
@json_option
@debug_option
def fewshot(model: str, data: str, out: Path, json: bool, **options: Any) -> None:
    """Measure how well MODEL learns from a few images per class.

    For each number of images per class, several runs with other images are judged on the same ones:
    the data's test split, else val, else images that are held out. The same command goes on where
    it was stopped; more --shots or --runs add to those that are made.

    Example: bitzoo fewshot BiT-M-R50x1 --data photos/ --out runs/few --method ridge
    """
    from bitzoo.inference.processes import join_processes
    from bitzoo.runs import fewshot as runs

    options["resolution"] = parse_resolution(options["resolution"])
    if not join_processes(options["device"]).is_main_process:
        runs.fewshot(model, data, out, progress=False, **options)
        return
    with prose_to_stderr(json), progress_bar() as progress:
        result = runs.fewshot(
            model,
            data,
            out,
            progress=progress,
            say=lambda text: say_wrapped(as_flags(text)),
            **options,
        )
    if json:
        print_json(result.to_dict())
        return
    if result.spreads:
        say("")
        print_table(*result.table())
        say("")
    if result.departures:
        say_wrapped(f"Departures from the protocol: {'; '.join(result.departures)}.")
    if result.stopped:
        made, planned = len(result.trials), len(result.shots) * result.runs
        say_wrapped(f"Stopped after {made} of {planned} runs. The same command goes on.")
        return
    say_wrapped(in_line(f"Top-1 over {result.test}."))
    folder = Path(result.folder)
    print_facts([("report", folder / "report.html"), ("all runs", folder / "fewshot.json")])
