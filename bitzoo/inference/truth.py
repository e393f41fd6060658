"""Which of a network's outputs is right for which image, and which outputs compete."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitzoo.catalogue.published_lists import subset_synsets
from bitzoo.data.dataset import Example, Listed
from bitzoo.data.label_space import NO_OUTPUT, LabelMatch, OutputSpace, match_labels
from bitzoo.data.real_labels import read_real_labels

__all__ = ["OWN", "REAL", "Truth", "find_truth"]

OWN, REAL = "own", "real"
"""Labels of the data set itself; ReaL's."""

_ILSVRC = "ILSVRC-2012"


@dataclass(frozen=True)
class Truth:
    """What is right, in terms of the outputs that compete.

    Attributes:
        names: A name per competing output.
        targets: Class of the data set -> position among the competing outputs; `NO_OUTPUT` for a
            class that the network does not have.
        competing: The competing outputs, ascending; None for all.
        how: How classes and outputs were matched, as a sentence.
        notes: What else the user must know.
        accepted: For labels of each image: key of the example -> the positions that are right, none
            for an image that cannot be judged; None if `targets` say it.
        synsets: The WordNet id of each competing output; none if they are not known.
    """

    names: tuple[str, ...]
    targets: tuple[int, ...]
    competing: tuple[int, ...] | None
    how: str
    notes: tuple[str, ...] = ()
    accepted: Mapping[str, tuple[int, ...]] | None = None
    synsets: tuple[str, ...] = ()

    def judgeable(
        self, examples: Sequence[Example], listed: Listed
    ) -> tuple[tuple[Example, ...], tuple[str, ...]]:
        """Return the examples that have a label, and what is to be said of the others."""
        if self.accepted is None:
            return tuple(examples), ()
        left = tuple(example for example in examples if self.accepted[example.key])
        without = len(examples) - len(left)
        if not without:
            return left, ()
        return left, (
            f"Left out and not counted: {without:,} of the {len(examples):,} images of "
            f"{listed.source}, for which ReaL has no label of these classes.",
        )

    def accepted_by(self, examples: Sequence[Example]) -> list[tuple[int, ...]] | None:
        """Return the positions that are right for each image; None if each has one label."""
        if self.accepted is None:
            return None
        return [self.accepted[example.key] for example in examples]

    def ids(self, examples: Sequence[Example]) -> frozenset[str]:
        """Return the classes of examples: by WordNet id where ids are known, else by name."""
        names = self.synsets or self.names
        return frozenset(names[example.label] for example in examples)


def find_truth(
    listed: Listed,
    space: OutputSpace,
    labels: str | os.PathLike[str] = OWN,
    task: str | None = None,
    restrict: bool | None = None,
    skip_unknown: bool = False,
) -> Truth:
    """Match a data set's classes, or the labels of each of its images, with a network's outputs.

    Args:
        listed: The data set, as listed.
        space: What the network's outputs mean.
        labels: `OWN`, `REAL`, or a file like ReaL's.
        task: As `match_labels`.
        restrict: As `match_labels`.
        skip_unknown: As `match_labels`.

    Raises:
        DatasetError: If a class cannot be matched, or an image has no number to find its labels by.
    """

    def match(classes: Sequence[str], used: frozenset[str] | None = None) -> LabelMatch:
        return match_labels(
            classes, space, task=task, used=used, restrict=restrict, skip_unknown=skip_unknown
        )

    own = match(listed.classes, listed.used)
    if labels == OWN:
        return Truth(
            own.names, own.targets, own.competing, own.how, own.notes, synsets=_ids(space, own)
        )
    several = match_labels(subset_synsets(_ILSVRC), space, restrict=restrict)
    found = read_real_labels(None if labels == REAL else labels)
    competing = range(space.count) if several.competing is None else several.competing
    column = {output: position for position, output in enumerate(competing)}
    examples = [example for split in listed.splits.values() for example in split]
    right = found.of_images([listed.file_name(example) for example in examples])
    return Truth(
        several.names,
        tuple(column.get(output, NO_OUTPUT) for output in own.outputs),
        several.competing,
        f"{several.how} The labels are {found.source}: an image may have several, of which any is "
        "right.",
        several.notes,
        {
            example.key: tuple(several.targets[label] for label in image)
            for example, image in zip(examples, right, strict=True)
        },
        _ids(space, several),
    )


def _ids(space: OutputSpace, match: LabelMatch) -> tuple[str, ...]:
    if space.synsets is None or match.competing is None:
        return space.synsets or ()
    return tuple(space.synsets[output] for output in match.competing)
