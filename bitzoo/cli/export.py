"""`bitzoo export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitzoo.cli.command import Command
from bitzoo.cli.completers import complete_model
from bitzoo.cli.console import (
    print_facts,
    print_json,
    print_table,
    progress_bar,
    say,
    say_wrapped,
)
from bitzoo.cli.options import PATH, debug_option, json_option, weights_option

if TYPE_CHECKING:
    from bitzoo.exporters.export import ExportReport


@click.command("export", cls=Command, no_args_is_help=True)
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--to",
    type=click.Choice(["onnx", "openvino", "torch-export", "savedmodel"]),
    required=True,
    help="Format to write.",
)
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="File to write (.onnx, .xml, .pt2), or folder of a SavedModel.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Dtype that kernels are stored in.",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@weights_option
@json_option
@debug_option
def export(
    model: str, to: str, out: Path, dtype: str, force: bool, weights: str | None, json: bool
) -> None:
    """Export MODEL for another runtime, run the file, and report how far it deviates.

    MODEL is a catalogue name, a checkpoint file, or a run folder.

    Example: bitzoo export BiT-M-R50x1-ILSVRC2012 --to onnx --out r50x1.onnx
    """
    from bitzoo.exporters import export as exporting

    with progress_bar():  # its parts report nothing: the time is shown
        report = exporting.export(model, to, out, dtype=dtype, force=force, weights=weights)
    if json:
        print_json(report.to_dict())
    else:
        _print(model, report)


def _print(model: str, report: ExportReport) -> None:
    from bitzoo.exporters.export_formats import FORMATS
    from bitzoo.exporters.probe import REASON

    known, not_judged = report.metadata, FORMATS[report.to].not_judged
    print_facts(
        [
            ("model", f"{model}, {known['architecture']}, {known['num_classes']} classes"),
            ("output", report.path),
            ("images", known["input"]),
            ("shapes", known["shapes"]),
            ("kernels", known["kernels"]),
            ("report", report.report),
        ]
    )
    for judged in report.judged:
        say("")
        say_wrapped(f"{judged.setting}: {judged.runtime} on {judged.device}, in {judged.precision}")
        print_table(
            ("probe images", "relative L2", "largest", "of", "same top-1", "allowed", ""),
            [
                (
                    f"{found.images} x {found.size} px",
                    f"{found.relative_l2:.1e}",
                    f"{found.max_abs:.1e}",
                    f"{found.max_logit:.1e}",
                    f"{found.top1_equal} of {found.images}",
                    f"{judged.tolerance:.0e}",
                    "ok",
                )
                for found in judged.deviations
            ],
        )
    if report.exact:
        say(f"\nIn float32 on every processor: {report.exact}")
    say("")
    say_wrapped(f"Not judged: {'; '.join(not_judged)}.")
    say_wrapped(f"Allowed is a {REASON}.")
    say(f"ok: {report.path} within what is allowed")
