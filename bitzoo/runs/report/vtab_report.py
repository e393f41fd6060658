"""The report of all runs on VTAB-1k, as a self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from bitzoo._version import __version__
from bitzoo.catalogue.vtab_published import DISAGREEMENTS, PUBLISHED
from bitzoo.catalogue.vtab_tasks import GROUPS
from bitzoo.runs.report.html import render, write_page
from bitzoo.runs.vtab_result import MEDIAN_RULE, VtabResult

VTAB_REPORT_NAME = "report.html"


def write_vtab_report(path: Path, result: VtabResult) -> Path:
    """Write the report: one HTML file that needs no other file, no network and no script.

    Args:
        path: Where to; an existing file is replaced at once.
        result: What to tell.

    Returns:
        `path`.
    """
    scores = result.tasks.values()
    page = render(
        "vtab.html.j2",
        result=result,
        facts=_headline(result),
        groups=[
            (group, mean, [score for score in scores if score.task.group == group])
            for group, mean in result.groups.items()
        ],
        group_names=GROUPS,
        notes=list(dict.fromkeys(note for score in scores for note in score.notes)),
        published=PUBLISHED,
        disagreements=DISAGREEMENTS,
        version=__version__,
    )
    return write_page(path, page)


def _headline(result: VtabResult) -> list[tuple[str, str, str]]:
    """Return the figures at the top: value, name, note."""
    overall = result.overall
    if overall is None:
        return []
    complete = "all" if overall.is_complete else f"{overall.tasks} of the {overall.of}"
    facts = [(f"{overall.top1:.2%}", f"mean of {complete} tasks", "of each task's median")]
    if overall.readings_differ:
        facts.append((f"{overall.of_runs:.2%}", "median of the runs' means", MEDIAN_RULE))
    facts += [
        (f"{mean.top1:.2%}", group, f"mean of {mean.tasks} of {mean.of} tasks")
        for group, mean in result.groups.items()
    ]
    return [(value.replace("%", " %"), name, note) for value, name, note in facts]
