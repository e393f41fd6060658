"""Alpha: where it alone has the drawing, it is what is looked at.

Everywhere else alpha is dropped, see `preprocessing.read_rgb`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image

Range: TypeAlias = "tuple[int, int]"
"""The lowest and the highest value of a channel."""

ONE_COLOUR = 4
"""An image whose channels span fewer of the 256 levels than this has one colour: what a lossy
format makes of one."""
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


def has_alpha(image: Image.Image) -> bool:
    """Whether the image has a channel of alpha, or a colour that is transparent."""
    return image.mode in _WITH_ALPHA or "transparency" in image.info


def ranges_of(image: Image.Image) -> tuple[Range, ...]:
    """Return the range of each channel of an 8-bit image."""
    found = image.getextrema()
    channels: Sequence[Range] = (found,) if len(image.getbands()) == 1 else found  # type: ignore[assignment]
    return tuple((int(low), int(high)) for low, high in channels)


def is_one_colour(ranges: Sequence[Range]) -> bool:
    """Whether an image with channels of these ranges has one colour, and so shows nothing."""
    return all(high - low < ONE_COLOUR for low, high in ranges)


def drawn_in_alpha(image: Image.Image) -> Image.Image | None:
    """Return the alpha of an RGBA image if it alone has the drawing; else None.

    All pixels that can be seen have one colour then, and alpha has more than one value to speak of.
    What colour the others have is chance: many programs write black, which compresses best.
    """
    alpha = image.getchannel("A")
    if is_one_colour(ranges_of(alpha)):
        return None
    return alpha if is_one_colour(_seen_in(image, alpha)) else None


def composited(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Return an RGBA image of one colour over white, or over black if the colour is a light one."""
    colour = tuple(low for low, _ in _seen_in(image, alpha))
    grey = Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))
    ground = Image.new("RGB", image.size, "black" if int(grey) > 127 else "white")  # type: ignore[arg-type]
    ground.paste(image.convert("RGB"), mask=alpha)
    return ground


def _seen_in(image: Image.Image, alpha: Image.Image) -> tuple[Range, ...]:
    """Return the ranges of red, green and blue over all pixels that are not fully transparent."""
    levels = 256
    counts = image.convert("RGB").histogram(alpha.point([0] + [255] * (levels - 1)))
    channels = (counts[start : start + levels] for start in range(0, len(counts), levels))
    present = [[level for level, count in enumerate(each) if count] for each in channels]
    return tuple((each[0], each[-1]) for each in present)
