"""Match the classes of a data set with the outputs of a model.

A data set calls its classes by WordNet's ids, by words, or by number; a model's outputs are in the
order of a published list, of a task, or of the run that trained it. Nothing is guessed: what can be
read in two ways is refused, and what was done is said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bitzoo.catalogue.class_names import class_names
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.published_lists import words_of
from bitzoo.data.problems import DatasetError, join_some, printable

__all__ = ["NO_OUTPUT", "LabelMatch", "OutputSpace", "match_labels", "output_space"]

NO_OUTPUT = -1
"""Stands in `LabelMatch.outputs` for a class that the model has no output for."""

_SYNSET = re.compile(r"n\d{8}")
_SYNSET_FIRST = re.compile(r"(n\d{8})(?![0-9A-Za-z])")


@dataclass(frozen=True)
class OutputSpace:
    """What the outputs of a model mean.

    Attributes:
        count: Number of outputs.
        title: What the outputs are, as a phrase: "the 1,000 classes of imagenet1k".
        names: One name per output; None if they are not known.
        synsets: WordNet ids, one per output; None if they are not.
        label_set: Name of the published list that they are; None for another.
        task: The task in whose order (tensorflow_datasets') the outputs are; None for none.
        reason: Why there are no names.
    """

    count: int
    title: str
    names: tuple[str, ...] | None = None
    synsets: tuple[str, ...] | None = None
    label_set: str | None = None
    task: str | None = None
    reason: str = ""

    @cached_property
    def by_synset(self) -> Mapping[str, int]:
        """WordNet id -> output; empty without ids."""
        return {synset: index for index, synset in enumerate(self.synsets or ())}

    @cached_property
    def by_name(self) -> Mapping[str, int]:
        """Name, exactly as it is -> output, for names that only one output has."""
        counts = Counter(self.names or ())
        return {name: k for k, name in enumerate(self.names or ()) if counts[name] == 1}

    @cached_property
    def by_word(self) -> Mapping[str, frozenset[int]]:
        """Word in plain form -> the outputs that it may mean."""
        found: dict[str, set[int]] = {}
        names = words_of(self.synsets) if self.synsets else self.names or ()
        for index, name in enumerate(names):
            for word in _words(name, split=self.synsets is not None):
                found.setdefault(word, set()).add(index)
        return {word: frozenset(outputs) for word, outputs in found.items()}

    def describe(self, output: int) -> str:
        """Return an output's number and, where they are known, id and name."""
        parts = [text[output] for text in (self.synsets, self.names) if text]
        return f"output {output:,}" + (f" ({', '.join(dict.fromkeys(parts))})" if parts else "")


@dataclass(frozen=True)
class LabelMatch:
    """Which output each class of a data set is, and which outputs compete.

    Attributes:
        classes: The data set's classes.
        outputs: Class -> output; `NO_OUTPUT` for a class that the model cannot name. Its images
            cannot be judged: they are left out, and that is said.
        competing: The outputs that compete, ascending; None for all. Logits are restricted to
            these columns before anything is counted.
        how: How classes and outputs were matched, as a sentence for the user.
        notes: What else the user must know, as sentences.
        names: One name per competing output, in their order: the data set's own where it has the
            class, else the output's.
    """

    classes: tuple[str, ...]
    outputs: tuple[int, ...]
    competing: tuple[int, ...] | None
    how: str
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def without_output(self) -> tuple[str, ...]:
        """The classes that the model has no output for."""
        return tuple(
            name
            for name, output in zip(self.classes, self.outputs, strict=True)
            if output == NO_OUTPUT
        )

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """Class -> its column in the restricted logits; `NO_OUTPUT` for a class without output."""
        if self.competing is None:
            return self.outputs
        column = {output: k for k, output in enumerate(self.competing)}
        return tuple(column.get(output, NO_OUTPUT) for output in self.outputs)

    def restrict(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the columns of the competing outputs: (n, outputs) to (n, len(names))."""
        return logits if self.competing is None else logits[:, list(self.competing)]


def output_space(info: ModelInfo) -> OutputSpace:
    """Return what a model's record says about its outputs."""
    names, reason = info.names_or_reason()
    count = info.num_classes
    if names is None:
        return OutputSpace(count, f"{count:,} outputs without names", reason=reason)
    if info.own_names is not None or info.label_set is None:
        synsets = names if all(map(_SYNSET.fullmatch, names)) else None
        return OutputSpace(count, f"the {count:,} classes that it was trained on", names, synsets)
    synsets = tuple(class_names(info.label_set, descriptions=False))
    title = f"the {count:,} classes of {info.label_set}"
    return OutputSpace(count, title, names, synsets, info.label_set)


def match_labels(
    classes: Sequence[str],
    outputs: OutputSpace,
    *,
    task: str | None = None,
    used: Collection[str] | None = None,
    restrict: bool | None = None,
    skip_unknown: bool = False,
) -> LabelMatch:
    """Match the classes of a data set with a model's outputs.

    Args:
        classes: The data set's class names, in its order.
        outputs: What the model's outputs mean.
        task: The task or published list whose numbering the data set's classes have, where its
            source or the user says so: "dtd", "imagenet1k", "imagenet_a".
        used: The classes that have images, where that is known: a data set of ImageNet-A may
            declare all 1,000 names. None for all.
        restrict: Whether only the outputs of the data set's classes compete. None for what the
            published protocol does: restricted for ImageNet-A and -R, and for ILSVRC's classes on
            a head of more; else not.
        skip_unknown: Whether classes that match nothing get `NO_OUTPUT` instead of an error.

    Returns:
        The match.

    Raises:
        DatasetError: If a class cannot be matched; the message shows both sides.
    """
    found = [outputs.by_synset.get(name, NO_OUTPUT) for name in classes]
    unknown = [name for name, output in zip(classes, found, strict=True) if output == NO_OUTPUT]
    if unknown and not skip_unknown:
        raise DatasetError(
            f"The classes of the data set must be {outputs.title}, found {len(unknown):,} others: "
            f"{join_some(list(map(printable, unknown)))}."
        )
    how = f"Classes matched with {outputs.title} by WordNet id."
    return LabelMatch(tuple(classes), tuple(found), None, how, names=outputs.names or ())


def _words(name: str, *, split: bool) -> tuple[str, ...]:
    """Return the words of a name in plain form: lower case, no separators."""
    parts = name.split(",") if split else [name]
    plain = (re.sub(r"[\s_/-]+", " ", part.casefold()).strip() for part in parts)
    return tuple(word for word in plain if word)
