"""`finetune`: a run from end to end.

read and check the data -> build the network -> plan the recipe -> decode once -> train ->
evaluate -> write a model folder, a report and a card
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitzoo.data.dataset import DataSource, ImageSet, read_dataset
from bitzoo.data.validation import DataSummary, inspect
from bitzoo.display import Displayed
from bitzoo.errors import UsageError
from bitzoo.files import Progress, write_json
from bitzoo.inference.metrics import Evaluation
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.runs.config import Callbacks, FinetuneConfig, Resolution
from bitzoo.runs.run_dir import RunDir
from bitzoo.runs.session import Session, Task
from bitzoo.training.distributed import join_processes, training_device
from bitzoo.training.hyperrule import Edition, hyperrule
from bitzoo.training.model_selection import (
    Choice,
    Keep,
    evaluation_interval,
    explain_interval,
)
from bitzoo.training.recipe import Recipe
from bitzoo.zoo.create import create_model

REPEATS_NAME = "repeats.json"


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
        choice: Which weights the run kept; None if it was stopped.
    """

    folder: Path
    recipe: Recipe
    steps: int
    stopped: bool
    evaluation: Evaluation | None
    images_per_s: float
    repeats: tuple[FinetuneResult, ...] = ()
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
    progress: Progress | None = None,
    callbacks: Callbacks | None = None,
) -> FinetuneResult:
    """Fine-tune a model on images, by BiT-HyperRule (arXiv 1912.11370, section 3.3).

    `bitzoo finetune` does the same.

    Args:
        model: A catalogue name, a checkpoint file, or a run folder.
        data: A folder of class folders, a manifest, arrays or a Hugging Face data set; see
            `bitzoo.data.dataset.read_dataset`.
        out: The run folder.
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
        examples_per_class: Few-shot: train on this many images per class.
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
        resume: Continue the run in `out` from its newest complete checkpoint, if there is one.
        overwrite: Delete the run in `out` and start again.
        progress: Called with a task, how much of it is done, and how much there is.
        callbacks: Other callbacks during the run; its `progress`, if any, takes precedence.

    Returns:
        The folder, the recipe, and the evaluation on held-out images; with `repeats`, those of the
        run with the median top-1 accuracy, and all runs.

    Raises:
        DatasetError: If the data cannot be used for training; lists all problems at once.
        UsageError: If options contradict each other, or `out` contains another run.
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
        examples_per_class=examples_per_class,
        skip_bad=skip_bad,
        cache_gb=cache_gb,
        workers=workers,
        class_weights=class_weights,
        log=log,
    )
    callbacks = callbacks or Callbacks()
    if progress and not callbacks.progress:
        callbacks = _reporting_to(progress, callbacks)
    folder = Path(out)
    if repeats == 1:
        return _run(model, data, folder, config, resume, overwrite, callbacks)
    return _repeat(model, data, folder, config, repeats, resume, overwrite, callbacks)


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
    model: str | os.PathLike[str],
    data: DataSource,
    out: Path,
    config: FinetuneConfig,
    repeats: int,
    resume: bool,
    overwrite: bool,
    callbacks: Callbacks,
) -> FinetuneResult:
    """Run with one seed after another, unless a run is stopped."""
    runs: list[FinetuneResult] = []
    for seed in range(config.seed, config.seed + repeats):
        own = replace(config, seed=seed)
        runs.append(_run(model, data, out / f"seed-{seed}", own, resume, overwrite, callbacks))
        if runs[-1].stopped:
            break
    evaluated = [run for run in runs if run.evaluation]
    evaluated.sort(key=lambda run: run.evaluation.top1 if run.evaluation else 0.0)
    middle = evaluated[(len(evaluated) - 1) // 2] if evaluated else runs[-1]
    stopped = any(run.stopped for run in runs)
    result = replace(middle, stopped=stopped, repeats=tuple(runs))
    if join_processes().is_main_process:
        write_json(out / REPEATS_NAME, result.summary())
    return result


def _run(
    model: str | os.PathLike[str],
    data: DataSource,
    out: Path,
    config: FinetuneConfig,
    resume: bool,
    overwrite: bool,
    callbacks: Callbacks,
) -> FinetuneResult:
    """Fine-tune once."""
    training_device(config.device)  # before the data are read, if there is no such device
    processes = join_processes(config.device)
    images, summary = _prepare(data, config, callbacks)
    for note in summary.notes:
        callbacks.say(note)
    network = _create(model, config, len(images.classes))
    recipe = _plan(config, images, summary, network.architecture)
    config = _with_interval(config, images, recipe, callbacks)
    run_dir = RunDir(out)
    identity = _identity(str(model), config, images, recipe, network.architecture)
    if processes.is_main_process:
        run_dir.open(identity, resume=resume, overwrite=overwrite)
    processes.wait_for_everyone()
    callbacks.on_start(recipe)
    task = Task(network, recipe, images, summary, config)
    with Session(task, run_dir, identity, callbacks) as session:
        steps, stopped, rate = session.train()
        final, choice = None, None
        if not stopped:
            final, choice = session.finish(steps)
            session.write_artifacts(final, choice)
    processes.wait_for_everyone()
    return FinetuneResult(out, recipe, steps, stopped, final, rate, choice=choice)


def _with_interval(
    config: FinetuneConfig, images: ImageSet, recipe: Recipe, callbacks: Callbacks
) -> FinetuneConfig:
    """Return the options with the steps between evaluations, and say them.

    Raises:
        UsageError: If evaluations are to decide, and there is none before the end.
    """
    held_out, steps = len(images.val) if images.val else 0, recipe.schedule.steps
    ruled = config.eval_every is None
    every = config.eval_every or 0
    if ruled and held_out:
        every = evaluation_interval(steps, recipe.batch_size, held_out)
    if config.selects and not (held_out and every < steps):
        option = "patience" if config.patience is not None else "keep"
        found = (
            f"an evaluation only after every {every:,} of {steps:,} steps. Give a smaller "
            "`eval_every`"
            if held_out
            else "no held-out images. Give `val_fraction`, or data with a split"
        )
        raise UsageError(
            f"`{option}={getattr(config, option)!r}` needs evaluations during training, found "
            f"{found}, or leave `{option}` out."
        )
    if held_out:
        callbacks.say(explain_interval(every, steps, recipe.batch_size, held_out, ruled))
    return replace(config, eval_every=every if held_out else 0)


def _create(model: str | os.PathLike[str], config: FinetuneConfig, num_classes: int) -> BiT:
    """Create the network with a new head; random weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = create_model(model, config.pretrained, num_classes=num_classes)
    if not isinstance(network, BiT):
        raise UsageError(f"{model}: expected a classifier to fine-tune.")
    network.reset_classifier(num_classes)  # also where the count is the file's own
    network.info = network.info.with_head(num_classes)
    return network


