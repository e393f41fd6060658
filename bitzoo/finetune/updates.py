"""One update after the other: the state of training, and how a batch becomes a step of it.

A batch is computed in micro-batches that fit into memory, in one process or several. Losses are
divided by the size of the whole batch and gradients added up, so neither split shows in the result
beyond rounding. All the state there is: parameters, momentum, the number of updates made.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F

from bitzoo.errors import BitzooError, TensorMismatchError, UsageError
from bitzoo.finetune import memory
from bitzoo.finetune.batches import BatchPlan, Feed, MicroBatch, prefetch
from bitzoo.finetune.checkpoints import Checkpoint
from bitzoo.finetune.microbatches import choose_micro_batch, is_out_of_memory
from bitzoo.finetune.pixels import Pixels
from bitzoo.finetune.recipe import Recipe
from bitzoo.model import BiT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What activations may be; parameters and momentum are float32 always."""

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax_cross_entropy": lambda logits, targets: F.cross_entropy(
        logits, targets, reduction="none"
    ),
}
"""Losses that a recipe may name: logits and soft targets (n, classes) to one loss a row, (n,)."""

_log = logging.getLogger(__name__)


class TrainingError(BitzooError, RuntimeError):
    """Training cannot go on: the loss is no number, or not even one image fits into memory."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train, where the recipe says what to train.

    Only `seed`, `dtype` and `freeze` change more of the result than rounding.

    Attributes:
        seed: Of the batches, in [0, 2**64).
        dtype: Of activations, a key of `DTYPES`. Below float32 through autocast; float16 scales
            losses.
        freeze: Whether the head alone is trained.
        micro_batch: Most images that a process computes at once; None chooses.
        channels_last: Memory format; None takes it on the CPU alone.
        compile: Whether to run through `torch.compile`.
        recompute_norms: See `bitzoo.finetune.memory.recompute_norms`.
        checkpoint_blocks: See `bitzoo.finetune.memory.checkpoint_blocks`.
        checkpoint_every: Steps between checkpoints; 0 writes one only at the end and when stopped.
        keep_checkpoints: How many stay.
        eval_every: Steps between calls of `on_eval`; 0 never calls it.

    Raises:
        UsageError: If a value is out of its range.
    """

    seed: int = 0
    dtype: str = "float32"
    freeze: bool = False
    micro_batch: int | None = None
    channels_last: bool | None = None
    compile: bool = False
    recompute_norms: bool = False
    checkpoint_blocks: bool = False
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    eval_every: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, found {self.dtype!r}.")
        least = {"micro_batch": 1, "checkpoint_every": 0, "keep_checkpoints": 1, "eval_every": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"{name} must be at least {bound}, found {value!r}. Change it.")


def join_processes() -> PartialState:
    """This process's place among those that ``accelerate launch`` or ``torchrun`` started.

    Joins their process group on the first call: NCCL on CUDA, gloo on the CPU. A process that was
    started alone is the only one.
    """
    launched = "LOCAL_RANK" in os.environ
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    return PartialState(cpu=asked_for_cpu or (launched and not torch.cuda.is_available()))


