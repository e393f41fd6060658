"""A benchmark's split, which stays exactly as it is, whatever is wrong with it.

Scores can be compared only if everybody trains and tests on the same images. So images that train
and test have in common stay in both, and classes without training images (of SUN397's, VTAB-1k
has 325 in train) remain classes; what is so is said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from bitzoo.data.dataset import Example, ImageSet
from bitzoo.data.problems import Problem, Reason, join_some
from bitzoo.errors import UsageError

_MAY_LACK = (Reason.ONLY_IN_TRAIN, Reason.ONLY_IN_VAL)


def with_fixed_split(imageset: ImageSet, *, drop_near_duplicates: bool) -> ImageSet:
    """Return a data set whose train and val need not have the same classes.

    Args:
        imageset: A data set as read.
        drop_near_duplicates: Whether training images are to be dropped, which cannot be.

    Raises:
        UsageError: If the split was drawn, or is to be changed.
    """
    if drop_near_duplicates:
        raise UsageError(
            "`drop_near_duplicates` changes the training images, and `fixed_split` keeps them as "
            "they are. Leave out one of them; near-duplicates are reported in any case."
        )
    if imageset.val is None or imageset.draw is not None:
        raise UsageError(
            "`fixed_split` is for data with splits of their own, found none of images to evaluate "
            f"on in {imageset.source}. Leave it out, or give data with train and val or test."
        )
    problems = tuple(p for p in imageset.problems if p.reason not in _MAY_LACK)
    return replace(imageset, problems=problems)


def noting_what_stays(
    imageset: ImageSet,
    copies: Mapping[Example, Problem],
    empty: Mapping[int, Problem],
    held_out: Sequence[Example],
) -> ImageSet:
    """Note what would be a problem in any other data set.

    Args:
        imageset: The data set.
        copies: Examples of train whose content is held out too, and which of these it equals.
        empty: Label -> problem of each class without training images.
        held_out: The usable held-out examples.
    """
    notes = [*imageset.notes]
    if copies:
        shown = join_some([f"{p.subject} ({p.detail})" for p in copies.values()], 3)
        notes.append(
            "The split stays as it is, with images of train that are held out too "
            f"({len(copies):,}): {shown}."
        )
    if empty:
        names = join_some([problem.subject for problem in empty.values()])
        notes.append(
            f"Classes without training images, which remain classes ({len(empty):,}): {names}. "
            f"Of the held-out images, {_count(held_out, empty):,} belong to them."
        )
    return replace(imageset, notes=tuple(notes))


def _count(examples: Sequence[Example], labels: Collection[int]) -> int:
    return sum(example.label in labels for example in examples)
