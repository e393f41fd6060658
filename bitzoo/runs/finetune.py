"""`finetune`: a run from end to end.

take the folder -> read and check the data -> build the network -> plan the recipe -> decode once ->
train -> evaluate -> write a model folder, a report and a card
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitzoo.data.class_counts import describe_classes
from bitzoo.data.dataset import DataSource, ImageSet, read_dataset
from bitzoo.data.split_record import write_split
from bitzoo.data.validation import DataSummary, inspect
from bitzoo.display import Displayed, list_names
from bitzoo.errors import UsageError
from bitzoo.files import Progress, write_json
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.processes import in_main_process, join_processes, process_device
from bitzoo.inference.selection import held_out_by, record_of
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.runs.changes import Change, changed, record_change
from bitzoo.runs.config import Callbacks, FinetuneConfig, Resolution
from bitzoo.runs.job import Job
from bitzoo.runs.report.leakage import Leakage, measure_leakage
from bitzoo.runs.run_dir import RunDir, outputs_in, read_record
from bitzoo.runs.run_lock import sole_use
from bitzoo.runs.session import Session, Task
from bitzoo.runs.step_progress import reported
from bitzoo.training.hyperrule import Edition, hyperrule
from bitzoo.training.model_selection import Choice, Keep
from bitzoo.training.recipe import Recipe
from bitzoo.zoo.create import create_model

REPEATS_NAME = "repeats.json"
"""In a folder of repeated runs: what `resume` needs, and at the end the accuracies."""


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
        leakage: Near-duplicates across the splits, and the accuracy without them; None as for
            `evaluation`.
        choice: Which weights the run kept; None if it was stopped.
    """

    folder: Path
    recipe: Recipe
    steps: int
    stopped: bool
    evaluation: Evaluation | None
    images_per_s: float
    repeats: tuple[FinetuneResult, ...] = ()
    was_finished: bool = False
    leakage: Leakage | None = None
    choice: Choice | None = None

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
            "near_duplicates": self.leakage.to_dict() if self.leakage else None,
            "weights": self.choice.to_dict() if self.choice else None,
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
        if self.leakage and self.leakage.matters:
            rows.insert(4, ("without near-duplicates", self.leakage.accuracy_without))
        if self.choice and self.choice.sentence:
            rows.insert(-1, ("weights", self.choice.summary))
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
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    mixup: float | None = None,
    resolution: Resolution = None,
    flip: bool | None = None,
    seed: int = 0,
    repeats: int = 1,
    val_fraction: float | None = None,
    group_by: str | None = None,
    drop_near_duplicates: bool = False,
    split_seed: int | None = None,
    eval_split: str | None = None,
    fixed_split: bool = False,
    examples_per_class: int | None = None,
    skip_bad: bool = False,
    cache_gb: float = 20.0,
    workers: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    freeze: bool = False,
    micro_batch: int | None = None,
    channels_last: bool | None = None,
    compile: bool = False,  # noqa: A002
    recompute_norms: bool = False,
    checkpoint_blocks: bool = False,
    checkpoint_every: int = 100,
    keep_checkpoints: int = 2,
    eval_every: int | None = None,
    class_weights: str | None = None,
    keep: Keep | None = None,
    patience: int | None = None,
    log: str | Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
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
        epochs: Length of training in passes over the training images, rounded up to whole steps;
            another way to say `steps`.
        batch_size: Images per step, split into micro-batches to fit memory.
        lr: Base learning rate.
        mixup: Alpha of MixUp; 0 for none.
        resolution: The crop in pixels, or (resize, crop).
        flip: Whether crops are mirrored at random.
        seed: Seed of everything random, in [0, 2**64).
        repeats: Number of runs in folders below `out`, each with the next seed.
        val_fraction: Validation fraction; None for 0.1 if the data has no split.
        group_by: What keeps images in one split that belong together, such as those of a person: a
            column of the data set; or a regular expression on the images' paths, whose first group
            names an image's group; or ``near-duplicates``. Data with a split are checked instead.
        drop_near_duplicates: Whether to drop training images that look like held-out ones; they
            are reported in any case.
        split_seed: Seed of the held-out choice; None is `seed`. Runs with other seeds then have the
            same held-out images.
        eval_split: Which split is held out of data with both a val and a test split: ``val`` or
            ``test``; None is val. The other is not used.
        fixed_split: Whether to use the data set's own splits exactly as they are, as benchmarks
            do: images that train and val have in common stay in both, classes that train lacks
            remain classes, and both are reported.
        examples_per_class: Few-shot: train on this many images per class, or all of them if there
            are fewer. Those of fewer images are among those of more.
        skip_bad: Whether to skip images that cannot be used.
        cache_gb: Most disk space for decoded images, in GB; 0 decodes at each step.
        workers: Processes that decode; None for one per core.
        dtype: Dtype of activations: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for a GPU if there is one.
        freeze: Whether to train only the head, on cached features (linear probe).
        micro_batch: Most images that a process computes at once; None for as many as fit.
        channels_last: Memory format; None for channels last on a CPU only.
        compile: Whether to run through `torch.compile`.
        recompute_norms: Half the activation memory, a few percent slower.
        checkpoint_blocks: A quarter of the activation memory, for one more forward pass.
        checkpoint_every: Steps between checkpoints; 0 writes one only at the end.
        keep_checkpoints: Number of checkpoints to keep.
        eval_every: Steps between evaluations on the held-out images; 0 evaluates only at the end.
            None evaluates ten times, or less often where that would take more than a tenth of the
            time; see `bitzoo.training.model_selection.evaluation_interval`.
        class_weights: ``balanced`` weighs classes inversely to their number of images; None weighs
            all images equally, as BiT does. See `bitzoo.training.losses`.
        keep: ``last`` keeps the weights of the last step, as BiT does; ``best`` those with the
            highest top-1 accuracy on the held-out images, which makes that figure optimistic. None
            is ``best`` with `patience`, otherwise ``last``.
        patience: Stop after so many evaluations in a row without a better top-1 accuracy.
        log: Also log the metrics to ``tensorboard``, ``wandb`` or another of accelerate's trackers;
            one or several, or ``none``. None is TensorBoard if it is installed.
        resume: Continue the run in `out` from its newest complete checkpoint, if there is one. The
            options must be the same; `bitzoo.resume` needs none, and can change some.
        overwrite: Delete what a run wrote to `out` and start again; other files there stay.
        progress: Called with a task, how much of it is done, and how much there is. Or True for
            lines on stderr, False for none; None shows a live line on a terminal or in a notebook.
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
        keep=keep,
        patience=patience,
        device=device,
        edition=edition,
        pretrained=pretrained,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        mixup=mixup,
        resolution=resolution,
        flip=flip,
        val_fraction=val_fraction,
        group_by=group_by,
        drop_near_duplicates=drop_near_duplicates,
        split_seed=split_seed,
        eval_split=eval_split,
        fixed_split=fixed_split,
        examples_per_class=examples_per_class,
        skip_bad=skip_bad,
        cache_gb=cache_gb,
        workers=workers,
        class_weights=class_weights,
        log=log,
    )
    job = Job(os.fspath(model), data, config)
    return run_job(job, Path(out), repeats, progress, callbacks, resume=resume, overwrite=overwrite)


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
    with reported(callbacks.progress or progress, callbacks) as callbacks:
        if repeats == 1:
            return _run(job, out, resume, overwrite, callbacks, change or Change())
        return _repeat(job, out, repeats, resume, overwrite, callbacks)


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
        in_main_process(begin)
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
    process_device(job.config.device)  # before the data are read, if there is no such device
    processes, run_dir = join_processes(job.config.device), RunDir(out)

    def enter() -> None:
        _take(run_dir, stack)
        run_dir.require_possible(resume=resume, overwrite=overwrite)
        if overwrite:
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
        images, summary = in_main_process(lambda: _read(job, callbacks))
        _tell(callbacks, *summary.notes, "\n".join(describe_classes(images)))
        network, is_kept = _create(job, images.classes, callbacks)
        before = record_of(network)
        held_out = held_out_by(images, summary.skipped, before, job.model)
        _tell(callbacks, *(held_out.notes if held_out else ()))
        recipe = _plan(job.config, images, summary, network.architecture, is_kept)
        evaluated = len(images.val) if images.val else 0
        config, when = job.config.with_evaluations(recipe, evaluated)
        _tell(callbacks, when)
        name, depth = _name_in(out, job), summary.bit_depth
        identity = _identity(name, config, images, recipe, network.architecture, depth)
        started, changes = in_main_process(begin)
        if run_dir.kept:
            callbacks.say(f"Kept in {out}, because no run wrote it: {list_names(run_dir.kept)}.")
        recipe, config = changed(started, changes, recipe, config)
        callbacks.on_start(recipe)
        now = {**started, "recipe": recipe.to_dict(), "dtype": config.dtype}
        task = Task(network, recipe, images, summary, config, held_out, job.data)
        with Session(task, run_dir, now, callbacks) as session:
            steps, stopped, rate = session.train()
            final, choice = None, None
            if not stopped:
                final, choice = session.finish(steps)
                if processes.is_main_process and (edited := run_dir.keep_edited_card()):
                    callbacks.say(f"The card was edited; it is kept as {edited}.")
                session.write_artifacts(final, choice)
                if processes.is_main_process:
                    run_dir.finish(steps)
        processes.wait_for_everyone()
    leakage = measure_leakage(summary.near_duplicates, final, images)
    return FinetuneResult(out, recipe, steps, stopped, final, rate, leakage=leakage, choice=choice)


