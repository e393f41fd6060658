"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from bitzoo.cli.command import DEBUG

PATH: click.Path[Path] = click.Path(path_type=Path)
_Decorated = TypeVar("_Decorated", bound=Callable[..., object])


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[DEBUG] = context.meta.get(DEBUG, False) or value


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
"""Also accepted before the command's name."""

json_option = click.option("--json", is_flag=True, help="Print JSON for scripts.")

check_option = click.option(
    "--check",
    type=click.Choice(["none", "weights", "logits"]),
    default="logits",
    show_default=True,
    help="What to prove; logits means both proofs.",
)

weights_option = click.option(
    "--weights",
    metavar="ema|raw|PLACE",
    help="Which weights of a training checkpoint: averages, raw ones, or those under a name; "
    "default: averages if there are any.",
)

edition_option = click.option(
    "--edition",
    type=click.Choice(["paper", "released"]),
    default="paper",
    show_default=True,
    help="HyperRule of the paper or of the released code.",
)


def inference_options(command: _Decorated) -> _Decorated:
    """Add the options for running a network."""
    for option in (
        click.option(
            "--backend",
            type=click.Choice(["eager", "compile", "onnxruntime", "openvino"]),
            default="eager",
            show_default=True,
            help="Library that runs the network.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="float32",
            show_default=True,
            help="Compute dtype; lower precision is faster.",
        ),
        click.option(
            "--batch-size", type=int, default=32, show_default=True, help="Images per batch."
        ),
    ):
        command = option(command)
    return command
