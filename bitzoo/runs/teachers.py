"""The teachers of a distillation: load them, and put data and teachers in terms of one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.run_info import TeacherInfo
from bitzoo.converters.open import open_source
from bitzoo.data.class_matching import find_outputs
from bitzoo.data.dataset import ImageSet, Split
from bitzoo.data.label_space import OutputSpace, match_labels, output_space
from bitzoo.data.problems import DatasetError
from bitzoo.data.unlabelled import NO_LABEL
from bitzoo.errors import UsageError
from bitzoo.inference.optimize import COMPUTE_DTYPES, optimize
from bitzoo.models.bit import BiT
from bitzoo.training.distillation import Ensemble, Teacher
from bitzoo.zoo.classifier import load_classifier
from bitzoo.zoo.info import info

_AMPERE = 8
"""Major compute capability from which NVIDIA GPUs have bfloat16 matrix units."""


@dataclass(frozen=True)
class Faculty:
    """All teachers of a run.

    Attributes:
        networks: The networks, unfolded.
        records: What is known about each.
        columns: For each, which output each class of the student is; None if they are the same.
        space: What the outputs of the first mean, which the student's will mean.
        known: The record of the first.
        notes: What the user must know, as sentences.
    """

    networks: tuple[BiT, ...]
    records: tuple[TeacherInfo, ...]
    columns: tuple[tuple[int, ...] | None, ...]
    space: OutputSpace
    known: ModelInfo
    notes: tuple[str, ...] = ()

    def classes_of(self, images: ImageSet) -> tuple[str, ...]:
        """Return a name for each class of the student of a data set, which `in_outputs` made."""
        if images.classes != (NO_LABEL,):
            return images.classes
        return tuple(self.space.name(output) for output in range(self.space.count))

    def has_names(self, images: ImageSet) -> bool:
        """Whether these names say what the classes are, and are not just numbers."""
        return self.space.names is not None or images.classes != (NO_LABEL,)

    def ensemble(self, device: torch.device) -> Ensemble:
        """Return the teachers as one, folded for inference on a device, in their dtypes."""
        return Ensemble(
            [
                Teacher(optimize(network, dtype=record.dtype, device=device), columns)
                for network, record, columns in zip(
                    self.networks, self.records, self.columns, strict=True
                )
            ]
        )


def fast_dtype(device: torch.device) -> str:
    """Return the dtype in which a teacher computes if none is asked for.

    ``bfloat16`` on NVIDIA GPUs that have matrix units for it (compute capability 8.0 and later),
    ``float32`` elsewhere: some CPUs have such units too, but most emulate bfloat16 slowly.
    """
    if device.type != "cuda":
        return "float32"
    major, _ = torch.cuda.get_device_capability(device)
    return "bfloat16" if major >= _AMPERE else "float32"


def load_teachers(names: Sequence[str], places: Sequence[str], dtype: str) -> Faculty:
    """Load the teachers, and find which outputs of theirs are the same class.

    Args:
        names: What the user called each: a catalogue name, a checkpoint, or a run folder.
        places: Where each is now.
        dtype: What they compute in, a key of `COMPUTE_DTYPES`.

    Raises:
        UsageError: If a teacher cannot be one, or two do not have the same classes.
        BitzooError: As `bitzoo.create_model` raises.
    """
    if not places:
        raise UsageError("Distillation needs a teacher, found none. Name at least one.")
    if dtype not in COMPUTE_DTYPES:
        raise UsageError(
            f"`teacher_dtype` must be one of {', '.join(COMPUTE_DTYPES)}, found {dtype!r}."
        )
    networks = tuple(load_classifier(place) for place in places)
    infos = tuple(info(network) for network in networks)
    notes: list[str] = []
    for name, known in zip(names, infos, strict=True):
        notes += _require_teacher(name, known)
    spaces = [output_space(known) for known in infos]
    columns = [
        _columns(names[0], spaces[0], name, space)
        for name, space in zip(names, spaces, strict=True)
    ]
    records = tuple(
        TeacherInfo(name, _digest(known), known.architecture, str(known.identity), dtype)
        for name, known in zip(names, infos, strict=True)
    )
    return Faculty(networks, records, tuple(columns), spaces[0], infos[0], tuple(notes))


def _digest(known: ModelInfo) -> str:
    assert known.path is not None
    with open_source(Path(known.path)) as source:
        return source.sha256()


def _require_teacher(name: str, known: ModelInfo) -> list[str]:
    """Refuse a network that cannot teach; return what is not certain about it."""
    if not known.num_classes:
        raise UsageError(
            f"The teacher {name} has no head, and therefore nothing to teach. Give a classifier, "
            "such as a run of `bitzoo finetune`."
        )
    if known.in_chans != 3:
        raise UsageError(
            f"The teacher {name} must take RGB images, as the student does, found "
            f"{known.in_chans} channels. Give another teacher."
        )
    if known.activation == "sigmoid":
        raise UsageError(
            f"The teacher {name} gives an independent probability for each class (sigmoid), but "
            "the loss compares distributions over the classes (softmax). Fine-tune it first, and "
            "give the run as the teacher."
        )
    if known.activation is None:
        return [
            f"It is not known whether {name} was trained with softmax, as the loss assumes that "
            "its outputs were."
        ]
    return []


def _columns(
    first_name: str, first: OutputSpace, name: str, space: OutputSpace
) -> tuple[int, ...] | None:
    """Return which outputs of a teacher the classes of the first are; None if they are the same."""
    if space is first:
        return None
    if first.names is None or space.names is None:
        raise UsageError(
            f"It is not known whether {first_name} and {name} have the same classes: the names of "
            f"{first.title if first.names is None else space.title} are not known. Give one of "
            "them as the only teacher."
        )
    if space.names == first.names:
        return None
    try:
        match = match_labels(
            [first.name(k) for k in range(first.count)], space, task=first.task, restrict=False
        )
    except DatasetError as error:
        raise UsageError(
            f"The teachers {first_name} and {name} must have the same classes, found "
            f"{first.title} and {space.title}. Give teachers of one task.\n\n{error}"
        ) from error
    return match.outputs


def in_outputs(
    images: ImageSet, space: OutputSpace, task: str | None
) -> tuple[ImageSet, tuple[str, ...]]:
    """Replace the classes of a data set by the outputs of the teacher, which are the student's.

    Labels are not trained on; they judge.

    Args:
        images: The data set.
        space: What the teacher's outputs mean.
        task: What the data set's name says about its classes, see
            `bitzoo.data.label_space.match_labels`.

    Returns:
        The data set, and what the user must know, as sentences.

    Raises:
        DatasetError: If a class is none of the teacher's.
    """
    try:
        match = match_labels(images.classes, space, task=task, restrict=False)
    except DatasetError as error:
        raise DatasetError(
            f"{error}\nOr train on the images alone: `unlabelled=True`. Labels are not needed to "
            "distill, only to measure."
        ) from error
    if match.names == images.classes:
        return images, ()
    found = find_outputs(images.classes, space, task)
    notes = [match.how, *space.notes, *found.notes]
    if len(images.classes) < space.count:
        notes.append(
            f"The student gets all {space.count:,} classes of the teacher; the data set has "
            f"images of {len(images.classes):,}."
        )

    def moved(split: Split) -> Split:
        return Split(
            split.name,
            tuple(
                replace(example, label=match.outputs[example.label]) for example in split.examples
            ),
        )

    val = moved(images.val) if images.val else None
    return replace(images, classes=match.names, train=moved(images.train), val=val), tuple(notes)


def taught(made: ModelInfo, faculty: Faculty, images: ImageSet) -> ModelInfo:
    """Return the record of a student with the classes of its teachers.

    Args:
        made: What is known about the student otherwise.
        faculty: The teachers.
        images: The data set, as `in_outputs` or `read_unlabelled` made it.
    """
    names = faculty.classes_of(images)
    sources = {**made.sources, "activation": "the training loss"}
    if faculty.known.label_set is not None:
        return replace(
            made,
            own_names=None,
            label_set=faculty.known.label_set,
            sources={"label_set": "the teacher", "activation": sources["activation"]},
        )
    if not faculty.has_names(images):
        del sources["own_names"]
        return replace(made, own_names=None, sources=sources)
    said = "the teacher" if faculty.space.names else "the training data"
    return replace(made, own_names=names, sources={**sources, "own_names": said})
