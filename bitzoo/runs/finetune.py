"""`finetune`: a run from end to end.

take the folder -> read and check the data -> build the network -> plan the recipe -> decode once ->
train -> evaluate -> write a model folder, a report and a card
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from bitzoo.data.dataset import DataSource, ImageSet, read_dataset
from bitzoo.data.validation import DataSummary, inspect
from bitzoo.display import Displayed, list_names
from bitzoo.errors import UsageError
from bitzoo.files import Progress, write_json
from bitzoo.inference.metrics import Evaluation
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.runs.changes import Change, changed, record_change
from bitzoo.runs.config import Callbacks, FinetuneConfig, Resolution
from bitzoo.runs.job import Job
from bitzoo.runs.run_dir import RunDir, outputs_in, read_record
from bitzoo.runs.run_lock import sole_use
from bitzoo.runs.session import Session, Task
from bitzoo.training.distributed import join_processes
from bitzoo.training.hyperrule import Edition, hyperrule
from bitzoo.training.recipe import Recipe
from bitzoo.zoo.create import create_model

REPEATS_NAME = "repeats.json"
"""In a folder of repeated runs: what `resume` needs, and at the end the accuracies."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, repr=False)
class FinetuneResult(Displayed):
    """The outcome of a run.

    Attributes:
        folder: The run folder.
        recipe: The recipe it followed.
        steps: Number of updates.
        stopped: Whether it was stopped before its end and can be resumed.
        evaluation: On the held-out images; None if there are none or the run was stopped.
        images_per_s: Training speed.
        repeats: The results of all repeated runs, if there are several; the result itself is then
            the one with the median top-1 accuracy.
        was_finished: Whether nothing was done, because the run had reached its end before. Its
            evaluation is then in the folder (`evaluation.json`), not here.
    """

    folder: Path
    recipe: Recipe
    steps: int
    stopped: bool
    evaluation: Evaluation | None
    images_per_s: float
    repeats: tuple[FinetuneResult, ...] = ()
    was_finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "folder": str(self.folder),
            "recipe": self.recipe.to_dict(),
            "steps": self.steps,
            "stopped": self.stopped,
            "evaluation": self.evaluation.to_dict() if self.evaluation else None,
            "images_per_s": self.images_per_s,
            "repeats": self.summary() if self.repeats else None,
            "was_finished": self.was_finished,
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        found, summary = self.evaluation, self.summary()
        rows: list[tuple[str, object]] = [
            ("folder", self.folder),
            ("recipe", self.recipe.name),
            ("steps", f"{self.steps:,}" + (", then stopped" if self.stopped else "")),
            ("held-out", found.display_rows()[0][1] if found else "not evaluated"),
            ("speed", f"{self.images_per_s:,.1f} images/s"),
        ]
        if len(summary["top1"]) > 1:
            figures = f"{summary['median']:.2%}, standard deviation {summary['stdev']:.2%}"
            rows.append((f"median of {len(summary['top1'])} runs", figures))
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the repeats' top-1 accuracies, with their median and standard deviation."""
        scores = [run.evaluation.top1 for run in self.repeats if run.evaluation]
        return {
            "runs": [str(run.folder) for run in self.repeats],
            "top1": scores,
            "median": statistics.median(scores) if scores else None,
            "stdev": statistics.stdev(scores) if len(scores) > 1 else None,
        }


