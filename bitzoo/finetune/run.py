"""A fine-tuning run from end to end: data, recipe, network, training, and what it leaves.

read and check the data -> plan the recipe -> build the network -> decode once -> train ->
evaluate -> leave a model folder, a report and a card
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.arch import Architecture
from bitzoo.converters.tensors import Progress
from bitzoo.download import cache_dir
from bitzoo.errors import UsageError
from bitzoo.finetune.checkpoints import latest_checkpoint
from bitzoo.finetune.dataset import ImageSet, Source, Split, read_dataset
from bitzoo.finetune.evaluate import Evaluation, evaluate
from bitzoo.finetune.hyperrule import Edition, hyperrule
from bitzoo.finetune.inspection import Facts, inspect
from bitzoo.finetune.journal import Journal
from bitzoo.finetune.leavings import Outcome, leave
from bitzoo.finetune.linear import compute_features, train_head
from bitzoo.finetune.loop import LoopOptions, join_processes, train
from bitzoo.finetune.pixels import Pixels, open_pixels
from bitzoo.finetune.recipe import Recipe
from bitzoo.model import BiT
from bitzoo.zoo import create_model

DEFAULT_VAL_FRACTION = 0.1
"""Held out of a data set that comes in one piece, unless another share is asked for."""


@dataclass(frozen=True)
class Request:
    """What a user may ask of a run beyond model, data and folder; None follows the rule.

    Attributes:
        edition: ``paper`` or ``released``: whose HyperRule.
        pretrained: False starts from random weights.
        steps: Length of training; the schedule keeps its shape.
        batch_size: Images in a step.
        lr: Base learning rate.
        mixup: Alpha of MixUp; 0 for none.
        resolution: ``(resize, crop)`` in pixels; resize None scales with the crop.
        flip: Whether crops are mirrored at random.
        seed: Of everything random.
        val_fraction: Share to hold out of a data set that comes in one piece.
        examples_per_class: Few-shot: train on so many images of each class.
        skip_bad: Whether to go on without images that cannot be used.
        cache_gb: What decoded pictures may take on disk, in GB; 0 decodes at each step.
        workers: Processes that decode; None is one a core.
        loop: How to train: precision, memory, checkpoints.
    """

    edition: Edition = "paper"
    pretrained: bool = True
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    mixup: float | None = None
    resolution: tuple[int | None, int] | None = None
    flip: bool | None = None
    seed: int = 0
    val_fraction: float | None = None
    examples_per_class: int | None = None
    skip_bad: bool = False
    cache_gb: float = 20.0
    workers: int | None = None
    loop: LoopOptions = field(default_factory=LoopOptions)


def make_request(**options: Any) -> Request:
    """Return a request from fields of `Request` and of `LoopOptions`, all by their names.

    Raises:
        UsageError: If there is no such option.
    """
    own = {entry.name for entry in fields(Request)} - {"loop"}
    loop = {entry.name for entry in fields(LoopOptions)} - own
    unknown = sorted(options.keys() - own - loop)
    if unknown:
        raise UsageError(
            f"There is no option {', '.join(unknown)}; there are {', '.join(sorted(own | loop))}."
        )
    chosen = {name: options[name] for name in options.keys() & own}
    how = LoopOptions(**{name: options[name] for name in options.keys() & loop})
    return Request(**chosen, loop=how)


@dataclass(frozen=True)
class FinetuneResult:
    """What came of a run.

    Attributes:
        folder: The run directory.
        recipe: What was done.
        steps: Updates made.
        stopped: Whether it was asked to stop before its end; resume it then.
        evaluation: On the held-out images; None if there are none or the run was stopped.
        images_per_s: Of training.
    """

    folder: Path
    recipe: Recipe
    steps: int
    stopped: bool
    evaluation: Evaluation | None
    images_per_s: float


@dataclass(frozen=True)
class Watcher:
    """Who is told how it goes; every callback may be left out.

    Attributes:
        say: A sentence for people.
        progress: Called with a task, how much is done, and how much there is.
        on_start: Called with the recipe before the first step.
        on_step: Called with the metrics of each step.
        on_eval: Called with the step and its evaluation.
    """

    say: Callable[[str], None] = lambda text: None
    progress: Progress | None = None
    on_start: Callable[[Recipe], None] = lambda recipe: None
    on_step: Callable[[Mapping[str, float]], None] = lambda metrics: None
    on_eval: Callable[[int, Evaluation], None] = lambda step, evaluation: None


def run(
    model: str | os.PathLike[str],
    data: Source,
    out: Path,
    request: Request,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> FinetuneResult:
    """Fine-tune a zoo model on images; see `bitzoo.finetune` for the arguments and errors."""
    watcher = watcher or Watcher()
    crew = join_processes()
    images, facts = _prepare(data, request, watcher)
    for note in facts.notes:
        watcher.say(note)
    network = create_model(model, request.pretrained, num_classes=len(images.classes))
    if not isinstance(network, BiT):
        raise UsageError(f"{model}: expected a classifier to fine-tune.")
    network.reset_classifier(len(images.classes))  # also where the count is the file's own
    recipe = _plan(request, images, facts, network.architecture)
    journal = Journal(out)
    identity = _identity(str(model), request, images, recipe, network.architecture)
    if crew.is_main_process:
        journal.open(identity, resume=resume, overwrite=overwrite)
    crew.wait_for_everyone()
    watcher.on_start(recipe)
    with _open(
        images.train, recipe.crop if request.loop.freeze else recipe.resize, request, watcher
    ) as pixels:
        trainer = _train_head if request.loop.freeze else _train
        held_out = _HeldOut(images, recipe, request, watcher, journal)
        with held_out:
            steps, stopped, rate = trainer(
                network, recipe, pixels, images, request, journal, held_out, watcher
            )
            final = None if stopped else held_out.judge(network, steps, keep_logits=True)
            if crew.is_main_process and not stopped:
                outcome = Outcome(network, recipe, images, facts, final, held_out.pixels)
                leave(out, outcome, identity, journal.history())
    crew.wait_for_everyone()
    return FinetuneResult(out, recipe, steps, stopped, final, rate)


def summarize(results: list[FinetuneResult]) -> dict[str, Any]:
    """Return median and standard deviation of repeated runs' top-1, and the single figures."""
    scores = [result.evaluation.top1 for result in results if result.evaluation]
    return {
        "runs": [str(result.folder) for result in results],
        "top1": scores,
        "median": statistics.median(scores) if scores else None,
        "stdev": statistics.stdev(scores) if len(scores) > 1 else None,
    }


