"""What a shell completes where a model or a path is asked for."""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a catalogue name or a path, as the `shell_complete` of a parameter.

    The shell itself completes paths best (it escapes spaces and goes on below a folder), but cannot
    do so beside other words; so the paths are listed here only where names match too.
    """
    from bitzoo.catalogue.registry import list_models

    start = incomplete.casefold()
    names = [name for name in list_models() if name.casefold().startswith(start)]
    if not names:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(word) for word in [*names, *_paths(incomplete)]]


def complete_architecture(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of one of the paper's architectures."""
    from bitzoo.models.architecture import ARCHITECTURES

    start = incomplete.casefold()
    return [CompletionItem(name) for name in ARCHITECTURES if name.casefold().startswith(start)]


def complete_path(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Leave the completion of a path to the shell."""
    return [CompletionItem(incomplete, type="file")]


def _paths(start: str) -> list[str]:
    """Return the entries of the current folder that begin with `start`; hidden ones are left."""
    with os.scandir() as entries:
        return sorted(
            entry.name + ("/" if entry.is_dir() else "")
            for entry in entries
            if entry.name.startswith(start) and not entry.name.startswith(".")
        )
