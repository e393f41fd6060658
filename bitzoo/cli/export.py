"""What `bitzoo export` does and prints."""

from __future__ import annotations

import textwrap
from pathlib import Path

from bitzoo.cli.console import print_facts, print_json, print_table, say
from bitzoo.errors import UsageError
from bitzoo.exporters.export import REPORT_SUFFIX, ExportReport
from bitzoo.exporters.export import export as export_model
from bitzoo.exporters.probe import REASON
from bitzoo.models.bit import BiT
from bitzoo.zoo.create import create_model


def export(model: str, to: str, out: Path, *, dtype: str, force: bool, json: bool) -> None:
    """Write MODEL in another format, run what was written, and say how far it deviates."""
    network = create_model(model, pretrained=True)
    if not isinstance(network, BiT):
        raise UsageError(f"{model}: expected a classifier, found {type(network).__name__}.")
    report = export_model(network, to, out.expanduser(), dtype=dtype, force=force)
    if json:
        print_json(report.to_dict())
    else:
        _print(model, report)


def _print(model: str, report: ExportReport) -> None:
    facts = report.facts
    print_facts(
        [
            ("model", f"{model}, {facts['architecture']}, {facts['num_classes']} classes"),
            ("output", report.path),
            ("images", facts["input"]),
            ("kernels", facts["kernels"]),
            ("run by", report.runtime),
            ("report", report.path.with_name(report.path.name + REPORT_SUFFIX)),
        ]
    )
    say("")
    print_table(
        ("probe images", "relative L2", "largest", "of", "same top-1", "allowed", ""),
        [
            (
                f"{found.images} x {found.size} px",
                f"{found.relative_l2:.1e}",
                f"{found.max_abs:.1e}",
                f"{found.max_logit:.1e}",
                f"{found.top1_equal} of {found.images}",
                f"{report.tolerance:.0e}",
                "ok",
            )
            for found in report.deviations
        ],
    )
    say("\n" + textwrap.fill(f"Allowed is a {REASON}.", 100))
