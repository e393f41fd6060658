"""Validate a data set without decoding it: listing, light checks, and a sample of its images.

What is found in the others while they are trained on, is for `stand_ins` to report. What only a
comparison of all images could show is not looked for, and the notes say so.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bitzoo.data.brightness import find_bit_depth, find_darkness, notes_on_values
from bitzoo.data.data_summary import DataSummary
from bitzoo.data.dataset import ImageSet, Split, fingerprint
from bitzoo.data.examples import Example, ExampleTable, count_classes, without
from bitzoo.data.image_check import ImageCheck
from bitzoo.data.kept_checks import KeptChecks
from bitzoo.data.many_checks import check_images
from bitzoo.data.problems import Problem, Problems, Reason, join_some
from bitzoo.files import Progress
from bitzoo.models.wide_values import problem_of

SAMPLE = 512
"""Images of each split that are decoded before training: evenly spaced, the first among them. If
one in a hundred is bad, a sample has none of them in 0.6 % of cases."""


def inspect_lazily(
    imageset: ImageSet,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    bit_depth: int | None = None,
    kept: KeptChecks | None = None,
) -> tuple[ImageSet, DataSummary]:
    """Validate a data set by its listing and a sample of its images.

    Images of 0 bytes are found where the source knows their sizes: files, and shards. A bad image
    of the sample ends this, or with `skip_bad` stays in the data set: another stands in for it when
    it is used, as for every other image (`bitzoo.data.stand_ins`).

    Args:
        imageset: A data set as read.
        skip_bad: Whether what is unusable is skipped.
        workers: Decoding threads; None means one per core that this process may use.
        progress: Called with a task, the number of images done and their total.
        bit_depth: As for `validation.inspect`; None derives it from the sample.
        kept: Checks of earlier runs.

    Returns:
        The data set without images of 0 bytes, whose fingerprint covers the listing, the sizes and
        the contents of the sample; and its summary, of which resolution, traits and bit depth are
        those of the sample.

    Raises:
        DatasetError: If there are problems that may not be skipped; the message lists all problems.
    """
    sizes = {split.name: _sizes(split.examples) for split in imageset.splits}
    empty = {name: np.flatnonzero(found == 0) for name, found in sizes.items()}
    problems = [*imageset.problems]
    for split in imageset.splits:
        problems += [
            Problem(Reason.NO_BYTES, split.examples[k].key) for k in empty[split.name].tolist()
        ]
    usable = {s.name: without(s.examples, empty[s.name]) for s in imageset.splits}
    sizes = {name: np.delete(found, empty[name]) for name, found in sizes.items() if len(found)}
    chosen = {name: _evenly(len(examples)) for name, examples in usable.items()}
    samples = {name: [usable[name][k] for k in chosen[name].tolist()] for name in usable}
    every = [example for examples in samples.values() for example in examples]
    in_order = iter(check_images(every, workers=workers, progress=progress, kept=kept))
    checked = {name: [(e, next(in_order)) for e in samples[name]] for name in samples}
    levels = [(e, c.levels) for pairs in checked.values() for e, c in pairs if c.levels]
    depth = bit_depth or find_bit_depth(found for _, found in levels)
    bad = list(_bad([pair for pairs in checked.values() for pair in pairs], depth))
    problems += bad
    problems += find_darkness(levels, depth)
    problems += _class_problems(imageset, usable)
    problems.sort(key=lambda problem: list(Reason).index(problem.reason))
    found = Problems(imageset.source, tuple(problems))
    if problems and not (skip_bad and found.can_skip):
        raise found.error(skipping=skip_bad)
    inspected = replace(
        imageset,
        train=Split("train", usable["train"]),
        val=Split("val", usable["val"]) if "val" in usable else None,
        problems=(),
    )
    drawn = imageset.draw and replace(imageset.draw, positions=None)
    inspected = replace(inspected, fingerprint=_fingerprint(inspected, sizes, checked), draw=drawn)
    return inspected, _summary(inspected, checked, found, bad, levels, depth)


def _sizes(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Return the bytes of each image, -1 where that is not known."""
    if isinstance(examples, ExampleTable):
        found = examples.table.sizes()
        return np.full(len(examples), -1) if found is None else found
    return np.fromiter(map(_size, examples), np.int64, len(examples))


