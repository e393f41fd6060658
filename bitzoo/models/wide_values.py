"""Images of more than 8 bits per channel: which of their values is white.

A 16-bit file may hold 8-, 10- or 12-bit values, and nothing in it says so. Read as 16-bit values,
these images are black. So the bit depth is derived from all images of a data set together (one
image alone may just be dark), is kept with what was trained on them, and is applied to every image
that the network sees later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo.errors import UsageError
from bitzoo.models.alpha import drawn_in_alpha, has_alpha, ranges_of

BIT_DEPTHS = (8, 10, 12, 14, 16)
"""The bit depths of sensors and file formats; a data set has the smallest that holds its values."""
DARKEST_WHITE = 32
"""Of the 256 levels; where nothing is brighter, the values are taken for badly scaled ones."""
_HIGH_BYTE_ONLY = "keeps only the high byte of 16-bit colour, which is not enough for that"
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_BITS, _PLANES, _APART = 258, 284, 2
_SAMPLE_FORMAT, _SIGNED = 339, 2


@dataclass(frozen=True)
class WideRange:
    """The lowest and highest value of an image of more than 8 bits per channel.

    Attributes:
        lowest: Its lowest value, 0 to 65,535.
        highest: Its highest value.
        exact: Whether all bits are known. Pillow decodes 16-bit colour to its high bytes; the
            missing bits of `highest` are then ones, so it is an upper bound.
    """

    lowest: int
    highest: int
    exact: bool = True


def bit_depth_of(highest: int) -> int:
    """Return the smallest of `BIT_DEPTHS` that holds a value from 0 to 65,535."""
    return next(depth for depth in BIT_DEPTHS if highest < 1 << depth)


def white_of(bit_depth: int) -> int:
    """Return the value that is white: the largest of that many bits."""
    return (1 << bit_depth) - 1


def is_wide_grey(image: Image.Image) -> bool:
    """Whether the image has one channel of more than 8 bits, all of which Pillow decodes."""
    return image.mode.startswith(("I", "F"))


def is_deep_colour(image: Image.Image) -> bool:
    """Whether the file stores 16 bits of several channels, of which Pillow decodes the high bytes.

    Only the decoder's tiles say so, and only until the image has been loaded.
    """
    if is_wide_grey(image):
        return False
    for tile in image.__dict__.get("tile") or ():
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if image.format == "PPM" and arguments[-1:] != (255,) and isinstance(arguments[-1], int):
            return bool(arguments[-1] > 255)  # the raw values' maximum, to which Pillow scales
        text = str(arguments)
        if ";16" in text and "BGR;16" not in text:  # BGR;16 is a pixel of 16 bits in all
            return True
    return False


def require_true_values(image: Image.Image, name: str) -> None:
    """Refuse a TIFF file of which Pillow would decode other values than are in it.

    It reads signed values of 8 bits as unsigned ones, and channels of 16 bits that are stored one
    after the other, uncompressed, as if they had 8.

    Args:
        image: An image that has not been loaded.
        name: What to call it in an error.

    Raises:
        UsageError: If it is such a file.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or is_wide_grey(image):
        return
    found = ""
    if _SIGNED in _values_of(tags, _SAMPLE_FORMAT):
        found = "signed values of 8 bits per channel, which have no defined white"
    elif max(_values_of(tags, _BITS), default=1) > 8 and tags.get(_PLANES) == _APART:
        tiles = image.__dict__.get("tile") or ()
        if any(tile[0] == "raw" for tile in tiles):
            found = "channels of 16 bits one after the other, which Pillow reads only if compressed"
    if found:
        raise UsageError(f"{name} is a TIFF file with {found}. Scale it to 8 bits first.")


def _values_of(tags: Any, tag: int) -> tuple[int, ...]:
    """Return the values of a tag; of a damaged one, those that are numbers."""
    values = tags.get(tag, ())
    values = values if isinstance(values, tuple) else (values,)
    return tuple(value for value in values if isinstance(value, int))


def range_of(image: Image.Image, name: str, deep: bool) -> WideRange | None:
    """Return the range of an image of more than 8 bits per channel; None for any other.

    Where alpha alone has the drawing, it is alpha's.

    Args:
        image: A loaded image.
        name: What to call it in an error.
        deep: What `is_deep_colour` said before it was loaded.

    Raises:
        UsageError: If the values have no defined white: fractions, negative, above 65,535.
    """
    if is_wide_grey(image):
        values = np.asarray(image)
        _require_16_bits(image, values, name)
        return WideRange(int(values.min()), int(values.max()))
    if not deep:
        return None
    alpha = drawn_in_alpha(image.convert("RGBA")) if has_alpha(image) else None
    ranges = ranges_of(image.convert("RGB") if alpha is None else alpha)
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    return WideRange(lowest << 8, highest << 8 | 0xFF, exact=False)


def problem_of(found: WideRange, bit_depth: int | None) -> str | None:
    """Return why an image with these values cannot be read with that bit depth; None if it can.

    Args:
        found: Its values.
        bit_depth: See `to_8_bits`.
    """
    own = bit_depth_of(found.highest)
    if bit_depth is None:
        if found.highest >> 8 >= DARKEST_WHITE:
            return None
        return (
            f"its values of more than 8 bits go from {found.lowest:,} to {found.highest:,}: "
            f"expected up to {white_of(16):,}. Read as 16 bits they would be nearly black, and "
            f"whether white is {white_of(own):,} cannot be told from one image. Scale it to 8 bits"
        )
    if found.highest > white_of(bit_depth):
        return (
            f"its values go up to {found.highest:,}, but white is {white_of(bit_depth):,}, because "
            f"the images that the model was trained on have {bit_depth} bits. Scale it as they are"
        )
    if not found.exact and bit_depth < 16:
        return (
            f"it is 16-bit colour with values of only {bit_depth} bits, and Pillow "
            f"{_HIGH_BYTE_ONLY}. Scale it to 8 bits"
        )
    return None


def to_8_bits(
    image: Image.Image, name: str, bit_depth: int | None, inverted: bool = False
) -> Image.Image:
    """Return an image with one channel of more than 8 bits in 8 bits: its high bits.

    Args:
        image: Of mode I or I;16.
        name: What to call it in an error.
        bit_depth: Bits of the values; white is their largest. None means that it is not known:
            16, and images that would be nearly black are refused.
        inverted: Whether 0 is white.

    Raises:
        UsageError: If a value is larger, or there is no defined white.
    """
    values = np.asarray(image)
    _require_16_bits(image, values, name)
    reason = problem_of(WideRange(int(values.min()), int(values.max())), bit_depth)
    if reason is not None:
        raise UsageError(f"{name} cannot be used: {reason}.")
    pixels = (values >> ((bit_depth or 16) - 8)).astype(np.uint8)
    return Image.fromarray(255 - pixels if inverted else pixels)


def is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF file; Pillow itself inverts such images of up to 8 bits."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _require_16_bits(image: Image.Image, values: npt.NDArray[Any], name: str) -> None:
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise UsageError(
            f"{name} has mode {image.mode!r} with values from {values.min()} to {values.max()}: "
            "expected 8 or 16 bits per channel, because others have no defined white. Scale it to "
            "8 bits first."
        )
