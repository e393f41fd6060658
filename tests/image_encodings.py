"""The same small drawings in every encoding in which they could come dark, flat or empty.

    for encoding in ENCODINGS: encoding.save(grey, folder / "a")  # adds the suffix

`grey` is uint8 (height, width), white on black. `outcome` is "same", or a part of the reason for
which the whole data set is refused. Nothing is imported from bitzoo.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import png
from PIL import Image

SAME = "same"
LOW_BITS = "keeps only the high byte"
NO_WHITE = "have no defined white"
NO_FORMAT = "Not an image of a format that is read"
DARK = "No image is bright"
FLAT = "No image has contrast"
APART = "which Pillow reads only if compressed"


@dataclass(frozen=True)
class Encoding:
    """A way to save drawings.

    Attributes:
        name: As in docs/reference/images.md.
        suffix: Of its files.
        encode: Returns a file's bytes for drawings, uint8 (height, width).
        outcome: See above.
    """

    name: str
    suffix: str
    encode: Callable[[np.ndarray], bytes]
    outcome: str = SAME

    def save(self, grey: np.ndarray, stem: Path) -> Path:
        """Write one drawing, and return its path."""
        path = stem.with_suffix(self.suffix)
        path.write_bytes(self.encode(grey))
        return path


def _pillow(
    convert: Callable[[np.ndarray], Image.Image], form: str, **options: Any
) -> Callable[[np.ndarray], bytes]:
    def encode(grey: np.ndarray) -> bytes:
        file = io.BytesIO()
        convert(grey).save(file, form, **options)
        return file.getvalue()

    return encode


def _image(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(grey)


def _mode(mode: str) -> Callable[[np.ndarray], Image.Image]:
    return lambda grey: Image.fromarray(grey).convert(mode)


def _two_levels(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(grey > 127)


def scaled(grey: np.ndarray, bits: int) -> np.ndarray:
    """The drawing in values of that many bits, uint16: 255 becomes the largest."""
    return np.round(grey * (((1 << bits) - 1) / 255)).astype(np.uint16)


def _wide(bits: int) -> Callable[[np.ndarray], Image.Image]:
    return lambda grey: Image.fromarray(scaled(grey, bits))


def _int32(bits: int) -> Callable[[np.ndarray], Image.Image]:
    return lambda grey: Image.fromarray(scaled(grey, bits).astype(np.int32))


def _float(largest: float) -> Callable[[np.ndarray], Image.Image]:
    return lambda grey: Image.fromarray((grey / 255 * largest).astype(np.float32))


def _deep_png(bits: int, colour_type: int) -> Callable[[np.ndarray], bytes]:
    channels = {2: 3, 6: 4, 4: 2}[colour_type]

    def encode(grey: np.ndarray) -> bytes:
        samples = np.repeat(scaled(grey, bits)[..., None], channels, axis=2)
        if colour_type != 2:
            samples[..., -1] = (1 << bits) - 1
        return png(samples, colour_type)

    return encode


def _significant(grey: np.ndarray) -> bytes:
    """12 significant bits in 16, as the PNG standard has them: in the high bits."""
    content = png(scaled(grey, 12) << 4)
    chunk = b"sBIT" + bytes([12])
    made = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content[:33] + made + content[33:]  # after IHDR


def _drawn_in_alpha(colour: tuple[int, ...], mode: str) -> Callable[[np.ndarray], Image.Image]:
    def convert(grey: np.ndarray) -> Image.Image:
        image = Image.new(mode[:-1], grey.shape[::-1], colour if len(colour) > 1 else colour[0])
        image.putalpha(Image.fromarray(grey))
        return image

    return convert


def _hidden(grey: np.ndarray) -> Image.Image:
    image = Image.fromarray(grey).convert("RGB")
    image.putalpha(0)
    return image


def _empty(grey: np.ndarray) -> Image.Image:
    return Image.new("RGBA", grey.shape[::-1], (0, 0, 0, 0))


def _palette_alpha(grey: np.ndarray) -> bytes:
    """A palette of 256 blacks, of growing opacity."""
    image = Image.fromarray(grey).convert("P")
    image.putdata(list(map(int, grey.ravel())))
    image.putpalette(bytes(768))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(256)))
    return file.getvalue()


def tiff(data: bytes, width: int, height: int, bits: int, sign: int = 1, white: int = 1) -> bytes:
    """An uncompressed grey TIFF.

    Args:
        data: Its pixels.
        width: In pixels.
        height: In pixels.
        bits: Bits per sample.
        sign: SampleFormat: 1 unsigned, 2 signed.
        white: PhotometricInterpretation: 0 if 0 is white, 1 if 0 is black.
    """
    data += b"\0" * (len(data) % 2)
    entries = [
        *((256, width), (257, height), (258, bits), (259, 1), (262, white), (273, 8)),
        *((277, 1), (278, height), (279, len(data)), (339, sign)),
    ]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + (
        struct.pack("<H", len(entries)) + table + bytes(4)
    )  # fmt: skip


def colour_tiff(
    samples: np.ndarray, signed: bool = False, apart: bool = False, deflated: bool = False
) -> bytes:
    """A TIFF of samples (height, width, 3), stored together or, `apart`, channel by channel."""
    height, width, channels = samples.shape
    planes = [samples[..., k] for k in range(channels)] if apart else [samples]
    parts = [plane.tobytes() for plane in planes]
    parts = [zlib.compress(part) for part in parts] if deflated else parts
    body, at = b"", []
    for part in parts:
        at.append(8 + len(body))
        body += part + b"\0" * (len(part) % 2)

    def entry(tag: int, *values: int) -> bytes:
        nonlocal body
        data = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            body, data = body + data, struct.pack("<I", 8 + len(body))
        return struct.pack("<HHI", tag, 4, len(values)) + data

    entries = [
        *(entry(256, width), entry(257, height), entry(258, *[samples.itemsize * 8] * channels)),
        *(entry(259, 8 if deflated else 1), entry(262, 2), entry(273, *at), entry(277, channels)),
        *(entry(278, height), entry(279, *map(len, parts)), entry(284, 2 if apart else 1)),
        entry(339, *[2 if signed else 1] * channels),
    ]
    table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + table


def _colour_tiff(bits: int, stored: str = "<u2", **options: bool) -> Callable[[np.ndarray], bytes]:
    def encode(grey: np.ndarray) -> bytes:
        samples = np.repeat(scaled(grey, bits)[..., None], 3, axis=2)
        return colour_tiff(samples.astype(stored), **options)

    return encode


def _signed_tiff(grey: np.ndarray) -> bytes:
    """From -128 to 127."""
    return tiff((grey ^ 128).tobytes(), grey.shape[1], grey.shape[0], 8, sign=2)


def thermal(grey: np.ndarray) -> bytes:
    """Temperatures as infrared cameras store them: hundredths of a kelvin, 17 to 37 °C."""
    values = (29000 + grey.astype(np.uint16) * 8).astype("<u2")
    return tiff(values.tobytes(), grey.shape[1], grey.shape[0], 16)


def _between(low: int, step: int) -> Callable[[np.ndarray], Image.Image]:
    return lambda grey: Image.fromarray((low + grey // step).astype(np.uint8))


def _deep_in_alpha(colour: int) -> Callable[[np.ndarray], bytes]:
    def encode(grey: np.ndarray) -> bytes:
        samples = np.full((*grey.shape, 4), colour, np.uint16)
        samples[..., -1] = scaled(grey, 16)
        return png(samples, colour_type=6)

    return encode


def _gif_alpha(grey: np.ndarray) -> bytes:
    """Two blacks, one of them transparent."""
    image = Image.fromarray((grey > 127).astype(np.uint8), "L").convert("P")
    image.putdata((grey > 127).astype(int).ravel().tolist())
    image.putpalette(bytes(768))
    file = io.BytesIO()
    image.save(file, "GIF", transparency=0)
    return file.getvalue()


def _heic(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(grey).convert("RGB")).save(
        file, quality=95
    )
    return file.getvalue()


def _raw_tiff(bits: int, stored: str, **options: int) -> Callable[[np.ndarray], bytes]:
    def encode(grey: np.ndarray) -> bytes:
        values = scaled(255 - grey if options.get("white") == 0 else grey, bits)
        size = np.dtype(stored).itemsize * 8
        height, width = grey.shape
        return tiff(values.astype(stored).tobytes(), width, height, size, **options)

    return encode


def _packed_12(grey: np.ndarray) -> bytes:
    pairs = scaled(grey, 12).reshape(-1, 2).astype(int).tolist()
    data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    return tiff(data, grey.shape[1], grey.shape[0], 12)


def _ycck(grey: np.ndarray) -> bytes:
    """A CMYK JPEG whose first three channels are stored as YCbCr (Adobe's transform 2)."""
    luma = Image.fromarray(grey)  # Pillow and libjpeg each invert it
    flat, none = Image.new("L", luma.size, 127), Image.new("L", luma.size, 0)
    stored = Image.merge("CMYK", (luma, flat, flat, none))
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=95)
    content = bytearray(file.getvalue())
    at = content.index(b"Adobe") + 11
    content[at] = 2
    return bytes(content)


