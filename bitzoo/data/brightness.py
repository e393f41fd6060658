"""Whether anything can be seen in the images: bit depth, dark and flat data sets, blank images.

One image may well be dark or blank. What is wrong with a data set shows in all its images together,
so the check of an image keeps its range of values, and the data set is judged at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from bitzoo.data.dataset import Example
from bitzoo.data.problems import Problem, Reason, join_some
from bitzoo.models.alpha import is_one_colour, ranges_of
from bitzoo.models.wide_values import DARKEST_WHITE, WideRange, bit_depth_of, white_of

_SUBJECT = "the whole data set"
_SAMPLE = 64, 64
"""Of an ordinary image, this many pixels are looked at: all of them take half as long as the
decoding."""


@dataclass(frozen=True)
class Levels:
    """The range of an image's values.

    Attributes:
        low: Lowest value of each channel of the 8-bit image; or of some of its pixels, if these
            show already that it is neither dark nor flat nor of one colour.
        high: Highest value of each channel.
        wide: Range of an image of more than 8 bits per channel, which counts instead; None for any
            other.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    wide: WideRange | None = None

    @classmethod
    def of(cls, rgb: Image.Image, wide: WideRange | None) -> Levels:
        """Return the levels of an RGB image that was decoded from one with values in `wide`."""
        low, high = _extrema(rgb.resize(_SAMPLE, Image.Resampling.NEAREST))
        if max(high) - min(low) < DARKEST_WHITE or _is_one_colour(low, high):
            low, high = _extrema(rgb)
        return cls(low, high, wide)

    def in_8_bits(self, bit_depth: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the lowest and the highest value of each channel in 8 bits."""
        if self.wide is None:
            return self.low, self.high
        shift = (bit_depth or 16) - 8
        return (self.wide.lowest >> shift,) * 3, (self.wide.highest >> shift,) * 3


Seen: TypeAlias = "Sequence[tuple[Example, Levels]]"


def find_bit_depth(seen: Iterable[Levels]) -> int | None:
    """Return the smallest bit depth that holds all values of all images of more than 8 bits.

    None without such images.
    """
    highest = [levels.wide.highest for levels in seen if levels.wide]
    return bit_depth_of(max(highest)) if highest else None


def find_darkness(seen: Seen, bit_depth: int | None) -> Iterator[Problem]:
    """Yield why a data set cannot be trained on: it is dark, flat or blank.

    Args:
        seen: Its images.
        bit_depth: Its bit depth, see `find_bit_depth`.
    """
    if not seen:
        return
    levels = [(example, *found.in_8_bits(bit_depth)) for example, found in seen]
    brightest = max(max(high) for _, _, high in levels)
    if brightest < DARKEST_WHITE:
        found = f"the largest value in {len(levels):,} images is {brightest}, and white is 255"
        yield Problem(Reason.DARK, _SUBJECT, found)
        return
    darkest = min(min(low) for _, low, _ in levels)
    if brightest - darkest < DARKEST_WHITE:
        found = f"all values in {len(levels):,} images are from {darkest} to {brightest} of 255"
        yield Problem(Reason.FLAT, _SUBJECT, found + _in_the_files(seen))
        return
    blank = [(example, low) for example, low, high in levels if _is_one_colour(low, high)]
    if not blank:
        return
    (colour, count), *_ = Counter(low for _, low in blank).most_common(1)
    labels = {example.label for example, low in blank if low == colour}
    if 2 * count > len(levels) and len(labels) > 1:
        shown = "#" + "".join(f"{value:02x}" for value in colour)
        found = f"{count:,} of {len(levels):,} images have only one colour, and all {shown}"
        yield Problem(Reason.BLANK, _SUBJECT, found)


def notes_on_values(seen: Seen, bit_depth: int | None, classes: Sequence[str]) -> Iterator[str]:
    """Yield remarks on how values are read, and on images in which nothing can be seen.

    Args:
        seen: The images.
        bit_depth: What their values are read with.
        classes: Names of the classes.
    """
    wide = [levels.wide.highest for _, levels in seen if levels.wide]
    if wide and bit_depth is not None:
        yield (
            f"Images of more than 8 bits per channel ({len(wide)}) are read as {bit_depth}-bit "
            f"values, of which {white_of(bit_depth):,} is white; the largest is {max(wide):,}."
        )
    levels = [(example, *found.in_8_bits(bit_depth)) for example, found in seen]
    blank = [example for example, low, high in levels if _is_one_colour(low, high)]
    if blank:
        names = join_some([example.key for example in blank])
        yield f"Images of one single colour ({len(blank)}), which show nothing else: {names}."
        yield from _note_on_classes("every image has one single colour", blank, seen, classes)
    dark = [
        example
        for example, low, high in levels
        if max(high) < DARKEST_WHITE and not _is_one_colour(low, high)
    ]
    if dark:
        names = join_some([example.key for example in dark])
        limit = DARKEST_WHITE - 1
        yield f"Dark images ({len(dark)}), in which no value is above {limit} of 255: {names}."
        yield from _note_on_classes("every image is so dark", dark, seen, classes)


def _note_on_classes(
    what: str, affected: Sequence[Example], seen: Seen, classes: Sequence[str]
) -> Iterator[str]:
    """Name the classes of which all images are affected."""
    counts, found = (Counter(e.label for e in of) for of in ([e for e, _ in seen], affected))
    whole = [classes[label] for label in sorted(found) if found[label] == counts[label]]
    if whole:
        yield (
            f"Classes of which {what} ({len(whole)}): {join_some(whole)}. Check how these images "
            "were saved."
        )


def _in_the_files(seen: Seen) -> str:
    """Return what the files themselves hold, if it is more than 8 bits."""
    wide = [levels.wide for _, levels in seen if levels.wide]
    if not wide:
        return ""
    lowest, highest = min(found.lowest for found in wide), max(found.highest for found in wide)
    return f"; in the files, from {lowest:,} to {highest:,}"


def _extrema(rgb: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    low, high = zip(*ranges_of(rgb), strict=True)
    return low, high


def _is_one_colour(low: Sequence[int], high: Sequence[int]) -> bool:
    return is_one_colour(tuple(zip(low, high, strict=True)))