def _prepare(data: Source, request: Request, watcher: Watcher) -> tuple[ImageSet, Facts]:
    """Read and inspect in the main process; the others are told."""
    from accelerate.utils import broadcast_object_list

    crew = join_processes()
    outcome: list[Any] = [None, None]
    if crew.is_main_process:
        try:
            outcome[0] = _read(data, request, watcher)
        except Exception as error:  # the others must not wait for what never comes
            outcome[1] = error
    if crew.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    images, facts = outcome[0]
    return images, facts


def _read(data: Source, request: Request, watcher: Watcher) -> tuple[ImageSet, Facts]:
    few, seed = request.examples_per_class, request.seed
    share = request.val_fraction or 0.0
    images = read_dataset(data, val_fraction=share, seed=seed, examples_per_class=few)
    if images.val is None and request.val_fraction is None:
        share = DEFAULT_VAL_FRACTION
        images = read_dataset(data, val_fraction=share, seed=seed, examples_per_class=few)
    return inspect(
        images, skip_bad=request.skip_bad, workers=request.workers, progress=watcher.progress
    )


def _plan(request: Request, images: ImageSet, facts: Facts, architecture: Architecture) -> Recipe:
    rule = hyperrule(len(images.train), facts.resolution, request.edition, architecture)
    resize, crop = request.resolution or (None, None)
    return rule.override(
        steps=request.steps,
        batch_size=request.batch_size,
        lr=request.lr,
        mixup=request.mixup,
        resize=resize,
        crop=crop,
        flip=request.flip,
    )


