"""Every problem of a data set at once, before the first step.

One pass decodes each image (`bitzoo.finetune.verdicts`) and takes the SHA-256 of its file, which
finds copies across splits and is the key of the pixel cache.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bitzoo.finetune.dataset import Example, ImageSet, Split, fingerprint
from bitzoo.finetune.findings import Findings, Problem, Reason, join_some
from bitzoo.finetune.verdicts import Verdict, judge

if TYPE_CHECKING:
    from bitzoo.converters.tensors import Progress

TASK = "checking images"
"""What `progress` is told that is done."""

_SLICE = 256
"""So many images are handed to the threads at once; an interrupt waits for no more than these."""


@dataclass(frozen=True)
class Facts:
    """What an inspected data set is like, without what was skipped.

    Attributes:
        counts: Split -> number of images.
        class_counts: Split -> number of images of each class, in the order of the classes.
        resolution: Median height and median width of the images to train on (of all, if there are
            none), upright, halves rounded down.
        traits: What is special and taken care of -> number of images.
        notes: What people should know and need not act upon.
        findings: What was skipped.
    """

    counts: dict[str, int]
    class_counts: dict[str, tuple[int, ...]]
    resolution: tuple[int, int]
    traits: dict[str, int]
    notes: tuple[str, ...]
    findings: Findings


def inspect(
    imageset: ImageSet,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    training: bool = True,
) -> tuple[ImageSet, Facts]:
    """Decode every image and judge the data set as a whole.

    Args:
        imageset: A data set as read.
        skip_bad: Go on without images that cannot be used, without images of train that val has
            too, and whatever else `Reason.can_skip` allows.
        workers: Threads that decode; as many as this process may use cores if None.
        progress: Called with the task, how many images are done and how many there are.
        training: Whether it is to be trained on. False asks only that the images can be read.

    Returns:
        The data set without what was skipped, each example with its `sha256`, the fingerprint over
        the contents; and what it is like.

    Raises:
        DatasetError: If anything is wrong that may not be skipped; the message lists all of it.
    """
    judged = _judge_all(imageset, workers, progress)
    problems = [*imageset.problems]
    for split in imageset.splits:
        problems += [
            Problem(verdict.reason, example.key, verdict.detail)
            for example, verdict in judged[split.name]
            if verdict.reason is not None
        ]
    kept = {
        name: [pair for pair in pairs if pair[1].reason is None] for name, pairs in judged.items()
    }
    if training:
        copies = _copies(kept)
        problems += copies.values()
        if skip_bad:
            kept["train"] = [pair for pair in kept["train"] if pair[0] not in copies]
        problems += _class_problems(imageset, kept)
    problems.sort(key=lambda problem: list(Reason).index(problem.reason))
    findings = Findings(imageset.source, tuple(problems))
    if problems and not (skip_bad and findings.can_skip):
        raise findings.error(skipping=skip_bad)
    inspected = _without_the_rest(imageset, kept)
    return inspected, _gather_facts(inspected, kept, findings)


def _judge_all(
    imageset: ImageSet, workers: int | None, progress: Progress | None
) -> dict[str, list[tuple[Example, Verdict]]]:
    """Split -> its examples with their verdicts; the SHA-256 of each is in the example."""
    total, done = sum(map(len, imageset.splits)), 0
    judged: dict[str, list[tuple[Example, Verdict]]] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or _count_cores()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of broken EXIF data and of large images
        for split in imageset.splits:
            pairs = judged[split.name] = []
            for start in range(0, len(split), _SLICE):
                examples = split.examples[start : start + _SLICE]
                for example, verdict in zip(examples, pool.map(judge, examples), strict=True):
                    pairs.append((replace(example, sha256=verdict.sha256), verdict))
                    done += 1
                    if progress is not None:
                        progress(TASK, done, total)
    return judged


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_Kept = dict[str, list[tuple[Example, Verdict]]]


def _copies(kept: _Kept) -> dict[Example, Problem]:
    """The examples of train whose content is in val too."""
    held_out = {example.sha256: example.key for example, _ in reversed(kept.get("val", []))}
    return {
        example: Problem(Reason.DUPLICATE, example.key, f"same as {held_out[example.sha256]}")
        for example, _ in kept["train"]
        if example.sha256 in held_out
    }


def _class_problems(imageset: ImageSet, kept: _Kept) -> Iterator[Problem]:
    if len(imageset.classes) < 2:
        yield Problem(Reason.FEW_CLASSES, f"only {join_some(imageset.classes)}")
    usable = Counter(example.label for example, _ in kept["train"])
    listed = Counter(example.label for example in imageset.train.examples)
    reported = {p.subject for p in imageset.problems if p.reason is Reason.ONLY_IN_VAL}
    for label, name in enumerate(imageset.classes):
        if not usable[label] and name not in reported:
            count = listed[label]
            yield Problem(
                Reason.EMPTY_CLASS, name, f"none of its {count} can be used" if count else ""
            )
    if imageset.val is not None and not kept["val"]:
        yield Problem(Reason.EMPTY_SPLIT, "val", f"none of its {len(imageset.val)} can be used")


def _without_the_rest(imageset: ImageSet, kept: _Kept) -> ImageSet:
    splits = {
        name: Split(name, tuple(example for example, _ in pairs)) for name, pairs in kept.items()
    }
    images = replace(imageset, train=splits["train"], val=splits.get("val"), problems=())
    return replace(images, fingerprint=fingerprint(images))


def _gather_facts(imageset: ImageSet, kept: _Kept, findings: Findings) -> Facts:
    class_counts = {}
    for split in imageset.splits:
        counts = Counter(example.label for example in split.examples)
        class_counts[split.name] = tuple(counts[k] for k in range(len(imageset.classes)))
    measured = kept["train"] or kept.get("val", [])
    sizes = np.array([verdict.size for _, verdict in measured] or [(0, 0)])
    height, width = np.median(sizes, axis=0)
    traits = Counter(t for pairs in kept.values() for _, verdict in pairs for t in verdict.traits)
    return Facts(
        counts={split.name: len(split) for split in imageset.splits},
        class_counts=class_counts,
        resolution=(int(height), int(width)),
        traits=dict(sorted(traits.items())),
        notes=imageset.notes + tuple(_notes_on_repeats(imageset)),
        findings=findings,
    )


def _notes_on_repeats(imageset: ImageSet) -> Iterator[str]:
    groups: dict[str, list[Example]] = {}
    for example in imageset.train.examples:
        groups.setdefault(example.sha256, []).append(example)
    repeats = [group for group in groups.values() if len(group) > 1]
    if repeats:
        shown = join_some([_equation(group) for group in repeats], 3)
        yield f"Images that train has more than once ({len(repeats)}): {shown}."
    torn = [group for group in repeats if len({example.label for example in group}) > 1]
    if torn:
        shown = join_some([_equation(group) for group in torn], 3)
        yield f"Of these, with different labels ({len(torn)}): {shown}."


def _equation(group: Sequence[Example]) -> str:
    return " = ".join(example.key for example in group[:3]) + (" = ..." if group[3:] else "")
