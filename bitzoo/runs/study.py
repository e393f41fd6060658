"""`study`: a grid of runs, pre-trained and transferred, with what they have in common in a table.

read the file -> expand the grid -> look at what is done -> give the rest to processes -> table,
results and report. What is done stays done: the same call goes on where a killed one ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitzoo.errors import BitzooError, UsageError
from bitzoo.files import Progress
from bitzoo.progress import Live, shown
from bitzoo.runs.config import Callbacks
from bitzoo.runs.report.study_page import write_study_report
from bitzoo.runs.run_dir import RunDir
from bitzoo.runs.step_progress import reported
from bitzoo.runs.study_cell import CELLS, carry_out, is_taken_for_a_run, require_same
from bitzoo.runs.study_grid import StudyPlan, find_study, plan_study
from bitzoo.runs.study_result import StudyResult
from bitzoo.runs.study_workers import Workers, claimed_cell, stop_with_parent
from bitzoo.small_files import read_text
from bitzoo.training.recipe import whole

TASK = "study"


def study(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    scale: str | None = None,
    data: Mapping[str, str] | None = None,
    processes: int = 1,
    device: str | None = None,
    cell: str | None = None,
    dry_run: bool = False,
    progress: Progress | bool | None = None,
    say: Callable[[str], None] | None = None,
) -> StudyResult:
    """Pre-train and transfer a grid of networks, and compare them.

    A cell of the grid is a pre-training run, and transfers of what it has trained; cells that
    differ in their seed alone make a row of the table. Cells run in processes of their own. What is
    done is not done again, and what was stopped or killed goes on from its checkpoints; a cell that
    was begun with other options is refused. `bitzoo study` does the same.

    Args:
        file: A TOML file (see docs/how-to/studies.md), or the name of a study that comes with
            bitzoo: ``norm-ws``, ``size-data`` or ``schedule-decay``.
        out: The folder of the study.
        scale: Which of the file's scales; None for the file as it is. Figures at a scale are not
            those of the full size, which the table and the report say.
        data: Name of a data set in the file -> the source to use in its place.
        processes: How many cells at once. They share the processors, unless OMP_NUM_THREADS says
            how many threads each has. Several calls with one `out`, also on several machines that
            share it, share the cells.
        device: What to compute on; with commas, processes take several in turn. None for what the
            file says, or a GPU if there is one.
        cell: Do this cell alone, in this process.
        dry_run: Only read the file and say what would be done.
        progress: As for `bitzoo.finetune`.
        say: Called with sentences for the user.

    Returns:
        The scores, and which cells failed or are not done.

    Raises:
        UsageError: If the file is no study, or cells in `out` were begun with other options.
        StorageError: If `out` cannot be written.
        BitzooError: With `cell`, as the runs raise.
    """
    whole("`processes`", processes, 1)
    tell = say or (lambda text: None)
    plan, folder = read_study(file, scale=scale, data=data), Path(out)
    if is_taken_for_a_run(folder):
        raise UsageError(f"{folder} is the folder of a single run. Choose another `out`.")
    has_parent = stop_with_parent()
    for remark in plan.remarks if cell is None else ():
        tell(remark)
    if dry_run:
        return _result(plan, folder, {})
    if cell is not None:
        return _one(plan, folder, cell, device, progress, tell, is_given=has_parent)
    _require_all_same(plan, folder)
    result = _result(plan, folder, {})
    with RunDir(folder).writing("Choose another `out`."):
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
    _tell_left_out(plan, folder, tell)
    _write(result)
    done = len(result.scores)
    tell(f"{len(plan.cells)} cells, of which {done} are done.")
    left = [own for own in plan.cells if own.name not in result.scores]
    with shown(progress) as report:

        def advanced(count: float, running: Sequence[str]) -> None:
            if isinstance(report, Live):
                report.show(TASK, count, len(plan.cells), facts=[f"{len(running)} at work"])
            elif report:
                report(TASK, int(count), len(plan.cells))

        workers = Workers(
            folder,
            _command(file, folder, scale, data),
            processes,
            [part.strip() for part in device.split(",")] if device else [],
            say=tell,
            advanced=advanced,
            ended=lambda: _write(_result(plan, folder, {})),
        )
        outcome = workers.work(left, done)
    result = _result(plan, folder, outcome.failed, stopped=outcome.stopped)
    _write(result)
    return result


def read_study(
    file: str | os.PathLike[str],
    *,
    scale: str | None = None,
    data: Mapping[str, str] | None = None,
) -> StudyPlan:
    """Read and expand a study's file.

    Args:
        file: As for `study`, as the others.
        scale: Which scale.
        data: Sources to use in place of others.

    Raises:
        UsageError: If it is no study.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    place = find_study(os.fspath(file))
    try:
        document: dict[str, Any] = tomllib.loads(read_text(place))
        json.dumps(document)
    except (ValueError, RecursionError) as error:  # ValueError: a number of too many digits
        raise UsageError(f"{place}: expected TOML, found something else: {error}") from error
    except TypeError as error:  # of JSON, in which cells are kept
        raise UsageError(
            f"{place}: expected texts, numbers, tables and lists of them, found a date or a time. "
            "Put it between quotation marks."
        ) from error
    return plan_study(place.stem, document, scale=scale, data=data)


