"""`bitzoo completion`: the script that a shell needs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from bitzoo.cli.command import Command
from bitzoo.cli.console import say
from bitzoo.cli.options import debug_option

PROGRAMS = ("bitzoo", "bitzoo-convert")


@click.command("completion", cls=Command, logs=False, no_args_is_help=True)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@debug_option
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete model names, paths and options.

    \b
    To have it in every new shell:
      echo 'eval "$(bitzoo completion bash)"' >> ~/.bashrc
      echo 'eval "$(bitzoo completion zsh)"' >> ~/.zshrc      (after compinit)
      bitzoo completion fish > ~/.config/fish/conf.d/bitzoo.fish
    """  # noqa: D301
    kind = get_completion_class(shell)
    assert kind is not None  # click has these three
    for program in PROGRAMS:
        variable = f"_{program}_COMPLETE".replace("-", "_").upper()
        say(kind(click.Command(program), {}, program, variable).source())
