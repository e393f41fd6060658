"""The table of a study: medians, spreads, intervals, and the figures beside them."""

import csv
import io
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bitzoo.inference.intervals import student, student_quantile, wilson
from bitzoo.runs.report.study_page import write_study_report
from bitzoo.runs.study_cell import Score
from bitzoo.runs.study_grid import plan_study
from bitzoo.runs.study_result import OF_IMAGES, OF_SEEDS, StudyResult

DOCUMENT = {
    "title": "Norms & <scales>",
    "grid": {"norm": ["batch", "group"], "steps": [5, 10], "seeds": 3},
    "pretrain": {"arch": "R50x1", "data": "photos"},
    "published": [
        {"where": {"norm": "batch"}, "metric": "upstream", "value": 75.6, "source": "Table 4"},
        {"where": {}, "metric": "upstream", "value": 1.0, "source": "of all, so of no row"},
    ],
    "claim": [{"text": "Longer is better.", "source": "Figure 7"}],
    "scales": {"tiny": {"remarks": ["These are not the paper's."]}},
}


def made(scores, **options):
    """A result with these upstream counts of 40 images, cell by cell."""
    plan = plan_study("s", DOCUMENT, scale="tiny")
    found = {
        cell.name: {"upstream": Score(hits / 40, hits, 40, "held-out images")}
        for cell, hits in zip(plan.cells, scores, strict=False)
        if hits is not None
    }
    return StudyResult(Path("x"), plan, found, {}, **options)


OF_SCIPY = 1e-10
"""scipy 1.13 is 1e-11 from the tangent that the quantile of one degree is; 1.17 is 1e-15."""


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 29, 100])
@pytest.mark.parametrize("share", [0.6, 0.9, 0.975, 0.999])
def test_students_quantiles_are_those_of_scipy(degrees, share):
    expected = stats.t.ppf(share, degrees)
    assert student_quantile(degrees, share) == pytest.approx(expected, rel=OF_SCIPY)


def test_students_interval_is_that_of_scipy():
    values = [0.71, 0.74, 0.69, 0.72]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert student(values) == pytest.approx(expected, rel=OF_SCIPY)
    assert np.isnan(student([0.5])).all()


def test_rows_are_groups_of_seeds():
    result = made([10, 14, 12, 20, 20, 20, None, None, 30, 38, 40, 39])
    rows = result.rows
    assert [(row.values["norm"], row.values["steps"], row.seeds) for row in rows] == [
        ("batch", "5", (0, 1, 2)),
        ("batch", "10", (0, 1, 2)),
        ("group", "5", (2,)),
        ("group", "10", (0, 1, 2)),
    ]
    first, same, single, high = rows
    assert (first.median, first.lowest, first.highest) == (0.3, 0.25, 0.35)
    expected = stats.t.interval(0.95, 2, 0.3, stats.sem([0.25, 0.35, 0.3]))
    assert first.interval == pytest.approx(expected)
    assert same.interval == (0.5, 0.5)
    assert single.interval == wilson(30, 40)
    assert high.interval[1] == 1.0  # beyond which there is no accuracy
    assert [row.interval_of for row in rows] == [OF_SEEDS, OF_SEEDS, OF_IMAGES, OF_SEEDS]
    assert [row.published for row in rows] == [(75.6,), (75.6,), (), ()]
    assert result.notes == (
        "These are not the paper's.",
        f"The 95 % interval is {OF_SEEDS}.",
        f"The 95 % interval is {OF_IMAGES}.",
    )
    assert not result.finished


def test_the_table_in_percent():
    headers, rows = made([10, 14, 12]).table("upstream")
    assert headers == ("norm", "steps", "seeds", "median", "spread", "95 %", "paper")
    assert rows == [("batch", "5", 3, " 30.00", "25.00-35.00", "17.6-42.4", "75.60")]
    headers, rows = made([None] * 6 + [10, 14, 12]).table("upstream")
    assert "paper" not in headers


def test_csv_and_json_say_the_same(tmp_path):
    result = made([10, 14, 12, 20])
    result = StudyResult(tmp_path, result.plan, result.scores, {"a": "b"})
    result.write()
    table = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    record = json.loads((tmp_path / "results.json").read_text())
    assert len(table) == len(record["rows"]) == 2
    for line, row in zip(table, record["rows"], strict=True):
        assert {axis: line[axis] for axis in record["axes"]} == row["values"]
        scores = list(map(float, line["scores"].split()))
        assert scores == [score["top1"] for score in row["scores"]]
        assert float(line["median"]) == row["median"] == statistics.median(scores)
        assert [float(line["interval_low"]), float(line["interval_high"])] == row["interval"]
    assert (record["cells"], record["done"], record["finished"]) == (12, 4, False)
    assert record["failed"] == {"a": "b"}
    assert record["notes"][0] == "These are not the paper's."


def test_the_page_shows_every_row_and_escapes_names(tmp_path):
    result = made([10, 14, 12, 20, 21, 22, 30, 31, 32, 38, 40, 39])
    result = StudyResult(tmp_path, result.plan, result.scores, {})
    page = write_study_report(result).read_text()
    assert "<title>Norms &amp; &lt;scales&gt;</title>" in page
    assert "These are not the paper&#39;s." in page
    assert "Longer is better. (Figure 7)" in page
    for row in result.rows:
        assert f"{100 * row.median:.2f}" in page.replace("&nbsp;", " ")
    assert page.count('class="dot a"') == page.count('class="dot b"') == 6  # a dot a cell
    assert "norm batch, steps 5: 25 %" in page
    assert "norm group, steps 10, median: 97.5 %" in page
    assert "http" not in page.replace("http-equiv", "")
