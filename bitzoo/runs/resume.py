"""`resume`: continue a run with the options that its folder has."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitzoo.data.dataset import DataSource
from bitzoo.data.run_folders import FEWSHOT_NAME, PROBE_NAME, RUN_NAME
from bitzoo.errors import CheckpointError, UsageError, damage_reported
from bitzoo.files import Progress
from bitzoo.runs.changes import Change, changed
from bitzoo.runs.config import Callbacks
from bitzoo.runs.job import Job
from bitzoo.runs.kinds import FINETUNED, KEY, find_kind
from bitzoo.runs.one_run import REPEATS_NAME, run_job
from bitzoo.runs.reproduce import RESULT_NAME as REPRODUCED_NAME
from bitzoo.runs.run_dir import is_list_of_changes, read_record
from bitzoo.runs.run_result import RunResult
from bitzoo.runs.study_cell import CELLS
from bitzoo.runs.vtab import RESULT_NAME as VTAB_NAME
from bitzoo.small_files import read_json
from bitzoo.training.checked_values import whole
from bitzoo.training.recipe import Recipe
from bitzoo.zoo.resolve import WEIGHTS_NAME

_GO_ON = {
    FEWSHOT_NAME: "`bitzoo fewshot`",
    PROBE_NAME: "`bitzoo probe`",
    REPRODUCED_NAME: "`bitzoo reproduce`",
    VTAB_NAME: "`bitzoo vtab`",
    CELLS: "`bitzoo study`",
}
"""By what the folder of several runs is known -> the command that goes on with it."""


def resume(
    folder: str | os.PathLike[str],
    *,
    data: DataSource | None = None,
    lr: float | None = None,
    extend: int | None = None,
    dtype: str | None = None,
    cache_gb: float | None = None,
    workers: int | None = None,
    device: str | None = None,
    micro_batch: int | None = None,
    recompute_norms: bool | None = None,
    checkpoint_blocks: bool | None = None,
    progress: Progress | bool | None = None,
    callbacks: Callbacks | None = None,
) -> RunResult:
    """Continue a run from its newest complete checkpoint, with the options it has.

    All options are in the folder's `run.json`. Those that can be given here replace them; None
    keeps what the run has. `lr`, `extend` and `dtype` change the result: they hold from the newest
    checkpoint on, and are recorded in `run.json`, in the report and in the card. A run that has
    reached its end is left as it is, unless it is extended.

    `bitzoo resume` does the same.

    Args:
        folder: The run folder, or the folder of repeated runs.
        data: Where the data are now, if they have moved, or the data themselves if they were in
            memory. Images, labels and splits must be the same.
        lr: Another base learning rate, as after a loss that was not finite. If the loss is not
            finite at once, the newest checkpoint's weights are already spoilt: delete its file, and
            the one before is used.
        extend: How many steps to train on after the end, at least 1. From where the run is, the
            learning rate is that of a run of all the steps, which has the same shape as before.
        dtype: Another dtype of activations: ``float32``, ``bfloat16`` or ``float16``.
        cache_gb: Most disk space for decoded images, in GB.
        workers: Processes that decode.
        device: Another device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        micro_batch: Most images that a process computes at once.
        recompute_norms: Half the activation memory, a few percent slower.
        checkpoint_blocks: A quarter of the activation memory, for one more forward pass.
        progress: As for `bitzoo.finetune`.
        callbacks: As for `bitzoo.finetune`.

    Returns:
        As `bitzoo.finetune`. If the run had reached its end before, `was_finished` says so.

    Raises:
        UsageError: If there is no run, its data are not where they were, or another process is
            using the folder.
        CheckpointError: If `run.json` is damaged or of a version that recorded no options.
        BitzooError: As `bitzoo.finetune` raises.
    """
    place, change = Path(folder), Change(lr, dtype, extend)
    record, where, repeats = _record_in(place)
    if repeats > 1 and change != Change():
        raise UsageError(
            f"{place} has {repeats} runs. `lr`, `extend` and `dtype` change one run: give one of "
            "the folders in it."
        )
    if repeats == 1 and (finished := _finished(place, record, change)):
        return finished
    kind = find_kind(record.get(KEY, FINETUNED))
    job = Job.from_dict(where, record.get("model"), record.get("options"), data, kind.config)
    given: dict[str, Any] = {
        "cache_gb": cache_gb,
        "workers": workers,
        "device": device,
        "micro_batch": micro_batch,
        "recompute_norms": recompute_norms,
        "checkpoint_blocks": checkpoint_blocks,
    }
    given = {name: value for name, value in given.items() if value is not None}
    job = replace(job, config=replace(job.config, **given))
    return run_job(
        job, place, repeats, progress, callbacks, resume=True, overwrite=False, change=change
    )


def _record_in(folder: Path) -> tuple[dict[str, Any], Path, int]:
    """Return what the folder says about its run, the file that says it, and the number of runs."""
    if (folder / RUN_NAME).is_file():
        record = read_record(folder)
        if record is None:
            raise CheckpointError(
                f"{folder / RUN_NAME}: expected the options of the run as JSON, found something "
                "else. Use `bitzoo finetune --resume` with the options that the run was started "
                "with."
            )
        return record, folder / RUN_NAME, 1
    where = folder / REPEATS_NAME
    if where.is_file():
        record = read_json(where)
        with damage_reported(where, "the number of runs"):
            return record, where, whole("the number of runs", record.get("repeats"), 1)
    command = next((name for file, name in _GO_ON.items() if (folder / file).exists()), None)
    if command:
        raise UsageError(
            f"{folder}: expected the folder of one run, found what {command} writes. Give "
            "that command again with the same options: it goes on where it was stopped."
        )
    found = "no such folder" if not folder.exists() else f"none with {RUN_NAME}"
    raise UsageError(
        f"{folder}: expected the folder of a run, found {found}. Give the folder that the run "
        "writes to."
    )


def _finished(folder: Path, record: dict[str, Any], change: Change) -> RunResult | None:
    """Return what is known of a run that has reached its end; None if there is more to do."""
    finished, changes = record.get("finished"), record.get("changes", [])
    if not isinstance(finished, dict) or not is_list_of_changes(changes):
        return None
    if change.extend is not None or not (folder / WEIGHTS_NAME).is_file():
        return None
    kind = find_kind(record.get(KEY, FINETUNED))
    with damage_reported(folder / RUN_NAME, "the options of a run"):
        job = Job.from_dict(folder / RUN_NAME, record["model"], record["options"], (), kind.config)
        recipe, _ = changed(record, changes, Recipe.from_dict(record["recipe"]), job.config)
    steps = recipe.schedule.steps
    if finished.get("step") != steps:
        return None
    if change != Change():
        raise UsageError(
            f"{folder} is finished: all {steps:,} steps are made, so there is nothing left to "
            "change. Add `extend` for more steps."
        )
    return kind.result(folder, recipe, steps, False, None, 0.0, was_finished=True)
