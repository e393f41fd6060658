"""A picture -> the numbers that a BiT network reads: RGB, resized, in [-1, 1].

Evaluation comes in two forms that differ only in the resize:

- `square`: both edges go to `resize`, whatever the aspect. BiT-HyperRule evaluates so, with
  `resize` equal to `crop` (google-research/big_transfer, bit_pytorch/train.py).
- otherwise the *shorter* edge goes to `resize` and the aspect stays, as timm and torchvision do.

Either way the central `crop` x `crop` pixels are kept and mapped to ``x / 127.5 - 1``.

Resampling is Pillow's: its filters widen as a picture shrinks (antialiasing) and its pixels are
rounded to 8 bits, exactly as torchvision does for PIL images. Google's TensorFlow pipeline resizes
without antialiasing, so its pixels differ a little.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo.errors import LayoutError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Picture: TypeAlias = "Image.Image | npt.NDArray[np.uint8] | str | os.PathLike[str]"
"""A PIL image of any mode, uint8 pixels (height, width[, 3 or 4]), or the path of a picture."""

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class EvalTransform:
    """Turns a picture into the tensor that a network evaluates.

    Attributes:
        crop: Edge of the result in pixels.
        resize: Size of both edges (`square`) or of the shorter edge before the crop; at least
            `crop`.
        interpolation: ``bilinear`` or ``bicubic``.
        square: Whether the resize ignores the aspect.

    Raises:
        UsageError: If the sizes contradict each other or the interpolation is unknown.
    """

    crop: int
    resize: int
    interpolation: str = "bilinear"
    square: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise UsageError(
                "The crop must be at least 1 and at most the size that pictures are resized to, "
                f"found crop={self.crop} and resize={self.resize}. Change one of them."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"Interpolation must be one of {', '.join(INTERPOLATIONS)}, found "
                f"{self.interpolation!r}."
            )

    def __call__(self, picture: Picture) -> Tensor:
        """Resize, crop and scale one picture.

        Args:
            picture: See `read_rgb` for what is accepted and how it becomes RGB.

        Returns:
            float32 (3, crop, crop), RGB, in [-1, 1].

        Raises:
            UsageError: If the picture cannot be read or has no defined 8-bit form.
            LayoutError: If an array is not uint8 pixels.
        """
        import torch

        pixels = torch.from_numpy(self.array(picture)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div_(127.5).sub_(1)

    def array(self, picture: Picture) -> npt.NDArray[np.uint8]:
        """The resized and cropped pixels before scaling: uint8 (crop, crop, 3), RGB."""
        image = read_rgb(picture)
        width, height = self._resized(*image.size)
        image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        # round() takes halves to the even side, and so does torchvision's CenterCrop
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        return np.array(image.crop((left, top, left + self.crop, top + self.crop)))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.square:
            return self.resize, self.resize
        short, long = sorted((width, height))
        long = int(self.resize * long / short)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and self.resize * long > limit:
            raise UsageError(
                f"A picture of {width}x{height} pixels is too narrow: with a shorter edge of "
                f"{self.resize} it has {self.resize * long} pixels, and the limit is {limit}. "
                "Crop it first."
            )
        return (self.resize, long) if width <= height else (long, self.resize)


def read_rgb(picture: Picture) -> Image.Image:
    """Decode a picture and give it upright, as 8-bit RGB.

    - The EXIF orientation is applied; timm and torchvision leave it to their caller.
    - Alpha is dropped, not composited: TensorFlow's `decode_image(channels=3)`, timm and
      transformers do the same, so a transparent pixel keeps the colour that it hides.
    - 16-bit grey keeps its high byte, as Pillow itself does for 16-bit RGB (its own conversion of
      16-bit grey clips at 255, which turns most pixels white).
    - Palettes, CMYK, YCbCr, Lab and HSV are converted by Pillow; of an animation, frame one counts.

    Args:
        picture: A PIL image, an array of uint8 pixels, or a path; neither is changed.

    Returns:
        A PIL image of mode RGB.

    Raises:
        UsageError: If the file cannot be decoded, or the mode has no defined range (32-bit).
        LayoutError: If an array is not uint8 (height, width), (height, width, 3) or (.., 4).
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Image.Image):
        return _to_rgb(picture, "The picture")
    if not isinstance(picture, (str, os.PathLike)):
        raise UsageError(
            "A picture must be a PIL image, a NumPy array of uint8 pixels or a path, found "
            f"{type(picture).__name__}."
        )
    name = f"The picture {os.fspath(picture)!r}"
    try:
        with Image.open(picture) as image:
            return _to_rgb(image, name)
    except UsageError:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise UsageError(
            f"{name} cannot be read: expected an image file that Pillow can decode, found "
            f"{error or type(error).__name__}. Check the path, or save the picture again as PNG."
        ) from error


def _from_array(pixels: npt.NDArray[Any]) -> Image.Image:
    shape = pixels.shape
    is_grey, is_colour = len(shape) == 2, len(shape) == 3 and shape[2] in (3, 4)
    if pixels.dtype != np.uint8 or not (is_grey or is_colour) or 0 in shape:
        raise LayoutError(
            "An array of pixels must be uint8 with shape (height, width), (height, width, 3) or "
            f"(height, width, 4), found {pixels.dtype} {shape}. Move channels last and scale to "
            "0..255."
        )
    return Image.fromarray(pixels).convert("RGB")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()  # first: TIFF files turn themselves upright here
    if 0 in image.size:
        raise UsageError(f"{name} is empty: its size is {image.width}x{image.height}.")
    turn = _TURN_OF_ORIENTATION.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        image = _high_byte(image, name)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of what is meant: no alpha
    return image.convert("RGB")


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation; `ImageOps.exif_transpose` would also reject damaged EXIF data."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except (SyntaxError, ValueError, struct.error):
        return None


def _high_byte(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey as 8 bits. Mode I holds 16-bit values too: PGM, and PNG in older Pillow."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise UsageError(
            f"{name} has mode {image.mode!r} with values from {values.min()} to {values.max()}: "
            "expected 8 or 16 bits a channel, because others have no defined white. Scale it to "
            "8 bits first."
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


_ORIENTATION_TAG = 0x0112

_TURN_OF_ORIENTATION: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright (Exif 2.32, tag 0x0112: where row 0 and column 0 lie)."""
