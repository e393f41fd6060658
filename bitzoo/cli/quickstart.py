"""The whole way once, on this machine, without a network: `bitzoo quickstart`.

No released weights are at hand here, so it makes a small checkpoint in Google's exact layout from
random numbers, and says so. The pictures are real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bitzoo.cli.console import print_report, print_table, progress_bar, say
from bitzoo.converters.formats.npz import write_npz
from bitzoo.converters.key_mapping import LAYOUTS, name_of
from bitzoo.converters.layouts import stored_shape
from bitzoo.converters.parity.verify import REPORT_NAME, convert_and_prove, save_report
from bitzoo.converters.source import Array
from bitzoo.errors import MissingExtraError
from bitzoo.models.architecture import Architecture, Role
from bitzoo.models.preprocessing import read_rgb
from bitzoo.zoo.create import create_model
from bitzoo.zoo.info import create_transform

if TYPE_CHECKING:
    from bitzoo.runs.finetune import FinetuneResult

ARCHITECTURE = Architecture((1, 1, 1, 1), 0.5)
NUM_CLASSES = 1000
HELD_OUT = 0.2
"""Share of the digits to evaluate on."""

PLAN: dict[str, Any] = {
    "steps": 60,
    "batch_size": 32,
    "lr": 0.03,
    "resolution": (32, 32),
    "flip": False,
}
"""Departures from BiT-HyperRule: it is meant for networks that know something already, and a digit
in the mirror is another or none."""


def run(folder: Path) -> None:
    """Make, convert, prove, load, classify, fine-tune; print each step and where its files are.

    Args:
        folder: Where the files go; made if missing, older files of a quickstart replaced.

    Raises:
        MissingExtraError: If scikit-learn, whose pictures are used, is not installed.
    """
    started = time.monotonic()
    datasets = _sample_datasets()
    folder.mkdir(parents=True, exist_ok=True)
    source, output = folder / "random.npz", folder / "random.safetensors"
    _convert(source, output)
    _classify(output, datasets.load_sample_image("china.jpg"))
    result = _finetune(output, datasets.load_digits(), folder)
    assert result.evaluation is not None
    found = result.evaluation
    say(f"   Of {found.count} held-out digits {found.top1:.1%} are told right; chance is 10%.")
    say(f"   Curves, confusions and the worst mistakes: {result.folder / 'report.html'}")
    say(f"   More pictures: bitzoo predict {result.folder} {folder / 'digits' / 'val'}")
    say(f"\nDone in {time.monotonic() - started:.1f} s. The files are in {folder.resolve()}.")


def _convert(source: Path, output: Path) -> None:
    write_random_checkpoint(source, ARCHITECTURE, NUM_CLASSES)
    say(f"1. Made {source}: {ARCHITECTURE.name}, {NUM_CLASSES} classes, in Google's layout.")
    say("   Its numbers are RANDOM: it stands in for a file that you would download.\n")

    with progress_bar() as progress:
        _, report = convert_and_prove(source, output, force=True, progress=progress)
    assert report is not None
    save_report(report, output.with_name(REPORT_NAME))
    say(f"2. Converted it to {output} and proved it ({output.with_name(REPORT_NAME)}):\n")
    print_report(report)


def _classify(checkpoint: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    model = create_model(checkpoint, pretrained=True)
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


def _finetune(checkpoint: Path, digits: Any, folder: Path) -> FinetuneResult:
    """Train on scikit-learn's 1,797 handwritten digits of 8x8 pixels, as a folder of PNGs."""
    from bitzoo.runs.finetune import finetune

    data, out = folder / "digits", folder / "run"
    _write_digits(digits, data)
    say(f"\n4. Wrote {len(digits.target):,} handwritten digits to {data} and fine-tunes on them:")
    say(f"   {PLAN['steps']} steps of {PLAN['batch_size']} images, a few seconds ...")
    with progress_bar() as progress:
        return finetune(checkpoint, data, out, overwrite=True, progress=progress, **PLAN)


def _write_digits(digits: Any, root: Path) -> None:
    """`train/3/0017.png` and so on; the last ones are held out, in `val`."""
    first_held_out = round(len(digits.target) * (1 - HELD_OUT))
    for number, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = root / ("train" if number < first_held_out else "val") / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.minimum(values * 16, 255).astype(np.uint8)  # stored as 0 to 16
        Image.fromarray(pixels).save(place / f"{number:04}.png")


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


def _sample_datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError(
            "quickstart uses pictures that scikit-learn ships, and scikit-learn is not installed. "
            "Install it: pip install 'bitzoo[quickstart]'."
        ) from error
    return datasets
