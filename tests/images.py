"""Folders of real images: scikit-learn's digits and photographs, in many forms, good and bad.

    write_digits(tmp_path, per_class=20, val_per_class=5)   # train/0/..., val/0/...
    FINE["CMYK"].write(tmp_path / "cats", seed=3)           # a path; each seed another image
    BAD["cut off JPEG"].write(tmp_path / "cats")

Nothing is imported from bitzoo.
"""

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

# --- digits -------------------------------------------------------------------------------------


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten digits: uint8 (1797, 8, 8) in 0..255, and their labels 0..9."""
    data = load_digits()
    return np.minimum(data.images * 16, 255).astype(np.uint8), data.target


def write_digits(root, per_class=None, val_per_class=0, classes=range(10), size=8) -> Path:
    """Write digits as PNGs, `root/3/0017.png`; with a val split `root/train/3/..`, `root/val/3/..`.

    Args:
        root: Folder to write into; created if missing.
        per_class: How many of each digit to train on; None for all that are not held out.
        val_per_class: How many of each digit to hold out; these come first.
        classes: Which digits.
        size: Edge in pixels; enlarged from 8 bilinearly.
    """
    images, labels = digits()
    for digit in classes:
        indices = np.flatnonzero(labels == digit)
        val, train = indices[:val_per_class], indices[val_per_class:][:per_class]
        for split, chosen in (("val", val), ("train", train)):
            folder = Path(root, split if val_per_class else "", str(digit))
            folder.mkdir(parents=True, exist_ok=True)
            for index in chosen:
                image = Image.fromarray(images[index])
                if size != 8:
                    image = image.resize((size, size), Image.Resampling.BILINEAR)
                image.save(folder / f"{index:04}.png")
            if not chosen.size:
                folder.rmdir()
    return Path(root)


# --- photographs --------------------------------------------------------------------------------


@cache
def _photographs() -> list[Image.Image]:
    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def photo(seed=0, width=61, height=40) -> Image.Image:
    """A piece of one of two photographs (640x427), RGB; each seed gives another one."""
    source = _photographs()[seed % 2]
    random = np.random.default_rng(seed)
    left = int(random.integers(0, source.width - width + 1))
    top = int(random.integers(0, source.height - height + 1))
    return source.crop((left, top, left + width, top + height))


def write_photos(folder, count, first_seed=0, **size) -> list[Path]:
    """Write `count` different JPEGs `photo_0.jpg`, ... into `folder`, created if missing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder, f"photo_{seed}.jpg") for seed in range(first_seed, first_seed + count)]
    for seed, path in enumerate(paths, start=first_seed):
        photo(seed, **size).save(path)
    return paths


# --- one file of every form ---------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A kind of file.

    Attributes:
        name: The file's name.
        save: Writes a photograph to a path in this form.
        says: What validation says of it: its traits, or part of the reason why it is bad.
    """

    name: str
    save: Callable[[Image.Image, Path], object]
    says: str

    def write(self, folder, seed=0, **size) -> Path:
        """Write a file of this form into `folder`, created if missing."""
        path = Path(folder, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.save(photo(seed, **size), path)
        return path


def _saved(convert=lambda image: image, **options):
    return lambda image, path: convert(image).save(path, **options)


def _mode(mode, **options):
    return _saved(lambda image: image.convert(mode), **options)


def _turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(exif=exif)


def _transparent(image):
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _png_16(channels):
    def save(image, path):
        samples = np.asarray(image.convert("RGB" if channels == 3 else "L")).astype(np.uint16)
        path.write_bytes(png(samples * 257, colour_type=2 if channels == 3 else 0))

    return save


def png(samples, colour_type=0, claim=None) -> bytes:
    """A 16-bit PNG of uint16 samples; its header states `claim` as (width, height) if given."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", *(claim or (width, height)), 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _frames(**options):
    """Save three frames: the image, and two turned copies."""
    turns = (Image.Transpose.ROTATE_180, Image.Transpose.FLIP_LEFT_RIGHT)

    def save(image, path):
        others = [image.transpose(turn) for turn in turns]
        image.save(path, save_all=True, append_images=others, **options)

    return save


