"""List a data set: `read_dataset` turns a source of any kind into one `ImageSet`.

Reading lists names and labels; nothing is decoded. Problems with single lines or classes are
collected in `ImageSet.problems`, so that `bitzoo.data.validation` can report them together with
what it finds in the files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from bitzoo.data.folder import Listing, Load, Row
from bitzoo.data.problems import DatasetError, Problem, Reason, count_by_kind, join_some
from bitzoo.data.readers import DataSource, read_listing
from bitzoo.data.splits import choose, hold_out
from bitzoo.errors import UsageError
from bitzoo.models.preprocessing import ImageLike

__all__ = [
    "DataSource",
    "DatasetError",
    "Example",
    "ImageSet",
    "Split",
    "fingerprint",
    "read_dataset",
]


DEFAULT_VAL_FRACTION = 0.1
"""Fraction held out of a data set without splits, unless the caller asks for another."""


@dataclass(frozen=True)
class Example:
    """One image and its class.

    Attributes:
        label: Index into the classes.
        path: The image's file; None if `load` is set.
        load: Returns the image; None if `path` is set. Can be pickled, so that other processes can
            load it too.
        key: Display name: a path below the data set's folder, or "row 17".
        sha256: Of the file's bytes, or of the pixels that `load` returns; "" before validation.
    """

    label: int
    path: Path | None = None
    load: Load | None = None
    key: str = ""
    sha256: str = ""

    def image(self) -> ImageLike:
        """Return what `bitzoo.models.preprocessing.read_rgb` takes: the path, or the image."""
        return self.load_image() if self.path is None else self.path

    def load_image(self) -> Image.Image:
        """Return the image that `load` returns."""
        if self.load is None:
            raise ValueError(f"The example {self.key!r} has neither a path nor a load function.")
        return self.load()


@dataclass(frozen=True)
class Split:
    """The examples to train on ("train") or to evaluate on ("val")."""

    name: str
    examples: tuple[Example, ...]

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
    """

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    source: str
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    held_out: str | None = None

    @property
    def splits(self) -> tuple[Split, ...]:
        """The existing splits, train first."""
        return (self.train,) if self.val is None else (self.train, self.val)


def read_dataset(
    source: DataSource,
    *,
    val_fraction: float | None = 0.0,
    seed: int = 0,
    examples_per_class: int | None = None,
    classes: Sequence[str] | None = None,
) -> ImageSet:
    """List the images and labels of a source.

    Args:
        source: One of

            - a folder of class folders, or of `train` and `val` or `test` folders (or of others
              that mean a split, see `split_names`) with class folders in them, see
              `folder.read_folder` and docs/layouts.md;
            - a `.csv` or `.jsonl` manifest with the columns path, label and optionally split, see
              `manifest.read_manifest`;
            - `hf:` and the name of a Hugging Face data set or a folder, or a `datasets.Dataset`,
              see `hf_datasets.read_table`;
            - `(images, labels)`: uint8 arrays (N, H, W) or (N, H, W, 3) and N ints or strings;
            - several of the latter two by split name: `datasets.DatasetDict`, `{"train": (images,
              labels), "val": (images, labels)}`.

            If there is both a val and a test split, test is left for `bitzoo evaluate`.
        val_fraction: Fraction of the images to hold out, 0 <= fraction < 1; only for a source
            without splits. Stratified, see `splits.hold_out`. None means `DEFAULT_VAL_FRACTION` for
            a source without splits, and 0 for one with splits.
        seed: Seed of the held-out choice and of the choice of `examples_per_class`.
        examples_per_class: Train on only this many images per class, see `splits.choose`.
        classes: Class names, in order, of a network to evaluate. The source may then lack some of
            them and may have a single split of any name.

    Returns:
        The data set. `bitzoo.data.validation.inspect` raises its `problems`.

    Raises:
        DatasetError: If the source has no known form, lists nothing, or has other `classes`.
        UsageError: If the options contradict each other or the source.
        MissingExtraError: If the source is `hf:NAME` and the library `datasets` is not installed.
    """
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UsageError(f"`val_fraction` must be at least 0 and below 1, found {val_fraction}.")
    if examples_per_class is not None and examples_per_class < 1:
        raise UsageError(f"`examples_per_class` must be at least 1, found {examples_per_class}.")
    listing = read_listing(source, classes or ())
    names = listing.classes if classes is None else _check_classes(listing, tuple(classes))
    train, val, notes = _divide(listing, names, val_fraction, seed)
    problems = listing.problems
    if classes is None:
        if not train:
            raise DatasetError(
                f"The data set {listing.source} must have images to train on, found none"
                f"{' outside its val or test split' if val else ''}. Add a train split."
                + _why_none(listing)
            )
        if val is not None and _has_held_out_split(listing):
            problems += _mismatch(names, train, val)
    if examples_per_class is not None:
        train, few = _choose(train, names, examples_per_class, seed)
        notes += few
    images = ImageSet(
        names,
        Split("train", tuple(train)),
        None if val is None else Split("val", tuple(val)),
        listing.source,
        notes=listing.notes + notes,
        problems=problems,
        held_out=None if val is None else _how_held_out(listing, val_fraction, seed),
    )
    return replace(images, fingerprint=fingerprint(images))


