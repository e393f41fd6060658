"""Open image files: the one place that does, for training, prediction and reports alike.

Pillow guesses the format from the content and knows some forty. For PostScript, whatever the file's
name says, it starts another program (Ghostscript); others read files of their own choice or decide
the size while they decode. So only `FORMATS` are tried, and the formats that the user's own script
has registered. The memory that an image needs is bounded before its pixels are allocated.
"""

from __future__ import annotations

import importlib
import os
import re
import stat
import sys
from pathlib import Path
from typing import IO, Any, TypeAlias

from PIL import Image, UnidentifiedImageError

from bitzoo.errors import MissingExtraError

ImageFile: TypeAlias = "str | os.PathLike[str] | IO[bytes]"

FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM"),
    *("MPO", "TGA", "PCX", "QOI", "SGI"),
)
"""Pillow's names of the formats that are read. MPO is JPEG with more images after the first."""

HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif", ".heics", ".heifs"))
"""Suffixes of HEIF, in which iPhones and some cameras save; pillow-heif, an extra, reads it."""
_HEIF = re.compile(rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)

LIMIT_VARIABLE = "BITZOO_MAX_IMAGE_MB"
"""Environment variable with the most memory for one image, in megabytes."""
DEFAULT_LIMIT_MB = 400
"""100 megapixels of RGB, which Pillow keeps in 4 bytes each; half of that for images that must be
converted or turned, of which there are then two."""
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1}
_WIDE_PIXEL_BYTES = 4
_EXPANSION = {"PNG": 1040, "BMP": 130, "DIB": 130, "PPM": 1}
"""Most bytes of pixels per byte of file: deflate makes at most 1032 of 1, run lengths 128. A file
that promises more is truncated."""
_LEAST_BITS = {"RGB": 24, "RGBA": 32, "LA": 16, "I;16": 16, "I": 16, "F": 32}
"""Fewest bits that a pixel of a mode is made of in a file; 1 for grey and palettes."""
_MATTERS = 1 << 24
"""Pixels from which on memory is worth the check."""


class ImageTooLargeError(Image.DecompressionBombError):
    """An image that would need more memory than one image may."""


def open_image(file: ImageFile) -> Image.Image:
    """Open an image; its pixels are not decoded yet.

    Args:
        file: A path, or a binary file.

    Returns:
        The image, to be closed by the caller.

    Raises:
        OSError: If the file cannot be opened, or is a pipe or device, whose reading could wait
            for ever.
        UnidentifiedImageError: If it has none of the formats that are read.
        MissingExtraError: If it is HEIF, and pillow-heif is not installed.
        ImageTooLargeError: If it needs more memory than `LIMIT_VARIABLE` allows.
        Exception: Nearly anything that Pillow raises for a damaged file.
    """
    if isinstance(file, str | os.PathLike):
        _require_regular(Path(file))
    limit = _limit_bytes()
    try:
        image = _identify(file)
    except UnidentifiedImageError:
        if not _is_heif(file):
            raise
        _register_heif()
        image = _identify(file)
    try:
        _require_memory(image, limit)
        _require_enough_bytes(image, file)
    except BaseException:
        image.close()
        raise
    return image


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file, so that what is hashed is what is decoded.

    Raises:
        OSError: If the file cannot be opened, or is a pipe or device.
        UnidentifiedImageError: If it is empty.
        ImageTooLargeError: If it has more bytes than one image may have.
    """
    file = Path(path)
    _require_regular(file)
    size, limit = file.stat().st_size, _limit_bytes()
    if size > limit:
        raise ImageTooLargeError(
            f"a file of {size / 1e6:,.0f} MB, and the limit for one image is {limit / 1e6:,.0f}. "
            f"Make it smaller, or set the environment variable {LIMIT_VARIABLE} to a higher limit"
        )
    return file.read_bytes()


def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read, the commonest first."""
    Image.init()
    own = [name for name in FORMATS if name in Image.OPEN]
    added = [
        name for name, (opener, _) in Image.OPEN.items() if not _module(opener).startswith("PIL.")
    ]
    return (*own, *(name for name in added if name not in own))


def is_readable(image: Image.Image) -> bool:
    """Whether an image that somebody opened has such a format, or none: it was made in memory."""
    return not image.format or image.format in (*FORMATS, *readable_formats())


def suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the formats that are read, and of HEIF."""
    formats = {*FORMATS, *readable_formats()}
    own = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    return frozenset(own | HEIF_SUFFIXES)


def orientation(image: Image.Image) -> object:
    """Return the EXIF orientation, None without one.

    Damaged EXIF data count as none: they say nothing about the pixels, and Pillow raises nearly
    anything for them. `ImageOps.exif_transpose` would reject the image.
    """
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:
        return None


def has_more_frames(image: Image.Image) -> bool:
    """Whether a second frame or page can be read; a damaged one is no frame.

    The image then stands at that frame: call this when the first has been decoded.
    """
    try:
        image.seek(1)
    except Exception:  # EOFError for a single image, and nearly anything for damaged data
        return False
    return True


def _identify(file: ImageFile) -> Image.Image:
    formats = list(readable_formats())
    # Files are decoded several at a time, one in each thread or process: a decoder with threads of
    # its own, by default one for each processor, would only take the processors from the others.
    avif: Any = sys.modules.get("PIL.AvifImagePlugin")
    if avif is not None and not avif.DEFAULT_MAX_THREADS:  # 0: nobody has chosen
        avif.DEFAULT_MAX_THREADS = 1
    image = Image.open(file, formats=formats)
    # Of a file that has a name, Pillow maps the pixels if it can, and then reads other pixels of a
    # damaged TIFF than from the same bytes in memory; and who truncates the file ends the process.
    image.filename = ""
    return image


def _is_heif(file: ImageFile) -> bool:
    if isinstance(file, str | os.PathLike):
        with open(file, "rb", buffering=0) as opened:
            return _HEIF.match(opened.read(12)) is not None
    file.seek(0)
    return _HEIF.match(file.read(12)) is not None


def _register_heif() -> None:
    """Let Pillow read HEIF, when the first such file is opened: the import takes a while."""
    try:
        heif = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise MissingExtraError(
            "HEIC needs the package pillow-heif, which is not installed. Install it: "
            'pip install "bitzoo[heif]", or convert the images to JPEG.'
        ) from error
    heif.register_heif_opener(decode_threads=1)  # see `_identify`


def _module(opener: object) -> str:
    return str(getattr(opener, "__module__", ""))


def _require_regular(path: Path) -> None:
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(f"{path} is not a regular file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise UnidentifiedImageError("the file is empty")


def _limit_bytes() -> int:
    """Return the most bytes for one image; a larger limit than Pillow's own raises that too."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    megabytes = int(text) if text.isdecimal() and int(text) > 0 else DEFAULT_LIMIT_MB
    limit = megabytes * 1_000_000
    pixels = limit // _WIDE_PIXEL_BYTES
    allowed = Image.MAX_IMAGE_PIXELS
    if megabytes > DEFAULT_LIMIT_MB and allowed is not None and pixels > allowed:
        Image.MAX_IMAGE_PIXELS = pixels
    return limit


def _require_memory(image: Image.Image, limit: int) -> None:
    pixels = image.width * image.height
    stored = pixels * _PIXEL_BYTES.get(image.mode, _WIDE_PIXEL_BYTES)
    copied = pixels * _WIDE_PIXEL_BYTES
    twice = image.mode != "RGB" or (stored + copied > limit and orientation(image) in range(2, 9))
    needed = stored + (copied if twice else 0)
    if needed > limit:
        raise ImageTooLargeError(
            f"an image of {image.width}x{image.height} ({pixels} pixels, mode {image.mode}) takes "
            f"{needed / 1e6:,.0f} MB of memory, and the limit is {limit / 1e6:,.0f}. Make it "
            f"smaller, or set the environment variable {LIMIT_VARIABLE} to a higher limit"
        )


def _require_enough_bytes(image: Image.Image, file: ImageFile) -> None:
    """Refuse a file too short for what it promises before memory for that is allocated."""
    promised = image.width * image.height
    expansion = _EXPANSION.get(str(image.format))
    if expansion is None or promised < _MATTERS:
        return
    if isinstance(file, str | os.PathLike):
        size = os.stat(file).st_size
    else:
        here = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(here)
    if promised * _LEAST_BITS.get(image.mode, 1) // 8 > size * expansion:
        raise OSError(
            f"image file is truncated: {size} bytes for {image.width}x{image.height} pixels"
        )


_ORIENTATION_TAG = 0x0112
