"""Measure fine-tuning: memory stored per step, images/s of training, and images/s of data loading.

    python benchmarks/finetune.py [--parts memory,training,data] [--devices cpu,cuda] [--quick]

`backward_memory`, `training_rate` and `data_rate` describe how each is measured. If there is a GPU,
its tables follow the CPU's. Photographs and caches go to a temporary folder; the data part needs
5 GB there at its full size.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import backward_memory
import data_rate
import torch
import training_rate
from measure import machine, wait_as_commands_do
from photographs import write_photographs

from bitzoo.models.architecture import ARCHITECTURES

PARTS = ("memory", "training", "data")
SIZES = ((160, 128), (512, 480))
"""BiT-HyperRule's resize and crop, for small images and for others."""

QUICK = {"size": 64, "batch": 4, "rounds": 1, "images": 200, "steps": 4}


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated parts to run")
    parser.add_argument("--arch", default="R50x1", choices=list(ARCHITECTURES))
    parser.add_argument("--size", type=int, default=128, help="image edge of memory and training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps per turn of training")
    parser.add_argument("--images", type=int, default=5_000)
    there = "cpu,cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--devices", default=there, help="comma-separated; default all there are")
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    parser.add_argument("--quick", action="store_true", help="finish within a minute")
    options = parser.parse_args()
    for name, value in QUICK.items() if options.quick else ():
        setattr(options, name, value)
    wait_as_commands_do()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for device in options.devices.split(","):
            for table in tables(options, device, Path(folder)):
                print(table, flush=True)
    if "cuda" not in options.devices:
        print("GPU: not measured")


def tables(options: argparse.Namespace, device: str, folder: Path) -> Iterator[str]:
    """Measure the requested parts and yield their tables."""
    parts, size, batch = options.parts.split(","), options.size, options.batch
    if "memory" in parts:
        step = backward_memory.StepConfig(options.arch, size, batch, device)
        names = backward_memory.QUICK if options.quick else tuple(backward_memory.VARIANTS)
        yield backward_memory.report(step, options.rounds, names)
    photographs = folder / "photographs"
    if {"training", "data"} & set(parts) and not photographs.exists():
        write_photographs(photographs, options.images)
    if "training" in parts:
        resize = size * 5 // 4  # 160 for 128, as in BiT-HyperRule
        config = training_rate.TrainingConfig(
            photographs, folder / "cache", options.arch, resize, size, batch, options.steps, device
        )
        yield training_rate.report(config, options.rounds, only_two=options.quick)
    if "data" in parts:
        for resize, crop in SIZES[:1] if options.quick else SIZES:
            cache = folder / f"{device}-{resize}"
            yield data_rate.report(
                data_rate.DataConfig(photographs, cache, resize, crop, batch, device),
                options.rounds,
            )


if __name__ == "__main__":
    main()
