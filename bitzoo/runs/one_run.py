"""A run from end to end, of any kind.

take the folder -> read and check the data -> build the network -> plan the recipe -> decode once ->
train -> evaluate -> write a model folder, a report and a card
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.data.class_counts import describe_classes
from bitzoo.data.dataset import ImageSet, read_dataset
from bitzoo.data.split_record import write_split
from bitzoo.data.validation import DataSummary, inspect
from bitzoo.display import list_names
from bitzoo.durations import parse_duration
from bitzoo.errors import BitzooError, UsageError
from bitzoo.files import Progress, write_json
from bitzoo.inference.processes import in_main_process, join_processes, process_device
from bitzoo.inference.selection import held_out_by, record_of
from bitzoo.models.bit import BiT
from bitzoo.runs.changes import Change, changed, record_change
from bitzoo.runs.config import Callbacks, RunConfig
from bitzoo.runs.foresight import Foresight
from bitzoo.runs.job import Job
from bitzoo.runs.kinds import find_kind
from bitzoo.runs.report.leakage import measure_leakage
from bitzoo.runs.run_dir import RunDir, outputs_in, read_record
from bitzoo.runs.run_lock import sole_use
from bitzoo.runs.run_result import RunResult
from bitzoo.runs.session import Session, Task
from bitzoo.runs.step_progress import reported
from bitzoo.runs.time_limit import as_before, fixed
from bitzoo.runs.wanted_rows import wanted_rows
from bitzoo.training.recipe import Recipe

CHECKED_BEFORE = 50_000
"""Up to so many images are all decoded before training, which takes a minute or two; of more, where
the kind of run allows it, a sample, and the others when they are used."""
REPEATS_NAME = "repeats.json"
"""In a folder of repeated runs: what `resume` needs, and at the end the accuracies."""


def run_job(
    job: Job,
    out: Path,
    repeats: int,
    progress: Progress | bool | None,
    callbacks: Callbacks | None,
    *,
    resume: bool,
    overwrite: bool,
    change: Change | None = None,
    time_limit: str | float | None = None,
) -> RunResult:
    """Carry out a job, once or with several seeds.

    Args:
        job: What to do.
        out: The run folder.
        repeats: Number of runs.
        progress: As for `bitzoo.finetune`, and so the others.
        callbacks: Callbacks during the run.
        resume: Whether to continue the run in the folder, if there is one.
        overwrite: Whether to delete what a run wrote to the folder and start again.
        change: What to change in the run that is resumed.
        time_limit: For the whole call, as for `bitzoo.durations.parse_duration`; a run that goes on
            keeps the plan that it has.
    """
    callbacks = callbacks or Callbacks()
    most = None if time_limit is None else parse_duration(time_limit)
    with reported(callbacks.progress or progress, callbacks) as callbacks:
        ahead = _Ahead(time.monotonic(), most, repeats)
        if repeats == 1:
            return _run(job, out, resume, overwrite, callbacks, change or Change(), ahead)
        return _repeat(job, out, repeats, resume, overwrite, callbacks, ahead)


@dataclass(frozen=True)
class _Ahead:
    """What is known of the time of a call.

    Attributes:
        began: When it began, by the monotonic clock.
        limit: Seconds that it may take; None for no limit.
        repeats: Runs that are left, this one included; 0 if they have been looked at already.
        like: The recipe of the first run of several, whose plan the others have.
    """

    began: float
    limit: float | None
    repeats: int
    like: Recipe | None = None


def _repeat(
    job: Job,
    out: Path,
    repeats: int,
    resume: bool,
    overwrite: bool,
    callbacks: Callbacks,
    ahead: _Ahead,
) -> RunResult:
    """Run with one seed after another, unless a run is stopped."""
    run_dir, runs, first = RunDir(out), list[RunResult](), job.config.seed
    record = {"model": job.model, "repeats": repeats, "options": job.to_dict("")}

    def begin() -> None:
        _take(run_dir, stack)
        with run_dir.writing():
            write_json(out / REPEATS_NAME, record)

    with contextlib.ExitStack() as stack:
        in_main_process(begin)
        for seed in range(first, first + repeats):
            own = replace(job, config=replace(job.config, seed=seed))
            place = out / f"seed-{seed}"
            runs.append(_run(own, place, resume, overwrite, callbacks, Change(), ahead))
            if runs[-1].stopped:
                break
            ahead = replace(ahead, repeats=0, like=runs[0].recipe)
        evaluated = [run for run in runs if run.evaluation]
        evaluated.sort(key=lambda run: run.evaluation.top1 if run.evaluation else 0.0)
        middle = evaluated[(len(evaluated) - 1) // 2] if evaluated else runs[-1]
        stopped = any(run.stopped for run in runs)
        result = replace(middle, stopped=stopped, repeats=tuple(runs))
        if join_processes().is_main_process:
            with run_dir.writing():
                write_json(out / REPEATS_NAME, record | result.summary())
    return result


def _run(
    job: Job,
    out: Path,
    resume: bool,
    overwrite: bool,
    callbacks: Callbacks,
    change: Change,
    ahead: _Ahead,
) -> RunResult:
    """Run once."""
    process_device(job.config.device)  # before the data are read, if there is no such device
    processes, run_dir = join_processes(job.config.device), RunDir(out)
    kind = find_kind(job.config.kind)

    def enter() -> None:
        _take(run_dir, stack)
        run_dir.require_possible(resume=resume, overwrite=overwrite)
        if overwrite and job.config.starts_from_weights:
            _require_apart(job, out)

    def begin() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        options = job.to_dict(images.source)
        run_dir.open(identity, resume=resume, overwrite=overwrite, options=options)
        with run_dir.writing():
            write_split(out, images, before)
        record_change(run_dir, change)
        return run_dir.identity, run_dir.changes

    with contextlib.ExitStack() as stack:
        in_main_process(enter)
        job = kind.begin(job)
        read = kind.read or read_images
        images, summary = in_main_process(lambda: read(job, callbacks))
        _tell(callbacks, summary.kept, *summary.notes, "\n".join(describe_classes(images)))
        network, is_kept = kind.create(job, images, callbacks)
        before = record_of(network)
        held_out = held_out_by(images, summary.skipped, before, job.model)
        _tell(callbacks, *(held_out.notes if held_out else ()))
        recipe = kind.plan(job, images, summary, network, is_kept)
        begun = read_record(out) if resume else None
        sight = Foresight(
            *(job, _planned_before(recipe, begun, ahead), network, images, summary, out),
            record=begun,
            extend=change.extend,
            repeats=max(1, ahead.repeats),
            overwrite=overwrite,
        )
        recipe = _look_ahead(sight, ahead, callbacks, is_new=begun is None)
        job = fixed(job, recipe)
        evaluated = len(images.val) if images.val else 0
        config, when = job.config.with_evaluations(recipe, evaluated)
        _tell(callbacks, when)
        name, depth = _name_in(out, job), summary.bit_depth
        identity = _identity(name, config, images, recipe, network, depth)
        identity |= kind.identity(job)
        started, changes = in_main_process(begin)
        if run_dir.kept:
            callbacks.say(f"Kept in {out}, because no run wrote it: {list_names(run_dir.kept)}.")
        recipe, config = changed(started, changes, recipe, config)
        callbacks.on_start(recipe)
        now = {**started, "recipe": recipe.to_dict(), "dtype": config.dtype}
        task = Task(network, recipe, images, summary, config, held_out, job.data, job.faculty)
        with Session(task, run_dir, now, callbacks, sight.layout) as session:
            steps, stopped, rate = session.train()
            final, choice, more = None, None, dict[str, Any]()
            if not stopped:
                final, choice = session.finish(steps)
                if teaching := session.compare_with_teachers(final):
                    more = {"teaching": teaching}
                if processes.is_main_process and (edited := run_dir.keep_edited_card()):
                    callbacks.say(f"The card was edited; it is kept as {edited}.")
                session.write_artifacts(final, choice)
                if processes.is_main_process:
                    run_dir.finish(steps)
        processes.wait_for_everyone()
    leakage = measure_leakage(summary, final, images)
    result = kind.result(out, recipe, steps, stopped, final, rate, leakage=leakage, choice=choice)
    return replace(result, **more)


def _planned_before(recipe: Recipe, begun: dict[str, Any] | None, ahead: _Ahead) -> Recipe:
    """Return the plan as it was made to fit when this run, or the first of several, began."""
    if ahead.like is not None:
        return as_before(recipe, ahead.like)
    if begun is None:
        return recipe
    try:
        return as_before(recipe, Recipe.from_dict(begun["recipe"]))
    except (BitzooError, KeyError, TypeError):
        return recipe  # a damaged record, which is reported when the run is opened


def _look_ahead(sight: Foresight, ahead: _Ahead, callbacks: Callbacks, *, is_new: bool) -> Recipe:
    """Say what the run will take, ask where that is wanted, and return the plan."""
    heard = in_main_process(lambda: callbacks.is_heard)
    limited = ahead.limit is not None and is_new and ahead.like is None
    if sight.steps_left < 1 or not ahead.repeats or not (heard or limited):
        return sight.recipe
    if limited:
        assert ahead.limit is not None
        sight.fit_in(ahead.limit / ahead.repeats, time.monotonic() - ahead.began)
    elif ahead.limit is not None:
        _tell(callbacks, "The run goes on with the plan that it has; `time_limit` changes nothing.")
    found = sight.forecast()

    def tell() -> None:
        if callbacks.confirm is None:
            _tell(callbacks, found.text)
        elif not callbacks.confirm(found):
            raise UsageError("Not confirmed; nothing was started.")

    in_main_process(tell)
    return sight.recipe


def _tell(callbacks: Callbacks, *sentences: str) -> None:
    for sentence in filter(None, sentences):
        callbacks.say(sentence)


def _take(run_dir: RunDir, stack: contextlib.ExitStack) -> None:
    """Keep other runs out of the folder until `stack` is unwound."""
    with run_dir.writing("Choose another `out`."):
        stack.enter_context(sole_use(run_dir.folder))


def _require_apart(job: Job, out: Path) -> None:
    """Check that the models that the run reads are none of the files that `overwrite` removes."""
    run = out.resolve()
    places = {job.place or job.model: f"the model that training starts from, {job.model}"}
    places |= {place: f"a teacher, {place}" for place in job.config.also_reads}
    for name, what in places.items():
        place = Path(os.path.realpath(name))
        if place == run or place in outputs_in(run):
            raise UsageError(f"`overwrite` would delete {what}. Choose another `out`.")


def _name_in(out: Path, job: Job) -> str:
    """Return the model's name; that of the run in `out` if it is the same file by another path."""
    before = read_record(out) or {}
    options, name = before.get("options"), before.get("model")
    same = isinstance(options, dict) and options.get("model") == job.to_dict("")["model"]
    return name if same and isinstance(name, str) else job.model


