"""Is this picture fine, and if not, why not?

It is decoded in full, by the function that decodes it for training: only so a file that was cut off
is found.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bitzoo.converters.tensors import sha256_of
from bitzoo.errors import UsageError
from bitzoo.finetune.dataset import Example
from bitzoo.finetune.findings import Reason, printable
from bitzoo.preprocess import read_rgb

_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Verdict:
    """What became of decoding one picture.

    Attributes:
        reason: What is wrong with it, None if it is fine.
        detail: What was found, where the reason does not say it all.
        sha256: See `Example.sha256`; "" if it is not fine.
        size: Height and width, upright.
        traits: What is special about it and taken care of, such as "grayscale".
    """

    reason: Reason | None = None
    detail: str = ""
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    traits: tuple[str, ...] = ()


def judge(example: Example) -> Verdict:
    """Decode one picture as training does, and say what is wrong or special about it.

    Fine is what `bitzoo.preprocess.read_rgb` reads, except for animations and files of several
    pages: which of the pictures is meant, only their owner knows.
    """
    try:
        if example.path is None:
            return _examine(example.load_picture())
        wrong = _refuse_file(example.path)
        if wrong is not None:
            return wrong
        digest = sha256_of(example.path)
        with Image.open(example.path) as image:
            return _examine(image, digest)
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        return _explain(error, example)


def _refuse_file(path: Path) -> Verdict | None:
    """What is wrong with a file that must not even be opened; a pipe would wait for its writer."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return Verdict(Reason.UNREADABLE, "not a regular file")
    if status.st_size == 0:
        return Verdict(Reason.NO_BYTES)
    return None


def _examine(image: Image.Image, digest: str = "") -> Verdict:
    traits = tuple(_traits(image))
    rgb = read_rgb(image)
    frames = 1 if image.format in _ONE_PICTURE else getattr(image, "n_frames", 1)
    if frames > 1:
        return Verdict(Reason.ANIMATED, f"{image.format} of {frames} frames or pages")
    if not digest:
        digest = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).hexdigest()
    return Verdict(None, "", digest, (rgb.height, rgb.width), traits)


def _traits(image: Image.Image) -> Iterator[str]:
    """What `read_rgb` will take care of."""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        yield "grayscale"
    if image.mode == "CMYK":
        yield "CMYK"
    # 16-bit colour has mode RGB: only the decoder's tiles name what is stored
    stored = str(getattr(image, "tile", ""))
    if image.mode.startswith("I") or (";16" in stored and "BGR;16" not in stored):
        yield "16 bits a channel"
    if image.mode in ("P", "PA"):
        yield "palette"
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        yield "alpha"
    if _is_turned(image):
        yield "EXIF-rotated"
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        yield f"more than {limit / 1e6:.0f} megapixels"


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION_TAG) in range(2, 9)
    except (SyntaxError, ValueError, struct.error):
        return False


def _explain(error: Exception, example: Example) -> Verdict:
    reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.DAMAGED)
    if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
        detail = error.strerror or str(error)
        return Verdict(reason if reason is Reason.MISSING else Reason.UNREADABLE, detail)
    if reason is Reason.NO_IMAGE:
        return Verdict(reason, _first_bytes(example))
    return Verdict(reason, printable(str(error) or type(error).__name__))


def _first_bytes(example: Example) -> str:
    if example.path is None:
        return ""
    with example.path.open("rb") as file:
        return f"begins with {file.read(16)!r}"


_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (Image.DecompressionBombError, Reason.HUGE),
    (MemoryError, Reason.HUGE),
    (UnidentifiedImageError, Reason.NO_IMAGE),
    (UsageError, Reason.NO_8_BIT),
    (FileNotFoundError, Reason.MISSING),
    (NotADirectoryError, Reason.MISSING),
)
"""The first that fits decides; any other error means a damaged file."""

_ONE_PICTURE = ("MPO",)
"""Formats whose further frames are no pictures of their own: cameras and phones write depth maps,
gain maps and previews behind the first."""
