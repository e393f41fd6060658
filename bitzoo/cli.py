"""The commands `bitzoo` and `bitzoo-convert`. Heavy modules are imported by the command that runs.

Exit codes: 0 fine, 1 a proof failed, 2 bad input or usage, 128 + the signal that ended it.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bitzoo._version import __version__
from bitzoo.errors import BitzooError

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_PATH = click.Path(path_type=Path)
_debug = False


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    global _debug
    _debug = _debug or value


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
json_option = click.option("--json", is_flag=True, help="Print JSON for scripts.")
check_option = click.option(
    "--check",
    type=click.Choice(["none", "weights", "logits"]),
    default="logits",
    show_default=True,
    help="What to prove: logits for both proofs.",
)


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, message="bitzoo %(version)s")
@debug_option
def app() -> None:
    """The home of Google's Big Transfer (BiT) models."""


@app.command("list")
@click.argument("pattern", default="*")
@click.option("--released", is_flag=True, help="Only what Google released.")
@json_option
@debug_option
def list_command(pattern: str, released: bool, json: bool) -> None:
    """List the catalogue, or what of it matches PATTERN, such as 'BiT-M-*'."""
    from bitzoo import registry
    from bitzoo.console import print_json, print_table

    names = registry.list_models(pattern, released=True if released else None)
    specs = [registry.get_spec(name) for name in names]
    if json:
        print_json([spec.to_dict() for spec in specs])
        return
    headers = ("name", "network", "classes", "task", "px", "parameters", "files")
    print_table(
        headers,
        [
            (
                spec.name,
                spec.arch_name,
                spec.num_classes,
                spec.task,
                spec.resolution,
                spec.num_params,
                " ".join(spec.files) or "never released",
            )
            for spec in specs
        ],
    )
    print(f"{len(specs)} models", file=sys.stderr)


@app.command()
@click.argument("model")
@json_option
@debug_option
def info(model: str, json: bool) -> None:
    """Show all that is known of MODEL, a catalogue name or a checkpoint file."""
    from bitzoo import describe
    from bitzoo.console import print_facts, print_json

    record = describe.describe(model)
    if json:
        print_json(record)
    else:
        print_facts(describe.facts(record))


@app.command(no_args_is_help=True)
@click.option("--src", required=True, help="A checkpoint file, its address, or a catalogue name.")
@click.option("--dst", type=_PATH, help="File or folder to write to; default: beside the source.")
@check_option
@click.option(
    "--report",
    type=_PATH,
    help="Where to write the proof; default: parity.json beside the output.",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--keep-source", is_flag=True, help="Keep a downloaded source in the cache.")
@json_option
@debug_option
def convert(**options: Any) -> None:
    """Convert a checkpoint to safetensors and prove that nothing changed.

    Example: bitzoo-convert --src bit_m_r50x1.npz
    """
    from bitzoo import commands

    commands.convert(options.pop("src"), options.pop("dst"), **options)


@app.command(no_args_is_help=True)
@click.argument("src", type=_PATH)
@click.argument("dst", type=_PATH)
@check_option
@click.option("--report", type=_PATH, help="Where to write the proof; default: nowhere.")
@json_option
@debug_option
def verify(src: Path, dst: Path, **options: Any) -> None:
    """Prove again that two checkpoint files, SRC and what was made of it, hold one model."""
    from bitzoo import commands

    commands.verify(src, dst, **options)


@app.command()
@click.option(
    "--folder",
    type=_PATH,
    default=Path("quickstart"),
    show_default=True,
    help="Where its files go.",
)
@debug_option
def quickstart(folder: Path) -> None:
    """Make a small random checkpoint, convert it with proof, and classify a picture."""
    from bitzoo.quickstart import run

    run(folder)


def main() -> None:
    """Run `bitzoo`."""
    _run(app)


def convert_main() -> None:
    """Run `bitzoo-convert`, which is `bitzoo convert`."""
    convert.context_settings = _SETTINGS
    _run(convert)


def _run(command: Callable[[], Any]) -> None:
    """Run a command; errors become one paragraph on stderr and an exit code."""
    _unwind_on_signals()
    try:
        command()
    except BitzooError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        _fail(f"{what}{error.strerror or error}. Check the path, its permissions and the disk.", 2)


def _unwind_on_signals() -> None:
    """Leave by an exception, so that nothing half-written stays, with the code that shells use."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup, for one
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _fail(message: str, code: int) -> None:
    if _debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