def _netpbm(kind: str, largest: int, bits: int) -> Callable[[np.ndarray], bytes]:
    def encode(grey: np.ndarray) -> bytes:
        values = np.round(grey * (((1 << bits) - 1) / 255)).astype(">u2" if largest > 255 else "u1")
        if kind == "P6":
            values = np.repeat(values[..., None], 3, axis=2)
        return f"{kind} {grey.shape[1]} {grey.shape[0]} {largest}\n".encode() + values.tobytes()

    return encode


def _pfm(grey: np.ndarray) -> bytes:
    head = f"Pf\n{grey.shape[1]} {grey.shape[0]}\n-1.0\n".encode()
    return head + (grey[::-1] / 255).astype("<f4").tobytes()


def _blank_then_drawing(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    blank, image = Image.new("L", grey.shape[::-1]), Image.fromarray(grey)
    blank.save(file, "GIF", save_all=True, append_images=[image], duration=100, optimize=False)
    return file.getvalue()


def _bmp_alpha(grey: np.ndarray) -> bytes:
    return _pillow(_hidden, "BMP")(grey)


ENCODINGS = (
    Encoding("PNG, 8-bit grey", ".png", _pillow(_image, "PNG")),
    Encoding("PNG, 8-bit colour", ".png", _pillow(_mode("RGB"), "PNG")),
    Encoding("PNG, 1 bit", ".png", _pillow(_two_levels, "PNG")),
    Encoding("PNG, 4-bit grey palette", ".png", _pillow(lambda g: _image(g).quantize(16), "PNG")),
    Encoding("PNG, 16-bit grey", ".png", _pillow(_wide(16), "PNG")),
    Encoding("PNG, 16-bit grey with 14-bit values", ".png", _pillow(_wide(14), "PNG")),
    Encoding("PNG, 16-bit grey with 12-bit values", ".png", _pillow(_wide(12), "PNG")),
    Encoding("PNG, 16-bit grey with 10-bit values", ".png", _pillow(_wide(10), "PNG")),
    Encoding("PNG, 16-bit grey with 8-bit values", ".png", _pillow(_wide(8), "PNG")),
    Encoding("PNG, 16-bit grey with sBIT 12", ".png", _significant),
    Encoding("PNG, 16-bit colour", ".png", _deep_png(16, 2)),
    Encoding("PNG, 16-bit colour with 12-bit values", ".png", _deep_png(12, 2), LOW_BITS),
    Encoding("PNG, 16-bit colour with 8-bit values", ".png", _deep_png(8, 2), LOW_BITS),
    Encoding("PNG, 16-bit colour and alpha with 8-bit values", ".png", _deep_png(8, 6), LOW_BITS),
    Encoding("PNG, 16-bit grey and alpha with 8-bit values", ".png", _deep_png(8, 4), LOW_BITS),
    Encoding(
        "PNG, black drawn in alpha", ".png", _pillow(_drawn_in_alpha((0, 0, 0), "RGBA"), "PNG")
    ),
    Encoding(
        "PNG, white drawn in alpha",
        ".png",
        _pillow(_drawn_in_alpha((255, 255, 255), "RGBA"), "PNG"),
    ),
    Encoding("PNG, grey drawn in alpha", ".png", _pillow(_drawn_in_alpha((0,), "LA"), "PNG")),
    Encoding("PNG, palette drawn in alpha", ".png", _palette_alpha),
    Encoding("PNG, colours under full transparency", ".png", _pillow(_hidden, "PNG")),
    Encoding("PNG, 16-bit colour, black drawn in alpha", ".png", _deep_in_alpha(0)),
    Encoding("PNG, 16-bit colour, white drawn in alpha", ".png", _deep_in_alpha(65535)),
    Encoding("PNG, 16-bit grey and alpha", ".png", _deep_png(16, 4)),
    Encoding("PNG, transparent and black", ".png", _pillow(_empty, "PNG"), DARK),
    Encoding("PNG, black", ".png", _pillow(lambda g: _image(g // 255 * 0), "PNG"), DARK),
    Encoding(
        "PNG, 0 and 1 instead of 0 and 255",
        ".png",
        _pillow(lambda g: _image(g // 128), "PNG"),
        DARK,
    ),
    Encoding("PNG, 0 to 16", ".png", _pillow(lambda g: _image(g // 15), "PNG"), DARK),
    Encoding("PNG, 120 to 137", ".png", _pillow(_between(120, 15), "PNG"), FLAT),
    Encoding("PNG, 238 to 255", ".png", _pillow(_between(238, 15), "PNG"), FLAT),
    Encoding("TIFF, 16-bit grey", ".tif", _pillow(_wide(16), "TIFF")),
    Encoding("TIFF, 16-bit grey with 12-bit values", ".tif", _pillow(_wide(12), "TIFF")),
    Encoding(
        "TIFF, 16-bit grey with 8-bit values, LZW",
        ".tif",
        _pillow(_wide(8), "TIFF", compression="tiff_lzw"),
    ),
    Encoding("TIFF, 12-bit grey", ".tif", _packed_12),
    Encoding("TIFF, signed 16-bit with 12-bit values", ".tif", _raw_tiff(12, "<i2", sign=2)),
    Encoding("TIFF, 8-bit, 0 is white", ".tif", _raw_tiff(8, "u1", white=0)),
    Encoding("TIFF, 16-bit, 0 is white", ".tif", _raw_tiff(16, "<u2", white=0)),
    Encoding("TIFF, 16-bit with 12-bit values, 0 is white", ".tif", _raw_tiff(12, "<u2", white=0)),
    Encoding("TIFF, int32 with 8-bit values", ".tif", _pillow(_int32(8), "TIFF")),
    Encoding("TIFF, int32 with 16-bit values", ".tif", _pillow(_int32(16), "TIFF")),
    Encoding(
        "TIFF, int32 beyond 16 bits",
        ".tif",
        _pillow(lambda g: Image.fromarray(g.astype(np.int32) << 20), "TIFF"),
        NO_WHITE,
    ),
    Encoding(
        "TIFF, int32 below 0",
        ".tif",
        _pillow(lambda g: Image.fromarray(g.astype(np.int32) - 9), "TIFF"),
        NO_WHITE,
    ),
    Encoding("TIFF, float32 from 0 to 1", ".tif", _pillow(_float(1), "TIFF"), NO_WHITE),
    Encoding("TIFF, float32 from 0 to 255", ".tif", _pillow(_float(255), "TIFF"), NO_WHITE),
    Encoding("TIFF, 16-bit temperatures, 29,000 to 31,040", ".tif", thermal, FLAT),
    Encoding("TIFF, signed 8-bit", ".tif", _signed_tiff, NO_WHITE),
    Encoding("TIFF, 16-bit colour", ".tif", _colour_tiff(16)),
    Encoding("TIFF, 16-bit colour with 12-bit values", ".tif", _colour_tiff(12), LOW_BITS),
    Encoding("TIFF, 8-bit colour, channels apart", ".tif", _colour_tiff(8, "u1", apart=True)),
    Encoding("TIFF, 16-bit colour, channels apart", ".tif", _colour_tiff(16, apart=True), APART),
    Encoding(
        "TIFF, 16-bit colour, channels apart, deflated",
        ".tif",
        _colour_tiff(16, apart=True, deflated=True),
    ),
    Encoding("TIFF, CMYK", ".tif", _pillow(_mode("CMYK"), "TIFF")),
    Encoding("JPEG, grey", ".jpg", _pillow(_image, "JPEG", quality=95)),
    Encoding("JPEG, CMYK inverted by Adobe", ".jpg", _pillow(_mode("CMYK"), "JPEG", quality=95)),
    Encoding("JPEG, YCCK", ".jpg", _ycck),
    Encoding("JPEG 2000, 16-bit grey", ".jp2", _pillow(_wide(16), "JPEG2000")),
    Encoding("JPEG 2000, 16-bit grey with 12-bit values", ".jp2", _pillow(_wide(12), "JPEG2000")),
    Encoding("PGM, largest 255", ".pgm", _netpbm("P5", 255, 8)),
    Encoding("PGM, largest 1023", ".pgm", _netpbm("P5", 1023, 10)),
    Encoding("PGM, largest 65535 with 8-bit values", ".pgm", _netpbm("P5", 65535, 8)),
    Encoding("PPM, largest 1023", ".ppm", _netpbm("P6", 1023, 10)),
    Encoding("PPM, largest 65535 with 8-bit values", ".ppm", _netpbm("P6", 65535, 8), LOW_BITS),
    Encoding("PFM, float32", ".ppm", _pfm, NO_WHITE),
    Encoding("GIF", ".gif", _pillow(_image, "GIF")),
    Encoding("GIF, 1 bit, black drawn in transparency", ".gif", _gif_alpha),
    Encoding("GIF whose first frame is blank", ".gif", _blank_then_drawing, "GIF of 2 frames"),
    Encoding(
        "WebP, black drawn in alpha",
        ".webp",
        _pillow(_drawn_in_alpha((0, 0, 0), "RGBA"), "WEBP", quality=95),
    ),
    Encoding(
        "WebP, white drawn in alpha, black where transparent",
        ".webp",
        _pillow(_drawn_in_alpha((255, 255, 255), "RGBA"), "WEBP", lossless=True),
    ),
    Encoding("AVIF", ".avif", _pillow(_mode("RGB"), "AVIF", quality=95)),
    Encoding(
        "AVIF, black drawn in alpha",
        ".avif",
        _pillow(_drawn_in_alpha((0, 0, 0), "RGBA"), "AVIF", quality=95),
    ),
    Encoding("HEIC", ".heic", _heic),
    Encoding("BMP, 1 bit", ".bmp", _pillow(_two_levels, "BMP")),
    Encoding("BMP, 32 bits with alpha 0", ".bmp", _bmp_alpha),
    Encoding("TGA, 32 bits with alpha 0", ".png", _pillow(_hidden, "TGA")),
    Encoding("SGI, 16-bit grey", ".png", _pillow(_image, "SGI", bpc=2)),
    Encoding(
        "Radiance HDR",
        ".png",
        lambda g: b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n" + g.tobytes(),
        NO_FORMAT,
    ),
    Encoding("OpenEXR", ".png", lambda g: b"\x76\x2f\x31\x01" + g.tobytes(), NO_FORMAT),
)
"""Every encoding; the first is the one that the others are compared with."""