def _size(example: Example) -> int:
    if example.path is None:
        return -1
    try:
        return example.path.stat().st_size
    except OSError:
        return -1  # missing: that shows when it is read


def _evenly(count: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, SAMPLE)).astype(np.int64))


def _bad(pairs: Sequence[tuple[Example, ImageCheck]], depth: int | None) -> Iterator[Problem]:
    for example, check in pairs:
        wide = check.levels.wide if check.levels else None
        detail = wide and problem_of(wide, depth)
        if check.reason is not None:
            yield Problem(check.reason, example.key, check.detail)
        elif detail:
            yield Problem(Reason.NO_8_BIT, example.key, detail)


def _class_problems(imageset: ImageSet, usable: dict[str, Sequence[Example]]) -> Iterator[Problem]:
    counts = count_classes(usable["train"], len(imageset.classes))
    if np.count_nonzero(counts) < 2:
        names = [imageset.classes[label] for label in np.flatnonzero(counts).tolist()]
        yield Problem(Reason.FEW_CLASSES, f"only {join_some(names)}" if names else "none")
    if "val" in usable and not len(usable["val"]):
        yield Problem(
            Reason.EMPTY_SPLIT, "val", f"none of its {len(imageset.val or ())} can be used"
        )


def _fingerprint(
    images: ImageSet,
    sizes: dict[str, npt.NDArray[np.int64]],
    checked: dict[str, list[tuple[Example, ImageCheck]]],
) -> str:
    """Return SHA-256 over the listing, the sizes of all images, and the hashes of the sample."""
    digest = hashlib.sha256(fingerprint(images).encode())
    for name, pairs in checked.items():
        digest.update(json.dumps([name, *(check.sha256 for _, check in pairs)]).encode())
        if name in sizes:
            digest.update(sizes[name].astype("<i8").tobytes())
    return digest.hexdigest()


def _summary(
    images: ImageSet,
    checked: dict[str, list[tuple[Example, ImageCheck]]],
    skipped: Problems,
    bad: Sequence[Problem],
    levels: Sequence[tuple[Example, object]],
    depth: int | None,
) -> DataSummary:
    good = [c for _, c in checked["train"] or checked.get("val", []) if c.reason is None]
    height, width = np.median(np.array([c.size for c in good] or [(0, 0)]), axis=0)
    traits = Counter(t for pairs in checked.values() for _, c in pairs for t in c.traits)
    counts = {s.name: count_classes(s.examples, len(images.classes)) for s in images.splits}
    total, decoded = sum(map(len, images.splits)), sum(map(len, checked.values()))
    return DataSummary(
        counts={split.name: len(split) for split in images.splits},
        class_counts={name: tuple(found.tolist()) for name, found in counts.items()},
        resolution=(int(height), int(width)),
        traits=dict(sorted(traits.items())),
        notes=(
            *images.notes,
            *_notes_on_skipped(skipped, bad),
            *_notes_on_classes(images, counts["train"]),
            f"Checked before training: the list of all {total:,} images, and {decoded:,} of them "
            "decoded in full, evenly spaced. The others are checked when they are used. Not looked "
            "for, as that needs all images at once: copies and near-duplicates, within a split and "
            "across splits. Only the first frame of an animated or multi-page file would be used.",
            *notes_on_values(levels, depth, images.classes),  # type: ignore[arg-type]
        ),
        skipped=skipped,
        bit_depth=depth,
        checked=decoded,
    )


def _notes_on_skipped(skipped: Problems, bad: Sequence[Problem]) -> Iterator[str]:
    left_out = Problems(skipped.source, tuple(p for p in skipped.problems if p not in bad))
    for reason in left_out.reasons:
        items = left_out.of(reason)
        yield f"Left out: {reason.title} ({len(items):,}): {join_some(items)}."
    if bad:
        yield (
            f"Images of the sample that cannot be used ({len(bad):,}), for which the next one "
            f"stands in: {join_some(bad)}."
        )


def _notes_on_classes(images: ImageSet, counts: npt.NDArray[np.int64]) -> Iterator[str]:
    empty = [images.classes[label] for label in np.flatnonzero(counts == 0).tolist()]
    if empty:
        yield f"Classes of which there is no image in train ({len(empty):,}): {join_some(empty)}."