def finetune(
    model: str | os.PathLike[str],
    data: DataSource,
    out: str | os.PathLike[str],
    *,
    edition: Edition = "paper",
    pretrained: bool = True,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    mixup: float | None = None,
    resolution: Resolution = None,
    flip: bool | None = None,
    seed: int = 0,
    repeats: int = 1,
    val_fraction: float | None = None,
    examples_per_class: int | None = None,
    skip_bad: bool = False,
    cache_gb: float = 20.0,
    workers: int | None = None,
    dtype: str = "float32",
    freeze: bool = False,
    micro_batch: int | None = None,
    channels_last: bool | None = None,
    compile: bool = False,  # noqa: A002
    recompute_norms: bool = False,
    checkpoint_blocks: bool = False,
    checkpoint_every: int = 100,
    keep_checkpoints: int = 2,
    eval_every: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    callbacks: Callbacks | None = None,
) -> FinetuneResult:
    """Fine-tune a model on images, by BiT-HyperRule (arXiv 1912.11370, section 3.3).

    `bitzoo finetune` does the same.

    Args:
        model: A catalogue name, a checkpoint file, or a run folder. The head of a run that was
            trained on the same classes in the same order is kept; any other head is replaced by a
            new one that starts at zero.
        data: A folder of class folders, a manifest, arrays or a Hugging Face data set; see
            `bitzoo.data.dataset.read_dataset`.
        out: The run folder. Only one run at a time can use it. If it is below `data`, it is no
            class of the data: run folders are left out.
        edition: HyperRule of the ``paper`` or of the ``released`` code.
        pretrained: False starts from random weights.
        steps: Length of training, in updates; the schedule keeps its shape. None, here and below,
            follows the rule.
        batch_size: Images per step, split into micro-batches to fit memory.
        lr: Base learning rate.
        mixup: Alpha of MixUp; 0 for none.
        resolution: The crop in pixels, or (resize, crop).
        flip: Whether crops are mirrored at random.
        seed: Seed of everything random, in [0, 2**64).
        repeats: Number of runs in folders below `out`, each with the next seed.
        val_fraction: Validation fraction; None for 0.1 if the data has no split.
        examples_per_class: Few-shot: train on this many images per class.
        skip_bad: Whether to skip images that cannot be used.
        cache_gb: Most disk space for decoded images, in GB; 0 decodes at each step.
        workers: Processes that decode; None for one per core.
        dtype: Dtype of activations: ``float32``, ``bfloat16`` or ``float16``.
        freeze: Whether to train only the head, on cached features (linear probe).
        micro_batch: Most images that a process computes at once; None for as many as fit.
        channels_last: Memory format; None for channels last on a CPU only.
        compile: Whether to run through `torch.compile`.
        recompute_norms: Half the activation memory, a few percent slower.
        checkpoint_blocks: A quarter of the activation memory, for one more forward pass.
        checkpoint_every: Steps between checkpoints; 0 writes one only at the end.
        keep_checkpoints: Number of checkpoints to keep.
        eval_every: Steps between evaluations; 0 evaluates only at the end.
        resume: Continue the run in `out` from its newest complete checkpoint, if there is one. The
            options must be the same; `bitzoo.resume` needs none, and can change some.
        overwrite: Delete what a run wrote to `out` and start again; other files there stay.
        progress: Called with a task, how much of it is done, and how much there is.
        callbacks: Other callbacks during the run; its `progress`, if any, takes precedence.

    Returns:
        The folder, the recipe, and the evaluation on held-out images; with `repeats`, those of the
        run with the median top-1 accuracy, and all runs.

    Raises:
        DatasetError: If the data cannot be used for training; lists all problems at once.
        UsageError: If options contradict each other, `out` contains another run, or another
            process is using it.
        BitzooError: As `bitzoo.create_model` and `bitzoo.training.trainer.train` raise.
    """
    if repeats < 1:
        raise UsageError(f"`repeats` must be at least 1, found {repeats}.")
    config = FinetuneConfig(
        seed=seed,
        dtype=dtype,
        freeze=freeze,
        micro_batch=micro_batch,
        channels_last=channels_last,
        compile=compile,
        recompute_norms=recompute_norms,
        checkpoint_blocks=checkpoint_blocks,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        eval_every=eval_every,
        edition=edition,
        pretrained=pretrained,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        mixup=mixup,
        resolution=resolution,
        flip=flip,
        val_fraction=val_fraction,
        examples_per_class=examples_per_class,
        skip_bad=skip_bad,
        cache_gb=cache_gb,
        workers=workers,
    )
    job = Job(os.fspath(model), data, config)
    return run_job(job, Path(out), repeats, progress, callbacks, resume=resume, overwrite=overwrite)


