"""Measure what an image costs each released ImageNet classifier, at the size it was evaluated at.

    python benchmarks/speed.py [--rounds 3] [--cheapest 4]

One image at a time on one thread, in float32, by `bitzoo.optimize`. Counted is the processor time
of the process: on one thread it is what the image takes on a quiet machine, and another program
that takes its turns on the processor does not count. The catalogue page draws the table.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measure import aligned_table, in_subprocess, machine

import bitzoo
from bitzoo.cli.quickstart import write_random_checkpoint
from bitzoo.models.architecture import ARCHITECTURES

TITLE = "One image on one core, at each checkpoint's own size, float32, cpu"
NUM_CLASSES = 1000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="timed images per network and size")
    parser.add_argument("--cheapest", type=int, help="only that many networks and sizes")
    options = parser.parse_args()
    rounds = options.rounds
    print(machine())
    rows: list[tuple[str, ...]] = [("", "median s", "min", "max", "images/min")]
    for (arch, side), names in list(kinds().items())[: options.cheapest]:
        print(f"  {arch}, {side} px: {', '.join(names)}", file=sys.stderr)
        seconds = in_subprocess(measure, arch, side, rounds)
        median = statistics.median(seconds)
        figures = [f"{value:.3g}" for value in (median, min(seconds), max(seconds), 60 / median)]
        rows.append((f"{arch}, {side} px", *figures))
    print(aligned_table(TITLE, rows))


def kinds() -> dict[tuple[str, int], list[str]]:
    """Return (architecture, size) of each checkpoint whose own ImageNet accuracy is published."""
    found: dict[tuple[str, int], list[str]] = {}
    for spec in map(bitzoo.get_spec, bitzoo.list_models(released=True)):
        sizes = {
            figure.resolution
            for figure in spec.metrics
            if figure.dataset == "ILSVRC-2012" and figure.note.startswith("these weights")
        }
        for side in sizes:
            found.setdefault((spec.arch_name, side), []).append(spec.name)
    return dict(sorted(found.items(), key=lambda item: item[0][1] ** 2 * cost(item[0][0])))


def cost(arch: str) -> int:
    """Return the parameters without a head, with which the arithmetic of an image grows."""
    return ARCHITECTURES[arch].num_params(0)


def measure(arch: str, side: int, rounds: int) -> list[float]:
    """Return the processor seconds of single images; a first one warms up, uncounted."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        path = Path(folder, "random.npz")
        write_random_checkpoint(path, ARCHITECTURES[arch], NUM_CLASSES)
        run = bitzoo.optimize(copy.deepcopy(bitzoo.create_model(path)))
    image = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0)) * 2 - 1
    seconds = []
    for _ in range(rounds + 1):
        began = time.process_time()
        run(image)
        seconds.append(time.process_time() - began)
    return seconds[1:]


if __name__ == "__main__":
    main()
