"""The commands `bitzoo` and `bitzoo-convert`. Heavy modules are imported by the command that runs.

Exit codes: 0 fine, 1 a proof failed, 2 bad input or usage, 128 + n after signal n (130: Ctrl-C).
"""

from __future__ import annotations

import enum
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional

import typer

from bitzoo._version import __version__
from bitzoo.errors import BitzooError

app = typer.Typer(
    help="The home of Google's Big Transfer (BiT) models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Check(str, enum.Enum):
    """How much a conversion proves; the converters' own `Check`, which costs an import."""

    none = "none"
    weights = "weights"
    logits = "logits"


_debug = False


def _set_debug(value: bool) -> None:
    global _debug
    _debug = _debug or value


def _show_version(value: bool) -> None:
    if value:
        print(f"bitzoo {__version__}")
        raise typer.Exit


Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.callback()
def _root(
    debug: Debug = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="Wildcards, such as 'BiT-M-*'.")] = "*",
    released: Annotated[
        bool, typer.Option("--released", help="Only what Google released.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the catalogue."""
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
def info(
    model: Annotated[str, typer.Argument(help="A catalogue name or a checkpoint file.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show all that is known of a catalogue entry or a checkpoint file."""
    from bitzoo import describe
    from bitzoo.console import print_facts, print_json

    record = describe.describe(model)
    if json:
        print_json(record)
    else:
        print_facts(describe.facts(record))


def convert(
    src: Annotated[
        str, typer.Option("--src", help="A checkpoint file, its address, or a catalogue name.")
    ],
    dst: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File or folder to write to; default: beside the source."),
    ] = None,
    check: Annotated[Check, typer.Option(help="What to prove before the file is kept.")] = (
        Check.logits
    ),
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where to write the proof; default: parity.json beside the output."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    keep_source: Annotated[
        bool, typer.Option("--keep-source", help="Keep a downloaded source in the cache.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint to safetensors and prove that nothing changed.

    Example: bitzoo-convert --src bit_m_r50x1.npz
    """
    from bitzoo import commands

    commands.convert(
        src, dst, check=check.value, report=report, force=force, keep_source=keep_source, json=json
    )


app.command(no_args_is_help=True)(convert)


@app.command()
def verify(
    src: Annotated[Path, typer.Argument(help="The original checkpoint.")],
    dst: Annotated[Path, typer.Argument(help="What was made of it.")],
    check: Annotated[Check, typer.Option(help="weights, or logits for both proofs.")] = (
        Check.logits
    ),
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where to write the proof; default: nowhere."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove again that two checkpoint files hold one model."""
    from bitzoo import commands

    commands.verify(src, dst, check=check.value, report=report, json=json)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where its files go.")] = Path("quickstart"),
    debug: Debug = False,
) -> None:
    """Make a small random checkpoint, convert it with proof, and classify a picture."""
    from bitzoo.quickstart import run

    run(folder)


def main() -> None:
    """Run `bitzoo`."""
    _run(app)


def convert_main() -> None:
    """Run `bitzoo-convert`, which is `bitzoo convert`."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(no_args_is_help=True)(convert)
    _run(single)


def _run(command: Callable[[], None]) -> None:
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