def _prepare(
    data: DataSource, config: FinetuneConfig, callbacks: Callbacks
) -> tuple[ImageSet, DataSummary]:
    """Read and inspect the data in the main process, and broadcast the result to the others."""
    from accelerate.utils import broadcast_object_list

    processes = join_processes()
    outcome: list[Any] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = _read(data, config, callbacks)
        except Exception as error:  # broadcast too, or the others would wait for ever
            outcome[1] = error
    if processes.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    images, summary = outcome[0]
    return images, summary


def _read(
    data: DataSource, config: FinetuneConfig, callbacks: Callbacks
) -> tuple[ImageSet, DataSummary]:
    images = read_dataset(
        data,
        val_fraction=config.val_fraction,
        seed=config.seed,
        examples_per_class=config.examples_per_class,
    )
    return inspect(
        images, skip_bad=config.skip_bad, workers=config.workers, progress=callbacks.progress
    )


def _plan(
    config: FinetuneConfig, images: ImageSet, summary: DataSummary, architecture: Architecture
) -> Recipe:
    rule = hyperrule(len(images.train), summary.resolution, config.edition, architecture)
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
    model: str, config: FinetuneConfig, images: ImageSet, recipe: Recipe, architecture: Architecture
) -> dict[str, Any]:
    """Return everything that determines the result, up to rounding."""
    selected = {
        "keep": "best" if config.keeps_best else "last",
        "patience": config.patience,
        "eval_every": config.eval_every,
    }
    return {
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
