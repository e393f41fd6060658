"""Measure how fast a run will be, before it begins, and leave no trace of it.

A few images of random pixels go through the very network, forward and backward, as the trainer will
do it; as many as a few seconds allow. No weight changes, no random number of the run is drawn, and
nothing is written: a run with and without a rehearsal has the same weights, bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from bitzoo.data.dataset import Split
from bitzoo.data.decode_workers import Decoder, Pixels8, count_cores
from bitzoo.data.image_store import Pixels
from bitzoo.data.inception_crop import CropKey
from bitzoo.data.loader import Labels, materialize
from bitzoo.errors import BitzooError
from bitzoo.inference.processes import in_main_process, local_processes, process_device
from bitzoo.inference.runner import Runner
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.runs.estimate import Speeds
from bitzoo.training.batches import batch_plan
from bitzoo.training.linear_probe import train_head
from bitzoo.training.memory_layout import MemoryLayout, choose_layout
from bitzoo.training.micro_batch_size import fitting
from bitzoo.training.optimizers import OPTIMIZERS
from bitzoo.training.recipe import INCEPTION_CROP, Recipe
from bitzoo.training.requirements import check_training
from bitzoo.training.schedule import Schedule
from bitzoo.training.trainer import Trainer
from bitzoo.training.training_config import TrainingConfig
from bitzoo.training.training_form import training_form

PASS_SECONDS = 2.0
"""About how long the longest measured pass takes: there are some, and the estimate of R50x1 at 384
pixels is to be there half a minute after the command was given."""
SAMPLE = 8
"""Most images that are decoded, or prepared, to see how long it takes."""
_JUDGED_AT_ONCE = 64
"""Images of a batch in an evaluation, and when features are computed."""
_SAMPLED_BYTES = 64 << 20
"""Bytes of parameters whose update is measured; that of all is in proportion."""
_LIVE_MAPS = 3
"""The largest maps that inference holds at a time: a unit's input, a copy of it, and its output."""


@dataclass(frozen=True)
class Rehearsal:
    """What was measured.

    Attributes:
        speeds: The speeds.
        layout: The memory format that was chosen, for the run; None if only the head is trained.
        checkpoint_bytes: Size of a checkpoint; 0 if only the head is trained.
        model_bytes: Size of the weights.
        how: How the speeds are known, as a phrase.
    """

    speeds: Speeds
    layout: MemoryLayout | None
    checkpoint_bytes: int
    model_bytes: int
    how: str


