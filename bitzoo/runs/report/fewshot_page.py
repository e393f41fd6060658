"""The report of few-shot trials, as a self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from bitzoo._version import __version__
from bitzoo.runs.fewshot_result import FewShotResult
from bitzoo.runs.report.artifacts import REPORT_NAME
from bitzoo.runs.report.dot_charts import dot_chart
from bitzoo.runs.report.html import render, write_page

_UNSHOWN = ("data", "numpy")
"""Settings that say nothing to people; `fewshot.json` has them."""


def write_fewshot_report(result: FewShotResult) -> Path:
    """Write the report into the folder of the trials, in place of the one before.

    Args:
        result: The trials so far.

    Returns:
        Its path.
    """
    columns = [(f"{spread.shots:,}", spread.scores) for spread in result.spreads]
    chart = dot_chart(
        "Top-1 accuracy of every trial by images per class, and the medians",
        columns,
        label="images per class",
        unit="top-1",
    )
    settings = {
        name.replace("_", " "): value
        for name, value in result.settings.items()
        if value is not None and name not in _UNSHOWN
    }
    page = render(
        "fewshot.html.j2", result=result, chart=chart, settings=settings, version=__version__
    )
    return write_page(result.folder / REPORT_NAME, page)
