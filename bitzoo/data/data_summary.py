"""What is known of a data set after its validation."""

from __future__ import annotations

from dataclasses import dataclass, field

from bitzoo.data.near_duplicates import NearDuplicates
from bitzoo.data.problems import Problems


@dataclass(frozen=True)
class DataSummary:
    """Summary of a validated data set, without the skipped items.

    Attributes:
        counts: Split -> number of images.
        class_counts: Split -> number of images per class, in the order of the classes.
        resolution: Median height and median width of the training images (of val, if train is
            empty), upright, halves rounded down.
        traits: Special property that decoding handles -> number of images.
        notes: Remarks that need no action.
        skipped: The problems whose items were skipped.
        near_duplicates: Training images that look like held-out ones.
        bit_depth: Bits of the values of images of more than 8 bits per channel, whose largest is
            white: the smallest of 8, 10, 12, 14 and 16 that holds the largest value of all of
            them, or what the caller said. None without such images.
        checked: How many images were decoded, if not all: what else is said here of what images
            hold is said of these.
        kept: A sentence on the images that were not read again, as the checks of earlier runs were
            kept; "" if all were. It says how this summary came about, and is no part of it.
    """

    counts: dict[str, int]
    class_counts: dict[str, tuple[int, ...]]
    resolution: tuple[int, int]
    traits: dict[str, int]
    notes: tuple[str, ...]
    skipped: Problems
    near_duplicates: NearDuplicates = field(default_factory=NearDuplicates)
    bit_depth: int | None = None
    checked: int | None = None
    kept: str = field(default="", compare=False)
