"""The random-resized ("inception") crop: a box of random area and shape, resized to a square.

The box is drawn as TensorFlow's `sample_distorted_bounding_box` draws it for an image without
boxes, which google-research/big_vision, `pp/ops_image.py`, `inception_crop` calls, the nearest
public code to BiT's pre-training (arXiv 1912.11370 says only "inception crop"): the ratio of width
to height is uniform in 3/4 to 4/3, and the height is uniform between those that give 5 % and
100 % of the image's area, or what fits. (torchvision's `RandomResizedCrop` draws the area
uniformly instead, and the logarithm of the ratio: larger boxes on average.) The corner is uniform
over all places; TensorFlow leaves out the last row and column of them.

The box is cut out and resized by Pillow, bilinear and antialiased, as all images of this package
are; TensorFlow resizes without antialiasing. An image's box is a pure function of the seed, the
step, the row of the batch and the image's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

AREA = (0.05, 1.0)
"""Least and largest share of the image's area (google-research/big_vision, as above)."""
RATIO = (3 / 4, 4 / 3)
"""Least and largest ratio of width to height (TensorFlow's default has 1.33 for 4/3)."""
ATTEMPTS = 100
"""Boxes that are drawn until one fits; then the whole image is taken (TensorFlow's default)."""

_PURPOSE = 3
"""Keeps these streams apart from those of `bitzoo.data.sampler`, which are numbered 0 to 2."""


@dataclass(frozen=True)
class CropKey:
    """Which crop is meant; with the image's size it determines the box.

    Attributes:
        seed: The run's seed, in [0, 2**64).
        step: Index of the step, from 0.
        row: Row of the batch, from 0.
    """

    seed: int
    step: int
    row: int

    def stream(self) -> np.random.Generator:
        """Return the crop's own stream; those of one seed are at least 2**128 draws apart."""
        counter = self.step << 192 | self.row << 128
        return np.random.Generator(
            np.random.Philox(key=self.seed | _PURPOSE << 64, counter=counter)
        )


def crop_box(stream: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw a box of an image.

    Args:
        stream: Where random numbers come from.
        height: Of the image in pixels, at least 1.
        width: Of the image in pixels, at least 1.

    Returns:
        Top, left, height and width of the box.
    """
    least, most = (share * height * width for share in AREA)
    for _ in range(ATTEMPTS):
        ratio = stream.uniform(*RATIO)
        low = round(math.sqrt(least / ratio))
        high = min(round(math.sqrt(most / ratio)), height, int((width + 0.5) / ratio))
        tall = int(stream.integers(min(low, high), high, endpoint=True))
        wide = round(tall * ratio)
        if tall >= 1 and 1 <= wide <= width and least <= tall * wide <= most:
            top = int(stream.integers(0, height - tall, endpoint=True))
            left = int(stream.integers(0, width - wide, endpoint=True))
            return top, left, tall, wide
    return 0, 0, height, width


def cropped(image: Image.Image, key: CropKey, size: int) -> npt.NDArray[np.uint8]:
    """Return the crop of an upright RGB image, resized to a square: uint8 (size, size, 3)."""
    top, left, height, width = crop_box(key.stream(), image.height, image.width)
    box = image.crop((left, top, left + width, top + height))
    return np.asarray(box.resize((size, size), Image.Resampling.BILINEAR))
