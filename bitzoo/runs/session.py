"""A run in progress: it trains, evaluates on the held-out images, and writes its artifacts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitzoo.data.dataset import ImageSet, Split
from bitzoo.data.decode_workers import count_cores
from bitzoo.data.examples import labels_in
from bitzoo.data.image_store import Pixels, open_pixels, open_whole_images
from bitzoo.data.kept_checks import KeptChecks
from bitzoo.data.label_sets import label_sets_of
from bitzoo.data.loader import Labels
from bitzoo.data.problems import Problem
from bitzoo.data.stand_ins import StandIns
from bitzoo.data.validation import DataSummary
from bitzoo.errors import CheckpointError
from bitzoo.inference.evaluate import evaluate_pixels, labels_of
from bitzoo.inference.exact_float32 import rounds_to_tf32
from bitzoo.inference.features import FeatureNetwork
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.optimize import COMPUTE_DTYPES
from bitzoo.inference.processes import (
    gather,
    join_processes,
    local_processes,
    process_device,
)
from bitzoo.inference.selection import Selection
from bitzoo.models.batch_norm import float_buffers
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.openmp_waiting import tell_once
from bitzoo.runs.config import Callbacks, RunConfig
from bitzoo.runs.metrics_csv import CSV_NAME, MetricsTable
from bitzoo.runs.report.artifacts import FinishedRun, write_artifacts
from bitzoo.runs.run_dir import RunDir
from bitzoo.runs.teachers import Faculty
from bitzoo.runs.teaching import Teaching, measure_teaching
from bitzoo.runs.trackers import Track, chosen_trackers, tracking
from bitzoo.runs.wanted_rows import evaluation_transform, training_size
from bitzoo.runs.work_log import WorkLog, device_name, waiting_of
from bitzoo.training.checkpointing import (
    Checkpoint,
    checkpoint_path,
    latest_checkpoint,
    read_checkpoint,
)
from bitzoo.training.continuation import loop_of
from bitzoo.training.distributed import send_from_main
from bitzoo.training.fused_norm import describe_missing
from bitzoo.training.linear_probe import evaluate_features, train_head
from bitzoo.training.memory_layout import MemoryLayout
from bitzoo.training.model_selection import Choice, Keep, ModelSelection
from bitzoo.training.recipe import SIGMOID, TEMPERATURE, Recipe
from bitzoo.training.trainer import train

if TYPE_CHECKING:
    from typing_extensions import Self

_TF32 = (
    "On this GPU, the convolutions of float32 training round their factors to TF32 (10 bits), as "
    "torch is set; evaluations do not. NVIDIA_TF32_OVERRIDE=0 in the environment trains without, "
    "which took 2.2 times as long on an H100."
)


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
        faculty: The teachers of a distillation.
    """

    network: BiT
    recipe: Recipe
    images: ImageSet
    summary: DataSummary
    config: RunConfig
    held_out: Selection | None = None
    data: object = None
    faculty: Faculty | None = None