def rehearse(
    model: BiT,
    recipe: Recipe,
    labels: Labels,
    examples: int,
    config: TrainingConfig,
    *,
    images_left: int,
    layout: MemoryLayout | None = None,
    teacher: Callable[[Tensor], Tensor] | None = None,
    decoded_at_use: float = 0.0,
) -> Rehearsal:
    """Measure the passes of a run; in all processes, which get the same speeds.

    Args:
        model: The network.
        recipe: The plan.
        labels: As for `bitzoo.training.trainer.train`.
        examples: Number of training images.
        config: How to train.
        images_left: Images that a process has to train on until the end.
        layout: The memory format, if it is known, as that of a run that is resumed.
        teacher: As for `bitzoo.training.trainer.train`.
        decoded_at_use: Seconds that decoding an image takes, if that is done at each use.
    """
    device = process_device(config.device)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    if config.freeze:
        model.to(device)
        own = in_main_process(lambda: _of_head(model, recipe, config, device, examples))
        begun, judged, count, head = own
        speeds = Speeds(judged=judged + decoded_at_use, begun=begun, head=head, images=count)
        memory = weights + _maps_of_inference(model, recipe.crop, min(_JUDGED_AT_ONCE, examples))
        speeds = replace(speeds, memory_bytes=_memory(memory, device))
        return Rehearsal(speeds, None, 0, weights, _how(count, judged * count, "forward pass"))
    blank = _Blank(examples, recipe)
    check_training(model, recipe, blank, labels, has_teacher=teacher is not None)
    plain = replace(config, compile=False)  # compiling takes longer than a rehearsal may
    with training_form(model, plain):
        trainer = Trainer(model, recipe, blank, labels, plain, teacher)
        rows = max(1, recipe.batch_size // trainer.processes.num_processes)
        each = in_main_process(trainer.image_bytes)
        micro = config.micro_batch or in_main_process(lambda: fitting(each, rows, device))
        most = min(micro, rows)
        layout, seconds, count = _passes(trainer, config, device, images_left, most, layout)
        state = trainer.state()
        stored = sum(tensor.nbytes for tensor in state.values())
    fed = in_main_process(lambda: _fed(recipe, model.num_classes, device, config.seed))
    if device.type == "cpu":  # its threads and those of the passes share the cores
        trained = seconds / count + fed / count_cores() + decoded_at_use
    else:
        trained = max(seconds / count, fed / 2, decoded_at_use)
    begun, judged = in_main_process(lambda: _judging(model, recipe.crop, device))
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    maps = max(most * each, weights + _maps_of_inference(model, recipe.crop, _JUDGED_AT_ONCE))
    speeds = Speeds(
        trained=trained,
        update=in_main_process(lambda: _update(model, recipe)),
        judged=judged,
        begun=begun,
        taught=in_main_process(lambda: _taught(teacher, recipe.crop, device)),
        images=count,
        memory_bytes=_memory(stored - weights + gradients + maps, device, weights),
    )
    how = _how(count, seconds, "forward and backward pass")
    if config.compile:
        how += ", without `compile`"
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the trainer takes its micro-batch from what is free
    return Rehearsal(speeds, layout, stored, weights, how)


def _passes(
    trainer: Trainer,
    config: TrainingConfig,
    device: torch.device,
    images_left: int,
    most: int,
    known: MemoryLayout | None,
) -> tuple[MemoryLayout, float, int]:
    """Return memory format, seconds of a pass and its number of images; in all processes."""
    fewest = trainer.fewest
    fixed = known or trainer.layout
    is_free = known is None and config.channels_last is None and device.type == "cpu"
    if is_free and not config.compile:
        fixed = choose_layout(
            *(trainer.time_pass, images_left),
            fewest=fewest,
            most=most,
            can_fuse=trainer.can_fuse,
            pass_seconds=PASS_SECONDS,
        )
    measured = fixed.pass_seconds
    if known is None and fixed.is_compared and measured is not None:
        count, seconds = fixed.images, measured
    else:  # what an earlier session has measured is of another time
        count = fewest
        trainer.time_pass(fixed, count)
        seconds = trainer.time_pass(fixed, count)
    while count < most and seconds < PASS_SECONDS / 2:
        room = PASS_SECONDS / max(seconds, 1e-6)
        count = min(most, max(count + 1, int(count * min(room, 8))))
        seconds = trainer.time_pass(fixed, count)
    if not math.isfinite(seconds):
        count = fewest
        seconds = trainer.time_pass(fixed, count)
    return fixed, seconds, count


def _judging(model: BiT, crop: int, device: torch.device) -> tuple[float, float]:
    begun, judged, _ = _inference(model, crop, device)
    return begun, judged


def _inference(
    model: BiT, crop: int, device: torch.device, most: int = _JUDGED_AT_ONCE
) -> tuple[float, float, int]:
    """Return seconds before the first image, seconds per image, and images of a pass."""
    start = time.perf_counter()
    runner = Runner(model, device, torch.float32)
    begun = time.perf_counter() - start
    pixels = np.random.default_rng(0).integers(0, 256, (1, crop, crop, 3), np.uint8)
    runner(pixels)
    count, seconds = 1, _seconds(lambda: runner(pixels))
    while count < most and seconds < PASS_SECONDS / 4:
        room = PASS_SECONDS / 2 / max(seconds, 1e-6)
        count = min(most, max(count + 1, int(count * min(room, 8))))
        batch = np.repeat(pixels, count, axis=0)
        seconds = _seconds(lambda batch=batch: runner(batch))  # type: ignore[misc]
    return begun, seconds / count, count


def _of_head(
    model: BiT, recipe: Recipe, config: TrainingConfig, device: torch.device, examples: int
) -> tuple[float, float, int, float]:
    begun, judged, count = _inference(model, recipe.crop, device)
    return begun, judged, count, head_step(model, recipe, config, examples)


def head_step(model: BiT, recipe: Recipe, config: TrainingConfig, examples: int) -> float:
    """Return the seconds of an update of the head alone, on cached features."""
    stand_in = copy.copy(model)
    stand_in._modules = {**model._modules, "head": copy.deepcopy(model.head)}
    count = min(examples, 2048)
    short = replace(recipe, schedule=Schedule(recipe.schedule.base_lr, 4), loss_options={})
    ends: list[float] = []
    train_head(
        stand_in,
        short,
        torch.zeros(count, model.num_features),
        np.zeros(count, np.int64),
        replace(config, eval_every=0, keep=None, patience=None),
        lambda metrics: ends.append(time.perf_counter()),
    )
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _taught(teacher: Callable[[Tensor], Tensor] | None, crop: int, device: torch.device) -> float:
    if teacher is None:
        return 0.0
    images = torch.zeros(1, 3, crop, crop, device=device)
    with torch.no_grad():
        teacher(images)
        return _seconds(lambda: float(teacher(images).sum()))


def _update(model: BiT, recipe: Recipe) -> float:
    """Return the seconds of an update of all parameters, measured on copies of some."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    chosen, taken = list[Tensor](), 0
    for parameter in model.parameters():
        if taken < _SAMPLED_BYTES:
            chosen.append(parameter.detach().clone().requires_grad_())
            taken += parameter.nbytes
    optimizer = OPTIMIZERS[recipe.optimizer]([{"params": chosen}], recipe)
    for tensor in chosen:
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    return _seconds(lambda: optimizer.step()) * total / taken


def _fed(recipe: Recipe, classes: int, device: torch.device, seed: int) -> float:
    """Return the seconds that preparing an image takes whose decoded pixels are at hand."""
    count = min(SAMPLE, recipe.batch_size)
    plan = batch_plan(replace(recipe, batch_size=count), count, seed)
    blank, labels = _Blank(count, recipe), np.zeros(count, np.int64)
    batch = plan.batch(0)

    def prepare() -> None:
        materialize(batch, slice(0, count), blank, labels, classes, recipe.crop, device)

    prepare()
    return _seconds(prepare) / count


def decoding_seconds(
    split: Split, size: int | EvalTransform, recipe: Recipe | None, workers: int | None
) -> float:
    """Return the seconds per image of decoding a split, by all workers of this machine.

    A few images are decoded, into memory alone.

    Args:
        split: The images.
        size: As for `bitzoo.data.image_store.open_pixels`.
        recipe: Whose random crops are taken of whole images; None for those of fixed squares.
        workers: How many decode at a time; None is one per core.

    Returns:
        0.0 if the images cannot be decoded, which the run will report.
    """
    step = max(1, len(split) // SAMPLE)
    examples = [split.examples[row] for row in range(0, len(split), step)][:SAMPLE]
    decoder = Decoder(size, 1, use_processes=False)
    crop = CropKey(0, 0, 0) if recipe and recipe.augmentation == INCEPTION_CROP else None
    try:
        decoder.decode(examples[0], crop)
        seconds = _seconds(lambda: [decoder.decode(example, crop) for example in examples])
    except BitzooError:
        return 0.0
    finally:
        decoder.close()
    share = workers or max(1, count_cores() // local_processes())
    return seconds / len(examples) / min(share, count_cores())


class _Blank(Pixels):
    """Gray images that are nowhere."""

    def __init__(self, count: int, recipe: Recipe) -> None:
        self.size, self._count = recipe.resize, count
        self.are_whole = recipe.augmentation == INCEPTION_CROP
        self._image = np.full((self.size, self.size, 3), 127, np.uint8)

    def __len__(self) -> int:
        return self._count

    def rows(self, indices: npt.ArrayLike) -> Sequence[Pixels8]:
        return [self._image] * len(np.ravel(indices))

    def crops(self, indices: npt.ArrayLike, keys: Sequence[CropKey]) -> Sequence[Pixels8]:
        return self.rows(indices)

    def close(self) -> None: ...


def _maps_of_inference(model: BiT, crop: int, images: int) -> int:
    """Return the bytes of the largest maps, those of the first block, in float32."""
    channels = model.architecture.block_channels(1)
    return _LIVE_MAPS * images * (-(-crop // 4)) ** 2 * channels * 4


def _memory(more: int, device: torch.device, weights: int = 0) -> int:
    """Return the memory of this process with so much more; on a GPU, that of the GPU."""
    if device.type == "cpu":
        return int(psutil.Process().memory_info().rss) + more
    return weights + more


def _how(count: int, seconds: float, what: str) -> str:
    images = f"{count:,} image{'' if count == 1 else 's'}"
    time_ = f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"a {what} of {images} just now ({time_}), with whatever else the machine does"


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