def fingerprint(images: ImageSet) -> str:
    """SHA-256 over the class names and each example's split, key, label and content SHA-256.

    The content hashes are known once `inspect` has read the files. File dates and the location of
    the data set do not count, so a copy has the same fingerprint.
    """
    digest = hashlib.sha256(json.dumps(images.classes).encode())
    for split in images.splits:
        for example in split.examples:
            fields = [split.name, example.key, example.label, example.sha256]
            digest.update(json.dumps(fields).encode())
    return digest.hexdigest()


def _why_none(listing: Listing) -> str:
    """Return the listing's problems and notes, which explain missing images."""
    reasons = [count_by_kind(listing.problems), *listing.notes]
    return "".join(f"\n\n{reason}" for reason in reasons if reason)


def _has_held_out_split(listing: Listing) -> bool:
    return any(row.split in ("val", "test") for row in listing.rows)


def _check_classes(listing: Listing, classes: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in listing.classes if name not in set(classes)]
    if unknown:
        raise DatasetError(
            f"The data set {listing.source} must have no classes other than the network's "
            f"{len(classes)} ({join_some(classes)}), found {join_some(unknown)}. Rename or remove "
            "them."
        )
    return classes


def _divide(
    listing: Listing, names: tuple[str, ...], val_fraction: float | None, seed: int
) -> tuple[list[Example], list[Example] | None, tuple[str, ...]]:
    """Return train, val and notes."""
    index = {name: label for label, name in enumerate(names)}

    def examples(rows: Sequence[Row]) -> list[Example]:
        return [Example(index[row.label], row.path, row.load, row.key) for row in rows]

    by_split = {
        split: [row for row in listing.rows if row.split == split]
        for split in dict.fromkeys(row.split for row in listing.rows)
    }
    train = examples(by_split.get("train", []) + by_split.get("", []))
    held_out = by_split.get("val") or by_split.get("test")
    if held_out is None:
        fraction = DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction
        return _hold_out(train, names, fraction, seed) if fraction else (train, None, ())
    if val_fraction:
        raise UsageError(
            f"The data set {listing.source} already has images to evaluate on ({len(held_out)}), "
            f"so `val_fraction` must be 0, found {val_fraction}. Leave out `val_fraction`."
        )
    tests = by_split.get("test", []) if "val" in by_split else []
    notes = (f"Ignored: the test split ({len(tests)} images); val is used.",) if tests else ()
    return train, examples(held_out), notes


def _how_held_out(listing: Listing, val_fraction: float | None, seed: int) -> str:
    for split in ("val", "test"):
        if any(row.split == split for row in listing.rows):
            return f"the data set's own {split} split"
    fraction = DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction
    return f"{fraction:g} of the images of each class, drawn with seed {seed}"


def _hold_out(
    examples: list[Example], names: tuple[str, ...], fraction: float, seed: int
) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    labels = [example.label for example in examples]
    chosen = set(hold_out(labels, names, fraction, seed))
    if not chosen:
        raise UsageError(
            f"`val_fraction` must hold out at least one image, but {fraction} of {len(examples)} "
            f"images in {len(names)} classes holds out none (one image of each class stays in "
            "train). Choose a larger fraction."
        )
    counts = Counter(labels)
    single = [name for label, name in enumerate(names) if counts[label] == 1]
    notes = (f"Only in train: the one image of {join_some(single)}.",) if single else ()
    val = [example for position, example in enumerate(examples) if position in chosen]
    train = [example for position, example in enumerate(examples) if position not in chosen]
    return train, val, notes


def _choose(
    examples: list[Example], names: tuple[str, ...], per_class: int, seed: int
) -> tuple[list[Example], tuple[str, ...]]:
    labels = [example.label for example in examples]
    chosen = [examples[position] for position in choose(labels, names, per_class, seed)]
    counts = Counter(labels)
    few = [f"{name} ({counts[k]})" for k, name in enumerate(names) if counts[k] < per_class]
    notes = (f"Classes with fewer than {per_class} images: {join_some(few)}.",) if few else ()
    return chosen, notes


def _mismatch(
    names: tuple[str, ...], train: Sequence[Example], val: Sequence[Example]
) -> tuple[Problem, ...]:
    in_train = {example.label for example in train}
    in_val = {example.label for example in val}
    return tuple(
        Problem(reason, names[label])
        for reason, labels in (
            (Reason.ONLY_IN_TRAIN, in_train - in_val),
            (Reason.ONLY_IN_VAL, in_val - in_train),
        )
        for label in sorted(labels)
    )
