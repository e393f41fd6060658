"""Validate a data set before training: decode every image and report all problems at once.

One pass decodes each image in full, with the function that decodes it for training (which is the
only way to find truncated files), and takes the SHA-256 of its file, which finds copies across
splits and is the key of the pixel cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from bitzoo.data.automatic_split import Draw, describe, draw, notes_on
from bitzoo.data.brightness import Levels, find_bit_depth, find_darkness, notes_on_values
from bitzoo.data.data_summary import DataSummary
from bitzoo.data.dataset import Example, ImageSet, Split, fingerprint
from bitzoo.data.fixed_split import noting_what_stays, with_fixed_split
from bitzoo.data.groups import NEAR_DUPLICATES, notes_on_groups
from bitzoo.data.image_check import ImageCheck
from bitzoo.data.kept_checks import KeptChecks, describe_kept
from bitzoo.data.lazy_validation import inspect_lazily
from bitzoo.data.many_checks import TASK, check_images, collecting_later, hash_contents
from bitzoo.data.near_duplicates import (
    Kept,
    NearDuplicates,
    drop_from,
    find_near_duplicates,
    near_groups,
)
from bitzoo.data.problems import Problem, Problems, Reason, join_some
from bitzoo.data.rows_while_checking import WantedRows
from bitzoo.data.splits import join_groups
from bitzoo.errors import UsageError
from bitzoo.files import Progress
from bitzoo.models.wide_values import problem_of


def inspect(
    imageset: ImageSet,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    training: bool = True,
    drop_near_duplicates: bool = False,
    bit_depth: int | None = None,
    checks: Sequence[ImageCheck] | None = None,
    fixed_split: bool = False,
    lazily: bool = False,
    keep_checks: bool = False,
    recheck: bool = False,
    rows: WantedRows | None = None,
) -> tuple[ImageSet, DataSummary]:
    """Decode every image and validate the data set as a whole.

    Args:
        imageset: A data set as read.
        skip_bad: Skip unusable images, images of train that are in val too, classes without a
            usable image in train, and whatever else `Reason.can_skip` allows.
        workers: Decoding threads; None means one per core that this process may use.
        progress: Called with the task, the number of images done and their total.
        training: Whether the data set is for training. False only requires readable images.
        drop_near_duplicates: Whether to drop from train what is a near-duplicate of held-out
            images, see `near_duplicates`. They are reported in any case.
        bit_depth: `DataSummary.bit_depth` of the data that the network was trained on, so that
            these images are read as those were; None derives it from the data set.
        checks: The check of each example, in the order of the splits, if they are known; see
            `check_images`.
        fixed_split: Whether the data set's own train and val are those of a benchmark, to be used
            exactly as they are: what they have in common stays in both, and classes that train
            lacks remain classes. What is so is said in the notes.
        lazily: Whether to decode only a sample before training, and leave the others to be checked
            when they are used, see `lazy_validation.inspect_lazily`.
        keep_checks: Whether to keep the checks, and use those of earlier runs of images that are
            the same by `kept_checks.look_at`: then nothing is read again, which
            `DataSummary.kept` says.
        recheck: Whether to read and decode all images even so.
        rows: How the images will be opened after this, see `rows_while_checking`: what is decoded
            for the check is then put into the pixel cache.

    Returns:
        The data set without the skipped items, with each example's `sha256` and the fingerprint
        over the contents; and its summary. If its split was drawn, it is drawn again from the
        usable images, with copies of one image on the same side: it is that of a data set that
        never had the others.

    Raises:
        DatasetError: If there are problems that may not be skipped; the message lists all problems.
        UsageError: If a split that was drawn can hold out nothing now, or a class would lose all
            its training images as near-duplicates; or if a split that is to stay as it is was
            drawn, or would be changed.
    """
    kept_checks = KeptChecks.of(imageset.source, recheck=recheck) if keep_checks else None
    drawn = imageset.draw
    if drawn and drawn.group_by == NEAR_DUPLICATES and drawn.positions is None:
        raise UsageError(
            "`group_by` must be a column or a regular expression where only some of the images "
            f"are used, found {NEAR_DUPLICATES!r}: it needs all of them. Use all images, or leave "
            "`group_by` out."
        )
    if fixed_split:
        imageset = with_fixed_split(imageset, drop_near_duplicates=drop_near_duplicates)
    if lazily:
        _require_for_lazy(imageset, drop_near_duplicates)
        assert checks is None
        assert training
        images, summary = inspect_lazily(
            imageset,
            skip_bad=skip_bad,
            workers=workers,
            progress=progress,
            bit_depth=bit_depth,
            kept=kept_checks,
        )
        return images, _saying(summary, kept_checks, summary.checked or 0)
    every = [example for split in imageset.splits for example in split.examples]
    if checks is None:
        checks = check_images(
            every,
            workers=workers,
            progress=progress,
            kept=kept_checks,
            rows=rows,
            splits=[split.name for split in imageset.splits for _ in split.examples],
        )
    with collecting_later():
        images, summary = _conclude(
            imageset,
            checks,
            skip_bad=skip_bad,
            progress=progress,
            training=training,
            drop_near_duplicates=drop_near_duplicates,
            bit_depth=bit_depth,
            fixed_split=fixed_split,
            comparing=None if kept_checks is None else kept_checks.compared,
        )
    return images, _saying(summary, kept_checks, len(every))


def _conclude(
    imageset: ImageSet,
    checks: Sequence[ImageCheck],
    *,
    skip_bad: bool,
    progress: Progress | None,
    training: bool,
    drop_near_duplicates: bool,
    bit_depth: int | None,
    fixed_split: bool,
    comparing: Kept | None,
) -> tuple[ImageSet, DataSummary]:
    """Judge the data set by the checks of all its images, as `inspect` does."""
    in_order = iter(checks)
    checked = {
        split.name: [
            (example.with_content(check.sha256), check)
            for example, check in zip(split.examples, in_order, strict=False)
        ]
        for split in imageset.splits
    }
    depth = bit_depth or find_bit_depth(levels for _, levels in _levels_of(checked))
    checked = _judge_values(checked, depth)
    problems = [*imageset.problems, *_found_in(checked)]
    drawn = imageset.draw if training else None
    if drawn and drawn.positions is not None:
        checked = {"train": _in_order(checked, drawn.positions)}
    kept = {
        name: [pair for pair in pairs if pair[1].reason is None] for name, pairs in checked.items()
    }
    empty: dict[int, Problem] = {}
    if training:
        imageset, empty, lacking = _compare_splits(
            imageset, checked, kept, skip_bad=skip_bad, drawn=drawn, fixed=fixed_split
        )
        problems += lacking
        problems += find_darkness(_levels_of(kept), depth)
    problems.sort(key=lambda problem: list(Reason).index(problem.reason))
    found = Problems(imageset.source, tuple(problems))
    if problems and not (skip_bad and found.can_skip):
        raise found.error(skipping=skip_bad)
    imageset, kept = _without_classes(imageset, kept, empty)
    if drawn and drawn.positions is not None:
        imageset, kept = _draw_again(imageset, kept["train"], drawn, progress, comparing)
    near = NearDuplicates()
    if training and kept.get("val"):
        signed = {name: [(e, check.signature) for e, check in kept[name]] for name in kept}
        near = find_near_duplicates(signed["train"], signed["val"], progress, comparing)
    if drop_near_duplicates:
        near, kept["train"] = drop_from(near, kept["train"], imageset.classes)
    inspected = _keep_only(imageset, kept)
    return inspected, _summarize(inspected, kept, found, near, depth, training)


__all__ = ["TASK", "DataSummary", "check_images", "hash_contents", "inspect"]

_Kept: TypeAlias = "dict[str, list[tuple[Example, ImageCheck]]]"


def _found_in(checked: _Kept) -> Iterator[Problem]:
    for pairs in checked.values():
        for example, check in pairs:
            if check.reason is not None:
                yield Problem(check.reason, example.key, check.detail)


def _saying(summary: DataSummary, kept: KeptChecks | None, total: int) -> DataSummary:
    if kept is None:
        return summary
    return replace(summary, kept=describe_kept(kept.used, total))


def _require_for_lazy(imageset: ImageSet, drop_near_duplicates: bool) -> None:
    """Refuse what needs all images at once, where most are decoded only while training."""
    grouped = imageset.draw is not None and imageset.draw.group_by == NEAR_DUPLICATES
    if drop_near_duplicates or grouped:
        option = f'group_by="{NEAR_DUPLICATES}"' if grouped else "drop_near_duplicates=True"
        total = sum(map(len, imageset.splits))
        raise UsageError(
            f"`{option}` needs all images decoded before the first step, but data as large as "
            f"these, {total:,} images, are checked while they are trained on. Leave it out; group "
            "by a column or a regular expression, or give data with splits that share nothing."
        )


def _in_order(checked: _Kept, positions: Sequence[int]) -> list[tuple[Example, ImageCheck]]:
    """Return train and val, drawn from one list, as that list."""
    train, val, held = iter(checked["train"]), iter(checked["val"]), set(positions)
    total = len(checked["train"]) + len(checked["val"])
    return [next(val if position in held else train) for position in range(total)]


def _draw_again(
    imageset: ImageSet,
    pairs: list[tuple[Example, ImageCheck]],
    drawn: Draw,
    progress: Progress | None,
    comparing: Kept | None,
) -> tuple[ImageSet, _Kept]:
    """Draw the split from the usable images, with those of equal content on one side."""
    labels = [example.label for example, _ in pairs]
    contents = Counter(example.sha256 for example, _ in pairs)
    groupings: list[Sequence[Hashable]] = [[example.sha256 for example, _ in pairs]]
    if drawn.group_by == NEAR_DUPLICATES:
        groupings.append(near_groups([c.signature for _, c in pairs], progress, comparing))
    elif drawn.group_by:
        groupings.append([example.group for example, _ in pairs])
    groups = join_groups(*groupings)
    positions = draw(labels, imageset.classes, drawn.fraction, drawn.seed, groups)
    held = set(positions)
    grouped = sum(count for count in contents.values() if count > 1)
    notes = tuple(notes_on(labels, imageset.classes, positions))
    kept = {
        "train": [pair for position, pair in enumerate(pairs) if position not in held],
        "val": [pairs[position] for position in positions],
    }
    if drawn.group_by:
        ours = [group for position, group in enumerate(groups) if position not in held]
        theirs = [groups[position] for position in positions]
        notes += notes_on_groups(ours, theirs, drawn.group_by)
    imageset = replace(
        imageset,
        notes=tuple(note for note in imageset.notes if note not in drawn.notes) + notes,
        held_out=describe(drawn, len(positions), len(pairs), grouped),
        draw=replace(drawn, positions=positions, notes=notes),
    )
    return imageset, kept


def _compare_splits(
    imageset: ImageSet,
    checked: _Kept,
    kept: _Kept,
    *,
    skip_bad: bool,
    drawn: Draw | None,
    fixed: bool,
) -> tuple[ImageSet, dict[int, Problem], list[Problem]]:
    """Find what train and val have in common, and the classes that train lacks.

    Leaves the common images out of `kept["train"]` where they are to be skipped.

    Returns:
        The data set, with what was found noted where it is no problem; label -> problem of the
        classes to drop; and all problems.
    """
    copies = _copies(imageset, kept)
    if (skip_bad or drawn) and not fixed:
        kept["train"] = [pair for pair in kept["train"] if pair[0] not in copies]
    empty = _empty_classes(imageset, checked, kept)
    if fixed:
        held_out = [example for example, _ in kept["val"]]
        imageset = noting_what_stays(imageset, copies, empty, held_out)
        return imageset, {}, [*_class_problems(imageset, kept, {})]
    imageset = _noting(imageset, copies) if drawn else imageset
    problems = [] if drawn else [*copies.values()]
    return imageset, empty, [*problems, *empty.values(), *_class_problems(imageset, kept, empty)]


def _copies(imageset: ImageSet, kept: _Kept) -> dict[Example, Problem]:
    """Return the examples of train whose content is in val too."""
    held_out = {example.sha256: example for example, _ in reversed(kept.get("val", []))}
    found = {}
    for example, _ in kept["train"]:
        if (twin := held_out.get(example.sha256)) is not None:
            other = set(twin.classes) != set(example.classes)
            label = f", which has another label, {_in_words(imageset, twin)}" if other else ""
            found[example] = Problem(Reason.DUPLICATE, example.key, f"same as {twin.key}{label}")
    return found


def _in_words(imageset: ImageSet, example: Example) -> str:
    return join_some([imageset.classes[label] for label in example.classes])


def _noting(imageset: ImageSet, copies: Mapping[Example, Problem]) -> ImageSet:
    """Note the copies that were left out of a few-shot choice."""
    if not copies:
        return imageset
    shown = join_some([f"{p.subject} ({p.detail})" for p in copies.values()])
    note = f"Not trained on, as the same image is held out ({len(copies)}): {shown}."
    return replace(imageset, notes=(*imageset.notes, note))


def _empty_classes(imageset: ImageSet, checked: _Kept, kept: _Kept) -> dict[int, Problem]:
    """Return label -> problem of each class without a usable image in train."""
    usable = {label for example, _ in kept["train"] for label in example.classes}
    listed = Counter(label for example, _ in checked["train"] for label in example.classes)
    reported = {p.subject for p in imageset.problems if p.reason is Reason.ONLY_IN_VAL}
    return {
        label: Problem(
            Reason.EMPTY_CLASS,
            name,
            f"none of its {listed[label]} can be used" if listed[label] else "",
        )
        for label, name in enumerate(imageset.classes)
        if label not in usable and name not in reported
    }


def _class_problems(
    imageset: ImageSet, kept: _Kept, empty: Mapping[int, Problem]
) -> Iterator[Problem]:
    left = [name for label, name in enumerate(imageset.classes) if label not in empty]
    if len(left) < 2:
        yield Problem(Reason.FEW_CLASSES, f"only {join_some(left)}" if left else "none")
    if "val" in kept and all(empty.keys() >= {*example.classes} for example, _ in kept["val"]):
        count = len(imageset.val or ())
        yield Problem(Reason.EMPTY_SPLIT, "val", f"none of its {count} can be used")


def _without_classes(
    imageset: ImageSet, kept: _Kept, empty: Mapping[int, Problem]
) -> tuple[ImageSet, _Kept]:
    """Drop classes without a usable image in train, with their images in val."""
    if not empty:
        return imageset, kept
    names = [name for label, name in enumerate(imageset.classes) if label not in empty]
    index = {imageset.classes.index(name): number for number, name in enumerate(names)}

    def renumbered(example: Example) -> Example:
        labels = [index[label] for label in example.classes if label in index]
        return replace(example, label=labels[0], labels=tuple(labels) if example.labels else ())

    left = {
        split: [(renumbered(e), check) for e, check in pairs if index.keys() & {*e.classes}]
        for split, pairs in kept.items()
    }
    lost = Counter(
        label for example, _ in kept.get("val", []) for label in example.classes if label in empty
    )
    dropped = [
        problem.subject + (f" (with its {lost[label]} of val)" if lost[label] else "")
        for label, problem in empty.items()
    ]
    note = (
        f"Classes that the network does not learn, as train has no usable image of them "
        f"({len(dropped)}): {join_some(dropped)}."
    )
    return replace(imageset, classes=tuple(names), notes=(*imageset.notes, note)), left


def _keep_only(imageset: ImageSet, kept: _Kept) -> ImageSet:
    splits = {
        name: Split(name, tuple(example for example, _ in pairs)) for name, pairs in kept.items()
    }
    images = replace(imageset, train=splits["train"], val=splits.get("val"), problems=())
    return replace(images, fingerprint=fingerprint(images))


def _levels_of(kept: _Kept) -> list[tuple[Example, Levels]]:
    every = (pair for pairs in kept.values() for pair in pairs)
    return [(example, check.levels) for example, check in every if check.levels]


def _judge_values(checked: _Kept, bit_depth: int | None) -> _Kept:
    """Return the checks; images whose values do not fit the bit depth now have a reason."""

    def judge(check: ImageCheck) -> ImageCheck:
        wide = check.levels.wide if check.levels else None
        detail = wide and problem_of(wide, bit_depth)
        return replace(check, reason=Reason.NO_8_BIT, detail=detail) if detail else check

    return {name: [(e, judge(check)) for e, check in pairs] for name, pairs in checked.items()}


def _summarize(
    imageset: ImageSet,
    kept: _Kept,
    skipped: Problems,
    near: NearDuplicates,
    depth: int | None,
    training: bool,
) -> DataSummary:
    class_counts = {}
    for split in imageset.splits:
        counts = Counter(label for example in split.examples for label in example.classes)
        class_counts[split.name] = tuple(counts[k] for k in range(len(imageset.classes)))
    measured = kept["train"] or kept.get("val", [])
    sizes = np.array([check.size for _, check in measured] or [(0, 0)])
    height, width = np.median(sizes, axis=0)
    traits = Counter(t for pairs in kept.values() for _, check in pairs for t in check.traits)
    return DataSummary(
        counts={split.name: len(split) for split in imageset.splits},
        class_counts=class_counts,
        resolution=(int(height), int(width)),
        traits=dict(sorted(traits.items())),
        notes=(
            *imageset.notes,
            *(_notes_on_skipped(skipped) if training else ()),
            *_notes_on_repeats(imageset),
            *((near.note(),) if near.pairs else ()),
            *notes_on_values(_levels_of(kept), depth, imageset.classes),
        ),
        skipped=skipped,
        near_duplicates=near,
        bit_depth=depth,
    )


def _notes_on_skipped(skipped: Problems) -> Iterator[str]:
    for reason in skipped.reasons:
        items = skipped.of(reason)
        yield f"Left out: {reason.title} ({len(items):,}): {join_some(items)}."


def _notes_on_repeats(imageset: ImageSet) -> Iterator[str]:
    for split in imageset.splits:
        groups: dict[str, list[Example]] = {}
        for example in split.examples:
            groups.setdefault(example.sha256, []).append(example)
        repeats = [group for group in groups.values() if len(group) > 1]
        if repeats:
            shown = join_some([_join_equal(group) for group in repeats], 3)
            yield f"Images that occur more than once in {split.name} ({len(repeats)}): {shown}."
        conflicting = [group for group in repeats if len({frozenset(e.classes) for e in group}) > 1]
        if conflicting:
            shown = join_some([_join_equal(group) for group in conflicting], 3)
            yield f"Of these, with different labels ({len(conflicting)}): {shown}."


def _join_equal(group: Sequence[Example]) -> str:
    return " = ".join(example.key for example in group[:3]) + (" = ..." if group[3:] else "")
