"""The training loop: a recipe, pixels and a network in; the same network, trained, out.

What happens at step n is decided before the run starts: its batch is a pure function of (seed, n),
its learning rate of n. The loop only keeps the network, the momentum and n, so a run that was
killed goes on from its checkpoint as if nothing had happened. The recipe is data: no rule, not even
BiT-HyperRule, is known here. `bitzoo.finetune.updates` makes one update of a batch.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt

from bitzoo.errors import UsageError
from bitzoo.finetune import memory
from bitzoo.finetune.accumulation import SharingConv2d, recast
from bitzoo.finetune.checkpoints import Checkpoint, save_checkpoint
from bitzoo.finetune.pixels import Pixels
from bitzoo.finetune.recipe import Recipe
from bitzoo.finetune.updates import LOSSES, LoopOptions, TrainingError, Updater, join_processes
from bitzoo.layers import StdConv2d
from bitzoo.model import BiT

__all__ = [
    "LOSSES",
    "LoopOptions",
    "TrainResult",
    "TrainingError",
    "graceful_stop",
    "join_processes",
    "train",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` went.

    Attributes:
        step: Updates made in all, those before a resume included.
        stopped: Whether it was asked to stop before the last step.
        loss: Of the last step; None if there was none to make.
        micro_batch: Images that a process computed at once, in the end.
        images_per_s: Of this call, over all processes, evaluations and checkpoints included.
        checkpoint: The last one written; None without a folder, and in all but the main process.
    """

    step: int
    stopped: bool
    loss: float | None
    micro_batch: int
    images_per_s: float
    checkpoint: Path | None


def train(
    model: BiT,
    recipe: Recipe,
    pixels: Pixels,
    labels: npt.NDArray[np.integer],
    options: LoopOptions | None = None,
    *,
    folder: Path | None = None,
    start: Checkpoint | None = None,
    on_step: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_eval: Callable[[int], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    describe: Callable[[], dict[str, Any]] = dict,
) -> TrainResult:
    """Train a network by a recipe, in place.

    SIGTERM or Ctrl-C ends it after the step at hand, with a checkpoint; a second one at once.
    Started by ``accelerate launch`` or ``torchrun``, each process computes its share of every
    batch; all of them call this function.

    Args:
        model: With a head that fits the labels (the recipe's `head` is the caller's business).
            Moved to the device, left in evaluation mode.
        recipe: What to do.
        pixels: Training pictures, resized as the recipe says.
        labels: Class of each, (len(pixels),).
        options: How to do it.
        folder: Where checkpoints go; None writes none. One is written at the end too.
        start: Checkpoint to go on from; only the main process needs it.
        on_step: Called after each step with `step` (updates made), `loss` (of the whole batch,
            before the update), `lr` and `images_per_s`; in every process, with the same loss.
        on_eval: Called with the updates made, after every `eval_every` of them but not after the
            last; in every process. May leave the model in evaluation mode.
        should_stop: Asked after each step; yes in any process stops all.
        describe: JSON-able facts for a checkpoint's meta data, under ``run``.

    Raises:
        UsageError: If the recipe names what the loop does not know, or the data do not fit it.
        TrainingError: If the loss becomes NaN or infinite, or one image is too much for the memory.
        TensorMismatchError: If `start` belongs to another network.
        SaveError: If a checkpoint cannot be written.
    """
    options = options or LoopOptions()
    steps = recipe.schedule.steps
    _check(model, recipe, pixels, labels)
    with _training_form(model, options), graceful_stop() as asked:
        updater = Updater(model, recipe, pixels, labels, options)
        updater.begin(start)
        loss, saved, stopped, first = None, None, False, updater.step
        began = last = time.perf_counter()
        with contextlib.closing(updater.updates()) as updates:
            for loss in updates:
                step, now = updater.step, time.perf_counter()
                rate = recipe.batch_size / (now - last)
                lr = recipe.schedule.lr_at(step - 1)
                on_step({"step": step, "loss": loss, "lr": lr, "images_per_s": rate})
                if step < steps and _is_due(step, options.eval_every):
                    on_eval(step)
                    model.train()
                stopped = updater.any_process(asked() or should_stop()) and step < steps
                due = stopped or step == steps or _is_due(step, options.checkpoint_every)
                if due and folder and updater.crew.is_main_process:
                    meta = {"loop": updater.facts(), "run": describe()}
                    saved = save_checkpoint(
                        folder, step, updater.state(), meta, keep=options.keep_checkpoints
                    )
                if stopped:
                    break
                last = time.perf_counter()
        images = (updater.step - first) * recipe.batch_size
        rate = images / (time.perf_counter() - began)
        return TrainResult(updater.step, stopped, loss, updater.micro_batch, rate, saved)


@contextlib.contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a question: has one come? A second one acts as usual.

    Outside the main thread, which alone receives signals, the answer is always no.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        restore()
        name = signal.Signals(number).name
        _log.warning("%s: stopping after this step. Send it again to stop at once.", name)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        restore()


@contextlib.contextmanager
def _training_form(model: BiT, options: LoopOptions) -> Iterator[None]:
    """The model as it trains; afterwards its plain form again, in evaluation mode."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    memory.recompute_norms(model, options.recompute_norms)
    memory.checkpoint_blocks(model, options.checkpoint_blocks)
    if options.freeze:
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    model.train()
    try:
        yield
    finally:
        memory.recompute_norms(model, False)
        memory.checkpoint_blocks(model, False)
        recast(model, StdConv2d, SharingConv2d, enable=False)
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None
        model.eval()


def _check(model: BiT, recipe: Recipe, pixels: Pixels, labels: npt.NDArray[np.integer]) -> None:
    known = {"loss": set(LOSSES), "optimizer": {"sgd"}, "augmentation": {"resize_crop"}}
    for name, words in known.items():
        if (found := getattr(recipe, name)) not in words:
            raise UsageError(
                f"Recipe {recipe.name!r} wants the {name} {found!r}; this loop knows "
                f"{', '.join(sorted(words))}. Change the recipe."
            )
    if recipe.loss_options:
        raise UsageError(
            f"Recipe {recipe.name!r} has options for its loss, {dict(recipe.loss_options)}; "
            f"{recipe.loss} takes none. Remove them."
        )
    if len(labels) != len(pixels):
        raise UsageError(
            f"Every picture needs a label, found {len(labels):,} labels for {len(pixels):,} "
            "pictures. Pass those of one split."
        )
    low, high = int(np.min(labels)), int(np.max(labels))
    if not 0 <= low <= high < model.num_classes:
        raise UsageError(
            f"Labels must be from 0 to {model.num_classes - 1}, the classes of the model's head, "
            f"found {low} to {high}. Create the model with num_classes={high + 1}."
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
