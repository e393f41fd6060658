"""One run under way: it trains, judges on the held-out pictures, and leaves what people read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from bitzoo.download import cache_dir
from bitzoo.finetune.checkpoints import latest_checkpoint
from bitzoo.finetune.dataset import ImageSet, Split
from bitzoo.finetune.evaluate import Evaluation, evaluate
from bitzoo.finetune.inspection import Facts
from bitzoo.finetune.journal import Journal
from bitzoo.finetune.leavings import Outcome, leave
from bitzoo.finetune.linear import compute_features, train_head
from bitzoo.finetune.loop import join_processes, train
from bitzoo.finetune.pixels import Pixels, open_pixels
from bitzoo.finetune.recipe import Recipe
from bitzoo.finetune.request import Request, Watcher
from bitzoo.finetune.trackers import Track, tracker
from bitzoo.model import BiT

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Task:
    """What a run works on.

    Attributes:
        network: Trained in place.
        recipe: What is done.
        images: The data.
        facts: What they are like.
        request: What was asked.
    """

    network: BiT
    recipe: Recipe
    images: ImageSet
    facts: Facts
    request: Request


class Session:
    """A run in its folder. A context: it opens the pictures, decoding them once.

    Every process has one; the main process alone judges, records, tells and writes.
    """

    def __init__(self, task: Task, journal: Journal, watcher: Watcher) -> None:
        self._task, self._journal, self._watcher = task, journal, watcher
        self._crew = join_processes()
        self._resources = contextlib.ExitStack()
        self._track: Track = lambda step, metrics: None

    def __enter__(self) -> Self:
        with self._resources:
            recipe, images, freeze = self._task.recipe, self._task.images, self._freeze
            self._pixels = self._open(images.train, recipe.crop if freeze else recipe.resize)
            self._held_out = self._open(images.val, recipe.crop) if images.val else None
            self._resources = self._resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()

    def train(self) -> tuple[int, bool, float]:
        """Train to the end, or until asked to stop.

        Returns:
            Updates made, whether it was stopped before the end, and images a second.
        """
        return self._train_head() if self._freeze else self._train()

    def judge(self, step: int, *, keep_logits: bool = False) -> Evaluation | None:
        """Evaluate, record, tell; None without held-out pictures and in other processes."""
        images = self._task.images.val
        if self._held_out is None or images is None or not self._crew.is_main_process:
            return None
        found = evaluate(
            self._task.network,
            self._held_out,
            labels_of(images),
            self._task.images.classes,
            keep_logits=keep_logits,
            progress=self._watcher.progress,
        )
        scores = {"top1": found.top1, "top5": found.top5, "loss": found.loss, "count": found.count}
        self._journal.append({"event": "eval", "step": step, **scores})
        self._track(step, {f"eval/{name}": value for name, value in scores.items()})
        self._watcher.on_eval(step, found)
        return found

    def leave(self, found: Evaluation | None, identity: Mapping[str, Any]) -> None:
        """Write what a finished run leaves.

        Args:
            found: The final evaluation, with logits.
            identity: What the run was asked, as in `run.json`.
        """
        if self._crew.is_main_process:
            task = self._task
            outcome = Outcome(
                task.network, task.recipe, task.images, task.facts, found, self._held_out
            )
            leave(self._journal.folder, outcome, identity, self._journal.history())

    @property
    def _freeze(self) -> bool:
        return self._task.request.loop.freeze

    def _open(self, split: Split, size: int) -> Pixels:
        request = self._task.request
        return self._resources.enter_context(
            open_pixels(
                split,
                size,
                cache=cache_dir() / "pixels",
                budget_bytes=int(request.cache_gb * 1e9),
                workers=request.workers,
                progress=self._watcher.progress,
            )
        )

    def _train(self) -> tuple[int, bool, float]:
        task = self._task
        start = latest_checkpoint(self._journal.checkpoints) if self._is_main else None
        self._go_back_to(start.step if start else 0)
        result = train(
            task.network,
            task.recipe,
            self._pixels,
            labels_of(task.images.train),
            replace(task.request.loop, seed=task.request.seed),
            folder=self._journal.checkpoints,
            start=start,
            on_step=self._record,
            on_eval=self._on_eval,
        )
        return result.step, result.stopped, result.images_per_s

    def _train_head(self) -> tuple[int, bool, float]:
        task = self._task
        network, labels = task.network.to(self._crew.device), labels_of(task.images.train)
        self._go_back_to(0)
        features = compute_features(
            network, self._pixels, self._crew.device, self._watcher.progress
        )
        train_head(network, task.recipe, features, labels, task.request.seed, self._record)
        return task.recipe.schedule.steps, False, 0.0

    @property
    def _is_main(self) -> bool:
        return bool(self._crew.is_main_process)

    def _go_back_to(self, step: int) -> None:
        """Forget what was recorded after `step` updates."""
        if self._is_main:
            self._journal.rewind(step)
            folder = self._journal.folder
            self._track = self._resources.enter_context(tracker(folder, step))

    def _record(self, metrics: Mapping[str, float]) -> None:
        if self._is_main:
            self._journal.append({"event": "train", **metrics})
            named = {f"train/{name}": value for name, value in metrics.items() if name != "step"}
            self._track(int(metrics["step"]), named)
            self._watcher.on_step(metrics)

    def _on_eval(self, step: int) -> None:
        self.judge(step)


def labels_of(split: Split) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the class index of every example, int64."""
    return np.array([example.label for example in split.examples], np.int64)
