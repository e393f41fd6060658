"""Compare what `bitzoo finetune` says it will take with what a stretch of it then takes.

    python benchmarks/estimate.py --stretch 300

A network with random weights in Google's layout, R50x1 unless another is named, is fine-tuned on
540 small photographs by the README's command, in a process of its own. That process tells when it
has stated its estimate, and then each micro-batch that is done. The stretch begins with the second
micro-batch, because the first has paid for what happens once. What an hour of the run takes is
extrapolated from it: images in the stretch / seconds of the stretch, against the estimate's seconds
of training / images to train on. Decoding, evaluations and checkpoints are not in the stretch and
not in the ratio. The run is ended after the stretch; nothing is left of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

CLASSES, PER_CLASS, EDGE = 10, 54, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stretch", type=float, default=300.0, help="Seconds that are measured.")
    parser.add_argument("--arch", default="R50x1")
    parser.add_argument("--data", type=Path, help="Photographs in class folders, made small.")
    parser.add_argument("--resolution", help="RESIZE,CROP; default: by the rule.")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(given.data, folder / "photos")
        write_model(given.arch, folder / "model.npz")
        found = measure(folder, given.stretch, sys.argv[1:])
    print(report(found, given.stretch))


def write_data(source: Path | None, out: Path) -> None:
    """Write 540 JPEGs of about 100 pixels, of the given photographs or of scikit-learn's."""
    if source is None:
        from photographs import write_photographs

        source = write_photographs(out.with_name("large"), CLASSES * PER_CLASS) / "train"
    for folder in sorted(path for path in source.iterdir() if path.is_dir())[:CLASSES]:
        (out / folder.name).mkdir(parents=True)
        for number, path in enumerate(sorted(folder.iterdir())[:PER_CLASS]):
            with Image.open(path) as image:
                image.draft("RGB", (2 * EDGE, 2 * EDGE))
                small = image.convert("RGB")
                small.thumbnail((EDGE, EDGE * 4 // 3))
                small.save(out / folder.name / f"{number:03}.jpg", quality=90)


def write_model(arch: str, path: Path) -> None:
    """Write a random checkpoint in Google's layout, with a head of 1,000 classes."""
    from bitzoo.cli.quickstart import write_random_checkpoint
    from bitzoo.models.architecture import Architecture

    write_random_checkpoint(path, Architecture.parse(arch), 1000)


def measure(folder: Path, stretch: float, words: list[str]) -> dict[str, Any]:
    """Run the command until the stretch is over; returns what it told, and when."""
    began = time.monotonic()
    environment = {**os.environ, "BITZOO_CACHE": str(folder / "cache")}
    command = [sys.executable, __file__, "--child", str(folder), *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = {"parts": []}
    try:
        for told in lines_of(process):
            now = time.monotonic() - began
            if "estimate" in told:
                found |= {"stated": now, **told}
            else:
                found["parts"].append((now, told["images"]))
                if now - found["parts"][min(1, len(found["parts"]) - 1)][0] >= stretch:
                    break
    finally:
        process.kill()
        process.wait()
    return found


def lines_of(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)
        else:
            print(line, end="")


def child(given: argparse.Namespace) -> None:
    """Fine-tune as the command does, and tell the time of what happens."""
    import bitzoo
    from bitzoo.runs.config import Callbacks

    size, batch = None, 0

    def tell(record: dict[str, Any]) -> None:
        print(json.dumps(record), flush=True)

    def confirm(forecast: Any) -> bool:
        tell({"estimate": forecast.to_dict(), "text": forecast.text})
        return True

    def on_start(recipe: Any) -> None:
        nonlocal batch
        batch = recipe.batch_size

    if given.resolution:
        resize, crop = map(int, given.resolution.split(","))
        size = (resize, crop)
    bitzoo.finetune(
        given.child / "model.npz",
        given.child / "photos",
        given.child / "run",
        resolution=size,
        batch_size=given.batch_size,
        micro_batch=given.micro_batch,
        progress=False,
        callbacks=Callbacks(
            confirm=confirm,
            on_start=on_start,
            on_part=lambda step, part: tell({"images": round((step + part) * batch)}),
        ),
    )


def report(found: dict[str, Any], stretch: float) -> str:
    """Return what was found, as text."""
    said = found["estimate"]
    parts = [part for part in found["parts"] if part[1] > 0]
    (first, done), (last, more) = parts[0], parts[-1]
    rate = (more - done) / (last - first)
    images = said["steps"] * said["batch_size"]
    promised = images / said["parts"]["training"]
    return "\n".join(
        [
            found["text"],
            "",
            f"processor: {processor()}, {len(os.sched_getaffinity(0))} cores, load "
            f"{os.getloadavg()[0]:.1f}",
            f"stated after {found['stated']:.1f} s (goal: 30 s)",
            f"estimate: {promised:.3f} images/s; an hour trains on {3600 * promised:,.0f} images",
            f"stretch of {last - first:.0f} s ({more - done} images): {rate:.3f} images/s; an hour "
            f"trains on {3600 * rate:,.0f} images",
            f"the run takes {rate and promised / rate:.3f} times what was estimated "
            "(goal: 0.75 to 1.25)",
        ]
    )


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


if __name__ == "__main__":
    main()
