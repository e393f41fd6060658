"""A run in progress: it trains, evaluates on the held-out images, and writes its artifacts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bitzoo.data.dataset import ImageSet, Split
from bitzoo.data.image_store import Pixels, open_pixels
from bitzoo.data.validation import DataSummary
from bitzoo.inference.evaluate import evaluate_pixels, labels_of
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.selection import Selection
from bitzoo.models.bit import BiT
from bitzoo.runs.config import Callbacks, FinetuneConfig
from bitzoo.runs.report.artifacts import FinishedRun, write_artifacts
from bitzoo.runs.run_dir import RunDir
from bitzoo.runs.tensorboard import Track, tracker
from bitzoo.runs.work_log import WorkLog, device_name
from bitzoo.training.checkpointing import latest_checkpoint
from bitzoo.training.distributed import join_processes
from bitzoo.training.linear_probe import compute_features, train_head
from bitzoo.training.recipe import Recipe
from bitzoo.training.trainer import train

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Task:
    """What a run works on.

    Attributes:
        network: The network, trained in place.
        recipe: The recipe.
        images: The data.
        summary: Its properties.
        config: The run's options.
        held_out: What the evaluations count; None without held-out images.
        data: The data set as it was given.
    """

    network: BiT
    recipe: Recipe
    images: ImageSet
    summary: DataSummary
    config: FinetuneConfig
    held_out: Selection | None = None
    data: object = None


class Session:
    """A run in its folder; a context manager that opens the images and decodes them once.

    Every process has a session; only the main process evaluates, records, reports and writes.
    """

    def __init__(
        self, task: Task, run_dir: RunDir, identity: Mapping[str, Any], callbacks: Callbacks
    ) -> None:
        """Set up; nothing is opened yet.

        Args:
            task: What the run works on.
            run_dir: Where it goes.
            identity: The run's options, as in `run.json`.
            callbacks: Callbacks during the run.
        """
        self._task, self._run_dir, self._callbacks = task, run_dir, callbacks
        self._identity = identity
        self._processes = join_processes()
        self._resources = contextlib.ExitStack()
        self._track: Track = lambda step, metrics: None
        self._log = WorkLog(run_dir)

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
        """Train to the end, or until a stop is requested.

        Returns:
            Number of updates, whether it was stopped before the end, and images per second.
        """
        return self._train_head() if self._freeze else self._train()

    def evaluate(self, step: int) -> Evaluation | None:
        """Evaluate and record; None without held-out images, and except in the main process."""
        images = self._task.images.val
        if self._held_out is None or images is None or not self._processes.is_main_process:
            return None
        found = evaluate_pixels(
            self._task.network,
            self._held_out,
            labels_of(images),
            self._task.images.classes,
            progress=self._callbacks.progress,
        )
        found = replace(found, selection=self._task.held_out)
        scores = {"top1": found.top1, "top5": found.top5, "loss": found.loss, "count": found.count}
        self._run_dir.append({"event": "eval", "step": step, **scores})
        self._log.keep()
        self._track(step, {f"eval/{name}": value for name, value in scores.items()})
        self._callbacks.on_eval(step, found)
        return found

    def write_artifacts(self, found: Evaluation | None) -> None:
        """Write the artifacts of a finished run, whose final evaluation is `found`.

        Raises:
            UsageError: If they cannot be written, as on a full disk.
        """
        if self._processes.is_main_process:
            task = self._task
            self._log.keep(now=True)
            finished = FinishedRun(
                model=task.network,
                recipe=task.recipe,
                images=task.images,
                summary=task.summary,
                evaluation=found,
                held_out=self._held_out,
                config=task.config,
                data=task.data,
                training=self._pixels,
                sessions=self._log.rows(),
            )
            history = self._run_dir.history()
            with self._run_dir.writing():
                write_artifacts(self._run_dir.folder, finished, self._identity, history)

    @property
    def _freeze(self) -> bool:
        return self._task.config.freeze

    def _open(self, split: Split, size: int) -> Pixels:
        config = self._task.config
        return self._resources.enter_context(
            open_pixels(
                split,
                size,
                budget_bytes=int(config.cache_gb * 1e9),
                workers=config.workers,
                progress=self._callbacks.progress,
                bit_depth=self._task.summary.bit_depth,
            )
        )

    def _train(self) -> tuple[int, bool, float]:
        task = self._task
        start = latest_checkpoint(self._run_dir.checkpoints) if self._is_main else None
        self._go_back_to(start.step if start else 0)
        result = train(
            task.network,
            task.recipe,
            self._pixels,
            labels_of(task.images.train),
            task.config,
            folder=self._run_dir.checkpoints,
            start=start,
            about=self._run_dir.mark,
            on_step=self._record,
            on_part=self._callbacks.on_part if self._is_main else lambda step, part: None,
            on_eval=self._on_eval,
        )
        return result.step, result.stopped, result.images_per_s

    def _train_head(self) -> tuple[int, bool, float]:
        task = self._task
        network, labels = task.network.to(self._processes.device), labels_of(task.images.train)
        self._go_back_to(0)
        features = compute_features(
            network, self._pixels, self._processes.device, self._callbacks.progress
        )
        train_head(network, task.recipe, features, labels, task.config.seed, self._record)
        return task.recipe.schedule.steps, False, 0.0

    @property
    def _is_main(self) -> bool:
        return bool(self._processes.is_main_process)

    def _go_back_to(self, step: int) -> None:
        """Drop what was recorded after `step` updates."""
        if self._is_main:
            self._run_dir.rewind(step, self._task.recipe.schedule.steps)
            folder = self._run_dir.folder
            self._track = self._resources.enter_context(tracker(folder, step))
            device, count = self._processes.device, self._processes.num_processes
            self._log.start(device_name(device, count), step)

    def _record(self, metrics: Mapping[str, float]) -> None:
        if self._is_main:
            self._run_dir.append({"event": "train", **metrics})
            self._log.keep()
            named = {f"train/{name}": value for name, value in metrics.items() if name != "step"}
            self._track(int(metrics["step"]), named)
            self._callbacks.on_step(metrics)

    def _on_eval(self, step: int) -> None:
        self.evaluate(step)
