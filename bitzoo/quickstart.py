"""The whole way once, on this machine, without a network: `bitzoo quickstart`.

No released weights are at hand here, so it makes a small checkpoint in Google's exact layout from
random numbers, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bitzoo.arch import Architecture, Role
from bitzoo.console import print_report, print_table, progress_bar, say
from bitzoo.converters.layouts import stored_shape
from bitzoo.converters.names import LAYOUTS, name_of
from bitzoo.converters.npz import write_npz
from bitzoo.converters.parity import REPORT_NAME, convert_and_prove, save_report
from bitzoo.converters.tensors import Array
from bitzoo.errors import MissingExtraError
from bitzoo.preprocess import read_rgb
from bitzoo.zoo import create_model, create_transform

ARCHITECTURE = Architecture((1, 1, 1, 1), 0.5)
NUM_CLASSES = 1000


def run(folder: Path) -> None:
    """Make, convert, prove, load, classify; print each step and where its files are.

    Args:
        folder: Where the files go; made if missing, older files of a quickstart replaced.

    Raises:
        MissingExtraError: If scikit-learn, whose picture is classified, is not installed.
    """
    started = time.monotonic()
    pixels = _sample_picture()
    folder.mkdir(parents=True, exist_ok=True)
    source, output = folder / "random.npz", folder / "random.safetensors"

    write_random_checkpoint(source, ARCHITECTURE, NUM_CLASSES)
    say(f"1. Made {source}: {ARCHITECTURE.name}, {NUM_CLASSES} classes, in Google's layout.")
    say("   Its numbers are RANDOM: it stands in for a file that you would download.\n")

    with progress_bar() as progress:
        _, report = convert_and_prove(source, output, force=True, progress=progress)
    assert report is not None
    save_report(report, folder / REPORT_NAME)
    say(f"2. Converted it to {output} and proved it ({folder / REPORT_NAME}):\n")
    print_report(report)

    model = create_model(output, pretrained=True)
    transform = create_transform("BiT-M-R50x1")
    scores = model(transform(read_rgb(pixels))[None])[0].softmax(0)
    values, indices = scores.topk(3)
    say("\n3. Loaded it and classified china.jpg, a photograph that scikit-learn ships:\n")
    rows = [
        (index, f"{value:.2%}")
        for value, index in zip(values.tolist(), indices.tolist(), strict=True)
    ]
    print_table(("class", "score"), rows)
    say("\n   Random weights know nothing; with Google's they would. Try:")
    say('   bitzoo.create_model("BiT-M-R50x1", pretrained=True)')
    say(f"\nDone in {time.monotonic() - started:.1f} s. The files are in {folder.resolve()}.")


def write_random_checkpoint(
    path: Path, architecture: Architecture, num_classes: int, *, seed: int = 0
) -> None:
    """Write an `.npz` with the released names and layouts and He-scaled random kernels.

    Args:
        path: File to write.
        architecture: Network to write numbers for.
        num_classes: Outputs of the head.
        seed: Of the numbers.
    """
    write_npz(path, _random_tensors(architecture, num_classes, np.random.default_rng(seed)))


def _random_tensors(
    architecture: Architecture, num_classes: int, random: np.random.Generator
) -> Iterator[tuple[str, Array]]:
    for slot, shape in architecture.shapes(num_classes).items():
        stored = stored_shape(shape, LAYOUTS["npz"])
        values = random.standard_normal(stored, dtype=np.float32)
        if slot.role.is_kernel:
            values *= np.float32(np.sqrt(2 / np.prod(stored[:-1])))
        else:
            values *= np.float32(0.1)
            values += slot.role in (Role.NORM_SCALE, Role.FINAL_NORM_SCALE)
        yield name_of(slot, "npz"), values


def _sample_picture() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise MissingExtraError(
            "quickstart classifies a photograph that scikit-learn ships, and scikit-learn is not "
            "installed. Install it: pip install 'bitzoo[quickstart]'."
        ) from error
    picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = load_sample_image("china.jpg")
    return picture