def _cut(save, share):
    def save_cut(image, path):
        save(image, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return save_cut


def _content(content):
    return lambda image, path: path.write_bytes(content)


def _bomb(image, path):
    path.write_bytes(png(np.zeros((1, 1), np.uint16), claim=(30_000, 30_000)))


def _floats(image, path):
    Image.fromarray(np.asarray(image.convert("L")) / np.float32(255)).save(path)


FINE = {
    "JPEG": Form("plain.jpg", _saved(), ""),
    "capitals": Form("CAPITALS.JPEG", _saved(), ""),
    "progressive": Form("progressive.jpg", _saved(progressive=True), ""),
    "PNG": Form("plain.png", _saved(), ""),
    "BMP": Form("plain.bmp", _saved(), ""),
    "TIFF": Form("plain.tif", _saved(), ""),
    "WebP": Form("plain.webp", _saved(), ""),
    "several images": Form("phone.jpg", _frames(format="MPO"), ""),
    "wrong name": Form("png_inside.jpg", _saved(format="PNG"), ""),
    "grayscale": Form("grey.jpg", _mode("L"), "grayscale"),
    "black and white": Form("fax.tiff", _mode("1"), "grayscale"),
    "CMYK": Form("print.jpg", _mode("CMYK"), "CMYK"),
    "16-bit grey": Form("scan.png", _png_16(1), "grayscale, 16 bits per channel"),
    "16-bit colour": Form("scan_rgb.png", _png_16(3), "16 bits per channel"),
    "alpha": Form("alpha.png", _saved(_transparent), "alpha"),
    "palette": Form("palette.png", _mode("P"), "palette"),
    "GIF": Form("still.gif", _mode("P"), "palette"),
    "transparent palette": Form("logo.png", _mode("P", transparency=3), "palette, alpha"),
    "turned": Form("turned.jpg", _turned(6), "EXIF-rotated"),
    "turned TIFF": Form("turned.tif", _turned(8), "EXIF-rotated"),
    "upright by EXIF": Form("upright.jpg", _turned(1), ""),
    "wrong EXIF": Form("wrong.webp", _saved(exif=b"Exif\0\0garbage"), ""),
}
"""Files that can be trained on."""

BAD = {
    "no bytes": Form("nothing.jpg", _content(b""), "0 bytes"),
    "text": Form("page.jpg", _content(b"<!DOCTYPE html><p>404"), "Not an image"),
    "cut off JPEG": Form("half.jpg", _cut(_saved(), 0.5), "Truncated"),
    "cut off PNG": Form("half.png", _cut(_saved(), 0.9), "Truncated"),
    "cut off GIF": Form("half.gif", _cut(_mode("P"), 0.6), "Truncated"),
    "cut off header": Form("start.png", _cut(_saved(), 0.004), "Truncated"),
    "animated GIF": Form("dance.gif", _frames(), "GIF of 3 frames"),
    "animated PNG": Form("dance.png", _frames(), "PNG of 3 frames"),
    "animated WebP": Form("dance.webp", _frames(), "WEBP of 3 frames"),
    "pages": Form("pages.tif", _frames(), "TIFF of 3 frames or pages"),
    "bomb": Form("bomb.png", _bomb, "too large"),
    "floats": Form("depth.tif", _floats, "8-bit form"),
    "link to nothing": Form(
        "gone.jpg", lambda image, path: path.symlink_to("nowhere.jpg"), "Missing"
    ),
    "link to itself": Form("loop.jpg", lambda image, path: path.symlink_to(path), "be opened"),
    "pipe": Form("pipe.jpg", lambda image, path: os.mkfifo(path), "not a regular file"),
}
"""Files that cannot be trained on."""
