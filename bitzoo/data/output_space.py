"""What the outputs of a model mean: a published list, a task's classes, or those of a run."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from bitzoo.catalogue.class_names import class_names
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.task_classes import task_classes
from bitzoo.data.class_words import NameIndex, synset_in

__all__ = ["ILSVRC", "NO_OUTPUT", "OutputSpace", "output_space", "published_space"]

NO_OUTPUT = -1
"""Stands for the output of a class that a model has none for."""

ILSVRC = "imagenet1k"
"""The label set of ILSVRC-2012, whose numbers, 0 to 999, others use as class names."""


@dataclass(frozen=True)
class OutputSpace:
    """What the outputs of a model mean.

    Attributes:
        count: Number of outputs.
        title: What they are, as a phrase: "the 1,000 classes of imagenet1k".
        names: One name per output; None if they are not known.
        synsets: WordNet ids, one per output; None if they have none.
        label_set: Name of the published list that they are; None for another.
        task: The task in whose order (that of tensorflow_datasets) they are; None for none.
        notes: What is not certain about this, as sentences.
    """

    count: int
    title: str
    names: tuple[str, ...] | None = None
    synsets: tuple[str, ...] | None = None
    label_set: str | None = None
    task: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_published(self) -> bool:
        """Whether the outputs have numbers that others use too."""
        return self.label_set is not None or self.task is not None

    @cached_property
    def index(self) -> NameIndex:
        """The outputs by name."""
        words = self.label_set is not None
        return NameIndex(self.names or (), words=words, synsets=self.synsets)

    @cached_property
    def _counts(self) -> Counter[str]:
        return Counter(self.names or ())

    def name(self, output: int) -> str:
        """Return the name to show for an output; no other output has it."""
        if self.names is None:
            return f"output {output}"
        name = self.names[output]
        if self.synsets and self._counts[name] > 1:
            return f"{name} ({self.synsets[output]})"
        return name

    def short(self, output: int) -> str:
        """Return what identifies an output in a list: its id and first word, or its name."""
        if self.synsets and self.names and self.label_set:
            return f"{self.synsets[output]} ({self.names[output].split(',')[0]})"
        return self.name(output)

    def describe(self, output: int) -> str:
        """Return an output's number with its id and name, where it has them."""
        said = [text[output] for text in (self.synsets, self.names) if text]
        return f"output {output}" + (f" ({', '.join(dict.fromkeys(said))})" if said else "")


def output_space(info: ModelInfo) -> OutputSpace:
    """Return what a model's record says about its outputs."""
    names, reason = info.names_or_reason()
    count = info.num_classes
    if names is None:
        return _of_task(info) or OutputSpace(
            count, f"the {count:,} outputs of the model", notes=(reason,)
        )
    if info.own_names is None and info.label_set is not None:
        return published_space(info.label_set)
    synsets = names if all(synset_in(name) == name for name in names) else None
    return OutputSpace(count, f"the {count:,} classes of the model", names, synsets)


def _of_task(info: ModelInfo) -> OutputSpace | None:
    """Return the space of a released head whose classes are a task's; None for another."""
    spec = info.spec
    if spec is None or spec.label_set or not spec.released or "class_names" in info.refused:
        return None
    if info.num_classes != spec.num_classes:
        return None
    task = spec.task.removeprefix("vtab/")
    names = task_classes(task).names
    title = f"the {info.num_classes:,} classes of {task} in tensorflow_datasets' order"
    basis = f"That the outputs are those of {task}: {info.identity}."
    notes = () if info.identity.established else (basis,)
    return OutputSpace(info.num_classes, title, names, task=task, notes=notes)


@functools.cache
def published_space(label_set: str) -> OutputSpace:
    """Return the space of a published list of WordNet ids, a key of `class_names.LABEL_SETS`."""
    synsets = tuple(class_names(label_set, descriptions=False))
    title = f"the {len(synsets):,} classes of {label_set}"
    return OutputSpace(len(synsets), title, tuple(class_names(label_set)), synsets, label_set)