def _one(
    plan: StudyPlan,
    folder: Path,
    name: str,
    device: str | None,
    progress: Progress | bool | None,
    tell: Callable[[str], None],
    *,
    is_given: bool,
) -> StudyResult:
    """Carry out one cell here; one that is given was taken from the list by the study."""
    cell = plan.cell(name)
    place = folder / CELLS / cell.name
    with RunDir(folder).writing("Choose another `out`."):
        place.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if not is_given and stack.enter_context(claimed_cell(place)) is None:
            raise UsageError(f"{place} is being worked on by a study. Wait until it has ended.")
        callbacks = stack.enter_context(reported(progress, Callbacks(say=tell)))
        done = carry_out(
            cell, folder, device=device, progress=callbacks.progress, callbacks=callbacks
        )
    return _result(plan, folder, {}, stopped=not done)


def _command(
    file: str | os.PathLike[str],
    folder: Path,
    scale: str | None,
    data: Mapping[str, str] | None,
) -> list[str]:
    """Return the words of a command that works on a cell, whose name comes last."""
    words = [sys.executable, "-m", "bitzoo", "study", str(find_study(os.fspath(file)).absolute())]
    words += ["--out", str(folder)]
    if scale is not None:
        words += ["--scale", scale]
    for name, source in (data or {}).items():
        words += ["--data", f"{name}={source}"]
    return words


def _require_all_same(plan: StudyPlan, folder: Path) -> None:
    """Check that no cell was begun with other options, before anything runs."""
    problems = []
    for cell in plan.cells:
        try:
            require_same(folder / CELLS / cell.name, cell)
        except UsageError as error:
            problems.append(str(error))
    if problems:
        more = f"\nSo were {len(problems) - 1} other cells." if len(problems) > 1 else ""
        raise UsageError(problems[0] + more)


def _tell_left_out(plan: StudyPlan, folder: Path, tell: Callable[[str], None]) -> None:
    """Say which cells are there that the study does not have."""
    names = {cell.name for cell in plan.cells}
    there = {f"{p.parent.name}/{p.name}" for p in (folder / CELLS).glob("*/seed-*") if p.is_dir()}
    if extra := sorted(there - names):
        tell(
            f"{folder} has {len(extra)} cells that the study does not have, among them {extra[0]}. "
            "They stay as they are, and are not in the table."
        )


def _result(
    plan: StudyPlan, folder: Path, failed: Mapping[str, str], *, stopped: bool = False
) -> StudyResult:
    scores = {}
    for cell in plan.cells:
        try:
            record = require_same(folder / CELLS / cell.name, cell)
        except BitzooError as error:
            failed = {**failed, cell.name: str(error)}
            continue
        if record is not None and record.finished:
            scores[cell.name] = record.scores
    return StudyResult(folder, plan, scores, failed, stopped)


def _write(result: StudyResult) -> None:
    with RunDir(result.folder).writing("Free some space, then give the same command again."):
        result.write()
        write_study_report(result)
