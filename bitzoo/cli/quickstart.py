"""`bitzoo quickstart`: the whole workflow once, on this machine, without the network.

Without the network there are no released weights, so it makes a small checkpoint of random numbers
in Google's exact layout, and says so. The images are real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitzoo.cli.command import Command
from bitzoo.cli.console import (
    print_json,
    print_report,
    print_table,
    progress_bar,
    prose_to_stderr,
    say,
)
from bitzoo.cli.options import PATH, debug_option, json_option
from bitzoo.errors import MissingExtraError

if TYPE_CHECKING:
    import numpy as np

    from bitzoo.converters.source import Array
    from bitzoo.models.architecture import Architecture
    from bitzoo.runs.finetune import FinetuneResult

DEPTHS, WIDTH = (1, 1, 1, 1), 0.5
NUM_CLASSES = 1000
HELD_OUT = 0.2
"""Fraction of the digits to evaluate on."""

PLAN: dict[str, Any] = {
    "steps": 60,
    "batch_size": 32,
    "lr": 0.03,
    "resolution": (32, 32),
    "flip": False,
}
"""Departures from BiT-HyperRule, which is meant for pre-trained networks; and a mirrored digit is
another digit or none."""


@click.command("quickstart", cls=Command)
@click.option(
    "--folder",
    type=PATH,
    default=Path("quickstart"),
    show_default=True,
    help="Folder for its files.",
)
@json_option
@debug_option
def quickstart(folder: Path, json: bool) -> None:
    """Convert a small random checkpoint with proof, classify an image, and fine-tune."""
    with prose_to_stderr(json):
        result = _show_everything(folder)
    if json:
        print_json(result.to_dict())


def _show_everything(folder: Path) -> FinetuneResult:
    started = time.monotonic()
    datasets = _sample_datasets()
    folder.mkdir(parents=True, exist_ok=True)
    source, output = folder / "random.npz", folder / "random.safetensors"
    _convert(source, output)
    _classify(output, datasets.load_sample_image("china.jpg"))
    result = _finetune(output, datasets.load_digits(), folder)
    assert result.evaluation is not None
    found = result.evaluation
    say(
        f"   {found.top1:.1%} of {found.count} held-out digits classified correctly; chance is 10%."
    )
    say(f"   Curves, confusions and the worst mistakes: {result.folder / 'report.html'}")
    say(f"   More images: bitzoo predict {result.folder} {folder / 'digits' / 'val'}")
    say(f"\nDone in {time.monotonic() - started:.1f} s. The files are in {folder.resolve()}.")
    return result


def _convert(source: Path, output: Path) -> None:
    from bitzoo.models.architecture import Architecture
    from bitzoo.zoo.conversion import convert

    architecture = Architecture(DEPTHS, WIDTH)
    write_random_checkpoint(source, architecture, NUM_CLASSES)
    say(f"1. Made {source}: {architecture.name}, {NUM_CLASSES} classes, in Google's layout.")
    say("   Its numbers are RANDOM: it stands in for a file that you would download.\n")

    with progress_bar() as progress:
        result = convert(source, output, force=True, progress=progress)
    assert result.parity is not None
    say(f"2. Converted it to {output} and proved it ({result.report}):\n")
    print_report(result.parity)


def _classify(checkpoint: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    from bitzoo.models.preprocessing import read_rgb
    from bitzoo.zoo.create import create_model
    from bitzoo.zoo.info import create_transform

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
    say("\n   Random weights predict nothing useful. For Google's weights, try:")
    say('   bitzoo.create_model("BiT-M-R50x1", pretrained=True)')


def _finetune(checkpoint: Path, digits: Any, folder: Path) -> FinetuneResult:
    """Train on scikit-learn's 1,797 handwritten digits of 8x8 pixels, as a folder of PNGs."""
    from bitzoo.runs.finetune import finetune

    data, out = folder / "digits", folder / "run"
    _write_digits(digits, data)
    say(f"\n4. Wrote {len(digits.target):,} handwritten digits to {data}; fine-tuning on them:")
    say(f"   {PLAN['steps']} steps of {PLAN['batch_size']} images, a few seconds ...")
    with progress_bar() as progress:
        return finetune(checkpoint, data, out, overwrite=True, progress=progress, **PLAN)


def _write_digits(digits: Any, root: Path) -> None:
    """Write `train/3/0017.png` and so on; the last ones are held out, in `val`."""
    import numpy as np
    from PIL import Image

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
        seed: Seed of the numbers.
    """
    import numpy as np

    from bitzoo.converters.formats.npz import write_npz

    write_npz(path, _random_tensors(architecture, num_classes, np.random.default_rng(seed)))


def _random_tensors(
    architecture: Architecture, num_classes: int, random: np.random.Generator
) -> Iterator[tuple[str, Array]]:
    import numpy as np

    from bitzoo.converters.key_mapping import LAYOUTS, name_of
    from bitzoo.converters.layouts import stored_shape
    from bitzoo.models.architecture import Role

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
            "quickstart needs images that come with scikit-learn, which is not installed. Install "
            "it: pip install 'bitzoo[quickstart]'."
        ) from error
    return datasets
