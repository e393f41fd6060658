"""`distill`: train a student to be the same function as its teachers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitzoo.catalogue.registry import find_spec
from bitzoo.data.dataset import DataSource, ImageSet
from bitzoo.data.unlabelled import read_unlabelled
from bitzoo.data.validation import DataSummary, inspect
from bitzoo.errors import ArchitectureError, UsageError
from bitzoo.files import Progress, user_path
from bitzoo.inference.processes import process_device
from bitzoo.inference.truth import task_of
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.runs.config import Callbacks, DistillConfig
from bitzoo.runs.finetune import network_from_weights
from bitzoo.runs.job import Job
from bitzoo.runs.kinds import KEY, Kind
from bitzoo.runs.one_run import read_images, run_job
from bitzoo.runs.pretrain import random_network
from bitzoo.runs.run_result import RunResult
from bitzoo.runs.teachers import Faculty, fast_dtype, in_outputs, load_teachers
from bitzoo.runs.teaching import Teaching
from bitzoo.training.distillation_presets import distillation_recipe
from bitzoo.training.recipe import Recipe
from bitzoo.zoo.resolve import is_location

Place = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class DistillResult(RunResult):
    """The outcome of a distillation.

    Attributes:
        teaching: The teachers, and how the student compares with them; None if it was stopped.
    """

    teaching: Teaching | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What else to say beside the accuracy."""
        verdict = self.teaching.verdict if self.teaching else ""
        return (verdict,) if verdict else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return super().to_dict() | {"teaching": self.teaching.to_dict() if self.teaching else None}

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        return super().display_rows() + (list(self.teaching.rows()) if self.teaching else [])


def distill(
    teacher: Place | Sequence[Place],
    student: Place,
    data: DataSource,
    out: Place,
    *,
    preset: str | None = None,
    temperature: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    mixup: float | None = None,
    resolution: int | None = None,
    flip: bool | None = None,
    unlabelled: bool = False,
    teacher_dtype: str | None = None,
    seed: int = 0,
    val_fraction: float | None = None,
    group_by: str | None = None,
    drop_near_duplicates: bool = False,
    split_seed: int | None = None,
    eval_split: str | None = None,
    fixed_split: bool = False,
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
) -> DistillResult:
    """Distill teachers into a student by function matching (arXiv 2106.05237).

    Both see the same pixels in every step: one random crop, mirrored or not, mixed with another
    (MixUp). The loss is the divergence of the student's distribution over the classes from the
    teachers', and nothing else: labels are not trained on, only used to measure. The student's
    classes are the teachers'. Both see images of one resolution.

    The run folder is a model as any other; its record names the teachers, their files' SHA-256 and
    the temperature.

    `bitzoo distill` does the same.

    Args:
        teacher: A catalogue name, a checkpoint, or a run folder; or several of these, of the same
            classes, whose logits are averaged.
        student: Name of an architecture, such as ``R50x1``, which starts from random weights; or a
            model to start from, which helps only short runs (in the paper up to 300 epochs of
            ImageNet).
        data: As for `bitzoo.finetune`; its classes must be the teacher's, or some of them.
        out: The run folder. Only one run at a time can use it.
        preset: A published run, see `bitzoo.training.distillation_presets`: ``flowers-fast``,
            ``pet-medium``, ``imagenet``. None needs `steps` or `epochs`.
        temperature: What the logits of both sides are divided by. None, here and below, follows the
            preset.
        steps: Length of training, in updates; the schedule keeps its shape.
        epochs: Length of training in passes over the training images; another way to say `steps`.
        batch_size: Images per step, split into micro-batches to fit memory; a preset keeps its
            epochs.
        lr: Base learning rate.
        weight_decay: What a step at the base learning rate takes of the kernels, as published.
        mixup: Alpha of MixUp; 0 for none.
        resolution: Edge of the crops in pixels, at least 32, of teacher and student. The shorter
            side of test images keeps its ratio to it.
        flip: Whether crops are mirrored at random.
        unlabelled: Train on the images alone: every image of a folder, or the training split of
            other data. Nothing is held out, and nothing is measured.
        teacher_dtype: What the teachers compute in: ``float32``, ``bfloat16`` or ``float16``. None
            is bfloat16 on NVIDIA GPUs with units for it, float32 elsewhere.
        seed: Seed of everything random, the student's weights included, in [0, 2**64).
        val_fraction: As for `bitzoo.finetune`, and so the next five.
        group_by: What keeps images in one split that belong together.
        drop_near_duplicates: Whether to drop training images that look like held-out ones.
        split_seed: Seed of the held-out choice; None is `seed`.
        eval_split: Which split is held out of data with both a val and a test split.
        fixed_split: Whether to use the data set's own splits exactly as they are.
        skip_bad: Whether to skip images that cannot be used.
        recheck: As for `bitzoo.finetune`.
        cache_gb: Most disk space for decoded held-out images, in GB. Training images are decoded at
            each use, as each use takes another crop.
        workers: Processes that decode; None for one per core.
        dtype: Dtype of the student's activations: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for a GPU if there is one.
        micro_batch: Most images that a process computes at once; None for as many as fit.
        channels_last: Memory format; None for the faster one on a CPU, as measured, and contiguous
            elsewhere.
        compile: Whether to run the student through `torch.compile`.
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
        The folder, the recipe, the evaluation on held-out images, and how the student compares with
        its teachers there.

    Raises:
        DatasetError: If the data cannot be used for training, or have other classes.
        UsageError: If a teacher cannot be one, options contradict each other, `out` contains
            another run, or another process is using it.
        BitzooError: As `bitzoo.create_model` and `bitzoo.training.trainer.train` raise.
    """
    names = [teacher] if isinstance(teacher, (str, os.PathLike)) else list(teacher)
    teachers = tuple(os.fspath(name) for name in names)
    name = os.fspath(student)
    if not (_architecture(name) or is_location(name) or find_spec(name)):
        raise UsageError(
            f"The student must be an architecture, such as R50x1, or a model to start from, found "
            f"{name!r}, which is neither. Architectures are named by depth and width, as R101x3, "
            "or by units per block, as R(1,1,1,1)x0.5."
        )
    config = DistillConfig(
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
        skip_bad=skip_bad,
        recheck=recheck,
        cache_gb=cache_gb,
        workers=workers,
        log=log,
        teacher=teachers,
        teacher_places=tuple(map(_place, teachers)),
        teacher_dtype=teacher_dtype or fast_dtype(process_device(device)),
        preset=preset,
        temperature=temperature,
        weight_decay=weight_decay,
        unlabelled=unlabelled,
    )
    _rule(config, 1)  # what it refuses, it refuses before teachers and data are read
    job = Job(name, data, config)
    result = run_job(
        *(job, Path(out), 1, progress, callbacks),
        resume=resume,
        overwrite=overwrite,
        time_limit=time_limit,
    )
    assert isinstance(result, DistillResult)
    return result


