"""List a data set: `read_dataset` turns a source of any kind into one `ImageSet`.

Reading lists names and labels; nothing is decoded. Problems with single lines or classes are
collected in `ImageSet.problems`, so that `bitzoo.data.validation` can report them together with
what it finds in the files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bitzoo.data.automatic_split import Draw, describe, draw, notes_on
from bitzoo.data.examples import (
    Example,
    ExampleTable,
    RowTable,
    count_classes,
    groups_in,
    join,
    labels_in,
    pick,
    without,
)
from bitzoo.data.folder import Listing, Row
from bitzoo.data.groups import NEAR_DUPLICATES, notes_on_groups, with_groups
from bitzoo.data.problems import DatasetError, Problem, Reason, count_by_kind, join_some
from bitzoo.data.readers import DataSource, read_listing
from bitzoo.data.shots import describe_short
from bitzoo.data.splits import choose
from bitzoo.errors import UsageError
from bitzoo.files import Progress

__all__ = [
    "DataSource",
    "DatasetError",
    "Example",
    "ImageSet",
    "Listed",
    "Split",
    "fingerprint",
    "list_splits",
    "read_dataset",
]


DEFAULT_VAL_FRACTION = 0.1
"""Fraction held out of a data set without splits, unless the caller asks for another."""


@dataclass(frozen=True)
class Split:
    """The examples to train on ("train") or to evaluate on ("val").

    Attributes:
        name: The split's name.
        examples: A tuple; of large sources an `examples.ExampleTable`, which makes an example each
            time when it is asked for one.
    """

    name: str
    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class ImageSet:
    """A listed data set.

    Attributes:
        classes: Class names; labels are indices into them.
        train: The split to train on.
        val: The split to evaluate on; None if nothing is held out.
        held_out: How `val` was chosen, as a phrase; None if nothing is held out.
        source: Display name of the data set.
        fingerprint: See `fingerprint`; changes when anything that training sees changes.
        notes: Remarks that need no action.
        problems: Problems found while listing; `inspect` adds its own and raises.
        draw: How `val` was drawn, which `inspect` does again; None if the data set has its own.
        label_changing: Augmentations that would change the labels, see `folder.Listing`.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    source: str
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    held_out: str | None = None
    draw: Draw | None = None
    label_changing: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[Split, ...]:
        """The existing splits, train first."""
        return (self.train,) if self.val is None else (self.train, self.val)


