"""`pretrain`: train a network from random weights by a pre-training recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bitzoo.data.dataset import DataSource, ImageSet, Split, fingerprint
from bitzoo.data.examples import pick
from bitzoo.data.label_sets import label_sets_of
from bitzoo.data.validation import DataSummary
from bitzoo.errors import UsageError
from bitzoo.files import Progress
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.runs.config import Callbacks, PretrainConfig
from bitzoo.runs.job import Job
from bitzoo.runs.kinds import KEY, Kind
from bitzoo.runs.one_run import run_job
from bitzoo.runs.run_result import RunResult
from bitzoo.training.pretraining import RecipeName, pretraining
from bitzoo.training.recipe import Recipe


@dataclass(frozen=True, repr=False)
class PretrainResult(RunResult):
    """The outcome of a pre-training run."""


def pretrain(
    arch: str,
    data: DataSource,
    out: str | os.PathLike[str],
    *,
    recipe: RecipeName = "bit-s",
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    mixup: float | None = None,
    resolution: int | None = None,
    flip: bool | None = None,
    seed: int = 0,
    val_fraction: float | None = None,
    group_by: str | None = None,
    drop_near_duplicates: bool = False,
    split_seed: int | None = None,
    eval_split: str | None = None,
    fixed_split: bool = False,
    fraction: float | None = None,
    skip_bad: bool = False,
    recheck: bool = False,
    cache_gb: float = 20.0,
    workers: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    micro_batch: int | None = None,
    channels_last: bool | None = None,
    compile: bool = False,  # noqa: A002
    recompute_norms: bool = False,
    checkpoint_blocks: bool = False,
    checkpoint_every: int = 100,
    keep_checkpoints: int = 2,
    eval_every: int | None = None,
    log: str | Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    time_limit: str | float | None = None,
    progress: Progress | bool | None = None,
    callbacks: Callbacks | None = None,
) -> PretrainResult:
    """Pre-train a network from random weights, by BiT's recipe (arXiv 1912.11370, section 3.2).

    The run folder is a model as any other: `create_model`, `finetune`, `publish` and `convert` take
    it. Its weights are a new training by the recipe, not Google's.

    `bitzoo pretrain` does the same.

    Args:
        arch: Name of the architecture, such as ``R50x1``, or ``R(1,1,1,1)x0.5`` for units per
            block and a width.
        data: As for `bitzoo.finetune`. Images may have several labels, with recipes whose loss is a
            sigmoid.
        out: The run folder. Only one run at a time can use it.
        recipe: ``bit-s``, ``bit-m`` or ``bit-l`` of the paper, or ``big_vision``, which is their
            authors' later code; see `bitzoo.training.pretraining`.
        steps: Length of training, in updates; the schedule keeps its shape. None, here and below,
            follows the recipe.
        epochs: Length of training in passes over the training images; another way to say `steps`.
        batch_size: Images per step, split into micro-batches to fit memory. The learning rate is in
            proportion, and the epochs stay.
        lr: Base learning rate.
        weight_decay: Weight decay.
        mixup: Alpha of MixUp; 0 for none.
        resolution: Edge of the crops in pixels, at least 32. The shorter side of test images keeps
            its ratio to it.
        flip: Whether crops are mirrored at random.
        seed: Seed of everything random, the weights included, in [0, 2**64).
        val_fraction: As for `bitzoo.finetune`, and so the next five.
        group_by: What keeps images in one split that belong together.
        drop_near_duplicates: Whether to drop training images that look like held-out ones.
        split_seed: Seed of the held-out choice; None is `seed`.
        eval_split: Which split is held out of data with both a val and a test split.
        fixed_split: Whether to use the data set's own splits exactly as they are.
        fraction: Share of the training images to use, above 0 and at most 1; those of a smaller
            share are among those of a larger one of the same seed. None is all.
        skip_bad: Whether to skip images that cannot be used.
        recheck: As for `bitzoo.finetune`.
        cache_gb: Most disk space for decoded held-out images, in GB. Training images are decoded at
            each use, as each use takes another crop.
        workers: Processes that decode; None for one per core.
        dtype: Dtype of activations: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for a GPU if there is one.
        micro_batch: Most images that a process computes at once; None for as many as fit.
        channels_last: Memory format; None for the faster one on a CPU, as measured, and contiguous
            elsewhere.
        compile: Whether to run through `torch.compile`.
        recompute_norms: Half the activation memory, a few percent slower.
        checkpoint_blocks: A quarter of the activation memory, for one more forward pass.
        checkpoint_every: Steps between checkpoints; 0 writes one only at the end.
        keep_checkpoints: Number of checkpoints to keep.
        eval_every: As for `bitzoo.finetune`.
        log: As for `bitzoo.finetune`.
        resume: Continue the run in `out` from its newest complete checkpoint, if there is one. The
            options must be the same; `bitzoo.resume` needs none, and can change some.
        overwrite: Delete what a run wrote to `out` and start again; other files there stay.
        time_limit: As for `bitzoo.finetune`.
        progress: As for `bitzoo.finetune`.
        callbacks: Other callbacks during the run.

    Returns:
        The folder, the recipe, and the evaluation on held-out images. With several labels an image,
        a prediction counts as right if it is any of them.

    Raises:
        ArchitectureError: If there is no such architecture.
        DatasetError: If the data cannot be used for training; lists all problems at once.
        UsageError: If options contradict each other, `out` contains another run, or another
            process is using it.
        BitzooError: As `bitzoo.training.trainer.train` raises.
    """
    name = Architecture.parse(arch).name
    config = PretrainConfig(
        seed=seed,
        dtype=dtype,
        micro_batch=micro_batch,
        channels_last=channels_last,
        compile=compile,
        recompute_norms=recompute_norms,
        checkpoint_blocks=checkpoint_blocks,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        eval_every=eval_every,
        device=device,
        recipe=recipe,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        mixup=mixup,
        resolution=resolution,
        flip=flip,
        val_fraction=val_fraction,
        group_by=group_by,
        drop_near_duplicates=drop_near_duplicates,
        split_seed=split_seed,
        eval_split=eval_split,
        fixed_split=fixed_split,
        fraction=fraction,
        skip_bad=skip_bad,
        recheck=recheck,
        cache_gb=cache_gb,
        workers=workers,
        log=log,
    )
    _rule(config, 1)  # what it refuses of any data, it refuses before they are read
    job = Job(name, data, config)
    result = run_job(
        *(job, Path(out), 1, progress, callbacks),
        resume=resume,
        overwrite=overwrite,
        time_limit=time_limit,
    )
    assert isinstance(result, PretrainResult)
    return result


def random_network(architecture: Architecture, num_classes: int, seed: int) -> BiT:
    """Return a network of random weights, which depend only on the seed; its head is zero."""
    network = BiT(architecture, num_classes)
    network.init_weights(torch.Generator().manual_seed(seed))
    return network


def start_head(network: BiT, bias: float) -> None:
    """Give each bias of the head the value at which it starts (`Recipe.head_bias`)."""
    found = network.get_classifier().bias
    assert isinstance(found, torch.Tensor)
    torch.nn.init.constant_(found, bias)


def choose_fraction(images: ImageSet, fraction: float, seed: int) -> ImageSet:
    """Keep a share of the training images: nested for one seed, at least one image.

    Args:
        images: The data set.
        fraction: Share to keep, above 0 and at most 1, rounded to the nearest image.
        seed: The run's seed.
    """
    train = images.train
    order = np.random.default_rng([seed, _FRACTION]).permutation(len(train))
    kept = np.sort(order[: max(1, round(fraction * len(train)))])
    part = Split(train.name, pick(train.examples, kept))
    note = (
        f"Trained on {len(part):,} of {len(train):,} training images, chosen at random: "
        f"`fraction={fraction:g}`."
    )
    # As for a few-shot choice: a split that was drawn from more images cannot be drawn again.
    drawn = images.draw and replace(images.draw, positions=None)
    chosen = replace(images, train=part, draw=drawn, notes=(*images.notes, note))
    return replace(chosen, fingerprint=fingerprint(chosen))


_FRACTION = 0xF2AC
"""Keeps the choice of images apart from other draws of the same seed."""


def _create(job: Job, images: ImageSet, callbacks: Callbacks) -> tuple[BiT, bool]:
    architecture = Architecture.parse(job.model)
    return random_network(architecture, len(images.classes), job.config.seed), False


def _select(job: Job, images: ImageSet) -> ImageSet:
    config = _config_of(job)
    if config.fraction is None:
        return images
    return choose_fraction(images, config.fraction, config.seed)


def _plan(
    job: Job, images: ImageSet, summary: DataSummary, network: BiT, is_head_kept: bool
) -> Recipe:
    recipe = _recipe(job, images)
    if recipe.head_bias:
        start_head(network, recipe.head_bias)
    return recipe


def _recipe(job: Job, images: ImageSet) -> Recipe:
    config = _config_of(job)
    several = any(label_sets_of(split).single is None for split in images.splits)
    keeps_sides = "flip" in images.label_changing
    return _rule(config, len(images.train), several=several, keeps_sides=keeps_sides)


def _rule(
    config: PretrainConfig, num_examples: int, *, several: bool = False, keeps_sides: bool = False
) -> Recipe:
    """Return the recipe with the numbers that were asked for.

    Args:
        config: The options.
        num_examples: Number of training images.
        several: Whether images may have several labels.
        keeps_sides: Whether mirroring would change labels.
    """
    rule = pretraining(
        config.recipe,  # type: ignore[arg-type]
        num_examples,
        batch_size=config.batch_size,
        several=several,
    )
    if keeps_sides:
        rule = replace(rule, flip=False, notes=(*rule.notes, _NO_FLIP))
    resize, crop = config.resize_and_crop
    if resize not in (None, crop):
        raise UsageError(
            f"`resolution` of pre-training is the edge of the crops alone, found {resize} and "
            f"{crop}. Give only {crop}."
        )
    return rule.override(
        steps=config.steps,
        epochs=config.epochs,
        lr=config.lr,
        weight_decay=config.weight_decay,
        mixup=config.mixup,
        crop=crop,
        flip=config.flip,
    )


_NO_FLIP = "No mirroring: it would change labels of these data."


def _config_of(job: Job) -> PretrainConfig:
    assert isinstance(job.config, PretrainConfig)
    return job.config


KIND = Kind(
    config=PretrainConfig,
    result=PretrainResult,
    create=_create,
    plan=_plan,
    identity=lambda job: {KEY: PretrainConfig.kind, "pretrained": False},
    select=_select,
    expect=lambda job, images, size: _recipe(job, images),
)