def _place(teacher: str) -> str:
    """Return where a teacher is, whatever the working folder; names and addresses stay."""
    place = user_path(teacher)
    return os.path.abspath(place) if is_location(teacher) and place.exists() else teacher


def _begin(job: Job) -> Job:
    config = _config_of(job)
    faculty = load_teachers(config.teacher, config.teacher_places, str(config.teacher_dtype))
    return replace(job, faculty=faculty)


def _read(job: Job, callbacks: Callbacks) -> tuple[ImageSet, DataSummary]:
    config, faculty = _config_of(job), _faculty_of(job)
    if config.unlabelled:
        images, summary = inspect(
            read_unlabelled(job.data, progress=callbacks.progress),
            skip_bad=config.skip_bad,
            workers=config.workers,
            progress=callbacks.progress,
            training=False,
            keep_checks=True,
            recheck=config.recheck,
        )
        notes = faculty.notes
        images = replace(images, source=job.data_name or images.source)
    else:
        images, summary = read_images(job, callbacks)
        images, more = in_outputs(images, faculty.space, task_of(job.data))
        notes = (*more, *faculty.notes)
    return images, replace(summary, notes=(*summary.notes, *notes))


def _create(job: Job, images: ImageSet, callbacks: Callbacks) -> tuple[BiT, bool]:
    classes = _faculty_of(job).classes_of(images)
    if (architecture := _architecture(job.model)) is not None:
        return random_network(architecture, len(classes), job.config.seed), False
    return network_from_weights(job, classes, callbacks, pretrained=True)


def _architecture(student: str) -> Architecture | None:
    """Return the architecture that a student is the name of; None for a model to start from."""
    try:
        return Architecture.parse(student)
    except ArchitectureError:
        return None


def _plan(
    job: Job, images: ImageSet, summary: DataSummary, network: BiT, is_head_kept: bool
) -> Recipe:
    recipe = _recipe(job, images)
    return replace(recipe, head="kept") if is_head_kept else recipe


def _recipe(job: Job, images: ImageSet) -> Recipe:
    config = _config_of(job)
    recipe = _rule(config, len(images.train))
    notes = [*recipe.notes]
    if config.flip is None and "flip" in images.label_changing:
        recipe = replace(recipe, flip=False)
        notes.append("No mirroring: mirrored, an image of these data would be of another class.")
    if _architecture(job.model) is None:
        notes.append(
            f"The student starts from {job.model}. In the paper such a start helps only short "
            "runs: up to 300 epochs of ImageNet it is ahead of random weights, from 600 on behind."
        )
    return replace(recipe, notes=tuple(notes))


def _rule(config: DistillConfig, num_examples: int) -> Recipe:
    _, crop = config.resize_and_crop
    return distillation_recipe(
        config.preset,
        num_examples,
        teachers=len(config.teacher),
        steps=config.steps,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        temperature=config.temperature,
        mixup=config.mixup,
        crop=crop,
        flip=config.flip,
    )


def _identity(job: Job) -> dict[str, Any]:
    records = _faculty_of(job).records
    return {
        KEY: DistillConfig.kind,
        "pretrained": _architecture(job.model) is None,
        "teachers": [{"sha256": each.sha256, "dtype": each.dtype} for each in records],
        "unlabelled": _config_of(job).unlabelled,
    }


def _config_of(job: Job) -> DistillConfig:
    assert isinstance(job.config, DistillConfig)
    return job.config


def _faculty_of(job: Job) -> Faculty:
    if job.faculty is None:
        raise UsageError("Distillation needs a teacher, found none. Name at least one.")
    return job.faculty


KIND = Kind(
    config=DistillConfig,
    result=DistillResult,
    create=_create,
    plan=_plan,
    identity=_identity,
    begin=_begin,
    read=_read,
    expect=lambda job, images, size: _recipe(job, images),
)
