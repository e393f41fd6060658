"""Create a folder of distinct JPEGs from the two photographs that scikit-learn ships."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

CLASSES = 10
WIDTH, HEIGHT = 500, 400


def write_photographs(root: Path, count: int) -> Path:
    """Write `count` files `train/<class>/<number>.jpg`, and a `val` split of two per class."""
    sources = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda job: write_photograph(sources, *job), jobs(root, count)):
            pass
    return root


def jobs(root: Path, count: int) -> Iterator[tuple[Path, int]]:
    for number in range(count + 2 * CLASSES):
        folder = root / ("train" if number < count else "val") / str(number % CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder / f"{number:05}.jpg", number


def write_photograph(sources: list[Image.Image], path: Path, seed: int) -> None:
    """Write a random crop of one of the photographs, with random brightness, color and contrast."""
    random, source = np.random.default_rng(seed), sources[seed % 2]
    left = int(random.integers(0, source.width - WIDTH + 1))
    top = int(random.integers(0, source.height - HEIGHT + 1))
    image = source.crop((left, top, left + WIDTH, top + HEIGHT))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast):
        image = enhance(image).enhance(random.uniform(0.7, 1.3))
    image.save(path, quality=90)
