"""Check one image: decode it as training does, and say what is wrong or special about it."""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bitzoo.data.brightness import Levels
from bitzoo.data.dataset import Example
from bitzoo.data.decode_workers import hash_of_image, hash_stored
from bitzoo.data.near_duplicates import signature_of
from bitzoo.data.problems import DatasetError, Reason, printable
from bitzoo.errors import MissingExtraError, UsageError
from bitzoo.files import sha256_of
from bitzoo.models.image_files import has_more_frames, open_image, orientation, read_image_file
from bitzoo.models.preprocessing import read_rgb
from bitzoo.models.wide_values import bit_depth_of, is_deep_colour, is_wide_grey, range_of


@dataclass(frozen=True)
class ImageCheck:
    """Result of decoding one image.

    Attributes:
        reason: What is wrong with the image; None if it is fine.
        detail: What was found, if the reason does not say everything.
        sha256: See `Example.sha256`; "" if the image is not fine.
        size: Height and width, upright.
        traits: Special properties that decoding handles, such as "grayscale".
        signature: What near-duplicates are found by; b"" if the image is not fine.
        levels: Range of its values; None if the image is not fine.
    """

    reason: Reason | None = None
    detail: str = ""
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    traits: tuple[str, ...] = ()
    signature: bytes = b""
    levels: Levels | None = None


def check_image(
    example: Example,
    *,
    known: Callable[[str], ImageCheck | None] = lambda sha256: None,
    use: Callable[[Image.Image, str], object] = lambda rgb, sha256: None,
) -> ImageCheck:
    """Decode one image as training does, and report what is wrong or special about it.

    Whatever `read_rgb` reads is fine, except for animated and multi-page files: only their owner
    knows which frame is meant.

    Args:
        example: The image.
        known: Returns the check of an image with that `Example.sha256`, if it was made before; then
            a file is not decoded.
        use: Called with the decoded image, 8-bit RGB and upright, and its `Example.sha256`: that of
            the very bytes that were decoded. Not for an image of more than 8 bits per channel: how
            it is read is known only when all images have been seen.
    """
    try:
        if example.stored is not None:
            content = example.stored()
        elif example.path is None:
            return _examine(example.load_image(), "", use)
        else:
            refused = _refuse_file(example.path)
            if refused is not None:
                return refused
            content = read_image_file(example.path)  # once: what is hashed is what is checked
        digest = hashlib.sha256(content).hexdigest()
        before = known(digest)
        if before is not None:
            return before
        with open_image(io.BytesIO(content)) as image:
            return _examine(image, digest, use)
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        return _explain(error, example)


def hash_content(example: Example) -> str:
    """Return the SHA-256 of an image, as `Example.sha256`; "" if it cannot be read."""
    if example.path is None and example.stored is None:
        return check_image(example).sha256
    try:
        if example.path is None:
            return hash_stored(example)
        return "" if _refuse_file(example.path) else sha256_of(example.path)
    except (OSError, DatasetError):
        return ""


def _refuse_file(path: Path) -> ImageCheck | None:
    """Check for files that must not even be opened: opening a pipe would wait for its writer."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return ImageCheck(Reason.UNREADABLE, "not a regular file")
    if status.st_size == 0:
        return ImageCheck(Reason.NO_BYTES)
    return None


def _examine(
    image: Image.Image, digest: str, use: Callable[[Image.Image, str], object]
) -> ImageCheck:
    deep = is_deep_colour(image)
    traits = tuple(_traits(image, deep))
    wide = range_of(image, "The image", deep) if deep or is_wide_grey(image) else None
    # which values are white is known once all images have been seen: any depth shows damage
    rgb = read_rgb(image, None if wide is None else 16)
    size = rgb.height, rgb.width
    digest = digest or hash_of_image(image)
    levels = Levels.of(rgb, wide)
    if wide is None:
        use(rgb, digest)
    if image.format not in _SINGLE_IMAGE_FORMATS and has_more_frames(image):
        return ImageCheck(Reason.ANIMATED, f"{image.format} of {_count(image)} frames or pages")
    # a signature is of the shapes, whichever of the values is white
    seen = rgb if wide is None else read_rgb(image, bit_depth_of(wide.highest))
    return ImageCheck(None, "", digest, size, traits, signature_of(seen), levels)


def _count(image: Image.Image) -> object:
    try:
        return image.n_frames  # type: ignore[attr-defined]
    except Exception:  # a damaged one after the second
        return "several"


def _traits(image: Image.Image, deep: bool) -> Iterator[str]:
    """Yield the special properties that `read_rgb` handles."""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        yield "grayscale"
    if image.mode == "CMYK":
        yield "CMYK"
    if image.mode.startswith("I") or deep:
        yield "16 bits per channel"
    if image.mode in ("P", "PA"):
        yield "palette"
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        yield "alpha"
    # For a PNG's EXIF data, Pillow decodes the pixels. An error of theirs, if dropped with those of
    # the EXIF data, does not come again: the image would count as decoded.
    if image.format == "PNG":
        image.load()
    if orientation(image) in range(2, 9):
        yield "EXIF-rotated"
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        yield f"more than {limit / 1e6:.0f} megapixels"


def _explain(error: Exception, example: Example) -> ImageCheck:
    reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.DAMAGED)
    if isinstance(error, OSError) and error.errno is not None:  # from the system, not from Pillow
        detail = error.strerror or str(error)
        return ImageCheck(reason if reason is Reason.MISSING else Reason.UNREADABLE, detail)
    if reason is Reason.NEEDS_EXTRA:
        return ImageCheck(reason)
    if reason is Reason.NO_IMAGE:
        return ImageCheck(reason, _first_bytes(example))
    return ImageCheck(reason, printable(str(error) or type(error).__name__))


def _first_bytes(example: Example) -> str:
    if example.path is None:
        return ""
    with example.path.open("rb") as file:
        return f"begins with {file.read(16)!r}"


_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (Image.DecompressionBombError, Reason.HUGE),
    (MemoryError, Reason.HUGE),
    (UnidentifiedImageError, Reason.NO_IMAGE),
    (MissingExtraError, Reason.NEEDS_EXTRA),
    (UsageError, Reason.NO_8_BIT),
    (FileNotFoundError, Reason.MISSING),
    (NotADirectoryError, Reason.MISSING),
)
"""The first match decides; any other error means a damaged file."""

_SINGLE_IMAGE_FORMATS = ("MPO",)
"""Formats whose further frames are not separate images: cameras and phones write depth maps, gain
maps and previews after the first frame."""