def run_job(
    job: Job,
    out: Path,
    repeats: int,
    progress: Progress | None,
    callbacks: Callbacks | None,
    *,
    resume: bool,
    overwrite: bool,
    change: Change | None = None,
) -> FinetuneResult:
    """Carry out a job, once or with several seeds; see `finetune`.

    Args:
        job: What to do.
        out: The run folder.
        repeats: Number of runs.
        progress: As for `finetune`.
        callbacks: As for `finetune`.
        resume: As for `finetune`.
        overwrite: As for `finetune`.
        change: What to change in the run that is resumed.
    """
    callbacks = callbacks or Callbacks()
    if progress and not callbacks.progress:
        callbacks = _reporting_to(progress, callbacks)
    if repeats == 1:
        return _run(job, out, resume, overwrite, callbacks, change or Change())
    return _repeat(job, out, repeats, resume, overwrite, callbacks)


def _reporting_to(progress: Progress, callbacks: Callbacks) -> Callbacks:
    """Return callbacks that also report the steps as progress."""
    total = 0

    def on_start(recipe: Recipe) -> None:
        nonlocal total
        total = recipe.schedule.steps
        callbacks.on_start(recipe)

    def on_step(metrics: Mapping[str, float]) -> None:
        progress("training", int(metrics["step"]), total)
        callbacks.on_step(metrics)

    return replace(callbacks, progress=progress, on_start=on_start, on_step=on_step)


def _repeat(
    job: Job, out: Path, repeats: int, resume: bool, overwrite: bool, callbacks: Callbacks
) -> FinetuneResult:
    """Run with one seed after another, unless a run is stopped."""
    run_dir, runs, first = RunDir(out), list[FinetuneResult](), job.config.seed
    record = {"model": job.model, "repeats": repeats, "options": job.to_dict("")}

    def begin() -> None:
        _take(run_dir, stack)
        with run_dir.writing():
            write_json(out / REPEATS_NAME, record)

    with contextlib.ExitStack() as stack:
        _in_main_process(begin)
        for seed in range(first, first + repeats):
            own = replace(job, config=replace(job.config, seed=seed))
            runs.append(_run(own, out / f"seed-{seed}", resume, overwrite, callbacks, Change()))
            if runs[-1].stopped:
                break
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
    job: Job, out: Path, resume: bool, overwrite: bool, callbacks: Callbacks, change: Change
) -> FinetuneResult:
    """Fine-tune once."""
    processes, run_dir = join_processes(), RunDir(out)

    def enter() -> None:
        _take(run_dir, stack)
        run_dir.require_possible(resume=resume, overwrite=overwrite)
        if overwrite:
            _require_apart(job, out)

    def begin() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        options = job.to_dict(images.source)
        run_dir.open(identity, resume=resume, overwrite=overwrite, options=options)
        record_change(run_dir, change)
        return run_dir.identity, run_dir.changes

    with contextlib.ExitStack() as stack:
        _in_main_process(enter)
        images, summary = _in_main_process(lambda: _read(job, callbacks))
        for note in summary.notes:
            callbacks.say(note)
        network, is_kept = _create(job, images.classes, callbacks)
        recipe = _plan(job.config, images, summary, network.architecture, is_kept)
        identity = _identity(_name_in(out, job), job.config, images, recipe, network.architecture)
        started, changes = _in_main_process(begin)
        if run_dir.kept:
            callbacks.say(f"Kept in {out}, because no run wrote it: {list_names(run_dir.kept)}.")
        recipe, config = changed(started, changes, recipe, job.config)
        callbacks.on_start(recipe)
        now = {**started, "recipe": recipe.to_dict(), "dtype": config.dtype}
        task = Task(network, recipe, images, summary, config)
        with Session(task, run_dir, now, callbacks) as session:
            steps, stopped, rate = session.train()
            final = None
            if not stopped:
                final = session.evaluate(steps)
                if processes.is_main_process and (edited := run_dir.keep_edited_card()):
                    callbacks.say(f"The card was edited; it is kept as {edited}.")
                session.write_artifacts(final)
                if processes.is_main_process:
                    run_dir.finish(steps)
        processes.wait_for_everyone()
    return FinetuneResult(out, recipe, steps, stopped, final, rate)