def read_images(job: Job, callbacks: Callbacks) -> tuple[ImageSet, DataSummary]:
    """Read and check the data of a run."""
    config, kind = job.config, find_kind(job.config.kind)
    images = read_dataset(
        job.data,
        val_fraction=config.val_fraction,
        group_by=config.group_by,
        seed=config.seed,
        split_seed=config.split_seed,
        eval_split=config.eval_split,
        examples_per_class=config.examples_per_class,
        progress=callbacks.progress,
    )
    images = kind.select(job, images)
    large = sum(map(len, images.splits)) > CHECKED_BEFORE
    lazily = config.checks_while_training and large
    images, summary = inspect(
        images,
        skip_bad=config.skip_bad,
        workers=config.workers,
        progress=callbacks.progress,
        drop_near_duplicates=config.drop_near_duplicates,
        fixed_split=config.fixed_split,
        lazily=lazily,
        keep_checks=True,
        recheck=config.recheck,
        rows=None if lazily else wanted_rows(job, images),
    )
    return replace(images, source=job.data_name or images.source), summary


def _identity(
    model: str,
    config: RunConfig,
    images: ImageSet,
    recipe: Recipe,
    network: BiT,
    bit_depth: int | None,
) -> dict[str, Any]:
    """Return everything that determines the result, up to rounding."""
    depth = {} if bit_depth is None else {"bit_depth": bit_depth}
    selected = {
        "keep": "best" if config.keeps_best else "last",
        "patience": config.patience,
        "eval_every": config.eval_every,
    }
    computed = {} if config.backend == "eager" else {"backend": config.backend}
    return {
        **depth,
        **computed,
        **(selected if config.selects else {}),
        "numpy": _numpy_release(),
        "model": model,
        "architecture": network.architecture.name,
        "classes": list(images.classes),
        "data": images.fingerprint,
        "recipe": recipe.to_dict(),
        "seed": config.seed,
        "dtype": config.dtype,
        "freeze": config.freeze,
    }


def _numpy_release() -> str:
    """Return NumPy's feature release, within which random streams stay the same (NEP 19)."""
    return ".".join(np.__version__.split(".")[:2])
