"""Image preprocessing for evaluation: decode to RGB, resize, crop, and scale to [-1, 1].

There are two forms, which differ only in the resize:

- `square`: both edges are resized to `resize`, regardless of the aspect ratio. BiT-HyperRule
  evaluates this way, with `resize` equal to `crop` (google-research/big_transfer,
  bit_pytorch/train.py).
- otherwise the *shorter* edge is resized to `resize` and the aspect ratio is kept, as in timm and
  torchvision.

In both, the central `crop` x `crop` pixels are kept and mapped to ``x / 127.5 - 1``.

Resampling is Pillow's: its filters widen as an image shrinks (antialiasing) and its pixels are
rounded to 8 bits, exactly as in torchvision for PIL images. Google's TensorFlow pipeline resizes
without antialiasing, so its pixels differ slightly.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo.errors import LayoutError, MissingExtraError, UsageError
from bitzoo.models.alpha import composited, drawn_in_alpha, has_alpha
from bitzoo.models.image_files import (
    FORMATS,
    ImageFile,
    ImageTooLargeError,
    is_readable,
    open_image,
    orientation,
)
from bitzoo.models.wide_values import (
    is_deep_colour,
    is_white_zero,
    is_wide_grey,
    problem_of,
    range_of,
    require_true_values,
    to_8_bits,
)

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = "Image.Image | npt.NDArray[np.uint8] | str | os.PathLike[str] | bytes"
"""A PIL image of any mode, uint8 pixels (height, width[, 3 or 4]), the path of an image file, or
the bytes of one."""

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class EvalTransform:
    """Turns an image into the input tensor of a network, for evaluation.

    Attributes:
        crop: Edge of the result in pixels.
        resize: Size of both edges (`square`) or of the shorter edge before the crop; at least
            `crop`.
        interpolation: ``bilinear`` or ``bicubic``.
        square: Whether the resize ignores the aspect ratio.
        bit_depth: Bits of the values of images of more than 8 bits per channel, see `read_rgb`.

    Raises:
        UsageError: If the sizes contradict each other or the interpolation is unknown.
    """

    crop: int
    resize: int
    interpolation: str = "bilinear"
    square: bool = True
    bit_depth: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise UsageError(
                "`crop` must be at least 1 and at most `resize`, found "
                f"crop={self.crop} and resize={self.resize}. Change one of them."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"`interpolation` must be one of {', '.join(INTERPOLATIONS)}, found "
                f"{self.interpolation!r}."
            )

    def __call__(self, image: ImageLike) -> Tensor:
        """Resize, crop and scale one image.

        Args:
            image: See `read_rgb` for the accepted types and the conversion to RGB.

        Returns:
            float32 (3, crop, crop), RGB, in [-1, 1].

        Raises:
            UsageError: If the image cannot be read or has no defined 8-bit form.
            LayoutError: If an array is not uint8 pixels.
        """
        import torch

        pixels = torch.from_numpy(self.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div_(127.5).sub_(1)

    def array(self, image: ImageLike) -> npt.NDArray[np.uint8]:
        """Return the resized and cropped pixels before scaling: uint8 (crop, crop, 3), RGB."""
        rgb = read_rgb(image, self.bit_depth)
        width, height = self._resized(*rgb.size)
        rgb = rgb.resize((width, height), INTERPOLATIONS[self.interpolation])
        # round() rounds halves to even, as torchvision's CenterCrop does
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        return np.array(rgb.crop((left, top, left + self.crop, top + self.crop)))

    @classmethod
    def to_square(cls, size: int, bit_depth: int | None = None) -> EvalTransform:
        """Return BiT-HyperRule's: both edges to `size` pixels, bilinear, nothing cut off."""
        return cls(size, size, bit_depth=bit_depth)

    @property
    def fills_square(self) -> bool:
        """Whether it is that of `to_square`, whatever the size."""
        return replace(self, bit_depth=None) == self.to_square(self.crop)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.square:
            return self.resize, self.resize
        short, long = sorted((width, height))
        long = int(self.resize * long / short)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and self.resize * long > limit:
            raise UsageError(
                f"An image of {width}x{height} pixels is too narrow: resized to a shorter edge of "
                f"{self.resize}, it would have {self.resize * long} pixels, and the limit is "
                f"{limit}. Crop it first."
            )
        return (self.resize, long) if width <= height else (long, self.resize)