def _tell(callbacks: Callbacks, *sentences: str) -> None:
    for sentence in filter(None, sentences):
        callbacks.say(sentence)


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


def _read(job: Job, callbacks: Callbacks) -> tuple[ImageSet, DataSummary]:
    config = job.config
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
    images, summary = inspect(
        images,
        skip_bad=config.skip_bad,
        workers=config.workers,
        progress=callbacks.progress,
        drop_near_duplicates=config.drop_near_duplicates,
        fixed_split=config.fixed_split,
    )
    return replace(images, source=job.data_name or images.source), summary


def _plan(
    config: FinetuneConfig,
    images: ImageSet,
    summary: DataSummary,
    architecture: Architecture,
    is_head_kept: bool,
) -> Recipe:
    rule = hyperrule(
        len(images.train),
        summary.resolution,
        config.edition,
        architecture,
        flip="flip" not in images.label_changing,
        crop="crop" not in images.label_changing,
    )
    if is_head_kept:
        rule = replace(rule, head="kept")
    resize, crop = config.resize_and_crop
    return rule.override(
        steps=config.steps,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        mixup=config.mixup,
        resize=resize,
        crop=crop,
        flip=config.flip,
        class_weights=config.class_weights,
    )


def _identity(
    model: str,
    config: FinetuneConfig,
    images: ImageSet,
    recipe: Recipe,
    architecture: Architecture,
    bit_depth: int | None,
) -> dict[str, Any]:
    """Return everything that determines the result, up to rounding."""
    depth = {} if bit_depth is None else {"bit_depth": bit_depth}
    selected = {
        "keep": "best" if config.keeps_best else "last",
        "patience": config.patience,
        "eval_every": config.eval_every,
    }
    return {
        **depth,
        **(selected if config.selects else {}),
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