def read_dataset(
    source: DataSource,
    *,
    val_fraction: float | None = 0.0,
    group_by: str | None = None,
    seed: int = 0,
    split_seed: int | None = None,
    eval_split: str | None = None,
    examples_per_class: int | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """List the images and labels of a source.

    Args:
        source: One of

            - a folder of class folders, or of `train` and `val` or `test` folders (or of others
              that mean a split, see `split_names`) with class folders in them, see
              `folder.read_folder` and docs/reference/layouts.md;
            - a `.csv` or `.jsonl` manifest with the columns path, label (or labels, for several an
              image) and optionally split, see `manifest.read_manifest`;
            - a folder of ImageNet's validation images as they are published, with their labels
              beside them, see `imagenet_devkit`;
            - the name of a data set that a library has prepared, such as `tfds:NAME@SPLIT`,
              `hf:NAME@SPLIT` or `torchvision:NAME@SPLIT`, or `tar:SHARDS`, see `source_names` and
              docs/how-to/library-data-sets.md;
            - a `TfdsSource`, or a `datasets.Dataset`, see `hf_datasets.read_table`;
            - `(images, labels)`: uint8 arrays (N, H, W) or (N, H, W, 3) and N ints or strings;
            - several of these by split name: `datasets.DatasetDict`, `{"train": (images,
              labels), "val": (images, labels)}`, `{"train": "tfds:NAME@train[:800]", ..}`.

            If there is both a val and a test split, one is held out, see `eval_split`, and the
            other is left for `bitzoo evaluate`, see `list_splits`.
        val_fraction: Fraction of the images to hold out, 0 <= fraction < 1; only for a source
            without val and test. Stratified, see `splits.hold_out`. None means
            `DEFAULT_VAL_FRACTION` for such a source, and 0 for one with val or test.
        group_by: What keeps images in one split that belong together: a column of the source or a
            regular expression, see `groups.with_groups`, or `groups.NEAR_DUPLICATES`. If the source
            has val or test, no group may be on both sides.
        seed: Seed of the held-out choice and of the choice of `examples_per_class`.
        split_seed: Seed of the held-out choice, if it is to be another.
        eval_split: Which is held out of a source with both: "val" or "test"; None for val.
        examples_per_class: Train on only this many images per class, see `splits.choose`; those
            that are neither chosen nor held out are in no split.
        classes: Class names, in order, of a network to evaluate. The source may then lack some of
            them and may have a single split of any name.
        progress: Called while the labels of records are read, which may take a while.

    Returns:
        The data set. `bitzoo.data.validation.inspect` raises its `problems`.

    Raises:
        DatasetError: If the source has no known form, lists nothing, or has other `classes`.
        UsageError: If the options contradict each other or the source.
        MissingExtraError: If the library that has the source is not installed.
    """
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UsageError(f"`val_fraction` must be at least 0 and below 1, found {val_fraction}.")
    if examples_per_class is not None and examples_per_class < 1:
        raise UsageError(f"`examples_per_class` must be at least 1, found {examples_per_class}.")
    if eval_split not in (None, "val", "test"):
        raise UsageError(f"`eval_split` must be val or test, found {eval_split!r}.")
    listing = with_groups(read_listing(source, classes or (), progress=progress), group_by)
    names = listing.classes if classes is None else _check_classes(listing, tuple(classes))
    own = _held_out_name(listing, eval_split)
    of_split = seed if split_seed is None else split_seed
    train, val, drawn, notes = _divide(listing, names, own, val_fraction, of_split, group_by)
    problems = listing.problems
    total = len(train) + len(val or ())
    if classes is None:
        if not train:
            raise DatasetError(
                f"The data set {listing.source} must have images to train on, found none"
                f"{' outside its val or test split' if val else ''}. Add a train split."
                + _why_none(listing)
            )
        if val is not None and drawn is None:
            problems += (*_mismatch(names, train, val), *_shared_groups(train, val))
    if examples_per_class is not None:
        train, few = _choose(train, names, examples_per_class, seed)
        notes += few
        if group_by == NEAR_DUPLICATES:
            raise UsageError(
                f"`group_by` must be a column or a regular expression with `examples_per_class`, "
                f"found {group_by!r}: it needs all images, and only some are read."
            )
        drawn = drawn and replace(drawn, positions=None)
    held_out = None
    if val is not None:
        whole = f"the data set's own {own} split"
        held_out = describe(drawn, len(val), total, 0) if drawn else whole
    images = ImageSet(
        names,
        Split("train", _kept(train)),
        None if val is None else Split("val", _kept(val)),
        listing.source,
        notes=listing.notes + notes,
        problems=problems,
        held_out=held_out,
        draw=drawn,
        label_changing=listing.label_changing,
    )
    return replace(images, fingerprint=fingerprint(images))


@dataclass(frozen=True)
class Listed:
    """A data set with all its splits, for an evaluation.

    Attributes:
        splits: Name -> its examples, "train", "val" and "test" in this order, as far as there are
            any; "" for the examples of a source without splits.
        classes: The data set's classes; labels are indices into them.
        source: Display name of the data set.
        notes: Remarks that need no action.
        problems: Problems found while listing.
        rows: Every example as its source lists it.
    """

    splits: Mapping[str, tuple[Example, ...]]
    classes: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    rows: Sequence[Row] = field(default=(), repr=False)

    @property
    def used(self) -> frozenset[str]:
        """The classes that have images."""
        every = (example for examples in self.splits.values() for example in examples)
        labels = {label for example in every for label in example.classes}
        return frozenset(self.classes[label] for label in labels)

    def with_targets(self, names: Sequence[str], target: Callable[[Example], int | None]) -> Listed:
        """Return the data set with the labels of a network.

        Args:
            names: Names of the network's classes.
            target: Returns an example's class in the network: negative for one that it does not
                have, which becomes a problem that can be skipped; None for one to leave out.
                An image with several classes has this one from then on.
        """
        splits: dict[str, tuple[Example, ...]] = {}
        unknown = []
        for split, examples in self.splits.items():
            kept = []
            for example in examples:
                label = target(example)
                if label is not None and label >= 0:
                    kept.append(replace(example, label=label, labels=()))
                elif label is not None:
                    said = f"of class {self.classes[example.label]}"
                    unknown.append(Problem(Reason.UNKNOWN_CLASS, example.key, said))
            if kept:
                splits[split] = tuple(kept)
        problems = (*self.problems, *unknown)
        return replace(self, splits=splits, classes=tuple(names), problems=problems)


def list_splits(
    source: DataSource, known: Collection[str] = (), *, progress: Progress | None = None
) -> Listed:
    """List every split of a source, none left out.

    Args:
        source: As for `read_dataset`.
        known: Names that are classes, see `bitzoo.data.folder.read_folder`.
        progress: As for `read_dataset`.

    Raises:
        DatasetError: If the source has no known form, or lists nothing.
        MissingExtraError: As `read_dataset`.
    """
    listing = read_listing(source, known, progress=progress)
    by_split = _by_split(listing, listing.classes)
    splits: dict[str, tuple[Example, ...]] = {
        name: tuple(by_split[name]) for name in ("train", "val", "test", "") if name in by_split
    }
    return Listed(
        splits, listing.classes, listing.source, listing.notes, listing.problems, listing.rows
    )


def fingerprint(images: ImageSet) -> str:
    """SHA-256 over the class names and each example's split, key, label and content SHA-256.

    The content hashes are known once `inspect` has read the files. File dates and the location of
    the data set do not count, so a copy has the same fingerprint. Of examples kept as arrays, what
    counts is what their source knows of itself, see `record_table.Records.digest`, and which of its
    records they are with which classes.
    """
    digest = hashlib.sha256(json.dumps(images.classes).encode())
    for split in images.splits:
        if isinstance(split.examples, ExampleTable):
            digest.update(json.dumps([split.name, split.examples.table.digest()]).encode())
            continue
        for example in split.examples:
            labels = example.labels or example.label
            fields = [split.name, example.key, labels, example.sha256]
            digest.update(json.dumps(fields).encode())
    return digest.hexdigest()


def _why_none(listing: Listing) -> str:
    """Return the listing's problems and notes, which explain missing images."""
    reasons = [count_by_kind(listing.problems), *listing.notes]
    return "".join(f"\n\n{reason}" for reason in reasons if reason)


def _check_classes(listing: Listing, classes: tuple[str, ...]) -> tuple[str, ...]:
    known, used = set(classes), _used_classes(listing.rows)
    unknown = [name for name in listing.classes if name in used and name not in known]
    if unknown:
        raise DatasetError(
            f"The data set {listing.source} must have no classes other than the network's "
            f"{len(classes)} ({join_some(classes)}), found {join_some(unknown)}. Rename or remove "
            "them, or leave their images out: `skip_bad=True`."
        )
    return classes


def _used_classes(rows: Sequence[Row]) -> Collection[str]:
    if isinstance(rows, RowTable):
        return rows.used_classes
    return {name for row in rows for name in row.names}


def _kept(examples: Sequence[Example]) -> Sequence[Example]:
    return examples if isinstance(examples, ExampleTable) else tuple(examples)


def _by_split(listing: Listing, names: tuple[str, ...]) -> Mapping[str, Sequence[Example]]:
    """Return split -> its examples, "" for rows without a split; no key for an empty split."""
    if isinstance(listing.rows, RowTable):
        return listing.rows.examples(names)
    index = {name: label for label, name in enumerate(names)}
    found: dict[str, list[Example]] = {}
    for row in listing.rows:
        labels = tuple(index[name] for name in row.labels)
        example = Example(
            index[row.label], row.path, row.load, row.key, group=row.group, labels=labels
        )
        found.setdefault(row.split, []).append(example)
    return found


def _held_out_name(listing: Listing, wanted: str | None) -> str | None:
    """Return the split to evaluate on: what is wanted, else val, else test, else None."""
    rows = listing.rows
    splits = rows.used_splits if isinstance(rows, RowTable) else {row.split for row in rows}
    return next((split for split in (wanted, "val", "test") if split in splits), None)


def _divide(
    listing: Listing,
    names: tuple[str, ...],
    own: str | None,
    val_fraction: float | None,
    seed: int,
    group_by: str | None,
) -> tuple[Sequence[Example], Sequence[Example] | None, Draw | None, tuple[str, ...]]:
    """Return train, val (the source's split `own`, or drawn), how val was drawn, and notes."""
    by_split = _by_split(listing, names)
    train = join(by_split.get("train", ()), by_split.get("", ()))
    if own is None:
        fraction = DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction
        if fraction:
            return _hold_out(train, names, fraction, seed, group_by)
        if group_by:
            raise UsageError(
                f"`group_by` must come with held-out images, found {group_by!r} and "
                "`val_fraction=0`. Leave out one of them."
            )
        return train, None, None, ()
    if val_fraction:
        column = listing.split_column
        raise UsageError(
            f"The data set {listing.source} already has images to evaluate on "
            f"({len(by_split[own])}{f', by its column {column!r}' if column else ''}), so "
            f"`val_fraction` must be 0, found {val_fraction}. Leave out `val_fraction`"
            f"{', or remove the column' if column else ''}."
        )
    if group_by == NEAR_DUPLICATES:
        raise UsageError(
            f"`group_by` must be a column or a regular expression for {listing.source}, which has "
            f"its own splits, found {group_by!r}. Near-duplicates across the splits are reported; "
            "`drop_near_duplicates=True` drops them from train."
        )
    other = "test" if own == "val" else "val"
    unused = by_split.get(other, ())
    notes: tuple[str, ...] = ()
    groups = [*groups_in(train)], [*groups_in(by_split[own])]
    if group_by and not set(groups[0]) & set(groups[1]):
        notes = notes_on_groups(*groups, group_by)
    if unused:
        notes += (
            f"Not used: the {other} split ({len(unused)} images); {own} is held out. To evaluate "
            f"on it after training: `bitzoo evaluate RUN --data DATA --split {other}`.",
        )
    return train, by_split[own], None, notes


def _hold_out(
    examples: Sequence[Example],
    names: tuple[str, ...],
    fraction: float,
    seed: int,
    group_by: str | None,
) -> tuple[Sequence[Example], Sequence[Example], Draw, tuple[str, ...]]:
    groups = [*groups_in(examples)]
    labels = labels_in(examples)
    positions = draw(labels, names, fraction, seed, groups if any(groups) else None)
    val, train = pick(examples, positions), without(examples, positions)
    notes = tuple(notes_on(labels, names, positions))
    if any(groups):
        notes += notes_on_groups([e.group for e in train], [e.group for e in val], str(group_by))
    return train, val, Draw(fraction, seed, positions, notes, group_by), notes


def _choose(
    examples: Sequence[Example], names: tuple[str, ...], per_class: int, seed: int
) -> tuple[Sequence[Example], tuple[str, ...]]:
    labels = labels_in(examples)
    chosen = pick(examples, choose(labels, names, per_class, seed))
    short = describe_short(labels, names, per_class)
    return chosen, (short,) if short else ()


def _shared_groups(train: Sequence[Example], val: Sequence[Example]) -> tuple[Problem, ...]:
    ours, theirs = (Counter(filter(None, groups_in(split))) for split in (train, val))
    return tuple(
        Problem(Reason.GROUP, group, f"{ours[group]} in train, {theirs[group]} in val")
        for group in ours
        if group in theirs
    )


def _mismatch(
    names: tuple[str, ...], train: Sequence[Example], val: Sequence[Example]
) -> tuple[Problem, ...]:
    in_train, in_val = (_used(split, len(names)) for split in (train, val))
    return tuple(
        Problem(reason, names[label])
        for reason, labels in (
            (Reason.ONLY_IN_TRAIN, in_train - in_val),
            (Reason.ONLY_IN_VAL, in_val - in_train),
        )
        for label in sorted(labels)
    )


def _used(examples: Sequence[Example], num_classes: int) -> set[int]:
    """Return the classes that have examples."""
    return set(np.flatnonzero(count_classes(examples, num_classes)).tolist())
