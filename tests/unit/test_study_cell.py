"""The record of a cell: it counts only if it says what it must, in the types that say it."""

import json
from typing import Any

import pytest

from bitzoo.errors import CheckpointError
from bitzoo.runs.study_cell import Score, read_cell

SCORE: dict[str, Any] = {"top1": 0.5, "correct": 4, "count": 8, "over": "held-out images"}
RECORD = {
    "plan": {"arch": "R50x1"},
    "parts": {"pretrain": {"upstream": SCORE}},
    "finished": {"date": "2026-11-27T03:40:00+00:00"},
}


@pytest.fixture
def cell(tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/run.json").write_text('{"finished": {"step": 4}}')
    return tmp_path


def test_what_was_written_is_read(cell):
    (cell / "cell.json").write_text(json.dumps(RECORD))
    found = read_cell(cell)
    assert found.finished is True
    assert found.scores == {"upstream": Score(**SCORE)}


def test_none_is_not_finished(cell):
    (cell / "cell.json").write_text(json.dumps(RECORD | {"finished": None}))
    assert read_cell(cell).finished is False


@pytest.mark.parametrize(
    "changes",
    [
        {"finished": "no"},
        {"finished": []},
        {"finished": 2},
        {"finished": True},
        {"finished": {}},
        {"finished": {"date": 3}},
        {"plan": [1]},
        {"parts": {"pretrain": {"upstream": SCORE | {"top1": True}}}},
        {"parts": {"pretrain": {"upstream": SCORE | {"top1": 1.5}}}},
        {"parts": {"pretrain": {"upstream": SCORE | {"count": "8"}}}},
        {"parts": {"pretrain": {"upstream": SCORE | {"correct": -1}}}},
        {"parts": {"pretrain": [SCORE]}},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(cell, changes):
    (cell / "cell.json").write_text(json.dumps(RECORD | changes))
    with pytest.raises(CheckpointError, match=r"cell\.json: expected the record of a cell"):
        read_cell(cell)
