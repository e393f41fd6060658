"""Which of a network's outputs is right for which image, and which outputs compete."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitzoo.catalogue.class_names import LABEL_SETS
from bitzoo.catalogue.published_lists import TFDS_SUBSETS
from bitzoo.data.dataset import DataSource, Example, Listed
from bitzoo.data.label_space import BY_INDEX, NO_OUTPUT, LabelMatch, OutputSpace, match_labels
from bitzoo.data.output_space import ILSVRC
from bitzoo.data.real_labels import file_name, read_real_labels, real_targets
from bitzoo.data.source_names import TFDS, VTAB, library_of, parse
from bitzoo.data.tfds_datasets import TfdsSource
from bitzoo.errors import UsageError

__all__ = ["OUTPUTS", "REAL", "Truth", "find_truth", "task_of"]

REAL = "real"
"""ReaL's labels, as `labels`."""

OUTPUTS = {"data": True, "all": False}
"""Which outputs compete -> whether they are restricted to the data set's."""


@dataclass(frozen=True)
class Truth:
    """What is right, in terms of the outputs that compete.

    Attributes:
        match: Which output each class of the data set is.
        synsets: The WordNet id of each competing output; empty if they are not known.
        accepted: Key of an example -> the positions that are right, none for an image that does not
            count; None if the match says it.
        notes: What the user must know, as sentences.
        is_plain: Whether the data set's classes are called as the network's own, and all compete.
        is_real: Whether `accepted` are ReaL's labels, not those of the data set itself.
    """

    match: LabelMatch
    synsets: tuple[str, ...] = ()
    accepted: Mapping[str, tuple[int, ...]] | None = None
    notes: tuple[str, ...] = ()
    is_plain: bool = False
    is_real: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """A name per competing output."""
        return self.match.names

    @property
    def how(self) -> str:
        """How classes and outputs were matched, as a sentence; "" if they are simply the same."""
        return "" if self.is_plain else self.match.how

    def target(self, example: Example) -> int | None:
        """Return the position of an example's class among the competing outputs.

        It is negative if the network does not have the class, and None if the network is known not
        to have it, so that the image is left out. With several labels per image its class does not
        matter: any label that is right stands for a class without output.
        """
        position = self.match.targets[example.label]
        if position >= 0:
            return position
        if self.accepted is not None:
            # Of images without any label ReaL's notes tell; one whose labels are all unknown to the
            # network is a problem, as where each image has one class.
            return next(iter(self.accepted[example.key]), None if self.is_real else position)
        return None if self.match.classes[example.label] in self.match.excused else position

    def judgeable(self, examples: Sequence[Example]) -> tuple[Example, ...]:
        """Return the examples that have a label."""
        if self.accepted is None:
            return tuple(examples)
        return tuple(example for example in examples if self.accepted[example.key])

    def accepted_by(self, examples: Sequence[Example]) -> list[tuple[int, ...]] | None:
        """Return the positions that are right for each image; None if each has one label."""
        if self.accepted is None:
            return None
        return [self.accepted[example.key] for example in examples]

    def ids(self, examples: Sequence[Example]) -> frozenset[str]:
        """Return the classes of examples: by WordNet id where ids are known, else by name."""
        names = self.synsets or self.names
        return frozenset(names[example.label] for example in examples)


def task_of(source: DataSource) -> str | None:
    """Return what a data set's name says about the order of its classes, as for `match_labels`."""
    if isinstance(source, TfdsSource):
        return source.rule.name if source.rule else source.name.partition("/")[0]
    if isinstance(source, str) and library_of(source) in (TFDS, VTAB):
        return parse(source).name
    return None


def find_truth(
    listed: Listed,
    space: OutputSpace,
    task: str | None,
    labels: str | os.PathLike[str] | None = None,
    outputs: str | None = None,
    skip_unknown: bool = False,
) -> Truth:
    """Match a data set's classes, or the labels of each of its images, with a network's outputs.

    Args:
        listed: The data set, as listed.
        space: What the network's outputs mean.
        task: What the data set's name says, see `task_of`.
        labels: What the user says, see `bitzoo.inference.evaluate.evaluate`.
        outputs: Which outputs compete: "data", "all", or None for what is published.
        skip_unknown: As `match_labels`.

    Raises:
        UsageError: If an option is out of range.
        DatasetError: If a class cannot be matched, or an image has no number to find its labels by.
    """
    if outputs is not None and outputs not in OUTPUTS:
        raise UsageError(f"`outputs` must be one of {', '.join(OUTPUTS)}, found {outputs!r}.")
    several = labels == REAL or (labels is not None and Path(labels).is_file())
    if labels is not None:
        task = ILSVRC if several else _checked(os.fspath(labels), space)
    match = match_labels(
        listed.classes,
        space,
        task=task,
        used=() if several else listed.used,  # classes do not matter where each image has labels
        restrict=None if outputs is None else OUTPUTS[outputs],
        skip_unknown=skip_unknown,
    )
    competing = range(space.count) if match.competing is None else match.competing
    ids = () if space.synsets is None else tuple(space.synsets[output] for output in competing)
    if not several:
        accepted = _own_labels(listed, match)
        own = not space.is_published and set(listed.classes) <= set(space.names or ())
        is_plain = own and match.competing is None
        return Truth(match, ids, accepted, match.notes, is_plain)
    real = read_real_labels(None if labels == REAL else labels)
    found = real_targets([file_name(row) for row in listed.rows], real, space, match)
    keys = [row.key for row in listed.rows]
    accepted = dict(zip(keys, found.columns, strict=True))
    return Truth(match, ids, accepted, (*match.notes, *found.notes), is_real=True)


def _own_labels(listed: Listed, match: LabelMatch) -> dict[str, tuple[int, ...]] | None:
    """Return the competing outputs that are right for each image; None if each has one class."""
    examples = [example for split in listed.splits.values() for example in split]
    if all(len(example.classes) == 1 for example in examples):
        return None
    return {
        example.key: tuple(sorted({match.targets[c] for c in example.classes} - {NO_OUTPUT}))
        for example in examples
    }


def _checked(task: str, space: OutputSpace) -> str:
    """Return what the user says of the classes' order, once it is known to mean something."""
    known = [BY_INDEX, *LABEL_SETS.values(), *TFDS_SUBSETS, *([space.task] if space.task else [])]
    if task not in known:
        raise UsageError(
            f"`labels` must be {REAL}, a file like ReaL's, or what the numbers of the data's "
            f"classes are: {', '.join(dict.fromkeys(known))}; found {task!r}."
        )
    return task
