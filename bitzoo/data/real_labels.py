"""ReaL: several labels per image of ILSVRC-2012's validation set, by the image's number.

Beyer et al., "Are we done with ImageNet?", https://arxiv.org/abs/2006.07159. An evaluation against
them counts an image if it has labels. It is right if the prediction is any of them, and among the
top five if any of the five is: `rank` is the smallest rank among the labels. An image without
labels is left out, and that is said (3,163 of 50,000 in the published file).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitzoo.catalogue.published_lists import timm_file
from bitzoo.data.problems import DatasetError, join_some, printable
from bitzoo.errors import damage_reported

__all__ = ["IMAGES", "RealLabels", "read_real_labels", "validation_number"]

IMAGES = 50_000
"""Images in ILSVRC-2012's validation set."""

_CLASSES = 1_000
_FILE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?:_n\d{8})?\.jpe?g", re.IGNORECASE)


@dataclass(frozen=True)
class RealLabels:
    """The labels of every image of the validation set.

    Attributes:
        labels: Image number - 1 -> its classes, indices into ILSVRC-2012's 1,000 in the order of
            their WordNet ids; empty for an image that none of the classes describes.
        source: Where they are from, for the user.
    """

    labels: tuple[tuple[int, ...], ...]
    source: str

    def of_images(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the labels of images by file name, see `validation_number`.

        Raises:
            DatasetError: If a name is not one of the validation set's, or a number occurs twice.
        """
        numbers = [validation_number(name) for name in names]
        strange = [printable(n) for n, found in zip(names, numbers, strict=True) if found is None]
        if strange:
            raise DatasetError(
                "ReaL's labels are by number of the image in ILSVRC-2012's validation set, so "
                "every image must be named ILSVRC2012_val_00000001.JPEG to "
                f"ILSVRC2012_val_{IMAGES:08d}.JPEG; found {len(strange):,} of {len(names):,} with "
                f"other names: {join_some(strange, 3)}. Use a source that keeps these names."
            )
        known = [number for number in numbers if number is not None]
        twice = [number for number, count in Counter(known).items() if count > 1]
        if twice:
            raise DatasetError(
                "Every image of ILSVRC-2012's validation set must be there once to be judged by "
                f"ReaL's labels, found the numbers {join_some(twice, 3)} twice."
            )
        return [self.labels[number - 1] for number in known]


def validation_number(name: str) -> int | None:
    """Return an image's number in the validation set, 1 to 50,000, by its file name.

    Args:
        name: `ILSVRC2012_val_00000293.JPEG`, also below folders and with a synset behind the
            number, as the Hub's copy has it (`ILSVRC2012_val_00000293_n01440764.JPEG`).

    Returns:
        The number; None for another name.
    """
    found = _FILE_NAME.fullmatch(re.split(r"[/\\]", name)[-1])
    number = int(found[1]) if found else 0
    return number if 1 <= number <= IMAGES else None


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
        content = json.loads(place.read_text(encoding="utf-8"))
        if not isinstance(content, list) or len(content) != IMAGES:
            count = f"{len(content):,} items" if isinstance(content, list) else "no list"
            raise ValueError(f"found {count}")
        labels = tuple(map(_checked, content))
    return RealLabels(
        labels, "ReaL's labels, as they come with timm" if path is None else f"{place}"
    )


def _checked(item: object) -> tuple[int, ...]:
    if not isinstance(item, list) or any(
        type(label) is not int or not 0 <= label < _CLASSES for label in item
    ):
        raise ValueError(f"found {item!r:.60}")
    return tuple(dict.fromkeys(item))
