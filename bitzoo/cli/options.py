"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bitzoo._version import __version__
from bitzoo.cli.command import DEBUG
from bitzoo.cli.completers import complete_model

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

version_option = click.version_option(__version__, message="bitzoo %(version)s")

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


def time_limit_option(
    help: str,  # noqa: A002
) -> Callable[[_Decorated], _Decorated]:
    """Return the option ``--time-limit``; `bitzoo.durations.parse_duration` reads its text."""
    return click.option("--time-limit", metavar="DURATION", help=f"{help} 30m, 2h, 1h30m, 90s.")


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
        click.option("--device", help="cpu, cuda, cuda:1 or mps; default: a GPU if there is one."),
        click.option(
            "--batch-size", type=int, default=32, show_default=True, help="Images per batch."
        ),
    ):
        command = option(command)
    return command


def model_parameter(
    name: str,
    *,
    help: str,  # noqa: A002
    metavar: str = "MODEL",
    required: bool = True,
    complete: Callable[..., Any] = complete_model,
) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Let a model be named by the first argument, as in every command, or by its own flag.

    Args:
        name: The parameter of the decorated function; the flag is the same word.
        help: Help of the flag.
        metavar: What the argument is called in the help and in messages.
        required: Whether there must be one.
        complete: Completes it in a shell.
    """
    flag, argument = f"--{name}", f"{name}_argument"

    def decorate(function: Callable[..., object]) -> Callable[..., object]:
        @click.argument(argument, metavar=metavar, required=False, shell_complete=complete)
        @click.option(flag, metavar="TEXT", help=help, shell_complete=complete)
        @functools.wraps(function)
        def named_once(**options: Any) -> object:
            first, by_flag = options.pop(argument), options[name]
            if first is not None and by_flag not in (None, first):
                raise click.UsageError(
                    f"{metavar} is named twice: {first!r} and {flag} {by_flag!r}. Leave one out."
                )
            options[name] = by_flag if first is None else first
            if required and options[name] is None:
                raise click.MissingParameter(param_hint=f"'{metavar}'", param_type="argument")
            return function(**options)

        return named_once

    return decorate


def options_of(command: click.Command, *names: str) -> Callable[[_Decorated], _Decorated]:
    """Give a command some of another command's options, as they are there.

    Args:
        command: The other command.
        names: The options' parameter names, in the order of the help.
    """
    known = {parameter.name: parameter for parameter in command.params}

    def decorate(function: _Decorated) -> _Decorated:
        before = getattr(function, "__click_params__", [])
        # click collects them from the bottom up
        function.__click_params__ = [  # type: ignore[attr-defined]
            *before,
            *(known[name] for name in reversed(names)),
        ]
        return function

    return decorate
