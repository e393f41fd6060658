"""Find the output that each class of a data set is: by order, by number, by id or by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bitzoo.catalogue.class_names import LABEL_SETS
from bitzoo.catalogue.published_lists import SUBSETS, subset_synsets
from bitzoo.catalogue.task_classes import task_classes
from bitzoo.data.class_words import is_number, synset_in
from bitzoo.data.output_space import ILSVRC, NO_OUTPUT, OutputSpace, published_space
from bitzoo.data.problems import DatasetError, join_some, printable

__all__ = ["BY_INDEX", "Found", "find_outputs", "stated_list"]

BY_INDEX = "index"
"""As the task of a data set: its class names are the numbers of the model's outputs."""


@dataclass(frozen=True)
class Found:
    """What was found about the classes of a data set.

    Attributes:
        outputs: Class -> output, or `NO_OUTPUT`.
        how: How they were matched, as a phrase.
        notes: What else the user must know, as sentences.
        synsets: Class -> its WordNet id, also of one without output; None if it has none.
        may_be: Class -> the outputs that its name may mean, where that is known.
    """

    outputs: tuple[int, ...]
    how: str
    notes: tuple[str, ...] = ()
    synsets: tuple[str | None, ...] = ()
    may_be: tuple[frozenset[int], ...] = ()


def find_outputs(classes: Sequence[str], outputs: OutputSpace, task: str | None) -> Found:
    """Find the outputs; see `bitzoo.data.label_space.match_labels`, which explains the arguments.

    Raises:
        DatasetError: If two classes are one output, or numbers do not say which classes they are.
    """
    if task is not None and task == outputs.task and _may_be_in_order(classes, outputs):
        how = f"by their order: both are in tensorflow_datasets' order of {task}"
        return Found(tuple(range(outputs.count)), how)
    stated = stated_list(task)
    numbers = [int(name) for name in classes] if all(map(is_number, classes)) else None
    if stated and (found := _through(published_space(stated), classes, numbers, outputs)):
        return found
    # a run on digits has numbers for names
    if numbers and not set(classes) & set(outputs.names or ()):
        return _by_number(numbers, classes, outputs, task)
    if outputs.synsets and outputs.label_set != ILSVRC and not all(map(synset_in, classes)):
        found = _through(published_space(ILSVRC), classes, None, outputs)
        if found and any(set(found.synsets) == set(subset_synsets(name)) for name in SUBSETS):
            return found
    return _by_name(classes, outputs)


def stated_list(task: str | None) -> str | None:
    """Return the published list that a task names; None if it is something else."""
    return LABEL_SETS.get((task or "").replace("_", ""))


def _may_be_in_order(classes: Sequence[str], outputs: OutputSpace) -> bool:
    """Whether there are as many classes as outputs, and no name says that it is another output."""
    if len(classes) != outputs.count:
        return False
    may_be = outputs.index.resolve(classes) if outputs.names else []
    return all(len(may) != 1 or k in may for k, may in enumerate(may_be))


def _through(
    known: OutputSpace, classes: Sequence[str], numbers: Sequence[int] | None, outputs: OutputSpace
) -> Found | None:
    """Match by way of a published list that the data set's classes are in, by number or name.

    Returns:
        What was found; None if they are not in it, or the outputs have no ids.
    """
    if outputs.synsets is None:
        return None
    if numbers is None:
        by_name = _by_name(classes, known)
        found, how = by_name.outputs, by_name.how
    else:
        found, how = tuple(numbers), "by number"
    if len(set(found)) < len(found) or not all(0 <= k < known.count for k in found):
        return None
    synsets = [(known.synsets or ())[k] for k in found]
    if numbers is None and all(map(synset_in, classes)):
        said = how
    else:
        said = f"{how} in {known.label_set}{'' if known == outputs else ', then by WordNet id'}"
    return Found(
        tuple(outputs.index.by_synset.get(synset, NO_OUTPUT) for synset in synsets),
        said,
        synsets=tuple(synsets),
    )


def _by_number(
    numbers: Sequence[int], classes: Sequence[str], outputs: OutputSpace, task: str | None
) -> Found:
    """Match classes that are all numbers."""
    ordered, count = sorted(numbers), outputs.count
    if len(set(numbers)) == len(numbers):
        if task == BY_INDEX and ordered[-1] < count:
            return _at(numbers, outputs, "by number, as asked: class names are output numbers")
        if ordered == list(range(count)) and not _why_not_taken(outputs):
            how = f"by number: the data set's classes are 0 to {count - 1}, taken as the outputs'"
            return _at(numbers, outputs, how, task_classes(outputs.task or "").caution)
        if found := _by_other_numbering(numbers, outputs):
            return found
        if ordered == list(range(published_space(ILSVRC).count)) and (
            found := _through(published_space(ILSVRC), classes, numbers, outputs)
        ):
            return found
    shown = [printable(outputs.short(k)) for k in range(count)] if outputs.names else []
    raise DatasetError(
        f"The classes of the data set are {len(numbers):,} numbers from {ordered[0]} to "
        f"{ordered[-1]}, which do not say which of {outputs.title} they are"
        f"{f' ({join_some(shown, 3)})' if shown else ''}. {_strange(ordered, outputs, task)} Name "
        f'the classes as the model does, or say whose numbers they are: `labels="{BY_INDEX}"` for '
        "the outputs'"
        + (f', `labels="{ILSVRC}"` for those of {ILSVRC}.' if outputs.synsets else ".")
    )


