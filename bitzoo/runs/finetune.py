"""`finetune`: train a model on images by BiT-HyperRule."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bitzoo.catalogue.registry import find_spec, get_spec
from bitzoo.converters.open import open_source
from bitzoo.data.dataset import DataSource, ImageSet
from bitzoo.data.validation import DataSummary
from bitzoo.errors import UsageError
from bitzoo.fetch.hub_snapshot import is_hub_address
from bitzoo.files import Progress
from bitzoo.inference.backends import BACKENDS
from bitzoo.inference.optimize import chosen_device, require_backend
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.runs.config import Callbacks, FinetuneConfig, Resolution
from bitzoo.runs.job import Job
from bitzoo.runs.kinds import Kind
from bitzoo.runs.one_run import run_job
from bitzoo.runs.run_result import RunResult
from bitzoo.training.hyperrule import Edition, hyperrule
from bitzoo.training.model_selection import Keep
from bitzoo.training.recipe import Recipe
from bitzoo.zoo.create import create_model
from bitzoo.zoo.resolve import is_address, is_location, locate


@dataclass(frozen=True, repr=False)
class FinetuneResult(RunResult):
    """The outcome of a fine-tuning run."""


def finetune(
    model: str | os.PathLike[str],
    data: DataSource,
    out: str | os.PathLike[str],
    *,
    edition: Edition = "paper",
    pretrained: bool = True,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    mixup: float | None = None,
    resolution: Resolution = None,
    flip: bool | None = None,
    seed: int = 0,
    repeats: int = 1,
    val_fraction: float | None = None,
    group_by: str | None = None,
    drop_near_duplicates: bool = False,
    split_seed: int | None = None,
    eval_split: str | None = None,
    fixed_split: bool = False,
    examples_per_class: int | None = None,
    skip_bad: bool = False,
    recheck: bool = False,
    cache_gb: float = 20.0,
    workers: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    freeze: bool = False,
    backend: str = "eager",
    micro_batch: int | None = None,
    channels_last: bool | None = None,
    compile: bool = False,  # noqa: A002
    recompute_norms: bool = False,
    checkpoint_blocks: bool = False,
    checkpoint_every: int = 100,
    keep_checkpoints: int = 2,
    eval_every: int | None = None,
    class_weights: str | None = None,
    keep: Keep | None = None,
    patience: int | None = None,
    log: str | Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    time_limit: str | float | None = None,
    progress: Progress | bool | None = None,
    callbacks: Callbacks | None = None,
) -> FinetuneResult:
    """Fine-tune a model on images, by BiT-HyperRule (arXiv 1912.11370, section 3.3).

    `bitzoo finetune` does the same.

    Args:
        model: A catalogue name, a checkpoint file, or a run folder. The head of a run that was
            trained on the same classes in the same order is kept; any other head is replaced by a
            new one that starts at zero.
        data: A folder of class folders, a manifest, arrays or a Hugging Face data set; see
            `bitzoo.data.dataset.read_dataset`.
        out: The run folder. Only one run at a time can use it. If it is below `data`, it is no
            class of the data: run folders are left out.
        edition: HyperRule of the ``paper`` or of the ``released`` code.
        pretrained: False starts from random weights.
        steps: Length of training, in updates; the schedule keeps its shape. None, here and below,
            follows the rule.
        epochs: Length of training in passes over the training images, rounded up to whole steps;
            another way to say `steps`.
        batch_size: Images per step, split into micro-batches to fit memory.
        lr: Base learning rate.
        mixup: Alpha of MixUp; 0 for none.
        resolution: The crop in pixels, or (resize, crop).
        flip: Whether crops are mirrored at random.
        seed: Seed of everything random, in [0, 2**64).
        repeats: Number of runs in folders below `out`, each with the next seed.
        val_fraction: Validation fraction; None for 0.1 if the data has no split.
        group_by: What keeps images in one split that belong together, such as those of a person: a
            column of the data set; or a regular expression on the images' paths, whose first group
            names an image's group; or ``near-duplicates``. Data with a split are checked instead.
        drop_near_duplicates: Whether to drop training images that look like held-out ones; they
            are reported in any case.
        split_seed: Seed of the held-out choice; None is `seed`. Runs with other seeds then have the
            same held-out images.
        eval_split: Which split is held out of data with both a val and a test split: ``val`` or
            ``test``; None is val. The other is not used.
        fixed_split: Whether to use the data set's own splits exactly as they are, as benchmarks
            do: images that train and val have in common stay in both, classes that train lacks
            remain classes, and both are reported.
        examples_per_class: Few-shot: train on this many images per class, or all of them if there
            are fewer. Those of fewer images are among those of more.
        skip_bad: Whether to skip images that cannot be used.
        recheck: Whether to read and decode all images to check them, also those that earlier runs
            have checked and that are unchanged by size, time and inode.
        cache_gb: Most disk space for decoded images, in GB; 0 decodes at each step.
        workers: Processes that decode; None for one per core.
        dtype: Dtype of activations: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for a GPU if there is one.
        freeze: Whether to train only the head, on cached features (linear probe).
        backend: What computes these features, in `dtype`; see `bitzoo.optimize`. Only with
            `freeze`.
        micro_batch: Most images that a process computes at once; None for as many as fit.
        channels_last: Memory format; None for the faster one on a CPU, as measured, and contiguous
            elsewhere.
        compile: Whether to run through `torch.compile`.
        recompute_norms: Half the activation memory, a few percent slower.
        checkpoint_blocks: A quarter of the activation memory, for one more forward pass.
        checkpoint_every: Steps between checkpoints; 0 writes one only at the end.
        keep_checkpoints: Number of checkpoints to keep.
        eval_every: Steps between evaluations on the held-out images; 0 evaluates only at the end.
            None evaluates ten times, or less often where that would take more than a tenth of the
            time; see `bitzoo.training.model_selection.evaluation_interval`.
        class_weights: ``balanced`` weighs classes inversely to their number of images; None weighs
            all images equally, as BiT does. See `bitzoo.training.losses`.
        keep: ``last`` keeps the weights of the last step, as BiT does; ``best`` those with the
            highest top-1 accuracy on the held-out images, which makes that figure optimistic. None
            is ``best`` with `patience`, otherwise ``last``.
        patience: Stop after so many evaluations in a row without a better top-1 accuracy.
        log: Also log the metrics to ``tensorboard``, ``wandb`` or another of accelerate's trackers;
            one or several, or ``none``. None is TensorBoard if it is installed.
        resume: Continue the run in `out` from its newest complete checkpoint, if there is one. The
            options must be the same; `bitzoo.resume` needs none, and can change some.
        overwrite: Delete what a run wrote to `out` and start again; other files there stay.
        time_limit: For the whole call, with everything before and after training: ``30m``, ``2h``,
            or seconds. Steps first and then the resolution are reduced until the plan fits, by
            measured speeds; see `bitzoo.runs.time_limit`. It is no deadline. A run that goes on
            keeps the plan that it has.
        progress: Called with a task, how much of it is done, and how much there is. Or False for
            nothing; None for a live line in a terminal or a notebook, and nothing elsewhere; True
            for plain lines on stderr elsewhere. It holds for all that is called, downloads too.
        callbacks: Other callbacks during the run; its `progress`, if any, takes precedence.

    Returns:
        The folder, the recipe, and the evaluation on held-out images; with `repeats`, those of the
        run with the median top-1 accuracy, and all runs.

    Raises:
        DatasetError: If the data cannot be used for training; lists all problems at once.
        UsageError: If options contradict each other, `out` contains another run, or another
            process is using it; or if no plan fits the time limit.
        BitzooError: As `bitzoo.create_model` and `bitzoo.training.trainer.train` raise.
    """
    if repeats < 1:
        raise UsageError(f"`repeats` must be at least 1, found {repeats}.")
    if freeze:  # before the data are read
        where = chosen_device(device, backend)
        require_backend(backend, dtype, where)
        device = device or (where.type if BACKENDS[backend].devices else None)
    config = FinetuneConfig(
        seed=seed,
        dtype=dtype,
        freeze=freeze,
        backend=backend,
        micro_batch=micro_batch,
        channels_last=channels_last,
        compile=compile,
        recompute_norms=recompute_norms,
        checkpoint_blocks=checkpoint_blocks,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        eval_every=eval_every,
        keep=keep,
        patience=patience,
        device=device,
        edition=edition,
        pretrained=pretrained,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        mixup=mixup,
        resolution=resolution,
        flip=flip,
        val_fraction=val_fraction,
        group_by=group_by,
        drop_near_duplicates=drop_near_duplicates,
        split_seed=split_seed,
        eval_split=eval_split,
        fixed_split=fixed_split,
        examples_per_class=examples_per_class,
        skip_bad=skip_bad,
        recheck=recheck,
        cache_gb=cache_gb,
        workers=workers,
        class_weights=class_weights,
        log=log,
    )
    _rule(config, 1, (1, 1))  # what it refuses of any data, it refuses before they are read
    job = Job(os.fspath(model), data, config)
    result = run_job(
        *(job, Path(out), repeats, progress, callbacks),
        resume=resume,
        overwrite=overwrite,
        time_limit=time_limit,
    )
    assert isinstance(result, FinetuneResult)
    return result


def _with_a_model(job: Job) -> Job:
    """Refuse a name that is none, or a path with nothing there, before the data are read."""
    place = job.place or job.model
    if not is_location(place):
        get_spec(place)
    elif not (is_address(place) or is_hub_address(place)):
        path = locate(place).path
        if not path.exists():
            with open_source(path):  # the prefix of a TensorFlow checkpoint is no file
                pass
    return job


def _create(job: Job, images: ImageSet, callbacks: Callbacks) -> tuple[BiT, bool]:
    pretrained = _config_of(job).pretrained
    return network_from_weights(job, images.classes, callbacks, pretrained=pretrained)


def network_from_weights(
    job: Job, classes: tuple[str, ...], callbacks: Callbacks, *, pretrained: bool
) -> tuple[BiT, bool]:
    """Create the network; the head is new, unless it is that of a run with the same classes.

    Random weights depend only on the seed.

    Args:
        job: The job, whose model it is.
        classes: Names of the classes that it is to have.
        callbacks: Told what becomes of the head.
        pretrained: Whether to load the weights.

    Returns:
        The network, and whether it has the head of its weights.
    """
    place, config = job.place or job.model, job.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = create_model(place, pretrained, num_classes=len(classes))
    if not isinstance(network, BiT):
        raise UsageError(f"{job.model}: expected a classifier to fine-tune.")
    known = network.info.class_names if network.info.run else None
    if pretrained and known is not None:
        if known == classes:
            callbacks.say(f"The head of {job.model} is kept: its classes are the same.")
            return network, True
        order = " in another order" if sorted(known) == sorted(classes) else ""
        callbacks.say(
            f"The head of {job.model} is replaced by a new one that starts at zero: its classes "
            f"are {'the same' + order if order else 'others'}."
        )
    network.reset_classifier(len(classes))  # also where the count is the file's own
    network.info = network.info.with_head(len(classes))
    return network, False


def _plan(
    job: Job, images: ImageSet, summary: DataSummary, network: BiT, is_head_kept: bool
) -> Recipe:
    recipe = _recipe(job, images, summary.resolution, network.architecture)
    return replace(recipe, head="kept") if is_head_kept else recipe


def _expect(job: Job, images: ImageSet, size: tuple[int, int]) -> Recipe:
    known = find_spec(job.model)  # only R152x4 has a rule of its own
    return _recipe(job, images, size, known.arch_name if known else None)


def _recipe(
    job: Job, images: ImageSet, size: tuple[int, int], architecture: Architecture | str | None
) -> Recipe:
    return _rule(
        _config_of(job),
        len(images.train),
        size,
        architecture,
        flip="flip" not in images.label_changing,
        crop="crop" not in images.label_changing,
    )


def _rule(
    config: FinetuneConfig,
    num_examples: int,
    size: tuple[int, int],
    architecture: Architecture | str | None = None,
    **allowed: bool,
) -> Recipe:
    """Return HyperRule's recipe with the numbers that were asked for.

    Args:
        config: The options.
        num_examples: Number of training images.
        size: Their height and width.
        architecture: The network's.
        **allowed: Whether `flip` and `crop` leave labels as they are.
    """
    rule = hyperrule(num_examples, size, config.edition, architecture, **allowed)
    resize, crop = config.resize_and_crop
    return rule.override(
        steps=config.steps,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        mixup=config.mixup,
        resize=resize,
        crop=crop,
        flip=config.flip,
        class_weights=config.class_weights,
    )


def _config_of(job: Job) -> FinetuneConfig:
    assert isinstance(job.config, FinetuneConfig)
    return job.config


KIND = Kind(
    config=FinetuneConfig,
    result=FinetuneResult,
    create=_create,
    begin=_with_a_model,
    plan=_plan,
    identity=lambda job: {"pretrained": _config_of(job).pretrained},
    expect=_expect,
)
