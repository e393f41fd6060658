"""The report of a probe, as a self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from bitzoo._version import __version__
from bitzoo.durations import duration
from bitzoo.runs.probe_result import (
    ProbeResult,
    bytes_in_words,
    count_in_words,
    in_tenths,
    rate_in_words,
)
from bitzoo.runs.report.artifacts import REPORT_NAME
from bitzoo.runs.report.html import render, write_page
from bitzoo.runs.report.scatter import Dot, scatter_chart

_UNSHOWN = ("strengths",)
"""Settings that the page says in words."""


def write_probe_report(result: ProbeResult) -> Path:
    """Write the report into the folder of the probe, in place of the one before.

    Args:
        result: The models so far; its `folder` is set.

    Returns:
        Its path.
    """
    assert result.folder is not None
    return write_page(result.folder / REPORT_NAME, probe_page(result))


def probe_page(result: ProbeResult) -> str:
    """Return the report: one HTML page that needs no other file, no network and no script."""
    take = result.advice.take
    numbered = list(enumerate(result.done, start=1))
    dots = [
        Dot(
            str(number),
            probed.model,
            probed.images_per_s,
            probed.top1,
            probed.interval,
            probed.model == take,
        )
        for number, probed in numbered
        if probed.images_per_s
    ]
    rows = [
        {
            "number": number,
            "probed": probed,
            "interval": in_tenths(probed.interval),
            "rate": rate_in_words(probed.images_per_s),
            "params": count_in_words(probed.params),
            "memory": bytes_in_words(probed.memory_bytes),
            "l2": ", ".join(dict.fromkeys(f"{l2:g}" for l2 in probed.l2)),
        }
        for number, probed in numbered
    ]
    return render(
        "probe.html.j2",
        result=result,
        advice=result.advice,
        chart=scatter_chart(
            "Top-1 accuracy against images per second, with 95 % intervals",
            dots,
            label="images/s",
            unit="top-1",
        ),
        rows=rows,
        took=duration(result.seconds),
        settings={
            name.replace("_", " "): value
            for name, value in result.settings.items()
            if value is not None and name not in _UNSHOWN
        },
        strengths=result.settings["strengths"][2],
        version=__version__,
    )
