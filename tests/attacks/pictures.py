"""Images of every format that Pillow writes, under attack.

Fine-tuning and prediction must agree with each other, and with what Pillow itself decodes.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from attacks.checkpoints_under_attack import Attacked, Base
from attacks.engine import READ
from attacks.judges import Judge
from attacks.mutations import damage, odd_number
from images import photo
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bitzoo.data.dataset import Example
from bitzoo.data.decode_workers import Decoder
from bitzoo.data.image_check import check_image
from bitzoo.errors import UsageError
from bitzoo.models.preprocessing import EvalTransform

SIZE = 16
PROGRAMS = {"EPS"}
"""Formats for which Pillow starts another program; nothing may decode them."""
_PLAIN = ("RGB", "L", "P", "CMYK", "1", "YCbCr")


@dataclass
class PicturesTarget:
    """All formats."""

    name: str = "pictures"
    judge: str = ""
    bases: dict[str, bytes] = field(default_factory=dict)

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        Image.init()
        for form in sorted(Image.SAVE):
            for mode in ("RGB", "L", "1"):
                out = io.BytesIO()
                try:
                    photo(1, 40, 30).convert(mode).save(out, form)
                except Exception:  # many formats have modes of their own
                    continue
                if out.getvalue() and form in Image.OPEN:
                    self.bases[f"{form} {mode}"] = out.getvalue()
                    break
        for name, options in _VARIANTS.items():
            out = io.BytesIO()
            mode, form = options.pop("mode", "RGB"), name.split()[0]
            photo(2, 41, 29).convert(mode).save(out, form, **options)
            self.bases[name] = out.getvalue()
            options["mode"] = mode

    def attack(self, rng: random.Random, place: Path) -> Attacked:
        base = rng.choice(list(self.bases))
        data = self.bases[base]
        other = self.bases[rng.choice(list(self.bases))]
        if base.startswith("PNG") and rng.random() < 0.6:
            data, label = _changed_png(data, rng)
        elif base.startswith("TIFF") and rng.random() < 0.5:
            data, label = _changed_tiff(data, rng)
        else:
            hot = [(0, min(64, len(data))), (0, min(400, len(data)))]
            data, label = damage(data, rng, hot, other)
        suffix = rng.choice((".jpg", ".png", f".{base.split()[0].lower()}"))
        path = place / "input-folder" / f"photo{suffix}"
        path.parent.mkdir()
        path.write_bytes(data)
        return Attacked(path, f"{base}: {label}", Base(base, {}), place)

    def read(self, case: Attacked) -> Any:
        """What fine-tuning decodes; raises what it says of files that it refuses."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checked = check_image(Example(0, case.path))
            predicted = _predicted(case.path)
            if checked.reason is not None:
                if isinstance(predicted, str) or checked.reason.name == "ANIMATED":
                    raise UsageError(f"{case.path}: {checked.reason.title} ({checked.detail})")
                return checked, predicted
            decoder = Decoder(SIZE, 1, use_processes=False)
            try:
                return decoder.decode(Example(0, case.path)), predicted
            finally:
                decoder.close()

    def differs(self, case: Attacked, ours: Any, judge: Judge | None) -> tuple[str, str]:
        trained, predicted = ours
        if not isinstance(trained, np.ndarray):
            return "different", f"fit for prediction, not for training: {trained}"
        if isinstance(predicted, str):
            return "different", f"fit for training, not for prediction: {predicted}"
        if not np.array_equal(trained, predicted):
            return "different", "other pixels in training than in prediction"
        try:
            theirs = _plainly(case.path)
        except Exception as error:
            return "unread", f"{type(error).__name__}: {str(error)[:200]}"
        if theirs is not None and not np.array_equal(theirs, predicted):
            return "different", "other pixels than Pillow"
        return READ, ""


def _predicted(path: Path) -> NDArray[np.uint8] | str:
    """The pixels that prediction gives to the network, or what it says instead."""
    from bitzoo.inference import predict

    return predict._load(path, EvalTransform(crop=SIZE, resize=SIZE))


def _plainly(path: Path) -> NDArray[np.uint8] | None:
    """Pillow's pixels, where its conversion to 8-bit RGB is the only one that there is."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=sorted(set(Image.OPEN) - PROGRAMS)) as image:
            image.load()
            mode = image.mode
            upright = ImageOps.exif_transpose(image) if _has_exif(image) else image
            if mode not in _PLAIN or "transparency" in image.info:
                return None
            rgb = upright.convert("RGB")
            return np.asarray(rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _has_exif(image: Image.Image) -> bool:
    try:
        return image.getexif().get(0x0112) in range(2, 9)
    except (SyntaxError, ValueError, struct.error):
        return False


_VARIANTS: dict[str, dict[str, Any]] = {
    "JPEG progressive": {"progressive": True},
    "JPEG CMYK": {"mode": "CMYK"},
    "PNG palette": {"mode": "P"},
    "PNG alpha": {"mode": "RGBA"},
    "PNG grey 16": {"mode": "I;16"},
    "PNG bits": {"mode": "1"},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "TIFF fax": {"mode": "1", "compression": "group4"},
    "TIFF jpeg": {"compression": "jpeg"},
    "TIFF CMYK": {"mode": "CMYK"},
    "TIFF float": {"mode": "F"},
    "WEBP lossless": {"lossless": True},
    "GIF interlaced": {"mode": "P"},
}


def _changed_png(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change chunks under right checksums."""
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    which = rng.choice((0, 0, rng.randrange(len(chunks))))
    kind, content = chunks[which]
    what = rng.choice(("sizes", "content", "twice", "gone", "name", "text"))
    if what == "sizes" and kind == b"IHDR":
        field_, code = rng.choice(
            ((0, ">I"), (4, ">I"), (8, ">B"), (9, ">B"), (10, ">B"), (12, ">B"))
        )
        near = struct.unpack_from(code, content, field_)[0]
        most = 1 << 8 * struct.calcsize(code)
        changed = bytearray(content)
        struct.pack_into(
            code,
            changed,
            field_,
            rng.choice((odd_number(rng, near) % most, 13_000 % most, 9_400 % most, 30_000 % most)),
        )
        chunks[which] = (kind, bytes(changed))
    elif what == "twice":
        chunks.insert(rng.randrange(len(chunks)), chunks[which])
    elif what == "gone" and which:
        del chunks[which]
    elif what == "name":
        chunks[which] = (
            rng.choice((b"tEXt", b"zTXt", b"iCCP", b"acTL", b"fdAT", b"PLTE", b"tRNS", b"eXIf")),
            content,
        )
    elif what == "text":
        bomb = b"a\0\0" + zlib.compress(bytes(rng.choice((1 << 10, 1 << 24))))
        chunks.insert(1, (rng.choice((b"zTXt", b"iCCP")), bomb))
    else:
        chunks[which] = (kind, damage(content, rng)[0])
    body = b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    return data[:8] + body, f"chunk {what} {kind.decode()}"


def _changed_tiff(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change an entry of the directory."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(order + "I", data[4:8])
    (count,) = struct.unpack(order + "H", data[start : start + 2])
    at = start + 2 + 12 * rng.randrange(count)
    changed = bytearray(data)
    offset, code = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "I")))
    near = struct.unpack_from(order + code, data, at + offset)[0]
    most = 1 << 8 * struct.calcsize(code)
    struct.pack_into(order + code, changed, at + offset, odd_number(rng, near) % most)
    (tag,) = struct.unpack_from(order + "H", data, at)
    return bytes(changed), f"tag {tag} {offset}"


PICTURES = PicturesTarget()
