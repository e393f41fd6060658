"""ReaL: several labels per image of ILSVRC-2012's validation set, by the image's number.

Beyer et al., "Are we done with ImageNet?", https://arxiv.org/abs/2006.07159. Counted is every image
that has labels (46,837 of the published 50,000); the others are left out, and that is said. A
prediction is right if it is any of the image's labels, and the top five are if any of the five is:
the rank of an image is the smallest among its labels.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bitzoo.catalogue.published_lists import timm_file
from bitzoo.data.label_space import NO_OUTPUT, LabelMatch, OutputSpace
from bitzoo.data.output_space import ILSVRC, published_space
from bitzoo.data.problems import DatasetError, join_some, printable
from bitzoo.errors import damage_reported
from bitzoo.small_files import parse_json, read_bytes

__all__ = [
    "IMAGES",
    "RealLabels",
    "RealTargets",
    "file_name",
    "read_real_labels",
    "real_targets",
    "validation_number",
]

IMAGES = 50_000
"""Images in ILSVRC-2012's validation set."""

_CLASSES = 1_000
_FILE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?:_n\d{8})?\.jpe?g", re.IGNORECASE)
_NAME_COLUMNS = ("file_name", "filename")
"""Columns that hold an image's name: tensorflow_datasets' and the Hub's."""


@dataclass(frozen=True)
class RealLabels:
    """The labels of every image of the validation set.

    Attributes:
        labels: Image number - 1 -> its classes, indices into ILSVRC-2012's 1,000 in the order of
            their WordNet ids; empty for an image that none of the classes describes.
        source: Where they are from, as a phrase for the user.
    """

    labels: tuple[tuple[int, ...], ...]
    source: str


@dataclass(frozen=True)
class RealTargets:
    """What counts as right, image by image.

    Attributes:
        columns: Image -> its labels as columns of the restricted logits (`LabelMatch.restrict`),
            ascending; empty for an image that does not count.
        notes: How many images do not count, and why, as sentences.
    """

    columns: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]


class Listed(Protocol):
    """What `file_name` needs of `bitzoo.data.folder.Row`."""

    @property
    def key(self) -> str: ...

    @property
    def path(self) -> Path | None: ...

    @property
    def extra(self) -> Mapping[str, str]: ...


def file_name(row: Listed) -> str:
    """Return the name that the data set has for an image's file; its display name if it has none.

    It is the file's own name, or what the source says in a column `file_name` (as
    tensorflow_datasets does for its ImageNet) or `filename`.
    """
    if row.path is not None:
        return row.path.name
    names = (row.extra.get(column, "") for column in _NAME_COLUMNS)
    return next((name for name in names if name), row.key)


def validation_number(name: str) -> int | None:
    """Return an image's number in the validation set, 1 to 50,000, by its file name.

    Args:
        name: `ILSVRC2012_val_00000293.JPEG`, also below folders and with a WordNet id behind the
            number, as the Hub's copy has it (`ILSVRC2012_val_00000293_n02123045.JPEG`).

    Returns:
        The number; None for another name.
    """
    found = _FILE_NAME.fullmatch(re.split(r"[/\\]", name)[-1])
    number = int(found[1]) if found else 0
    return number if 1 <= number <= IMAGES else None


def real_targets(
    names: Sequence[str], real: RealLabels, outputs: OutputSpace, match: LabelMatch
) -> RealTargets:
    """Return what counts as right for images of the validation set.

    The classes that the data set itself gives its images do not matter here, only its file names.

    Args:
        names: File name of every image, see `file_name`.
        real: The labels.
        outputs: What the model's outputs mean; they need WordNet ids.
        match: The match of the data set's classes with them: which outputs compete. With
            `task="imagenet1k"` these are ILSVRC's, also if images of some classes are absent.

    Raises:
        DatasetError: If a name is not one of the validation set's, a number occurs twice, or the
            outputs have no WordNet ids.
    """
    if outputs.synsets is None:
        raise DatasetError(
            "ReaL's labels are classes of ILSVRC-2012, so the model's outputs must be known by "
            f"WordNet id, found {outputs.title}. Leave out `labels`."
        )
    numbers = _numbers(names)
    ids = published_space(ILSVRC).synsets or ()
    at = outputs.index.by_synset
    columns = [match.column(at.get(synset, NO_OUTPUT)) for synset in ids]
    found, unlabelled, lost = [], 0, 0
    for number in numbers:
        labels = real.labels[number - 1]
        known = sorted({columns[label] for label in labels} - {NO_OUTPUT})
        unlabelled += not labels
        lost += bool(labels) and not known
        found.append(tuple(known))
    notes = [f"Judged by {real.source}: a prediction is right if it is any of an image's labels."]
    if unlabelled:
        notes.append(f"Not counted: {unlabelled:,} of {len(found):,} images, which have no label.")
    if lost:
        notes.append(
            f"Not counted: {lost:,} of {len(found):,} images, all of whose labels are classes "
            "without a competing output."
        )
    return RealTargets(tuple(found), tuple(notes))


def _numbers(names: Sequence[str]) -> list[int]:
    numbers = [validation_number(name) for name in names]
    strange = [printable(n) for n, found in zip(names, numbers, strict=True) if found is None]
    if strange:
        raise DatasetError(
            "ReaL's labels are by number of the image in ILSVRC-2012's validation set, so every "
            f"image must be named ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{IMAGES:08d}.JPEG;"
            f" found {len(strange):,} of {len(names):,} with other names: {join_some(strange, 3)}. "
            "Use a copy that keeps these names: in a copy without them, no order is known."
        )
    known = [number for number in numbers if number is not None]
    twice = [number for number, count in Counter(known).items() if count > 1]
    if twice:
        raise DatasetError(
            "Every image of ILSVRC-2012's validation set may be there once, found "
            f"{len(twice):,} more than once: numbers {join_some(twice, 3)}. Remove the copies."
        )
    return known


def read_real_labels(path: str | os.PathLike[str] | None = None) -> RealLabels:
    """Read ReaL's labels.

    Args:
        path: `real.json` of google-research/reassessed-imagenet: a list of 50,000 lists of class
            indices. None for the copy that comes with timm.

    Raises:
        DatasetError: If the file is something else.
    """
    place = timm_file("imagenet_real_labels.json") if path is None else Path(path)
    expected = f"a list of {IMAGES:,} lists of class indices from 0 to {_CLASSES - 1}"
    advice = "Use real.json of google-research/reassessed-imagenet."
    if not place.is_file():
        raise DatasetError(f"{place}: expected {expected}, found no file. {advice}")
    with damage_reported(place, expected, advice, DatasetError):
        content = parse_json(read_bytes(place))
        if not isinstance(content, list) or len(content) != IMAGES:
            raise ValueError(
                f"found {len(content):,} items" if isinstance(content, list) else "found no list"
            )
        labels = tuple(map(_checked, content))
    source = "ReaL's labels, as they come with timm" if path is None else f"ReaL's labels ({place})"
    return RealLabels(labels, source)


def _checked(item: object) -> tuple[int, ...]:
    if isinstance(item, list) and all(
        type(label) is int and 0 <= label < _CLASSES for label in item
    ):
        return tuple(item)
    raise ValueError(f"found {item!r:.60}")