def read_rgb(image: ImageLike, bit_depth: int | None = None) -> Image.Image:
    """Decode an image and return it upright, as 8-bit RGB.

    - The EXIF orientation is applied; timm and torchvision leave this to the caller.
    - Alpha is dropped, not composited, as in TensorFlow's `decode_image(channels=3)`, timm and
      transformers: a transparent pixel keeps its hidden colour. Only where that would leave nothing
      (all pixels that can be seen have one colour, and alpha alone has the drawing) is the image
      composited: over white, or over black if its colour is a light one.
    - Grey of more than 8 bits keeps its high bits; how many bits it has, only `bit_depth` says
      (Pillow's conversion clips at 255, which turns most pixels white). Where 0 is white, it is
      inverted. Of 16-bit colour, Pillow keeps the high byte.
    - Files have one of the formats in `bitzoo.models.image_files`, and a size that fits its limit.
    - Palettes, CMYK, YCbCr, Lab and HSV are converted by Pillow; an animation yields its first
      frame.

    Args:
        image: A PIL image, an array of uint8 pixels, the path of an image file, or its bytes; none
            is changed.
        bit_depth: Bits of the values of images of more than 8 bits per channel (8 to 16): white is
            their largest value. None means that it is not known: 16 is used, and images that would
            be nearly black are refused.

    Returns:
        A PIL image of mode RGB; the given one, if it is that already.

    Raises:
        UsageError: If the file cannot be decoded, the mode has no defined range (32-bit), or the
            values do not fit `bit_depth`.
        LayoutError: If an array is not uint8 (height, width), (height, width, 3) or (.., 4).
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        if not is_readable(image):
            raise UsageError(
                f"The image has the format {image.format}, whose decoder is not run: expected one "
                f"of {', '.join(FORMATS)}. Save it as PNG first."
            )
        return _to_rgb(image, "The image", bit_depth)
    if isinstance(image, bytes):
        return read_rgb_file(io.BytesIO(image), "The image", bit_depth)
    if not isinstance(image, (str, os.PathLike)):
        raise UsageError(
            "An image must be a PIL image, a NumPy array of uint8 pixels, the bytes of a file or a "
            f"path, found {type(image).__name__}."
        )
    return read_rgb_file(image, f"The image {os.fspath(image)!r}", bit_depth)


def read_rgb_file(file: ImageFile, name: str, bit_depth: int | None = None) -> Image.Image:
    """Decode an image file as `read_rgb` does; errors begin with `name`."""
    try:
        with open_image(file) as opened:
            return _to_rgb(opened, name, bit_depth)
    except UsageError:
        raise
    except ImageTooLargeError as error:
        raise UsageError(f"{name} is too large: {error}.") from error
    except MissingExtraError as error:
        raise UsageError(f"{name} cannot be read: {error}") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise UsageError(
            f"{name} cannot be read: expected an image file of a format that is read, found "
            f"{error or type(error).__name__}. Check the path, or save the image again as PNG."
        ) from error


def loaded_upright(image: Image.Image, name: str) -> Image.Image:
    """Decode an image in the mode that it has, and turn it as its EXIF orientation says.

    Raises:
        UsageError: If it has no pixels; `name` is what it is called.
    """
    image.load()  # first, because this turns TIFF files upright
    if 0 in image.size:
        raise UsageError(f"{name} is empty: its size is {image.width}x{image.height}.")
    turn = _TURN_OF_ORIENTATION.get(orientation(image))
    if turn is None:
        return image
    upright = image.transpose(turn)
    # without the EXIF data, by which it would be turned again when it is read again
    upright.info = {key: image.info[key] for key in ("transparency",) if key in image.info}
    return upright


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


def _to_rgb(image: Image.Image, name: str, bit_depth: int | None) -> Image.Image:
    require_true_values(image, name)
    deep = is_deep_colour(image)
    upright = loaded_upright(image, name)
    if is_wide_grey(upright):
        return to_8_bits(upright, name, bit_depth, is_white_zero(image)).convert("RGB")
    if deep and (found := range_of(upright, name, deep)) is not None:
        reason = problem_of(found, bit_depth)
        if reason is not None:
            raise UsageError(f"{name} cannot be used: {reason}.")
    if has_alpha(upright):
        # a palette directly to RGB: Pillow would warn that alpha is dropped
        upright = upright.convert("RGBA")
        alpha = drawn_in_alpha(upright)
        if alpha is not None:
            return composited(upright, alpha)
    return upright if upright.mode == "RGB" else upright.convert("RGB")  # without a second copy


_TURN_OF_ORIENTATION: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> the turn that makes an image upright (Exif 2.32, tag 0x0112: the sides of the
image on which row 0 and column 0 are)."""
