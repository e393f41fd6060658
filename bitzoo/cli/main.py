"""The commands `bitzoo` and `bitzoo-convert`.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

from __future__ import annotations

import io
import sys

import click

from bitzoo.cli.command import SETTINGS, describe_os_error
from bitzoo.cli.completion import completion
from bitzoo.cli.console import say
from bitzoo.cli.convert import convert, verify
from bitzoo.cli.distill import distill
from bitzoo.cli.evaluate import evaluate, predict
from bitzoo.cli.export import export
from bitzoo.cli.fewshot import fewshot
from bitzoo.cli.finetune import finetune
from bitzoo.cli.hyperrule import hyperrule
from bitzoo.cli.info import info, list_command
from bitzoo.cli.options import debug_option, version_option
from bitzoo.cli.pretrain import pretrain
from bitzoo.cli.probe import probe
from bitzoo.cli.publish import card, publish
from bitzoo.cli.quickstart import quickstart
from bitzoo.cli.reproduce import reproduce
from bitzoo.cli.resume import resume
from bitzoo.cli.signals import exit_on_signals
from bitzoo.cli.study import study
from bitzoo.cli.vtab import vtab
from bitzoo.openmp_waiting import choose_before_torch


@click.group(context_settings=SETTINGS)
@version_option
@debug_option
def app() -> None:
    """The home of Google's Big Transfer (BiT) models."""


for _command in (
    list_command,
    info,
    convert,
    verify,
    hyperrule,
    finetune,
    resume,
    pretrain,
    distill,
    study,
    evaluate,
    predict,
    probe,
    fewshot,
    vtab,
    reproduce,
    export,
    publish,
    card,
    quickstart,
    completion,
):
    app.add_command(_command)


def main() -> None:
    """Run `bitzoo`."""
    _run(app)


def convert_main() -> None:
    """Run `bitzoo-convert`, which is `bitzoo convert`."""
    _run(convert)


def _run(command: click.Command) -> None:
    """Run a command, which reports its own errors; click's own printing may fail too."""
    exit_on_signals()
    choose_before_torch()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may not be valid text
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except OSError as error:
        say(f"error: {describe_os_error(error)}", error=True)
        sys.exit(2)
