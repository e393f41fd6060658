"""The images of a probe: which of them classifiers learn from, and which they are judged on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bitzoo.data.dataset import (
    DataSource,
    Example,
    ImageSet,
    Split,
    fingerprint,
    read_dataset,
)
from bitzoo.data.groups import NEAR_DUPLICATES
from bitzoo.data.kept_checks import KeptChecks, describe_kept
from bitzoo.data.near_duplicates import NearDuplicates, near_groups
from bitzoo.data.rows_while_checking import WantedRows
from bitzoo.data.splits import draw_folds, join_groups
from bitzoo.data.validation import DataSummary, check_images, inspect
from bitzoo.errors import UsageError
from bitzoo.files import Progress
from bitzoo.inference.evaluate import labels_of
from bitzoo.models.preprocessing import EvalTransform

Rows = npt.NDArray[np.int64]

FEW = 100
"""Held-out images below which folds are advised: 95 % of them right is an interval of 9 points."""


@dataclass(frozen=True)
class ProbeData:
    """The usable images of a data set.

    Attributes:
        images: The data set as a run would train on it. Without a split if there are folds.
        summary: Its properties.
        examples: All images, of both splits.
        labels: The class of each.
        rounds: Rows of `examples` to learn from, and those to judge on: one pair for a split, one
            for each fold. No image is judged twice.
        judged: What the accuracies are over, as a phrase.
        notes: What was chosen or is to be known, as sentences.
    """

    images: ImageSet
    summary: DataSummary
    examples: tuple[Example, ...]
    labels: Rows
    rounds: tuple[tuple[Rows, Rows], ...]
    judged: str
    notes: tuple[str, ...]

    @property
    def folds(self) -> int | None:
        """Number of folds; None for a split."""
        return None if self.images.val is not None else len(self.rounds)

    @property
    def judged_rows(self) -> Rows:
        """The rows that are judged, in the order of the rounds."""
        return np.concatenate([test for _, test in self.rounds])


def read_probe_data(
    data: DataSource,
    *,
    folds: int | None,
    val_fraction: float | None,
    group_by: str | None,
    drop_near_duplicates: bool,
    eval_split: str | None,
    seed: int,
    skip_bad: bool,
    recheck: bool,
    transform: EvalTransform,
    cache_bytes: int,
    workers: int | None,
    progress: Progress | None,
) -> ProbeData:
    """Read and check a data set, and divide it as a run of `bitzoo.finetune` divides it.

    Args:
        data: As for `bitzoo.finetune`, and so are the others that are not explained here.
        folds: Number of folds, or None for held-out images: the data set's own, or what a run with
            these options holds out. Copies of an image, and what `group_by` keeps together, are in
            one fold.
        val_fraction: Fraction to hold out.
        group_by: What keeps images together.
        drop_near_duplicates: Whether to drop training images that look like held-out ones.
        eval_split: Which is held out of data with both a val and a test split.
        seed: Seed of the held-out choice, or of the folds.
        skip_bad: Whether to skip images that cannot be used.
        recheck: Whether to read all images to check them, whatever earlier checks were kept.
        transform: How the images will be prepared.
        cache_bytes: Most bytes of the cache of decoded images; 0 if they are not to be kept.
        workers: Threads that decode.
        progress: Called with a task, how much of it is done, and how much there is.

    Raises:
        UsageError: If options contradict each other or the data.
        DatasetError: If the data cannot be used.
    """
    if folds is not None:
        _check_folds(folds, val_fraction, drop_near_duplicates)
    images = read_dataset(
        data,
        val_fraction=val_fraction,
        group_by=group_by,
        seed=seed,
        eval_split=eval_split,
        progress=progress,
    )
    if folds is not None and images.draw is None:
        raise UsageError(
            f"{images.source} has its own images to be judged on, so `folds={folds}` would mix "
            "them with the others. Leave `folds` out."
        )
    if images.val is None:
        raise UsageError(
            f"A probe needs images to be judged on, and {images.source} has none. Leave out "
            "`val_fraction`, or use all images in turn, with `folds=5`."
        )
    rows = WantedRows({"train": transform, "val": transform}, cache_bytes)
    if folds is not None:
        return _in_folds(images, folds, group_by, seed, skip_bad, recheck, rows, workers, progress)
    images, summary = inspect(
        images,
        skip_bad=skip_bad,
        workers=workers,
        progress=progress,
        drop_near_duplicates=drop_near_duplicates,
        keep_checks=True,
        recheck=recheck,
        rows=rows,
    )
    assert images.val is not None
    learn, judge = len(images.train), len(images.val)
    judged = ("" if images.draw else f"all {judge:,} images of ") + str(images.held_out)
    notes = [f"Accuracies are over {judged}; {learn:,} are learned from."]
    if judge < FEW and images.draw is not None:
        notes.append(
            f"Only {judge:,} images are held out, so the intervals are wide. With `folds=5`, all "
            f"{learn + judge:,} are judged, each by a classifier that did not learn from it."
        )
    return ProbeData(
        images,
        summary,
        (*images.train.examples, *images.val.examples),
        np.concatenate([labels_of(images.train), labels_of(images.val)]),
        ((np.arange(learn), np.arange(learn, learn + judge)),),
        judged,
        (*summary.notes, *notes),
    )


def _check_folds(folds: int, val_fraction: float | None, drop_near_duplicates: bool) -> None:
    if type(folds) is not int or folds < 2:
        raise UsageError(f"`folds` must be a whole number of at least 2, found {folds!r}.")
    if val_fraction is not None or drop_near_duplicates:
        other = "val_fraction" if val_fraction is not None else "drop_near_duplicates"
        raise UsageError(
            f"`folds` uses all images in turn, so `{other}` would mean nothing. Leave out one of "
            "them."
        )


def _in_folds(
    images: ImageSet,
    folds: int,
    group_by: str | None,
    seed: int,
    skip_bad: bool,
    recheck: bool,
    rows: WantedRows,
    workers: int | None,
    progress: Progress | None,
) -> ProbeData:
    every = [example for split in images.splits for example in split.examples]
    kept_checks = KeptChecks.of(images.source, recheck=recheck)
    checks = check_images(
        every,
        workers=workers,
        progress=progress,
        kept=kept_checks,
        rows=rows,
        splits=[split.name for split in images.splits for _ in split.examples],
    )
    signatures = {check.sha256: check.signature for check in checks}
    images, summary = inspect(
        images, skip_bad=skip_bad, workers=workers, progress=progress, checks=checks
    )
    drawn = images.draw.notes if images.draw else ()
    near = summary.near_duplicates.note() if summary.near_duplicates.pairs else None
    kept = tuple(note for note in summary.notes if note not in drawn and note != near)
    examples = tuple(
        sorted(
            (example for split in images.splits for example in split.examples),
            key=lambda example: example.key,
        )
    )
    whole = replace(
        images, train=Split("train", examples), val=None, held_out=None, draw=None, notes=()
    )
    whole = replace(whole, fingerprint=fingerprint(whole))
    labels = labels_of(whole.train)
    alike = near_groups(
        [signatures.get(e.sha256, b"") for e in examples], progress, kept_checks.compared
    )
    groupings: list[Sequence[Hashable]] = [[example.sha256 for example in examples]]
    if group_by == NEAR_DUPLICATES:
        groupings.append(alike)
    elif group_by:
        groupings.append([example.group for example in examples])
    groups = join_groups(*groupings)
    fold_of = draw_folds(labels, whole.classes, folds, seed, groups)
    used = [fold for fold in range(folds) if (fold_of == fold).any()]
    if len(used) < folds:
        raise UsageError(
            f"`folds` must be at most {len(used)} here, found {folds}: {whole.source} has only "
            f"{len(set(groups)):,} images or groups that can be separated."
        )
    phrase = (
        f"all {len(examples):,} images in {folds} stratified folds, drawn with seed {seed}, each "
        "judged by the classifier of the others"
    )
    notes = [f"Accuracies are over {phrase}."]
    counts = np.bincount(labels, minlength=len(whole.classes))
    if single := int((counts == 1).sum()):
        notes.append(
            f"Of {single:,} class{'' if single == 1 else 'es'} there is only one image, which is "
            "judged without ever being learned: it counts as wrong."
        )
    split = _separated(alike, fold_of)
    if split:
        notes.append(
            f"{split:,} images look like others in another fold, which makes the accuracies "
            f'optimistic. Keep them together with `group_by="{NEAR_DUPLICATES}"`.'
        )
    everywhere = np.arange(len(examples))
    summary = replace(
        summary,
        counts={"train": len(examples)},
        class_counts={"train": tuple(counts.tolist())},
        notes=kept,
        near_duplicates=NearDuplicates(),
        kept=describe_kept(kept_checks.used, len(every)),
    )
    return ProbeData(
        whole,
        summary,
        examples,
        labels,
        tuple((everywhere[fold_of != fold], everywhere[fold_of == fold]) for fold in range(folds)),
        phrase,
        (*kept, *notes),
    )


def _separated(groups: Sequence[int], fold_of: Rows) -> int:
    """Return how many images have one of their group in another fold."""
    folds: dict[int, set[int]] = {}
    for group, fold in zip(groups, fold_of.tolist(), strict=True):
        folds.setdefault(group, set()).add(fold)
    return sum(len(folds[group]) > 1 for group in groups)