class Session:
    """A run in its folder; a context manager that opens the images and decodes them once.

    Every process has a session; only the main process evaluates, records, reports and writes.
    """

    def __init__(
        self,
        task: Task,
        run_dir: RunDir,
        identity: Mapping[str, Any],
        callbacks: Callbacks,
        layout: MemoryLayout | None = None,
    ) -> None:
        """Set up; nothing is opened yet.

        Args:
            task: What the run works on.
            run_dir: Where it goes.
            identity: The run's options, as in `run.json`.
            callbacks: Callbacks during the run.
            layout: The memory format, if it was measured before; as for `train`.
        """
        self._layout = layout
        self._task, self._run_dir, self._callbacks = task, run_dir, callbacks
        self._identity = identity
        self._processes = join_processes(task.config.device)
        self._resources = contextlib.ExitStack()
        self._table = MetricsTable(run_dir.folder / CSV_NAME)
        self._track: Track = lambda step, metrics: None
        self._log = WorkLog(run_dir)
        self._features: Tensor | None = None
        self._latest: tuple[int, Evaluation] | None = None
        self._selection = ModelSelection()
        self._best_head: Mapping[str, Tensor] | None = None
        self._teaching: Teaching | None = None

    def __enter__(self) -> Self:
        with self._resources:
            recipe, images = self._task.recipe, self._task.images
            size = training_size(recipe, freeze=self._freeze)
            self._pixels: Pixels = (
                self._open_whole(images.train) if size is None else self._open(images.train, size)
            )
            seen = evaluation_transform(recipe, self._task.summary.bit_depth)
            self._held_out = self._open(images.val, seen) if images.val else None
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
            Number of updates, whether it was interrupted before the end, and images per second.
        """
        return self._train_head() if self._freeze else self._train()

    def finish(self, step: int) -> tuple[Evaluation | None, Choice]:
        """Evaluate at the end, and leave the network with the weights that the run keeps.

        Args:
            step: Number of updates made.

        Returns:
            The evaluation of these weights, None without held-out images; and which they are. The
            same in all processes.

        Raises:
            CheckpointError: If the best weights are damaged.
        """
        steps, selection = self._task.recipe.schedule.steps, self._selection
        # After an early end the last evaluation is that of the last weights.
        found = (
            self._latest[1] if self._latest and self._latest[0] == step else self._evaluate(step)
        )
        if found is not None and not selection.is_exhausted:
            selection.add(step, found)
        keep: Keep = "best" if self._task.config.keeps_best else "last"
        choice = Choice(
            keep,
            selection.best.step if keep == "best" and selection.best else step,
            step,
            steps,
            selection.evaluations,
            self._task.config.patience if step < steps else None,
        )
        if choice.step != step:
            self._go_to_best(choice.step)
            found = self._judge()
        return found, choice

    def compare_with_teachers(self, found: Evaluation | None) -> Teaching | None:
        """Judge the teachers as the student was judged, in all processes; None without teachers.

        Args:
            found: The student's evaluation.
        """
        task = self._task
        if task.faculty is not None:
            self._teaching = measure_teaching(
                task.faculty,
                float(task.recipe.loss_options[TEMPERATURE] or 0),
                task.images,
                self._held_out,
                found,
                process_device(task.config.device),
                self._callbacks.progress if self._is_main else None,
            )
        return self._teaching

    def _evaluate(self, step: int) -> Evaluation | None:
        """Evaluate in all processes and record; None without held-out images."""
        found = self._judge()
        if found is None:
            return None
        self._latest = step, found
        if self._is_main:
            scores = {
                "top1": found.top1,
                "top5": found.top5,
                "loss": found.loss,
                "count": found.count,
            }
            self._append({"event": "eval", "step": step, **scores})
            self._log.keep()
            self._track(step, {f"eval/{name}": value for name, value in scores.items()})
            self._callbacks.on_eval(step, found)
        return found

    def _judge(self) -> Evaluation | None:
        """Evaluate the network as it is; each process takes its share of the held-out images."""
        images, classes = self._task.images.val, self._task.images.classes
        if self._held_out is None or images is None:
            return None
        network = self._task.network
        if self._features is not None:
            found = evaluate_features(network, self._features, labels_of(images), classes)
            return replace(found, selection=self._task.held_out)
        sets = label_sets_of(images)
        several = sets.single is None
        own = evaluate_pixels(
            network,
            self._held_out,
            labels_in(images.examples),
            classes,
            accepted=[sets[row] for row in range(len(sets))] if several else None,
            sigmoid=self._task.recipe.loss == SIGMOID,
            rank=self._processes.process_index,
            world=self._processes.num_processes,
            progress=self._callbacks.progress if self._is_main else None,
        )
        return replace(Evaluation.merge(gather(own)), selection=self._task.held_out)

    def _go_to_best(self, step: int) -> None:
        """Give the network the weights after `step` updates, in all processes."""
        network = self._task.network
        if self._freeze:
            assert self._best_head is not None
            network.get_classifier().load_state_dict(self._best_head)
            return
        path = checkpoint_path(self._run_dir.checkpoints, step)
        if self._is_main:
            try:
                stored = read_checkpoint(path).state
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error} It has the best weights of the run, which cannot be made again from "
                    "later ones. Start again with `overwrite=True`."
                ) from error
            for name, parameter in network.named_parameters():
                parameter.detach().copy_(stored[f"model.{name}"])
            for name, average in float_buffers(network).items():
                average.copy_(stored[f"buffer.{name}"])
        send_from_main([*network.parameters(), *float_buffers(network).values()])

    def write_artifacts(self, found: Evaluation | None, choice: Choice) -> None:
        """Write the artifacts of a finished run.

        Args:
            found: The evaluation of its weights.
            choice: Which weights they are.

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
                choice=choice,
                faculty=task.faculty,
                teaching=self._teaching,
            )
            history = self._run_dir.history()
            with self._run_dir.writing():
                write_artifacts(self._run_dir.folder, finished, self._identity, history)

    @property
    def _freeze(self) -> bool:
        return self._task.config.freeze

    def _open_whole(self, split: Split) -> Pixels:
        # Unlike those that fill the cache, all processes of a machine decode at the same time.
        workers = self._task.config.workers or max(1, count_cores() // local_processes())
        opened = open_whole_images(
            split,
            self._task.recipe.crop,
            workers=workers,
            bit_depth=self._task.summary.bit_depth,
            stand_ins=self._stand_ins(split),
        )
        return self._resources.enter_context(opened)

    def _stand_ins(self, split: Split) -> StandIns | None:
        """Return what is done about bad images, if not all were checked before."""
        if self._task.summary.checked is None:
            return None
        skip_bad = self._task.config.skip_bad
        kept = self._resources.enter_context(KeptChecks.of(self._task.images.source))
        return StandIns(split.examples, skip_bad=skip_bad, kept=kept, on_bad=self._report_bad)

    def _report_bad(self, problem: Problem) -> None:
        self._callbacks.say(
            f"Cannot be used, so the next image stands in for it: {problem} "
            f"({problem.reason.title.lower()})."
        )

    def _open(self, split: Split, size: int | EvalTransform) -> Pixels:
        config = self._task.config
        return self._resources.enter_context(
            open_pixels(
                split,
                size,
                budget_bytes=int(config.cache_gb * 1e9),
                workers=config.workers,
                progress=self._callbacks.progress,
                bit_depth=self._task.summary.bit_depth,
                stand_ins=self._stand_ins(split),
            )
        )

    def _train(self) -> tuple[int, bool, float]:
        task, faculty = self._task, self._task.faculty
        start = latest_checkpoint(self._run_dir.checkpoints) if self._is_main else None
        self._go_back_to(start.step if start else 0, _has_ended(start, task.config))
        result = train(
            task.network,
            task.recipe,
            self._pixels,
            training_labels(task.images),
            task.config,
            teacher=faculty.ensemble(process_device(task.config.device)) if faculty else None,
            folder=self._run_dir.checkpoints,
            start=start,
            about=self._run_dir.mark,
            layout=self._layout,
            on_layout=functools.partial(self._record_layout, is_new=start is None),
            on_step=self._record,
            on_part=self._callbacks.on_part if self._is_main else lambda step, part: None,
            on_eval=self._evaluate,
        )
        self._selection = result.selection
        return result.step, result.stopped, result.images_per_s

    def _train_head(self) -> tuple[int, bool, float]:
        task, device = self._task, process_device(self._task.config.device)
        network, labels = task.network.to(device), labels_of(task.images.train)
        self._go_back_to(0)

        config = task.config
        encoder = FeatureNetwork(
            network, device, dtype=COMPUTE_DTYPES[config.dtype], backend=config.backend
        )
        budget, report = int(config.cache_gb * 1e9), self._callbacks.progress

        def features_of(pixels: Pixels) -> Tensor:
            return torch.from_numpy(encoder.compute(pixels, report, budget_bytes=budget))

        features = features_of(self._pixels)
        if self._held_out is not None:
            self._features = features_of(self._held_out)
        result = train_head(
            network, task.recipe, features, labels, task.config, self._record, self._evaluate
        )
        self._selection, self._best_head = result.selection, result.best
        return result.step, False, 0.0

    @property
    def _is_main(self) -> bool:
        return bool(self._processes.is_main_process)

    def _go_back_to(self, step: int, ended: bool = False) -> None:
        """Drop what was recorded after `step` updates, and the evaluation at the run's end."""
        if self._is_main:
            self._run_dir.rewind(step, step if ended else self._task.recipe.schedule.steps)
            with self._run_dir.writing():
                self._table.rewrite(self._run_dir.history())
            names = chosen_trackers(self._task.config.log)
            self._track = self._resources.enter_context(
                tracking(
                    names,
                    self._run_dir.folder,
                    step,
                    self._identity,
                    self._run_dir.run_id or "",
                )
            )
            device, count = self._processes.device, self._processes.num_processes
            name, config = device_name(device, count), self._task.config
            if device.type == "cpu":
                tell_once(torch.get_num_threads())
            if not config.freeze and rounds_to_tf32(device, COMPUTE_DTYPES[config.dtype]):
                name += ", convolutions in TF32"
                self._callbacks.say(_TF32)
            self._log.start(name, step, waiting_of(device))

    def _record_layout(self, layout: MemoryLayout, is_new: bool) -> None:
        if self._is_main:
            self._log.describe(memory_format=layout.describe())
            if layout.is_compared:
                self._callbacks.say(
                    f"Memory format: {layout.describe()}. It decides the last bits of the result, "
                    "so the checkpoints keep it."
                )
            lacks = is_new and layout.is_compared and layout.fused_seconds is None
            if lacks and (why := describe_missing(self._task.network)):
                self._callbacks.say(why)

    def _append(self, record: Mapping[str, Any]) -> None:
        self._run_dir.append(record)
        with self._run_dir.writing():
            self._table.append(record)

    def _record(self, metrics: Mapping[str, float]) -> None:
        if self._is_main:
            self._append({"event": "train", **metrics})
            self._log.keep()
            named = {f"train/{name}": value for name, value in metrics.items() if name != "step"}
            self._track(int(metrics["step"]), named)
            self._callbacks.on_step(metrics)


def training_labels(images: ImageSet) -> Labels:
    """Return the class of each training image, or its classes if some image has several."""
    sets = label_sets_of(images.train)
    single = sets.single
    return sets if single is None else single


def _has_ended(start: Checkpoint | None, config: RunConfig) -> bool:
    """Whether the run ended early with this checkpoint."""
    record = loop_of(start).get("selection") if start else None
    return ModelSelection(config.patience, record).is_exhausted