class Updater:
    """Trains `model` in place, one update at a time.

    Attributes:
        crew: This process and the others.
        step: Updates made; also the number of the next one.
        micro_batch: Most images that a process computes at once.
    """

    def __init__(
        self,
        model: BiT,
        recipe: Recipe,
        pixels: Pixels,
        labels: npt.NDArray[np.integer],
        options: LoopOptions,
    ) -> None:
        self.crew = join_processes()
        self._model, self._recipe, self._options = model, recipe, options
        device, dtype = self.crew.device, DTYPES[options.dtype]
        layout = _layout(options, device)
        model.to(device, memory_format=layout)  # type: ignore[call-overload]
        features = model.forward_features
        self._features = torch.compile(features) if options.compile else features
        self._plan = _plan(recipe, len(pixels), options.seed)
        self._feed = Feed(pixels, labels, model.num_classes, device, dtype, layout)
        self._kernels = memory.standardize_once(model)
        self._optimizer = _optimizer(model, recipe)
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        first = recipe.batch_size * self.crew.process_index // self.crew.num_processes
        last = recipe.batch_size * (self.crew.process_index + 1) // self.crew.num_processes
        self._rows = range(first, last)
        self.step = 0
        self.micro_batch = options.micro_batch or 0

    def begin(self, start: Checkpoint | None) -> None:
        """Take over a checkpoint's state, choose the micro-batch, agree with other processes.

        Raises:
            TensorMismatchError: If the checkpoint belongs to another network.
        """
        state = self.state()
        if start is not None:
            self._restore(state, start)
        if not self.micro_batch:
            crop = self._recipe.crop
            image = torch.zeros(1, 3, crop, crop, device=self._feed.device)
            image = image.to(self._feed.dtype, memory_format=self._feed.memory_format)
            self.micro_batch = choose_micro_batch(self._logits, image, max(1, len(self._rows)))
        if self.crew.num_processes > 1:
            agreed: list[Any] = [self.step, self.micro_batch, self._scaler.state_dict()]
            dist.broadcast_object_list(agreed, src=0)
            self.step, self.micro_batch, scaling = agreed
            self._scaler.load_state_dict(scaling)
            for tensor in state.values():
                copy = tensor.detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(copy, src=0)
                tensor.detach().copy_(copy)

    def state(self) -> dict[str, Tensor]:
        """All parameters and momenta by name; the tensors themselves, not copies."""
        state: dict[str, Tensor] = {
            f"model.{name}": tensor for name, tensor in self._model.named_parameters()
        }
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                buffer = self._optimizer.state[parameter]["momentum_buffer"]
                state[f"momentum.{name}"] = buffer
        return state

    def facts(self) -> dict[str, Any]:
        """What besides `state` a checkpoint needs, and what its last bits depend on; JSON-able."""
        return {
            "micro_batch": self.micro_batch,
            "scaler": self._scaler.state_dict(),
            "seed": self._options.seed,
            "dtype": self._options.dtype,
            "processes": self.crew.num_processes,
            "threads": torch.get_num_threads(),
            "device": self._feed.device.type,
            "torch": str(torch.__version__),
        }

    def updates(self) -> Generator[float]:
        """Make the updates that are left; yields the loss of each, the same in all processes.

        The loss is the whole batch's, before the update. Close the iterator when leaving early.

        Raises:
            TrainingError: If the loss is no number, or one image is too much for the memory.
        """
        steps = self._recipe.schedule.steps
        while self.step < steps:
            yield from self._updates_while_they_fit()
            if self.step < steps:
                self._halve()

    def _updates_while_they_fit(self) -> Generator[float]:
        steps, slices = range(self.step, self._recipe.schedule.steps), self._slices()
        work = ((step, rows) for step in steps for rows in slices)
        with contextlib.closing(prefetch(self._plan, work, self._feed)) as parts:
            for step in steps:
                loss = self._update(step, islice(parts, len(slices)), shared=len(slices) > 1)
                if loss is None:
                    return
                self.step = step + 1
                yield loss

    def _slices(self) -> list[slice]:
        """Rows of each micro-batch of this process."""
        rows, most = self._rows, self.micro_batch
        starts = rows[::most]
        return [slice(start, min(start + most, rows.stop)) for start in starts]

    def _update(self, step: int, parts: Iterable[MicroBatch], shared: bool) -> float | None:
        """Make one update and return its loss; None if it did not fit into a process's memory."""
        self._optimizer.zero_grad()
        loss, fits = self._accumulate(parts, shared)
        loss, misfits = self._sum(loss, float(not fits))
        if misfits:
            return None
        self._require_finite(step, loss)
        memory.sum_gradients(self._model)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.schedule.lr_at(step)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss

    def _accumulate(self, parts: Iterable[MicroBatch], shared: bool) -> tuple[float, bool]:
        """Add up loss and gradients of this process's rows, and say whether memory sufficed."""
        total = torch.zeros((), device=self._feed.device)
        try:
            with self._kernels if shared else contextlib.nullcontext():
                for part in parts:
                    losses = LOSSES[self._recipe.loss](self._logits(part.images), part.targets)
                    loss = losses.sum() / self._recipe.batch_size
                    self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                    total += loss.detach()
            return float(total), True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return 0.0, False  # out here, where nothing holds the failed step's tensors any more

    def _logits(self, images: Tensor) -> Tensor:
        device, dtype = self._feed.device, self._feed.dtype
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            with torch.set_grad_enabled(not self._options.freeze):
                features = self._features(images)
            return self._model.forward_head(features).float()

    def _sum(self, *values: float) -> list[float]:
        """Sums of numbers over all processes."""
        if self.crew.num_processes == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self._feed.device)
        dist.all_reduce(sums)
        return list(sums.tolist())

    def any_process(self, holds: bool) -> bool:
        """Whether it holds in any process; called by all of them."""
        return self._sum(float(holds)) != [0]

    def _halve(self) -> None:
        crop = self._recipe.crop
        if self._options.micro_batch or self.micro_batch == 1:
            raise TrainingError(
                f"Memory of the {self._feed.device.type} does not suffice for {self.micro_batch} "
                f"image(s) of {crop} x {crop} at once. Take a smaller "
                "micro-batch, bfloat16, recomputed norms, checkpointed blocks or smaller images."
            )
        self._optimizer.zero_grad()
        gc.collect()
        if self._feed.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_batch = -(-self.micro_batch // 2)
        _log.warning("Out of memory: going on with micro-batches of %d images.", self.micro_batch)

    def _require_finite(self, step: int, loss: float) -> None:
        # Scaled float16 gradients overflow now and then; the scaler leaves out such an update.
        if math.isfinite(loss) or (self._scaler.is_enabled() and self._scaler.get_scale() > 1):
            return
        raise TrainingError(
            f"The loss at step {step} must be a finite number, found {loss}. Lower the learning "
            f"rate (here {self._recipe.schedule.lr_at(step):g}) or take float32, and resume."
        )

    def _restore(self, state: Mapping[str, Tensor], start: Checkpoint) -> None:
        found = {name: tuple(tensor.shape) for name, tensor in start.state.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if found != wanted:
            diff = [f"- {name} {shape}" for name, shape in wanted.items() - found.items()]
            diff += [f"+ {name} {shape}" for name, shape in found.items() - wanted.items()]
            raise TensorMismatchError(
                f"{start.path} is of another network: missing (-) and extra (+) tensors "
                f"{', '.join(sorted(diff)[:8])}. Resume with the options that the run began with."
            )
        for name, tensor in state.items():
            tensor.detach().copy_(start.state[name])
        then, now = start.meta["loop"], self.facts()
        self.step = start.step
        self.micro_batch = self.micro_batch or then["micro_batch"]
        if self._scaler.is_enabled() and then["scaler"]:
            self._scaler.load_state_dict(then["scaler"])
        for name in ("processes", "threads", "device", "torch"):
            if then[name] != now[name]:
                _log.warning(
                    "The run had %s %s, now it has %s: it goes on, though not to the last bit as "
                    "if uninterrupted.",
                    name,
                    then[name],
                    now[name],
                )


def _layout(options: LoopOptions, device: torch.device) -> torch.memory_format:
    wanted = options.channels_last
    if wanted is None:  # CUDA's group normalization has no kernel for it and copies
        wanted = device.type == "cpu"
    return torch.channels_last if wanted else torch.contiguous_format


def _plan(recipe: Recipe, examples: int, seed: int) -> BatchPlan:
    return BatchPlan(
        examples,
        recipe.batch_size,
        recipe.resize,
        recipe.crop,
        recipe.flip,
        recipe.mixup_alpha,
        seed,
    )


def _optimizer(model: BiT, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained,
        lr=recipe.schedule.base_lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    for parameter in trained:  # as torch would make it from the first gradient, but there at once
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