def _take(run_dir: RunDir, stack: contextlib.ExitStack) -> None:
    """Keep other runs out of the folder until `stack` is unwound."""
    with run_dir.writing("Choose another `out`."):
        stack.enter_context(sole_use(run_dir.folder))


def _require_apart(job: Job, out: Path) -> None:
    """Check that the model is none of the files that `overwrite` removes."""
    place, run = Path(os.path.realpath(job.place or job.model)), out.resolve()
    if place == run or place in outputs_in(run):
        raise UsageError(
            f"`overwrite` would delete the model that training starts from, {job.model}. Choose "
            "another `out`."
        )


def _name_in(out: Path, job: Job) -> str:
    """Return the model's name; that of the run in `out` if it is the same file by another path."""
    before = read_record(out) or {}
    options, name = before.get("options"), before.get("model")
    same = isinstance(options, dict) and options.get("model") == job.to_dict("")["model"]
    return name if same and isinstance(name, str) else job.model


def _create(job: Job, classes: tuple[str, ...], callbacks: Callbacks) -> tuple[BiT, bool]:
    """Create the network; the head is new, unless it is that of a run with the same classes.

    Random weights depend only on the seed.

    Returns:
        The network, and whether it has the head of its weights.
    """
    place, config = job.place or job.model, job.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = create_model(place, config.pretrained, num_classes=len(classes))
    if not isinstance(network, BiT):
        raise UsageError(f"{job.model}: expected a classifier to fine-tune.")
    known = network.info.class_names if network.info.run else None
    if config.pretrained and known is not None:
        if known == classes:
            callbacks.say(f"The head of {job.model} is kept: its classes are the same.")
            return network, True
        order = " in another order" if sorted(known) == sorted(classes) else ""
        callbacks.say(
            f"The head of {job.model} is replaced by a new one that starts at zero: its classes "
            f"are {'the same' + order if order else 'others'}."
        )
    network.reset_classifier(len(classes))  # also where the count is the file's own
    network.info = network.info.with_head(len(classes))
    return network, False


def _in_main_process(action: Callable[[], _Result]) -> _Result:
    """Do something in the main process, and broadcast its result, or its error, to the others."""
    from accelerate.utils import broadcast_object_list

    processes = join_processes()
    outcome: list[Any] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:  # broadcast too, or the others would wait for ever
            outcome[1] = error
    if processes.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: _Result = outcome[0]
    return result


def _read(job: Job, callbacks: Callbacks) -> tuple[ImageSet, DataSummary]:
    config = job.config
    images = read_dataset(
        job.data,
        val_fraction=config.val_fraction,
        seed=config.seed,
        examples_per_class=config.examples_per_class,
    )
    images, summary = inspect(
        images, skip_bad=config.skip_bad, workers=config.workers, progress=callbacks.progress
    )
    return replace(images, source=job.data_name or images.source), summary


def _plan(
    config: FinetuneConfig,
    images: ImageSet,
    summary: DataSummary,
    architecture: Architecture,
    is_head_kept: bool,
) -> Recipe:
    rule = hyperrule(len(images.train), summary.resolution, config.edition, architecture)
    if is_head_kept:
        rule = replace(rule, head="kept")
    resize, crop = config.resize_and_crop
    return rule.override(
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        mixup=config.mixup,
        resize=resize,
        crop=crop,
        flip=config.flip,
    )


def _identity(
    model: str, config: FinetuneConfig, images: ImageSet, recipe: Recipe, architecture: Architecture
) -> dict[str, Any]:
    """Return everything that determines the result, up to rounding."""
    return {
        "numpy": _numpy_release(),
        "model": model,
        "architecture": architecture.name,
        "pretrained": config.pretrained,
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