def _identity(
    model: str, request: Request, images: ImageSet, recipe: Recipe, architecture: Architecture
) -> dict[str, Any]:
    """All that decides the result beyond rounding."""
    return {
        "model": model,
        "architecture": architecture.name,
        "pretrained": request.pretrained,
        "classes": list(images.classes),
        "data": images.fingerprint,
        "recipe": recipe.to_dict(),
        "seed": request.seed,
        "dtype": request.loop.dtype,
        "freeze": request.loop.freeze,
    }


def _open(split: Split, size: int, request: Request, watcher: Watcher) -> Pixels:
    return open_pixels(
        split,
        size,
        cache=cache_dir() / "pixels",
        budget_bytes=int(request.cache_gb * 1e9),
        workers=request.workers,
        progress=watcher.progress,
    )


class _HeldOut:
    """The held-out pictures, and how a network does on them."""

    def __init__(
        self,
        images: ImageSet,
        recipe: Recipe,
        request: Request,
        watcher: Watcher,
        journal: Journal,
    ) -> None:
        self._images, self._watcher, self._journal = images, watcher, journal
        self.pixels = _open(images.val, recipe.crop, request, watcher) if images.val else None

    def __enter__(self) -> _HeldOut:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pixels:
            self.pixels.close()

    def judge(self, model: BiT, step: int, *, keep_logits: bool = False) -> Evaluation | None:
        """Evaluate, record, tell; in the main process alone, None in the others."""
        crew = join_processes()
        if self.pixels is None or self._images.val is None or not crew.is_main_process:
            return None
        found = evaluate(
            model,
            self.pixels,
            labels_of(self._images.val),
            self._images.classes,
            keep_logits=keep_logits,
            progress=self._watcher.progress,
        )
        scores = {"top1": found.top1, "top5": found.top5, "loss": found.loss, "count": found.count}
        self._journal.append({"event": "eval", "step": step, **scores})
        self._watcher.on_eval(step, found)
        return found


def _train(
    network: BiT,
    recipe: Recipe,
    pixels: Pixels,
    images: ImageSet,
    request: Request,
    journal: Journal,
    held_out: _HeldOut,
    watcher: Watcher,
) -> tuple[int, bool, float]:
    crew = join_processes()
    start = latest_checkpoint(journal.checkpoints) if crew.is_main_process else None
    if crew.is_main_process:
        journal.rewind(start.step if start else 0)

    def on_step(metrics: dict[str, float]) -> None:
        if crew.is_main_process:
            journal.append({"event": "train", **metrics})
            watcher.on_step(metrics)

    def on_eval(step: int) -> None:
        held_out.judge(network, step)

    result = train(
        network,
        recipe,
        pixels,
        labels_of(images.train),
        replace(request.loop, seed=request.seed),
        folder=journal.checkpoints,
        start=start,
        on_step=on_step,
        on_eval=on_eval,
    )
    return result.step, result.stopped, result.images_per_s


def _train_head(
    network: BiT,
    recipe: Recipe,
    pixels: Pixels,
    images: ImageSet,
    request: Request,
    journal: Journal,
    held_out: _HeldOut,
    watcher: Watcher,
) -> tuple[int, bool, float]:
    crew = join_processes()
    device = crew.device
    network.to(device)
    features = compute_features(network, pixels, device, watcher.progress)
    journal.rewind(0)

    def on_step(metrics: dict[str, float]) -> None:
        journal.append({"event": "train", **metrics})
        watcher.on_step(metrics)

    train_head(network, recipe, features, labels_of(images.train), request.seed, on_step)
    return recipe.schedule.steps, False, 0.0


def labels_of(split: Split) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the class index of every example, int64."""
    return np.array([example.label for example in split.examples], np.int64)