def _why_not_taken(outputs: OutputSpace) -> str:
    """Return why numbers, though none is missing, cannot be taken as the outputs'; or nothing."""
    if outputs.names and not outputs.is_published:
        return "The model's classes have names, whose order need not be that of the numbers."
    return task_classes(outputs.task or "").orders_differ


def _strange(ordered: Sequence[int], outputs: OutputSpace, task: str | None) -> str:
    """Say why numbers were not taken as the outputs'."""
    last = outputs.count - 1
    if len(set(ordered)) < len(ordered):
        return "Some of them are the same number."
    if task == BY_INDEX:
        return f"The outputs are 0 to {last}."
    if why := _why_not_taken(outputs):
        return why
    if ordered[0] == 1 and ordered == list(range(1, len(ordered) + 1)):
        return "They seem to count from 1, and outputs count from 0."
    return f"Numbers are taken as the outputs' only if all are there, 0 to {last}."


def _by_other_numbering(numbers: Sequence[int], outputs: OutputSpace) -> Found | None:
    """Match numbers that a published copy of the task's data uses."""
    for numbering in task_classes(outputs.task or "").numberings:
        if sorted(numbers) == sorted(numbering.numbers):
            at = {number: k for k, number in enumerate(numbering.numbers)}
            how = f"by number; the numbers are {numbering.source}"
            return _at([at[number] for number in numbers], outputs, how)
    return None


def _at(found: Sequence[int], outputs: OutputSpace, how: str, note: str = "") -> Found:
    synsets = outputs.synsets or (None,) * outputs.count
    return Found(tuple(found), how, (note,) if note else (), tuple(synsets[k] for k in found))


def _by_name(classes: Sequence[str], outputs: OutputSpace) -> Found:
    """Match by id and name."""
    may_be = outputs.index.resolve(classes)
    placed: list[int] = []
    if outputs.label_set:
        may_be, placed = outputs.index.settled_by_order(may_be)
    found = [next(iter(may)) if len(may) == 1 else NO_OUTPUT for may in may_be]
    twice = [k for k, times in Counter(found).items() if times > 1 and k != NO_OUTPUT]
    if twice:
        names = [repr(printable(n)) for n, k in zip(classes, found, strict=True) if k == twice[0]]
        raise DatasetError(
            "Every class of the data set must be another output of the model, found "
            f"{join_some(names)}, which all mean {outputs.describe(twice[0])}. Make them one class."
        )
    ids = [synset_in(name) if outputs.synsets else None for name in classes]
    synsets = [
        id_ if k == NO_OUTPUT or outputs.synsets is None else outputs.synsets[k]
        for id_, k in zip(ids, found, strict=True)
    ]
    named = ids.count(None)
    if not named:
        how = "by WordNet id"
    elif named == len(ids):
        how = "by name"
    else:
        how = f"by WordNet id ({len(ids) - named:,}) and name ({named:,})"
    notes = _on_places(classes, outputs, placed) or _on_spelling(classes, outputs, found)
    return Found(tuple(found), how, notes, tuple(synsets), tuple(may_be))


def _on_places(
    classes: Sequence[str], outputs: OutputSpace, placed: Sequence[int]
) -> tuple[str, ...]:
    if not placed:
        return ()
    shown = [f"{printable(classes[k])} is {outputs.describe(k)}" for k in placed]
    rest = len(classes) - len(placed)
    return (f"By place, as the other {rest:,} are in the published order: {join_some(shown)}.",)


def _on_spelling(
    classes: Sequence[str], outputs: OutputSpace, found: Sequence[int]
) -> tuple[str, ...]:
    """Say which names are not spelled as the model's; of a list of words, any may stand."""
    if outputs.names is None or outputs.label_set:
        return ()
    other = [
        f"{printable(name)} is {printable(outputs.names[k])}"
        for name, k in zip(classes, found, strict=True)
        if k != NO_OUTPUT and name != outputs.names[k]
    ]
    if not other:
        return ()
    what = "Spelled differently (case, separators or punctuation)"
    return (f"{what}, {len(other):,}: {join_some(other, 3)}.",)
