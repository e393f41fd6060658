"""`bitzoo resume`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from bitzoo.cli.command import Command
from bitzoo.cli.finetune import carry_out
from bitzoo.cli.options import PATH, debug_option, json_option


@click.command("resume", cls=Command, no_args_is_help=True)
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--data", help="Where the data are now, if they have moved.")
@click.option("--lr", type=float, help="Another base learning rate from here on.")
@click.option("--extend", type=int, metavar="STEPS", help="Steps to train on after the end.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Another dtype of activations from here on.",
)
@click.option("--cache-gb", type=float, help="Disk space for decoded images.")
@click.option("--workers", type=int, help="Processes that decode.")
@click.option("--device", help="Another device: cpu, cuda, cuda:1 or mps.")
@click.option("--micro-batch", type=int, help="Images computed at once.")
@click.option(
    "--recompute-norms/--no-recompute-norms",
    default=None,
    help="Half the activation memory, a few percent slower.",
)
@click.option(
    "--checkpoint-blocks/--no-checkpoint-blocks",
    default=None,
    help="A quarter of the activation memory, slower.",
)
@json_option
@debug_option
def resume(folder: Path, json: bool, **options: Any) -> None:
    """Continue the run in the folder RUN, with the options that it has.

    Without options, a run that was stopped or killed ends as if nothing had happened. --lr, --dtype
    and --extend change it from its newest checkpoint on; report and card say so.

    Example: bitzoo resume runs/photos
    """
    from bitzoo.runs import resume as runs
    from bitzoo.runs.run_dir import read_record

    work = functools.partial(runs.resume, folder, **options)
    freeze = (read_record(folder) or {}).get("freeze") is True
    carry_out(work, device=options["device"], freeze=freeze, yes=True, json=json)
