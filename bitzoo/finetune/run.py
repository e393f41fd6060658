"""A fine-tuning run from end to end: data, recipe, network, training, and what it leaves.

read and check the data -> build the network -> plan the recipe -> decode once -> train ->
evaluate -> leave a model folder, a report and a card
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitzoo.arch import Architecture
from bitzoo.errors import UsageError
from bitzoo.finetune.dataset import ImageSet, Source, read_dataset
from bitzoo.finetune.evaluate import Evaluation
from bitzoo.finetune.hyperrule import hyperrule
from bitzoo.finetune.inspection import Facts, inspect
from bitzoo.finetune.journal import Journal
from bitzoo.finetune.loop import join_processes
from bitzoo.finetune.recipe import Recipe
from bitzoo.finetune.request import Request, Watcher
from bitzoo.finetune.session import Session, Task
from bitzoo.model import BiT
from bitzoo.zoo import create_model

DEFAULT_VAL_FRACTION = 0.1
"""Held out of a data set that comes in one piece, unless another share is asked for."""


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
    network = _create(model, request, len(images.classes))
    recipe = _plan(request, images, facts, network.architecture)
    journal = Journal(out)
    identity = _identity(str(model), request, images, recipe, network.architecture)
    if crew.is_main_process:
        journal.open(identity, resume=resume, overwrite=overwrite)
    crew.wait_for_everyone()
    watcher.on_start(recipe)
    with Session(Task(network, recipe, images, facts, request), journal, watcher) as session:
        steps, stopped, rate = session.train()
        final = None
        if not stopped:
            final = session.judge(steps, keep_logits=True)
            session.leave(final, identity)
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


def _create(model: str | os.PathLike[str], request: Request, num_classes: int) -> BiT:
    """The network with a new head; random weights are the seed's, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        network = create_model(model, request.pretrained, num_classes=num_classes)
    if not isinstance(network, BiT):
        raise UsageError(f"{model}: expected a classifier to fine-tune.")
    network.reset_classifier(num_classes)  # also where the count is the file's own
    return network


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
        "numpy": _numpy_release(),
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


def _numpy_release() -> str:
    """NumPy promises a generator's stream within a feature release (NEP 19); batches come of it."""
    return ".".join(np.__version__.split(".")[:2])
