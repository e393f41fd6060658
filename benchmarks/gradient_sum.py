"""Measure steps of two processes: gradients summed during the backward pass, or after it.

    python benchmarks/gradient_sum.py [--arch R50x1] [--size 96] [--rounds 12] [--quick]

Two processes of one thread each train with random weights and images, on the CPU and over gloo. The
contestants alternate from step to step of one run, so both meet the same machine, the same memory
and, bit for bit, the same gradients. One micro-batch and several are separate runs, because with
several the kernels' gradients appear only at the end of a step. CPU seconds are those of all
threads of the first process; waiting is the time in which nothing but the exchange is left to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import time
from collections.abc import Sequence
from queue import Empty
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import aligned_table, machine

from bitzoo.data.image_store import Pixels
from bitzoo.models.architecture import ARCHITECTURES
from bitzoo.models.bit import BiT
from bitzoo.training import trainer
from bitzoo.training.distributed import GradientSum
from bitzoo.training.recipe import Recipe
from bitzoo.training.schedule import Schedule
from bitzoo.training.training_config import TrainingConfig

PROCESSES, CLASSES, IMAGES = 2, 100, 64
CONTESTANTS = ("during backward", "after it")


class _Noise(Pixels):
    """Random images in memory."""

    def __init__(self, size: int) -> None:
        shape = (IMAGES, size, size, 3)
        self.size = size
        self._images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def __len__(self) -> int:
        return IMAGES

    def rows(self, indices: npt.ArrayLike) -> list[npt.NDArray[np.uint8]]:
        return [self._images[index] for index in np.ravel(indices)]

    def close(self) -> None:
        pass


class _Alternating(GradientSum):
    """Sums gradients as the current contestant does, and measures how long `finish` takes."""

    contestant = 0
    waited = 0.0

    def follow(self) -> None:
        if not _Alternating.contestant:
            super().follow()

    def finish(self) -> None:
        began = time.perf_counter()
        super().finish()
        _Alternating.waited = time.perf_counter() - began


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="R50x1", choices=list(ARCHITECTURES))
    parser.add_argument("--size", type=int, default=96, help="image edge")
    parser.add_argument("--images", type=int, default=8, help="images of a process and step")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each contestant")
    parser.add_argument("--quick", action="store_true", help="finish within a minute")
    options = parser.parse_args()
    if options.quick:
        options.size, options.images, options.rounds = 64, 4, 2
    print(machine(), flush=True)
    for parts in (1, 4):
        micro_batch = options.images // parts
        rows = measure(options.arch, options.size, options.images, micro_batch, options.rounds)
        title = (
            f"Two processes: {options.arch}, {options.size} pixels, {options.images} images each, "
            f"in micro-batches of {micro_batch}"
        )
        print(aligned_table(title, rows), flush=True)


def measure(
    arch: str, size: int, images: int, micro_batch: int, rounds: int
) -> Sequence[Sequence[str]]:
    """Return the rows of a table, the first of which is its head."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (port, queue, arch, size, images, micro_batch, rounds)
    processes = torch.multiprocessing.spawn(_work, arguments, nprocs=PROCESSES, join=False)
    samples: list[list[tuple[float, ...]]] = []
    while not samples:
        with contextlib.suppress(Empty):
            samples = queue.get(timeout=1)
        processes.join(timeout=0)  # raises what one of them raised
    head = ("", "median s", "min", "CPU s", "waiting s", "waiting, min")
    table: list[Sequence[str]] = [head]
    for name, own in zip(CONTESTANTS, samples, strict=True):
        wall, cpu, waited = zip(*own, strict=True)
        figures = (
            *(statistics.median(wall), min(wall), statistics.median(cpu)),
            *(statistics.median(waited), min(waited)),
        )
        table.append((name, *(f"{figure:.3f}" for figure in figures)))
    return table


def _work(
    rank: int,
    port: int,
    queue: Any,
    arch: str,
    size: int,
    images: int,
    micro_batch: int,
    rounds: int,
) -> None:
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(PROCESSES),
            "LOCAL_WORLD_SIZE": str(PROCESSES),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "1",
        }
    )
    torch.set_num_threads(1)
    trainer.GradientSum = _Alternating  # type: ignore[attr-defined]
    steps = 1 + rounds * len(CONTESTANTS)
    recipe = Recipe("noise", size, size, images * PROCESSES, Schedule(0.003, steps))
    model = BiT(ARCHITECTURES[arch], CLASSES)
    model.init_weights(torch.Generator().manual_seed(0))
    samples: list[list[tuple[float, ...]]] = [[] for _ in CONTESTANTS]
    before = [time.perf_counter(), time.process_time()]

    def on_step(metrics: dict[str, float]) -> None:
        torch.distributed.barrier()
        now = [time.perf_counter(), time.process_time()]
        if metrics["step"] > 1:  # the first is a warm-up
            spent = [end - start for start, end in zip(before, now, strict=True)]
            samples[_Alternating.contestant].append((*spent, _Alternating.waited))
        _Alternating.contestant = int(metrics["step"]) % len(CONTESTANTS)
        before[:] = [time.perf_counter(), time.process_time()]

    labels = np.arange(IMAGES) % CLASSES
    options = TrainingConfig(micro_batch=micro_batch, checkpoint_every=0)
    trainer.train(model, recipe, _Noise(size), labels, options, on_step=on_step)
    if rank == 0:
        queue.put(samples)


if __name__ == "__main__":
    main()
