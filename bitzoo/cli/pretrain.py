"""`bitzoo pretrain`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from bitzoo.cli.command import Command
from bitzoo.cli.completers import complete_architecture
from bitzoo.cli.finetune import carry_out, finetune
from bitzoo.cli.options import PATH, debug_option, json_option, model_parameter, options_of


@click.command("pretrain", cls=Command, no_args_is_help=True)
@model_parameter("arch", help="The same as ARCH.", metavar="ARCH", complete=complete_architecture)
@options_of(finetune, "data")
@click.option("--out", type=PATH, required=True, help="Run folder.")
@click.option(
    "--recipe",
    type=click.Choice(["bit-s", "bit-m", "bit-l", "big_vision"]),
    default="bit-s",
    show_default=True,
    help="Recipe of the paper, or of its authors' later code.",
)
@click.option("--steps", type=int, help="Length of training; the schedule keeps its shape.")
@click.option(
    "--epochs", type=float, help="Length in passes over the training images, instead of --steps."
)
@click.option(
    "--batch-size",
    type=int,
    help="Images per step; the learning rate is in proportion, the epochs stay.",
)
@click.option("--lr", type=float, help="Base learning rate.")
@click.option("--weight-decay", type=float, help="Weight decay.")
@click.option("--mixup", type=float, help="Alpha of MixUp; 0 for none.")
@click.option("--resolution", type=int, help="Edge of the crops in pixels.")
@options_of(
    finetune,
    *("flip", "seed", "val_fraction", "group_by", "drop_near_duplicates", "split_seed"),
    *("eval_split", "fixed_split"),
)
@click.option(
    "--fraction", type=float, help="Share of the training images to use, above 0 and at most 1."
)
@options_of(
    finetune,
    *("skip_bad", "recheck", "cache_gb", "workers", "dtype", "device", "micro_batch", "compile"),
    *("recompute_norms", "checkpoint_blocks", "checkpoint_every", "eval_every", "log"),
    *("channels_last", "resume", "overwrite", "time_limit", "yes"),
)
@json_option
@debug_option
def pretrain(arch: str, data: str, out: Path, json: bool, yes: bool, **options: Any) -> None:
    """Pre-train a network from random weights, by BiT's recipe.

    ARCH is an architecture: R50x1, R101x3, R(1,1,1,1)x0.5 (units per block, width). The run folder
    is a model as any other: bitzoo finetune, publish and convert take it.

    Example: bitzoo pretrain R50x1 --data photos/ --recipe bit-s --out runs/s
    """
    from bitzoo.runs import pretrain as runs

    work = functools.partial(runs.pretrain, arch, data, out, **options)
    yes = yes or options["time_limit"] is not None
    carry_out(work, device=options["device"], freeze=False, yes=yes, json=json)
