"""`bitzoo convert` and `bitzoo verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.console import print_facts, print_json, print_report, progress_bar, say
from bitzoo.cli.options import (
    PATH,
    check_option,
    debug_option,
    json_option,
    model_parameter,
    version_option,
    weights_option,
)

if TYPE_CHECKING:
    from bitzoo.zoo.conversion import ConversionResult


@click.command("convert", cls=Command, no_args_is_help=True)
@model_parameter("src", metavar="SRC", help="The same as SRC.")
@click.option("--dst", type=PATH, help="File or folder to write; default: next to the source.")
@click.option(
    "--to",
    type=click.Choice(["safetensors", "npz", "h5", "timm", "transformers", "bit_pytorch"]),
    help="Format to write; transformers is a folder. Default: the one of --dst's ending, else "
    "safetensors.",
)
@click.option(
    "--from",
    "source_format",
    type=click.Choice(["npz", "h5", "tfhub"]),
    help="Released file format to use for a catalogue name; default: npz.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "float64"]),
    default="float32",
    show_default=True,
    help="Dtype to write. What it lacks is rounded to nearest, and the record says how far that "
    "moved the numbers; float64 keeps those of a float64 source.",
)
@click.option(
    "--eps-exact",
    is_flag=True,
    help="Multiply kernels by 10, so that timm or transformers compute Google's function; for "
    "inference only.",
)
@check_option
@click.option(
    "--report",
    type=PATH,
    help="Where to write the proof; default: parity.json next to the output.",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--keep-source", is_flag=True, help="Keep a downloaded source in the cache.")
@weights_option
@json_option
@version_option
@debug_option
def convert(
    src: str,
    dst: Path | None,
    to: str | None,
    source_format: str | None,
    dtype: str,
    eps_exact: bool,
    check: str,
    report: Path | None,
    force: bool,
    keep_source: bool,
    weights: str | None,
    json: bool,
) -> None:
    """Convert SRC, by default to safetensors, and prove that nothing changed.

    SRC is a checkpoint, its address, or a catalogue name. It may have any format in which BiT was
    ever released or used, which is recognised by content.

    Example: bitzoo convert bit_m_r50x1.npz
    """
    from bitzoo.converters.parity.verify import ParityReport
    from bitzoo.errors import ParityError
    from bitzoo.zoo import conversion

    with progress_bar() as progress:
        try:
            result = conversion.convert(
                src,
                dst,
                to=to,
                source_format=source_format,
                dtype=dtype,
                eps_exact=eps_exact,
                check=check,
                report=report,
                force=force,
                keep_source=keep_source,
                weights=weights,
                progress=progress,
            )
        except ParityError as error:
            if not json and isinstance(error.report, ParityReport):
                print_report(error.report)
            raise
    if json:
        print_json(result.to_dict())
    else:
        _print(result)


@click.command("verify", cls=Command, no_args_is_help=True)
@click.argument("src", type=PATH)
@click.argument("dst", type=PATH)
@check_option
@click.option("--report", type=PATH, help="Where to write the proof; default: nowhere.")
@weights_option
@json_option
@debug_option
def verify(
    src: Path, dst: Path, check: str, report: Path | None, weights: str | None, json: bool
) -> None:
    """Verify that DST holds the same model as SRC."""
    from bitzoo.zoo import conversion

    with progress_bar() as progress:
        proof = conversion.verify(
            src, dst, check=check, report=report, weights=weights, progress=progress
        )
    if json:
        print_json(proof.to_dict())
    else:
        print_report(proof)
    proof.require()


def _print(result: ConversionResult) -> None:
    facts: list[tuple[str, object]] = [
        ("source", result.source),
        ("sha256", result.source_sha256),
        ("network", result.network),
        ("model", result.info.identity),
        ("output", result.output),
        ("proof", result.report or "not requested (--check none)"),
    ]
    if result.notes:
        facts.append(("note", [as_flags(note) for note in result.notes]))
    print_facts(facts)
    if result.parity:
        say("")
        print_report(result.parity)
