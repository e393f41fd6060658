"""`bitzoo distill`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from bitzoo.cli.command import Command
from bitzoo.cli.completers import complete_model
from bitzoo.cli.finetune import carry_out, finetune
from bitzoo.cli.options import PATH, debug_option, json_option, model_parameter, options_of
from bitzoo.cli.pretrain import pretrain


@click.command("distill", cls=Command, no_args_is_help=True)
@model_parameter("student", metavar="STUDENT", help="The same as STUDENT.")
@click.option(
    "--teacher",
    multiple=True,
    required=True,
    metavar="MODEL",
    shell_complete=complete_model,
    help="A catalogue name, a checkpoint or a run folder; several times for several teachers of "
    "the same classes, whose logits are averaged.",
)
@options_of(finetune, "data")
@click.option("--out", type=PATH, required=True, help="Run folder.")
@click.option(
    "--preset",
    metavar="NAME",
    help="A published run: flowers, pet, food or sun with -fast, -medium or -long, or imagenet; "
    "default: none, which needs --steps or --epochs.",
)
@click.option("--temperature", type=float, help="What the logits of both sides are divided by.")
@options_of(pretrain, "steps", "epochs")
@click.option("--batch-size", type=int, help="Images per step; a preset keeps its epochs.")
@click.option("--lr", type=float, help="Base learning rate.")
@click.option(
    "--weight-decay",
    type=float,
    help="What a step at the base learning rate takes of the kernels, as published.",
)
@click.option("--mixup", type=float, help="Alpha of MixUp; 0 for none.")
@click.option("--resolution", type=int, help="Edge of the crops in pixels, of teacher and student.")
@options_of(finetune, "flip")
@click.option(
    "--unlabelled",
    is_flag=True,
    help="Train on the images alone, of a folder in any form; nothing is measured.",
)
@click.option(
    "--teacher-dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="What teachers compute in; default: bfloat16 on GPUs with units for it, else float32.",
)
@options_of(
    finetune,
    *("seed", "val_fraction", "group_by", "drop_near_duplicates", "split_seed"),
    *("eval_split", "fixed_split"),
    *("skip_bad", "recheck", "cache_gb", "workers", "dtype", "device", "micro_batch", "compile"),
    *("recompute_norms", "checkpoint_blocks", "checkpoint_every", "eval_every", "log"),
    *("channels_last", "resume", "overwrite", "time_limit", "yes"),
)
@json_option
@debug_option
def distill(
    student: str,
    teacher: tuple[str, ...],
    data: str,
    out: Path,
    json: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Distill teachers into STUDENT: it learns to be the same function.

    STUDENT is an architecture, such as R50x1, that starts from random weights, or a model. Teacher
    and student see the same pixels; labels only measure. The student's classes are the teacher's.

    Example: bitzoo distill R50x1 --teacher BiT-R152x2_T_pet128 --data pets/ --preset pet-fast
    --out runs/pets
    """
    from bitzoo.runs import distill as runs

    work = functools.partial(runs.distill, teacher, student, data, out, **options)
    yes = yes or options["time_limit"] is not None
    carry_out(work, device=options["device"], freeze=False, yes=yes, json=json)
