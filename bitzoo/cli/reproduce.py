"""`bitzoo reproduce`: list published figures, or measure one again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.completers import complete_path
from bitzoo.cli.console import (
    print_facts,
    print_json,
    progress_bar,
    prose_to_stderr,
    say,
    say_wrapped,
)
from bitzoo.cli.evaluate import is_main_process
from bitzoo.cli.options import PATH, debug_option, json_option, model_parameter

if TYPE_CHECKING:
    from bitzoo.catalogue.protocols import Claim
    from bitzoo.runs.reproduce import Reproduction


@click.command("reproduce", cls=Command, no_args_is_help=True)
@model_parameter("model", help="A catalogue name, or a file of its weights.", required=False)
@click.option("--list", "list_", is_flag=True, help="List published figures; measure nothing.")
@click.option("--claim", metavar="ID", help="The published figure, as --list calls it.")
@click.option(
    "--data",
    shell_complete=complete_path,
    help="Images to use instead of the figure's data set, as for finetune and evaluate.",
)
@click.option(
    "--out", type=PATH, help="Folder for the result and the runs; default: runs/MODEL-ID if any."
)
@click.option("--runs", type=int, help="Number of runs; default: as many as the figure stands for.")
@click.option("--steps", type=int, help="Updates of a run; default: the rule's.")
@click.option("--freeze", is_flag=True, help="Train only the head, on fixed features.")
@click.option(
    "--edition",
    type=click.Choice(["paper", "released"]),
    help="HyperRule of the paper or of the released code; default: the figure's.",
)
@click.option(
    "--tasks", metavar="NAMES", help="Only these tasks or groups of VTAB, with commas between."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first run.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Compute dtype.",
)
@click.option("--device", help="cpu, cuda, cuda:1 or mps; default: a GPU if there is one.")
@click.option(
    "--cache-gb", type=float, default=20.0, show_default=True, help="Disk for decoded images, GB."
)
@click.option("--workers", type=int, help="Processes that decode; default: one per core.")
@click.option("--micro-batch", type=int, help="Most images computed at once in training.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be used.")
@click.option("--overwrite", is_flag=True, help="Delete runs in --out, and start again.")
@json_option
@debug_option
def reproduce(
    model: str | None,
    list_: bool,
    claim: str | None,
    out: Path | None,
    json: bool,
    **options: Any,
) -> None:
    """Measure a published figure of MODEL again, or list them all.

    The figure's own protocol is run: an evaluation, a fine-tuning, few-shot runs, or the 19 tasks
    of VTAB-1k. In the end stand what was measured and what was published side by side, and every
    departure from the protocol. A difference is a result: the exit code is 0. After an
    interruption, the same command goes on.

    Example: bitzoo reproduce BiT-M-R50x1-ILSVRC2012 --claim ilsvrc-top1-timm
    """
    if list_:
        _list(model, json)
        return
    if model is None:
        raise click.MissingParameter(param_hint="'MODEL'", param_type="argument")
    from bitzoo.runs.reproduce import reproduce

    if not is_main_process():
        reproduce(model, claim, out=out, **options)
        return
    with prose_to_stderr(json), progress_bar() as progress:
        found = reproduce(model, claim, out=out, progress=progress, say=_say, **options)
    if json:
        print_json(found.to_dict())
    else:
        _print(found)


def _say(text: str) -> None:
    """Print what is said during the work: a sentence, or a table."""
    (say if "\n" in text else say_wrapped)(as_flags(text))


def _list(model: str | None, json: bool) -> None:
    from bitzoo.catalogue.registry import list_claims

    claims = list_claims(_name_of(model) if model else "*")
    if json:
        print_json([claim.to_dict() for claim in claims])
        return
    for name, group in groupby(claims, key=lambda claim: claim.model):
        say(name)
        for claim in group:
            _print_claim(claim)
    runnable = sum(claim.command is not None for claim in claims)
    say(f"{len(claims)} published figures, {runnable} of them with a command", error=True)


def _name_of(model: str) -> str:
    """Return a name or pattern as it is, and of a file the name of the weights in it."""
    from bitzoo.catalogue.registry import find_spec

    if find_spec(model) or not Path(model).exists():
        return model  # torch, which takes seconds, is needed to read a file only
    from bitzoo.runs.reproduce import released_name

    return released_name(model)[0]


def _print_claim(claim: Claim) -> None:
    size = f" at {claim.resolution} px" if claim.resolution else ""
    say_wrapped(f"{claim.id}: {claim.metric} {claim.published} on {claim.dataset}{size}", "  ")
    indent = "    "
    say_wrapped(claim.note, indent)
    if claim.protocol is None:
        say_wrapped(f"not reproducible: {claim.reason}", indent)
        return
    say_wrapped(f"run: {claim.protocol.in_words()}; {claim.protocol.data_in_words}", indent)
    say_wrapped(claim.command or "", indent)


def _print(found: Reproduction) -> None:
    say("")
    print_facts([(name, _lines(value)) for name, value in found.display_rows()])
    if found.measured is None:
        say_wrapped("Stopped before its end. The same command goes on.")


def _lines(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else [value]
