"""`bitzoo export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.completers import complete_model, complete_path
from bitzoo.cli.console import (
    print_facts,
    print_json,
    print_table,
    progress_bar,
    say,
    say_wrapped,
)
from bitzoo.cli.options import PATH, debug_option, json_option, weights_option
from bitzoo.display import in_percent

if TYPE_CHECKING:
    from bitzoo.exporters.export import ExportReport
    from bitzoo.inference.int8_report import Int8Report


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
    type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
    default="float32",
    show_default=True,
    help="Dtype that kernels are stored in; convolutions compute in it if it is int8.",
)
@click.option(
    "--calibrate",
    metavar="DATA",
    shell_complete=complete_path,
    help="int8: images of the model's task, to calibrate on and to judge on.",
)
@click.option(
    "--max-loss",
    type=float,
    default=0.01,
    show_default=True,
    help="int8: largest share of the judged images that may be lost.",
)
@click.option(
    "--calibration-images",
    type=int,
    default=300,
    show_default=True,
    help="int8: images to calibrate on, as many of each class.",
)
@click.option(
    "--judged-images",
    type=int,
    default=2000,
    show_default=True,
    help="int8: images to judge on, at most.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="int8: choice of the images.")
@click.option("--skip-bad", is_flag=True, help="int8: leave out images that cannot be read.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@weights_option
@json_option
@debug_option
def export(model: str, json: bool, **options: Any) -> None:
    """Export MODEL for another runtime, run the file, and report how far it deviates.

    MODEL is a catalogue name, a checkpoint file, or a run folder.

    In int8, convolutions compute with 8 bits: the file is judged by what it loses on images that it
    was not calibrated on, and refused if that is more than --max-loss.

    Example: bitzoo export BiT-M-R50x1-ILSVRC2012 --to onnx --out r50x1.onnx
    """
    from bitzoo.inference import exports

    with progress_bar() as progress:
        report = exports.export(model, progress=progress, **options)
    if json:
        print_json(report.to_dict())
    elif isinstance(report, exports.Int8Report):
        _print_int8(model, report)
    else:
        _print(model, report)


def _print_facts(model: str, report: ExportReport | Int8Report) -> None:
    known = report.metadata
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


def _print_int8(model: str, report: Int8Report) -> None:
    from bitzoo.inference.intervals import wilson

    _print_facts(model, report)
    found, done = report.compared, report.quantization
    say("")
    say_wrapped(f"Quantized: {done.method} ({done.kernels} of {done.of} kernels).")
    for note in report.notes:
        say_wrapped(as_flags(note))
    say_wrapped(f"Judged on {report.judged}, in {report.runtime['runtime']}")
    if found.before is not None and found.after is not None:
        print_table(
            ("kernels", "right", "images", "top-1", "95 % interval"),
            [
                (
                    name,
                    right,
                    found.count,
                    f"{right / found.count:.2%}",
                    in_percent(wilson(right, found.count)),
                )
                for name, right in (("float32", found.before), ("int8", found.after))
            ],
        )
    say_wrapped(report.verdict)
    say_wrapped(report.precision)
    say_wrapped(
        f"Same first class as float32: {found.agreeing:,} of {found.count:,}; logits are "
        f"{found.relative_l2:.1e} away (relative L2). The int8 file computes another function."
    )
    say("")
    print_table(
        ("images at once", "float32 ms", "int8 ms", "times as fast", "at best"),
        [
            (
                speed.batch,
                *(f"{1e3 * seconds:.1f}" for seconds in speed.medians),
                f"{speed.ratio:.2f}",
                f"{speed.best_ratio:.2f}",
            )
            for speed in report.speeds
        ],
    )
    say_wrapped(
        f"On {report.runtime['device']}, {report.runtime['cores']} cores, at "
        f"{report.runtime['side']} px, in turn; what else ran then is in these figures."
    )
    say_wrapped(as_flags(report.advice))
    say_wrapped(f"Not judged: {'; '.join(report.not_judged)}.")
    say(f"ok: {report.path} loses {found.loss:.2%}, allowed {report.max_loss:.2%}")


def _print(model: str, report: ExportReport) -> None:
    from bitzoo.exporters.export_formats import FORMATS
    from bitzoo.exporters.probe import REASON

    not_judged = FORMATS[report.to].not_judged
    _print_facts(model, report)
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
