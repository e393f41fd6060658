"""The training loop: train a network in place by a recipe, with checkpoints and exact resume.

Everything about step n is decided before the run starts: its batch is a pure function of (seed, n),
its learning rate of n. The only state is parameters, the averages of batch norms, the optimizer's
state and n, so a killed run continues from its checkpoint as if nothing had happened. The recipe is
data: this module knows no rule, not even BiT-HyperRule.

A batch is computed in micro-batches that fit into memory, in one process or several. Losses are
divided by the size of the whole batch and gradients are summed, so neither way of splitting affects
the result beyond rounding.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bitzoo.data.image_store import Pixels
from bitzoo.data.loader import Feed, Labels, MicroBatch, prefetch
from bitzoo.errors import BitzooError
from bitzoo.inference.optimize import COMPUTE_DTYPES
from bitzoo.inference.processes import join_processes, local_processes, process_device
from bitzoo.models.batch_norm import float_buffers, statistics_kept
from bitzoo.models.bit import BiT
from bitzoo.training.batch_statistics import (
    dependence_on_micro_batch,
    require_equal_shares,
    require_values_to_normalize,
    synchronize_statistics,
)
from bitzoo.training.batches import batch_plan
from bitzoo.training.checkpointing import Checkpoint, save_checkpoint
from bitzoo.training.continuation import (
    copy_state,
    loop_of,
    warn_of_missing_operator,
    warn_of_rounding,
)
from bitzoo.training.distributed import GradientSum, send_from_main
from bitzoo.training.fused_norm import fuse_norms, has_norms, missing
from bitzoo.training.graceful_stop import Pace, graceful_stop
from bitzoo.training.gradient_accumulation import standardize_once
from bitzoo.training.losses import LOSSES, loss_weights
from bitzoo.training.memory_layout import MemoryLayout, choose_layout, usual_layout
from bitzoo.training.micro_batch_size import choose_micro_batch, image_bytes, is_out_of_memory
from bitzoo.training.model_selection import ModelSelection, Scores
from bitzoo.training.optimizers import NamedOptimizer
from bitzoo.training.recipe import Recipe
from bitzoo.training.requirements import check_training
from bitzoo.training.training_config import TrainingConfig
from bitzoo.training.training_form import training_form

_log = logging.getLogger(__name__)


class TrainingError(BitzooError, RuntimeError):
    """Training cannot continue: the loss is not finite, or even one image does not fit."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a call of `train`.

    Attributes:
        step: Total updates made, including those before a resume.
        stopped: Whether training was interrupted before its end.
        loss: Loss of the last step; None if no step was left.
        micro_batch: Images that a process computed at once, at the end.
        images_per_s: Images per second of this call, over all processes, including evaluations and
            checkpoints.
        checkpoint: The last checkpoint written; None without a folder and in all but the main
            process.
        selection: The evaluations so far; those after the last step are up to the caller.
    """

    step: int
    stopped: bool
    loss: float | None
    micro_batch: int
    images_per_s: float
    checkpoint: Path | None
    selection: ModelSelection


def train(
    model: BiT,
    recipe: Recipe,
    pixels: Pixels,
    labels: Labels,
    options: TrainingConfig | None = None,
    *,
    teacher: Callable[[Tensor], Tensor] | None = None,
    folder: Path | None = None,
    start: Checkpoint | None = None,
    about: Mapping[str, Any] | None = None,
    layout: MemoryLayout | None = None,
    on_layout: Callable[[MemoryLayout], None] = lambda layout: None,
    on_step: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_part: Callable[[int, float], None] = lambda step, part: None,
    on_eval: Callable[[int], Scores | None] = lambda step: None,
) -> TrainResult:
    """Train a network by a recipe, in place.

    Training ends early if `patience` evaluations in a row bring no better top-1 accuracy. If the
    best weights are to be kept, each evaluation that is the best so far is followed by a
    checkpoint, which stays until a better one is safely on the disk.

    SIGTERM or Ctrl-C stops training after the current step, with a checkpoint; a second one stops
    it immediately. Under ``accelerate launch`` or ``torchrun``, each process computes its share of
    every batch; all of them call this function.

    Args:
        model: A network with a head that fits the labels (the recipe's `head` is up to the caller).
            Moved to the device and left in evaluation mode.
        recipe: What to train.
        pixels: Training images, resized as the recipe says, or whole for an inception crop.
        labels: Class of each image, (len(pixels),), or with a sigmoid loss the classes of each.
        options: How to train.
        teacher: For the loss ``distillation``: images of a micro-batch, exactly those that the
            network gets, to the logits that it is compared with, (n, classes).
        folder: Where checkpoints go; None writes none. One is written at the end too.
        start: Checkpoint to resume from; only the main process needs it.
        about: What the metadata of checkpoints say about the run, JSON-serializable.
        layout: The memory format, where it was measured before the run; None measures it where
            there is a choice.
        on_layout: Called once, before the first step, with the memory format that the network
            trains in, and what was measured; in every process.
        on_step: Called after each step with `step` (updates made), `loss` (of the whole batch,
            before the update), `lr` and `images_per_s`; in every process, with the same loss.
        on_part: Called within a step, with the number of updates made and the fraction of this
            process's images that are done: 0.0 when it begins, then after each micro-batch but the
            last.
        on_eval: Called with the number of updates made, after every `eval_every` updates but not
            after the last; in every process. Returns the scores, the same in every process, or
            None, which decides nothing. May leave the model in evaluation mode.

    Raises:
        UsageError: If the loop does not know something that the recipe names, or the data do not
            fit the recipe.
        TrainingError: If the loss becomes NaN or infinite, or even one image does not fit into
            memory.
        TensorMismatchError: If `start` belongs to another network.
        SaveError: If a checkpoint cannot be written.
    """
    options = options or TrainingConfig()
    steps = recipe.schedule.steps
    check_training(model, recipe, pixels, labels, has_teacher=teacher is not None)
    pace = Pace()
    with training_form(model, options), graceful_stop(pace) as asked:
        trainer = Trainer(model, recipe, pixels, labels, options, teacher)
        trainer.begin(start, layout)
        on_layout(trainer.layout)
        loss, saved, stopped, first = None, None, False, trainer.step
        selection = trainer.selection
        spared = selection.best

        def within(part: float) -> None:
            pace.within_step(part)
            on_part(trainer.step, part)

        trainer.on_part = within
        began = last = time.perf_counter()
        with contextlib.closing(trainer.updates()) as updates:
            for loss in updates:
                step, now = trainer.step, time.perf_counter()
                rate = recipe.batch_size / (now - last)
                lr = recipe.schedule.lr_at(step - 1)
                pace.step_ended()
                on_step({"step": step, "loss": loss, "lr": lr, "images_per_s": rate})
                is_best = False
                if step < steps and _is_due(step, options.eval_every or 0):
                    pace.now("evaluation")
                    scores = on_eval(step)
                    model.train()
                    is_best = scores is not None and selection.add(step, scores)
                ended = step == steps or selection.is_exhausted
                stopped = trainer.any_process(asked()) and not ended
                due = stopped or ended or (is_best and options.keeps_best)
                due = due or _is_due(step, options.checkpoint_every)
                if due and folder and trainer.processes.is_main_process:
                    pace.now("checkpoint")
                    meta = {**(about or {}), "loop": trainer.facts()}
                    # The best before this one stays for as long as this file is the newest, which
                    # may turn out damaged.
                    bests = (spared, selection.best) if options.keeps_best else ()
                    saved = save_checkpoint(
                        folder,
                        step,
                        trainer.state(),
                        meta,
                        keep=options.keep_checkpoints,
                        spare=[best.step for best in bests if best],
                    )
                    spared = selection.best
                if due and not ended:  # a stop may have been asked for in the meantime
                    stopped = stopped or trainer.any_process(asked())
                if stopped or ended:
                    break
                last = time.perf_counter()
        images = (trainer.step - first) * recipe.batch_size
        rate = images / (time.perf_counter() - began)
        return TrainResult(trainer.step, stopped, loss, trainer.micro_batch, rate, saved, selection)


class Trainer:
    """Trains `model` in place, one update at a time.

    Attributes:
        processes: State of the process group.
        step: Number of updates made; also the index of the next one.
        selection: The evaluations so far.
        micro_batch: Most images that a process computes at once.
        layout: The memory format; that of the run from `begin` on.
        on_part: Called within a step with the fraction of this process's images that are done: 0.0
            when it begins, then after each micro-batch but the last.
    """

    def __init__(
        self,
        model: BiT,
        recipe: Recipe,
        pixels: Pixels,
        labels: Labels,
        options: TrainingConfig,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.processes = join_processes(options.device)
        self._model, self._recipe, self._options = model, recipe, options
        self._teacher = teacher
        device, dtype = process_device(options.device), COMPUTE_DTYPES[options.dtype]
        if next(model.parameters()).dtype == torch.float64:  # a network in float64 stays so
            dtype = torch.float64
        self._wide = torch.promote_types(dtype, torch.float32)
        self.layout = usual_layout(options.channels_last, device)
        layout = self.layout.memory_format
        model.to(device, memory_format=layout)  # type: ignore[call-overload]
        features = model.forward_features
        self._features = torch.compile(features) if options.compile else features
        self._plan = batch_plan(recipe, len(pixels), options.seed)
        self._feed = Feed(pixels, labels, model.num_classes, device, dtype, layout)
        self._class_weights = loss_weights(recipe, labels, model.num_classes, device)
        self._kernels = standardize_once(model)
        self._optimizer = NamedOptimizer(model, recipe)
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        first = recipe.batch_size * self.processes.process_index // self.processes.num_processes
        last = (
            recipe.batch_size * (self.processes.process_index + 1) // self.processes.num_processes
        )
        self._rows = range(first, last)
        self._mixes_images = model.architecture.norm == "batch" and not options.freeze
        if self._mixes_images:
            require_equal_shares(recipe.batch_size, self.processes.num_processes)
        self.on_part: Callable[[float], None] = lambda part: None
        self.step = 0
        self.selection = ModelSelection(options.patience)
        self.micro_batch = options.micro_batch or 0

    def begin(self, start: Checkpoint | None, measured: MemoryLayout | None = None) -> None:
        """Restore a checkpoint, choose micro-batch and memory format, agree with other processes.

        `measured` is the memory format where there is a choice, if it was measured before.

        Raises:
            CheckpointError: If the checkpoint's record is none of a training loop.
            TensorMismatchError: If the checkpoint belongs to another network.
        """
        state = self.state()
        if start is not None:
            self._restore(state, start)
        if not self.micro_batch:
            with statistics_kept(self._model):
                chosen = choose_micro_batch(self._logits, self._trial(), max(1, len(self._rows)))
            self.micro_batch = chosen
        layout = self._layout_of(start) or measured
        if self.processes.num_processes > 1:
            agreed: list[Any] = [
                self.step,
                self.micro_batch,
                self._scaler.state_dict(),
                self.selection,
                self._optimizer.updates,
                layout,
            ]
            dist.broadcast_object_list(agreed, src=0)
            self.step, self.micro_batch, scaling, self.selection, updates, layout = agreed
            self._scaler.load_state_dict(scaling)
            if updates is not None:
                self._optimizer.updates = updates
            send_from_main(state.values())
        self._use(layout or self._measured_layout())
        if self.processes.num_processes > 1:
            synchronize_statistics(self._model)
        if self._mixes_images:
            self._say_what_is_mixed()

    def state(self) -> dict[str, Tensor]:
        """Return the parameters, averages and optimizer state by name; themselves, not copies."""
        return {
            **{f"model.{name}": tensor for name, tensor in self._model.named_parameters()},
            **{f"buffer.{name}": tensor for name, tensor in float_buffers(self._model).items()},
            **self._optimizer.state(),
        }

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides `state`, and what affects rounding, as JSON."""
        selected = {"selection": self.selection.to_dict()} if self._options.selects else {}
        counted = self._optimizer.updates
        return {
            **selected,
            **({} if counted is None else {"updates": counted}),
            "micro_batch": self.micro_batch,
            "layout": self.layout.to_dict(),
            "scaler": self._scaler.state_dict(),
            "seed": self._options.seed,
            "dtype": self._options.dtype,
            "architecture": self._model.architecture.name,
            "processes": self.processes.num_processes,
            "machines": self.processes.num_processes // local_processes(),
            "backend": dist.get_backend() if dist.is_initialized() else None,
            "threads": torch.get_num_threads(),
            "device": self._feed.device.type,
            "torch": str(torch.__version__),
        }

    def image_bytes(self) -> int:
        """Return the bytes that one more image of a micro-batch stores for its backward pass."""
        with statistics_kept(self._model):
            return image_bytes(self._logits, self._trial())

    def _trial(self) -> Tensor:
        crop = self._recipe.crop
        images = torch.zeros(self.fewest, 3, crop, crop, device=self._feed.device)
        return images.to(self._feed.dtype, memory_format=self._feed.memory_format)

    def time_pass(self, form: MemoryLayout, count: int) -> float:
        """Return the seconds of a forward and backward pass, the mean over all processes.

        All of them must call this. Nothing else changes: see `bitzoo.training.memory_layout`. The
        network stays in the form of the pass.

        Args:
            form: Memory format and operators.
            count: Number of images, each of the recipe's crop.

        Returns:
            Infinity if any process ran out of memory.
        """
        self._use(form)
        feed, crop = self._feed, self._recipe.crop
        drawn = torch.rand((count, 3, crop, crop), generator=torch.Generator().manual_seed(0))
        images = drawn.mul_(2).sub_(1).to(feed.device, feed.dtype)
        images = images.contiguous(memory_format=feed.memory_format)
        targets = torch.full((count, feed.num_classes), 1 / feed.num_classes, device=feed.device)
        began = time.perf_counter()
        try:
            with statistics_kept(self._model):
                loss = self._losses(images, targets).sum() / self._recipe.batch_size
                torch.autograd.backward(loss)
            float(loss.detach())  # a GPU is done by then
            seconds = time.perf_counter() - began
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            seconds = math.inf
        self._optimizer.torch.zero_grad()
        return self._sum(seconds)[0] / float(self.processes.num_processes)

    def _layout_of(self, start: Checkpoint | None) -> MemoryLayout | None:
        """Return the memory format that is not to be measured; None if it is."""
        if self._options.channels_last is not None or self._feed.device.type != "cpu":
            return self.layout
        if start is not None and start.meta["loop"].get("device", "cpu") == "cpu":
            record = loop_of(start).get("layout")  # none from before formats were measured
            return MemoryLayout.from_dict(record) if record else self.layout
        return self.layout if self._options.compile else None  # compiling for both takes minutes

    def _measured_layout(self) -> MemoryLayout:
        steps, rows = self._recipe.schedule.steps - self.step, max(1, len(self._rows))
        most = min(self.micro_batch, rows)
        return choose_layout(
            *(self.time_pass, steps * rows), fewest=self.fewest, most=most, can_fuse=self.can_fuse
        )

    def can_fuse(self) -> bool:
        """Make the compiled operator ready; whether it is, in all processes, which call this."""
        return has_norms(self._model) and not self.any_process(bool(missing()))

    def _use(self, layout: MemoryLayout) -> None:
        """Bring network, optimizer and images into a memory format."""
        if layout.channels_last != self.layout.channels_last:
            layout.convert(self._model, self._optimizer.state().values())
            self._feed = replace(self._feed, memory_format=layout.memory_format)
        if layout.fused and not self.can_fuse():
            warn_of_missing_operator(missing())
            layout = replace(layout, fused=False)
        fuse_norms(self._model, layout.fused)
        self.layout = layout

    @property
    def fewest(self) -> int:
        """Fewest images of a pass: batch normalization needs two values for a mean."""
        return 2 if self._mixes_images else 1  # and maps may be of one pixel

    def updates(self) -> Generator[float]:
        """Make the remaining updates; yields the loss of each, the same in all processes.

        The loss is that of the whole batch, before the update. Close the iterator when leaving
        early.

        Raises:
            TrainingError: If the loss is not finite, or even one image does not fit into memory.
        """
        steps = self._recipe.schedule.steps
        while self.step < steps and not self.selection.is_exhausted:
            yield from self._updates_while_they_fit()
            if self.step < steps:
                self._halve()

    def _updates_while_they_fit(self) -> Generator[float]:
        steps, slices = range(self.step, self._recipe.schedule.steps), self._slices()
        work = ((step, rows) for step in steps for rows in slices)
        with (
            contextlib.closing(prefetch(self._plan, work, self._feed)) as parts,
            GradientSum(self._model) as gradients,
        ):
            for step in steps:
                loss = self._update(step, islice(parts, len(slices)), gradients)
                if loss is None:
                    return
                self.step = step + 1
                yield loss

    def _slices(self) -> list[slice]:
        """Return the rows of each micro-batch of this process."""
        rows, most = self._rows, self.micro_batch
        starts = rows[::most]
        return [slice(start, min(start + most, rows.stop)) for start in starts]

    def _update(
        self, step: int, parts: Iterable[MicroBatch], gradients: GradientSum
    ) -> float | None:
        """Make one update and return its loss; None if any process ran out of memory."""
        self._optimizer.torch.zero_grad()
        averages = float_buffers(self._model)
        before = {name: average.clone() for name, average in averages.items()}
        loss, fits = self._accumulate(parts, gradients)
        if not fits:  # the sum is of no use, but the others wait for this part of it
            self._optimizer.torch.zero_grad()
        gradients.finish()
        loss, failures = self._sum(loss, float(not fits))
        if failures:  # the step is made again
            for name, average in averages.items():
                average.copy_(before[name])
            return None
        self._require_finite(step, loss)
        self._optimizer.set_rate(self._recipe.schedule.lr_at(step))
        self._scaler.unscale_(self._optimizer.torch)
        self._optimizer.clip()
        self._scaler.step(self._optimizer.torch)
        self._scaler.update()
        return loss

    def _accumulate(
        self, parts: Iterable[MicroBatch], gradients: GradientSum
    ) -> tuple[float, bool]:
        """Accumulate the loss and gradients of this process's rows; returns whether they fit."""
        total = torch.zeros((), dtype=self._wide, device=self._feed.device)
        done, shared = 0, len(self._rows) > self.micro_batch
        self.on_part(0.0)
        try:
            with self._kernels if shared else contextlib.nullcontext():
                for part in parts:
                    loss = self._losses(part.images, part.targets).sum() / self._recipe.batch_size
                    done += len(part.images)
                    if done == len(self._rows):
                        gradients.follow()
                    self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                    total += loss.detach()
                    if done < len(self._rows):
                        self.on_part(done / len(self._rows))
            return float(total), True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._mixes_images and self.processes.num_processes > 1:
                raise self._too_large() from error  # the others wait for statistics of this batch
        return 0.0, False  # outside the handler, so that the failed step's tensors are released

    def _losses(self, images: Tensor, targets: Tensor) -> Tensor:
        targets = self._teacher(images) if self._teacher else targets
        logits, options = self._logits(images), self._recipe.loss_options
        targets = targets.to(logits.dtype)
        return LOSSES[self._recipe.loss](logits, targets, self._class_weights, options)

    def _logits(self, images: Tensor) -> Tensor:
        device, dtype = self._feed.device, self._feed.dtype
        with torch.autocast(device.type, dtype, enabled=dtype.itemsize < 4):
            with torch.set_grad_enabled(not self._options.freeze):
                features = self._features(images)
            return self._model.forward_head(features).to(self._wide)

    def _sum(self, *values: float) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.processes.num_processes == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self._feed.device)
        dist.all_reduce(sums)
        return list(sums.tolist())

    def any_process(self, holds: bool) -> bool:
        """Whether `holds` is true in any process; all of them must call this."""
        return self._sum(float(holds)) != [0]

    def _halve(self) -> None:
        if self._options.micro_batch or self.micro_batch == 1:
            raise self._too_large()
        self._optimizer.torch.zero_grad()
        gc.collect()
        if self._feed.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_batch = -(-self.micro_batch // 2)
        _log.warning("Out of memory: continuing with micro-batches of %d images.", self.micro_batch)

    def _too_large(self) -> TrainingError:
        crop, is_single = self._recipe.crop, self.micro_batch == 1
        what = "even one image" if is_single else f"a micro-batch of {self.micro_batch} images"
        return TrainingError(
            f"Out of memory on {self._feed.device.type}: {what} of {crop} x {crop} does not fit. "
            f"Use {'' if is_single else 'a smaller `micro_batch`, '}"
            "`dtype='bfloat16'`, `recompute_norms=True`, `checkpoint_blocks=True` or smaller "
            "images."
        )

    def _require_finite(self, step: int, loss: float) -> None:
        # Scaled float16 gradients overflow now and then; the scaler skips such an update.
        if math.isfinite(loss) or (self._scaler.is_enabled() and self._scaler.get_scale() > 1):
            return
        raise TrainingError(
            f"The loss at step {step} must be a finite number, found {loss}. Lower the learning "
            f"rate (here {self._recipe.schedule.lr_at(step):g}) or use float32: continue with "
            f"`bitzoo resume RUN --lr {self._recipe.schedule.base_lr / 3:.2g}` or `bitzoo resume "
            "RUN --dtype float32`."
        )

    def _restore(self, state: Mapping[str, Tensor], start: Checkpoint) -> None:
        copy_state(state, start)
        then, now = loop_of(start), self.facts()
        if (updates := then.get("updates")) is not None:
            self._optimizer.updates = updates
        self.step = start.step
        self.selection = ModelSelection(self._options.patience, then.get("selection"))
        self.micro_batch = self.micro_batch or then["micro_batch"]
        if self._scaler.is_enabled() and then["scaler"]:
            self._scaler.load_state_dict(then["scaler"])
        self._say_if_batches_differ(then)
        warn_of_rounding(then, now)

    def _say_what_is_mixed(self) -> None:
        recipe, count, most = self._recipe, self.processes.num_processes, self.micro_batch
        architecture, fewest = self._model.architecture, (len(self._rows) % most or most) * count
        require_values_to_normalize(architecture, recipe.crop, fewest)
        said = dependence_on_micro_batch(architecture, recipe.batch_size, most, count)
        if said and self.processes.is_main_process:
            _log.warning(said)

    def _say_if_batches_differ(self, then: Mapping[str, Any]) -> None:
        before = then["micro_batch"] * then["processes"]
        now = self.micro_batch * self.processes.num_processes
        if self._mixes_images and before != now:
            _log.warning(
                "Batch normalization took %d images at once, now it takes %d: training continues, "
                "but this changes the result. Use as many processes as before, with the same "
                "`micro_batch`, for that of an uninterrupted run.",
                before,
                now,
            )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
