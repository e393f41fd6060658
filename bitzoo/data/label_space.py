"""Match the classes of a data set with the outputs of a model.

A data set calls its classes by WordNet's ids, by words, or by number; a model's outputs are in the
order of a published list, of a task in tensorflow_datasets, or of the run that trained it. Nothing
is guessed: what can be read in two ways is refused, and what was done is said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bitzoo.catalogue.published_lists import (
    SUBSETS,
    TFDS_SUBSETS,
    WHOLE_LISTS,
    subset_synsets,
    words_of,
)
from bitzoo.catalogue.task_classes import task_classes
from bitzoo.data.class_matching import BY_INDEX, Found, find_outputs, stated_list
from bitzoo.data.output_space import NO_OUTPUT, OutputSpace, output_space
from bitzoo.data.problems import DatasetError, join_some, printable

__all__ = ["BY_INDEX", "NO_OUTPUT", "LabelMatch", "OutputSpace", "match_labels", "output_space"]

_MAX_UNMATCHED = 10
"""Most classes that an error explains one by one."""


@dataclass(frozen=True)
class LabelMatch:
    """Which output each class of a data set is, and which outputs compete.

    Attributes:
        classes: The data set's classes.
        outputs: Class -> output; `NO_OUTPUT` for a class that the model has none for. Images of
            such a class cannot be judged; they are left out, which `notes` says.
        competing: The outputs that compete, ascending; None for all. Logits are restricted to them
            before anything is counted, see `restrict` and `targets`.
        how: How classes and outputs were matched, as a sentence for the user.
        notes: What else the user must know, as sentences.
        names: One name per competing output, in their order.
        subset: The published set of ImageNet's classes that the data set has, a key of `SUBSETS`;
            None for another data set.
        excused: The classes without output that are known to be missing on a head of `subset`'s
            kind, so that nothing is wrong with the data set.
    """

    classes: tuple[str, ...]
    outputs: tuple[int, ...]
    competing: tuple[int, ...] | None
    how: str
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    subset: str | None = None
    excused: frozenset[str] = frozenset()

    @property
    def without_output(self) -> tuple[str, ...]:
        """The classes that the model has no output for."""
        pairs = zip(self.classes, self.outputs, strict=True)
        return tuple(name for name, output in pairs if output == NO_OUTPUT)

    @cached_property
    def _columns(self) -> dict[int, int]:
        return {output: column for column, output in enumerate(self.competing or ())}

    def column(self, output: int) -> int:
        """Return an output's column in the restricted logits; `NO_OUTPUT` if it has none."""
        return output if self.competing is None else self._columns.get(output, NO_OUTPUT)

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """Class -> its column in the restricted logits; `NO_OUTPUT` for a class without output."""
        return tuple(self.column(output) for output in self.outputs)

    def restrict(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the columns of the competing outputs: (n, outputs) to (n, len(names))."""
        return logits if self.competing is None else logits[:, list(self.competing)]


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

    Every class is one output at most, and no two classes are the same one. Classes are matched

    1. by their order, if the source says that they are in the order of the outputs' task (`task`);
    2. by number, if all are numbers: from 0 on, none missing and as many as outputs (or 1,000, on
       another head of ImageNet's classes), or those that a published copy of the task uses;
    3. by WordNet id or name: as it is spelled, or but for case and separators, or by one of
       WordNet's words for it. A name that may mean several outputs means none, unless the data
       set's other classes leave one of them, or stand in the published order.

    Args:
        classes: The data set's class names, in its order.
        outputs: What the model's outputs mean.
        task: What the source or the user says about the data set's classes: the task in whose
            order they are ("dtd"), the published list that has their names or numbers
            ("imagenet1k", "imagenet21k_goog"), the TFDS data set that they are from
            ("imagenet_a"), or `BY_INDEX`.
        used: The classes that have images, where that is known: a data set of ImageNet-A may
            declare all 1,000 names. None for all.
        restrict: Whether only the outputs of the data set's classes compete. None for what is
            published: restricted to the 200 classes of ImageNet-A or -R where the data set has
            exactly these, and to ILSVRC's where it has exactly these or `task` says so, and the
            head has more; else all compete, also if the data set lacks some of their classes.
        skip_unknown: Whether classes that match nothing get `NO_OUTPUT` instead of an error.

    Returns:
        The match.

    Raises:
        DatasetError: If a class cannot be matched, or two mean the same output; the message shows
            both sides.
    """
    classes = tuple(classes)
    found = find_outputs(classes, outputs, task)
    counted = set(classes if used is None else used)
    subset = _subset_of(classes, found, task, counted)
    missing = [
        number
        for number, output in enumerate(found.outputs)
        if output == NO_OUTPUT and classes[number] in counted
    ]
    if missing and not subset and not skip_unknown:
        raise _mismatch(classes, found, outputs, missing)
    competing, said = _competing(found, outputs, subset, restrict)
    own = {output: name for name, output in zip(classes, found.outputs, strict=True)}
    return LabelMatch(
        classes,
        found.outputs,
        competing,
        f"The data set's classes and {outputs.title} were matched {found.how}.",
        (*outputs.notes, *found.notes, *_on_missing(classes, found, outputs, missing), *said),
        tuple(
            outputs.name(k) if outputs.names else own.get(k, outputs.name(k))
            for k in (range(outputs.count) if competing is None else competing)
        ),
        subset,
        frozenset(classes[k] for k in missing if subset),
    )


def _subset_of(
    classes: Sequence[str], found: Found, task: str | None, used: Collection[str]
) -> str | None:
    """Return the published set of classes that the data set has images of, or declares."""
    if not found.synsets or None in found.synsets:
        return None
    if task in TFDS_SUBSETS:
        return TFDS_SUBSETS[task]
    declared = set(found.synsets)
    with_images = {id_ for name, id_ in zip(classes, found.synsets, strict=True) if name in used}
    for name in SUBSETS:
        if set(subset_synsets(name)) in (with_images, declared):
            return name
    return WHOLE_LISTS.get(stated_list(task) or "")


def _competing(
    found: Found, outputs: OutputSpace, subset: str | None, restrict: bool | None
) -> tuple[tuple[int, ...] | None, list[str]]:
    """Return the outputs that compete, None for all, and what to say about them."""
    own = sorted(set(found.outputs) - {NO_OUTPUT})
    count = outputs.count
    if restrict:
        if len(own) < 2:
            raise DatasetError(
                f"Outputs can compete only where at least two do, found {len(own)} that the data "
                'set has a class for. Let all compete: `outputs="all"`.'
            )
        if len(own) == count:
            return None, []
        return tuple(own), [f"As asked, only the {len(own):,} outputs of its classes compete."]
    if subset and restrict is None:
        at = outputs.index.by_synset
        members = sorted(at[synset] for synset in subset_synsets(subset) if synset in at)
        if len(members) == count:
            return None, []
        return tuple(members), [
            f"Its classes are those of {subset}, so only their {len(members):,} of "
            f'{count:,} outputs compete; `outputs="all"` lets all compete.'
        ]
    absent = [k for k in range(count) if k not in set(own)]
    if not absent:
        return None, []
    without = f" (all but {join_some([outputs.name(k) for k in absent])})"
    return None, [
        f"The data set has classes of {len(own):,} of the {count:,} outputs"
        f"{without if len(absent) <= 3 else ''}; all outputs compete, "
        '`outputs="data"` lets only those.'
    ]


def _on_missing(
    classes: Sequence[str], found: Found, outputs: OutputSpace, missing: Sequence[int]
) -> list[str]:
    if not missing:
        return []
    shown = join_some([_with_words(classes[k], found.synsets[k : k + 1]) for k in missing])
    return [
        f"Not counted: images of {shown}; {outputs.title} lack {len(missing):,} of the data set's "
        f"{len(classes):,}."
    ]


def _with_words(name: str, synset: Sequence[str | None]) -> str:
    """Return a class's name, with its id and WordNet's words where the name does not say them."""
    id_ = synset[0] if synset else None
    parts = dict.fromkeys([id_, *words_of([id_])] if id_ else [])
    said = ", ".join(part for part in parts if part and part != name)
    return printable(name) + (f" ({said})" if said else "")


def _mismatch(
    classes: Sequence[str], found: Found, outputs: OutputSpace, missing: Sequence[int]
) -> DatasetError:
    """Return the error that shows both sides and what does not match."""
    lines = []
    for k in missing[:_MAX_UNMATCHED]:
        may_be = sorted(found.may_be[k]) if found.may_be else []
        means = " or ".join(outputs.describe(output) for output in may_be[:3])
        more = f" or {len(may_be) - 3:,} others" if len(may_be) > 3 else ""
        shown = _with_words(classes[k], found.synsets[k : k + 1])
        lines.append(f"    {shown}: " + (f"may be {means}{more}" if may_be else "none"))
    if len(missing) > _MAX_UNMATCHED:
        lines.append(f"    and {len(missing) - _MAX_UNMATCHED:,} more")
    ours = join_some([printable(name) for name in classes])
    theirs = join_some([printable(outputs.short(k)) for k in range(outputs.count)])
    trap = task_classes(outputs.task or "").orders_differ
    ambiguous = any(found.may_be[k] for k in missing) if found.may_be else False
    ids = " (WordNet ids say which of several is meant)" if ambiguous and outputs.synsets else ""
    return DatasetError(
        "Every class of the data set must be one of the model's, found "
        f"{len(missing):,} of {len(classes):,} that are not:\n"
        + "\n".join(lines)
        + f"\n  data set: {len(classes):,} classes: {ours}"
        + f"\n  model: {outputs.title}: {theirs}"
        + "".join(f"\n  {text}" for text in (*outputs.notes, trap) if text)
        + f"\nRename or remove them{ids}, or leave their images out: `skip_bad=True`."
    )
