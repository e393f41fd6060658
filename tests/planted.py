"""Images whose class is a faint fine pattern, and checkpoints whose features are made to show it.

An image is a coarse background, constant in fields of 2 x 2 pixels, plus or minus faint upright
stripes of one pixel, plus or minus faint level ones: four classes. A planted network has stem
filters that are those stripes and nothing else: at the stem's stride they see whole fields, so that
they answer to the stripes alone, whatever the background. Its branches are dead (their last kernels
are 0), and its projections pass the answers on, so its features are one of four vectors, one for
each class. What a network with random filters sees is the background, 25 times as strong.
"""

from pathlib import Path

import numpy as np
from checkpoints import make_checkpoint
from PIL import Image

SIDE = 32
CLASSES = ("plus-plus", "plus-minus", "minus-plus", "minus-minus")
_STRENGTH, _BACKGROUND = 4, 100
GROUPS = 32


def write_planted_images(root, per_class, seed=0) -> Path:
    """Write `root/CLASS/0007.png`, `per_class` of each."""
    random = np.random.default_rng(seed)
    line = np.tile([1, -1], SIDE // 2)
    upright = np.broadcast_to(line, (SIDE, SIDE))
    level = upright.T
    patterns = (upright + level, upright - level, level - upright, -upright - level)
    for name, pattern in zip(CLASSES, patterns, strict=True):
        folder = Path(root, name)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            coarse = random.integers(-_BACKGROUND, _BACKGROUND + 1, (SIDE // 2, SIDE // 2, 3))
            pixels = 128 + np.kron(coarse, np.ones((2, 2, 1))) + _STRENGTH * pattern[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:04}.png")
    return Path(root)


def make_planted_checkpoint(depths=(1, 1, 1, 1), width=1, num_classes=10, seed=0):
    """A random checkpoint, as `make_checkpoint`, with the signal planted in it."""
    arrays = make_checkpoint(depths, width, num_classes, seed=seed)
    stem = np.zeros_like(arrays["resnet/root_block/standardized_conv2d/kernel"])
    # the taps 3 and 4 of 7 are the field whose first pixel the output stands on
    stem[3:5, 3:5, :, 0] = np.array([[1, -1], [1, -1]])[..., None]
    stem[3:5, 3:5, :, 2] = np.array([[1, 1], [-1, -1]])[..., None]
    stem[..., 1], stem[..., 3] = -stem[..., 0], -stem[..., 2]
    arrays["resnet/root_block/standardized_conv2d/kernel"] = stem
    for name, array in arrays.items():
        if name.endswith("gamma"):
            array[:] = 1
        elif name.endswith("beta") or "/c/standardized" in name:
            array[:] = 0
        elif "/proj/" in name:
            array[:] = 0
            inputs, outputs = array.shape[2] // GROUPS, array.shape[3] // GROUPS
            for place in range(2 * outputs):  # in two groups, each half positive, half negative
                group, member = divmod(place, outputs)
                half = inputs // 2 if member >= outputs // 2 else 0
                array[0, 0, group * inputs + half, place] = 1
    return arrays
