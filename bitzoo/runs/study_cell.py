"""A cell of a study: one pre-training run and its transfers, and the record of how far it is.

The folder of a cell has ``cell.json``, the run folder ``pretrain`` and a folder for each transfer.
The record says what was asked for and, after every part, what came of it; a part that is not in it
goes on from its own checkpoints.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bitzoo.data.run_folders import RUN_LOCK_NAME, RUN_NAME
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.files import Progress, write_json
from bitzoo.runs.config import Callbacks
from bitzoo.runs.differences import differences
from bitzoo.runs.report.artifacts import EVALUATION_NAME
from bitzoo.runs.run_dir import RunDir, now, read_record
from bitzoo.runs.run_lock import sole_use
from bitzoo.runs.study_data import local_source
from bitzoo.runs.study_grid import Cell, Transfer
from bitzoo.runs.study_words import KINDS, UPSTREAM
from bitzoo.small_files import read_json

CELLS, CELL_NAME, PRETRAIN, DATA = "cells", "cell.json", "pretrain", "data"
_SPLIT_SEED = 0
"""Seed of the held-out choice in data without a split: all seeds are judged on the same images."""
_ORPHAN_SECONDS = 120.0
"""How long a worker waits for another one of the same cell, whose study was killed, to end."""


@dataclass(frozen=True)
class Score:
    """A figure of a cell.

    Attributes:
        top1: Accuracy, in [0, 1].
        correct: Images that were right; None where the figure is no share of images.
        count: Images that it is over; None as for `correct`.
        over: What it is over, as a phrase.
    """

    top1: float
    correct: int | None = None
    count: int | None = None
    over: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "top1": self.top1,
            "correct": self.correct,
            "count": self.count,
            "over": self.over,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Score:
        """Restore a score from the output of `to_dict`."""
        score = cls(record["top1"], record["correct"], record["count"], record["over"])
        if type(score.top1) not in (int, float) or not 0 <= score.top1 <= 1:
            raise ValueError(f"an accuracy is {score.top1!r}")
        for number in (score.correct, score.count):
            if number is not None and (type(number) is not int or number < 0):
                raise ValueError(f"a number of images is {number!r:.80}")
        return score


@dataclass(frozen=True)
class CellRecord:
    """What ``cell.json`` says.

    Attributes:
        plan: What was asked for; see `Cell.plan`.
        parts: Part (``pretrain``, or a transfer's name) -> metric -> score, of those that are done.
        finished: Whether all parts are.
    """

    plan: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    finished: bool = False

    @property
    def scores(self) -> dict[str, Score]:
        """Metric -> score, of all parts that are done."""
        return {metric: score for part in self.parts.values() for metric, score in part.items()}


def read_cell(folder: Path) -> CellRecord | None:
    """Return the record of a cell; None if there is none yet.

    A cell whose pre-training run is gone or is not finished counts as not done, whatever its record
    says.

    Raises:
        CheckpointError: If it is damaged.
    """
    place = folder / CELL_NAME
    if not place.is_file():
        return None
    content = read_json(place)
    try:
        plan = dict(content["plan"])
        parts = {
            part: {metric: Score.from_dict(score) for metric, score in scores.items()}
            for part, scores in content["parts"].items()
        }
        finished = content["finished"]
        if finished is not None and type(finished["date"]) is not str:
            raise TypeError(f"`finished` is {finished!r:.80}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{place}: expected the record of a cell, found it damaged ({error}). Remove this "
            "file: its runs go on from their own records."
        ) from error
    run = read_record(folder / PRETRAIN)
    if run is None or not isinstance(run.get("finished"), dict):
        return CellRecord(plan)
    return CellRecord(plan, parts, finished is not None)


def require_same(folder: Path, cell: Cell) -> CellRecord | None:
    """Return the record of a cell, after checking that it was begun with the same options.

    Raises:
        UsageError: If it was begun with others.
        CheckpointError: As `read_cell` raises.
    """
    record = read_cell(folder)
    if record and (lines := differences(record.plan, cell.plan())):
        raise UsageError(
            f"{folder} was begun with other options than the study has now (before -> now):\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nGive the study as it was, another `out`, or remove that folder."
        )
    return record


def carry_out(
    cell: Cell,
    out: Path,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    callbacks: Callbacks | None = None,
) -> bool:
    """Do what a cell has left to do, in this process.

    Args:
        cell: The cell.
        out: The folder of the study.
        device: What to compute on; None for what the study's file says.
        progress: Called as the runs call it.
        callbacks: Other callbacks of the runs.

    Returns:
        Whether it is done; False if it was stopped.

    Raises:
        UsageError: If it was begun with other options, or another process is working on it.
        BitzooError: As the functions raise that it calls.
    """
    folder = out / CELLS / cell.name
    with _alone(folder):
        before = require_same(folder, cell) or CellRecord(cell.plan())
        parts = dict(before.parts)
        context = _Context(cell, out, folder, device, progress, callbacks or Callbacks())

        def record(*, finished: bool) -> None:
            content = {
                "cell": {**cell.values, "seed": cell.seed},
                "plan": cell.plan(),
                "parts": {
                    part: {metric: score.to_dict() for metric, score in scores.items()}
                    for part, scores in parts.items()
                },
                "finished": {"date": now()} if finished else None,
            }
            with RunDir(folder).writing("Free some space, then give the same command again."):
                write_json(folder / CELL_NAME, content)

        record(finished=False)
        for part, do in context.parts():
            if part not in parts:
                scores = do()
                if scores is None:
                    return False
                parts[part] = scores
                record(finished=False)
        record(finished=True)
    return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep others out of the folder; one whose study was killed is given the time to stop."""
    end = time.monotonic() + _ORPHAN_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(sole_use(folder))
                break
            except UsageError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
        yield


@dataclass(frozen=True)
class _Context:
    """A cell that is being worked on."""

    cell: Cell
    out: Path
    folder: Path
    device: str | None
    progress: Progress | None
    callbacks: Callbacks

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Yield each part's name and what does it: a function that returns its scores, or None."""
        yield PRETRAIN, self._pretrain
        for transfer in self.cell.transfers:
            do = {"finetune": self._finetune, "fewshot": self._fewshot, "vtab": self._vtab}
            yield transfer.name, partial(do[transfer.kind], transfer)

    @property
    def _shared(self) -> dict[str, Any]:
        own = {} if self.device is None else {"device": self.device}
        return {"progress": self.progress or False, "seed": self.cell.seed, **own}

    def _data(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with data that the readers know."""
        return {**options, "data": local_source(options["data"], self.out / DATA)}

    def _train(self, kind: str, model: object, part: str, options: Mapping[str, Any]) -> bool:
        """Do or continue a training run; returns whether it is finished."""
        options = {"split_seed": _SPLIT_SEED, **self._data(options)}
        data = options.pop("data")
        result = KINDS[kind].function(
            model,
            data,
            self.folder / part,
            resume=True,
            callbacks=self.callbacks,
            **options,
            **self._shared,
        )
        return not result.stopped

    def _pretrain(self) -> dict[str, Score] | None:
        done = self._train("pretrain", self.cell.arch, PRETRAIN, self.cell.pretrain)
        return _evaluated(self.folder / PRETRAIN, UPSTREAM) if done else None

    def _finetune(self, transfer: Transfer) -> dict[str, Score] | None:
        model, part = self.folder / PRETRAIN, transfer.name
        done = self._train("finetune", model, part, transfer.options)
        return _evaluated(self.folder / part, part) if done else None

    def _fewshot(self, transfer: Transfer) -> dict[str, Score] | None:
        options = self._data(transfer.options)
        data = options.pop("data")
        result = KINDS["fewshot"].function(
            self.folder / PRETRAIN,
            data,
            self.folder / transfer.name,
            say=self.callbacks.say,
            **options,
            **self._shared,
        )
        if result.stopped:
            return None
        return {
            f"{transfer.name}, {spread.shots:,} a class": _few(spread, result.test)
            for spread in result.spreads
        }

    def _vtab(self, transfer: Transfer) -> dict[str, Score] | None:
        result = KINDS["vtab"].function(
            self.folder / PRETRAIN,
            self.folder / transfer.name,
            callbacks=self.callbacks,
            **transfer.options,
            **self._shared,
        )
        if result.stopped:
            return None
        overall = result.overall
        return {transfer.name: Score(overall.top1, over=result.claim)} if overall else {}


def _few(spread: Any, test: str) -> Score:
    over = f"{test}, median of {len(spread.scores)} choices of images"
    return Score(spread.median, over=over)


def _evaluated(folder: Path, metric: str) -> dict[str, Score]:
    """Return the score that a finished run has written; none if nothing was held out."""
    place = folder / EVALUATION_NAME
    if not place.is_file():
        return {}
    found = read_json(place)
    try:
        correct, count = int(found["correct"]), int(found["count"])
        return {metric: Score(correct / count, correct, count, "held-out images")}
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{place}: expected the evaluation of a finished run, found it changed ({error})."
        ) from error


def is_taken_for_a_run(folder: Path) -> bool:
    """Whether a folder is that of a single run, in which a study must not write."""
    return (folder / RUN_NAME).is_file() or (folder / RUN_LOCK_NAME).exists()
