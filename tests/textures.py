"""Synthetic photographs: textured images in colour, each seed another one, and copies of them.

    image = texture(seed=3)                    # 160 x 120, RGB
    COPIES["half the size"](image)             # what a near-duplicate looks like
    write_bursts(tmp_path, persons=6)          # root/cat/p03_2.jpg: frames of one scene per person

Nothing is imported from bitzoo.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance


def texture(seed, width=160, height=120) -> Image.Image:
    """Noise of many scales, strongest at the coarsest, as in photographs."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48):
        noise = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=np.float64) / cells
    total -= total.min()
    return Image.fromarray((total * (255 / total.max())).astype(np.uint8))


def _scaled(factor):
    return lambda image: image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


def _jpeg(quality):
    def recompress(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return recompress


def _trimmed(share):
    def trim(image):
        left, top = round(image.width * share), round(image.height * share)
        return image.crop((left, top, image.width - left, image.height - top))

    return trim


COPIES = {
    "half the size": _scaled(0.5),
    "double the size": _scaled(2),
    "stretched": lambda image: image.resize((image.width * 4 // 3, image.height)),
    "JPEG of quality 30": _jpeg(30),
    "trimmed by 2 %": _trimmed(0.02),
    "brighter by 20 %": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker by 20 %": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "all of it": lambda image: _jpeg(60)(ImageEnhance.Brightness(_scaled(0.6)(image)).enhance(0.9)),
}
"""What makes a near-duplicate."""


def shaken(image, seed) -> Image.Image:
    """The next frame of a burst: moved by a pixel, with other noise and light."""
    random = np.random.default_rng(seed)
    left, top = (int(random.integers(0, 2)) for _ in range(2))
    moved = image.crop((left, top, image.width - 1 + left, image.height - 1 + top))
    noisy = np.asarray(moved, dtype=np.float64) * random.uniform(0.9, 1.05)
    noisy = noisy + random.normal(0, 4, noisy.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_bursts(root, persons=6, frames=5, classes=("cat", "dog")) -> Path:
    """Write bursts: `root/cat/p03_2.jpg` is frame 2 of the only scene of person 3 of class cat."""
    for label, name in enumerate(classes):
        folder = Path(root, name)
        folder.mkdir(parents=True, exist_ok=True)
        for person in range(persons):
            scene = texture(1000 * label + person)
            for frame in range(frames):
                seed = (label * persons + person) * frames + frame
                shaken(scene, seed).save(folder / f"p{person:02}_{frame}.jpg", quality=90)
    return Path(root)
