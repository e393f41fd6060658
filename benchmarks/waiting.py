"""Measure what a busy neighbour costs, by how long OpenMP's threads spin while they wait.

    python benchmarks/waiting.py [--counts 0,1000,...] [--minutes 4.5] [--tasks NAME,...]

Every row is a process of its own, because libgomp reads its variables once. The processes take
turns: in each round, each of them does each task on the machine as it is, then beside a busy
process of another session. Rows are numbers of spins, libgomp's default, and what bitzoo's commands
choose (`bitzoo.openmp_waiting`): one process that chose before the busy process was there, and one
that chose beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

from measure import aligned_table, machine
from neighbour import busy_neighbour

from bitzoo.openmp_waiting import REASON, SPINS, choose_before_torch, measure_load, user_settings

ARCH, CLASSES, SIDE = "R50x1", 1000, 224
SMALL_BATCH, SMALL_CROP, SMALL_STEPS = 32, 32, 10
CHOSEN, CHOSEN_BESIDE = "chosen on the quiet machine", "chosen beside it"
LARGEST_LOSS, LARGEST_FACTOR = 1.05, 2.5
"""What a chosen number of spins may cost: on the quiet machine, of the best number's time; beside a
busy process, of its own time on the quiet machine."""


def main() -> None:
    """Run the benchmark, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="0,1000,3000,10000,100000", help="numbers of spins")
    parser.add_argument("--minutes", type=float, default=4.5, help="time in which rounds must end")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--quick", action="store_true", help="one minute, two numbers, two tasks")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.counts, options.minutes, options.tasks = "0,10000", 1.0, "batch 1,training"
    tasks = options.tasks.split(",")
    if options.process:
        work(tasks)
        return
    ends = time.monotonic() + 60 * options.minutes
    print(machine())
    load = measure_load()
    print(f"Others used {load.busy} of {load.cpus} processors when it began.\n", flush=True)
    with ExitStack() as stack:
        rows = {
            **{count: {SPINS: count} for count in options.counts.split(",")},
            "libgomp's default": None,
            CHOSEN: {},
        }
        processes = {name: stack.enter_context(Process(own, tasks)) for name, own in rows.items()}
        with busy_neighbour():
            processes[CHOSEN_BESIDE] = stack.enter_context(Process({}, tasks))
        seconds = measure(processes, tasks, ends)
        for task in tasks:
            print(table(task, seconds, processes), flush=True)


class Process:
    """A row: a process that waits for the name of a task, does it and says how long it took."""

    def __init__(self, own: dict[str, str] | None, tasks: list[str]) -> None:
        """Start it; the first reply comes when it is ready.

        Args:
            own: Environment variables that a user sets; none lets bitzoo choose. None keeps the
                runtime's default.
            tasks: What it will be asked to do.
        """
        environment = {
            name: value
            for name, value in os.environ.items()
            if f"{name}={value}" not in user_settings(os.environ) and name != REASON
        }
        if own is None:
            own = {SPINS: "default"}  # taken away again by `work`
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--process", "--tasks", ",".join(tasks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | own,
            text=True,
        )
        self.setting = self._reply()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its input, at which it ends, and waits
            pass

    def seconds(self, task: str) -> float:
        """Have a task done; returns the time of one pass or step."""
        assert self._process.stdin is not None
        print(task, file=self._process.stdin, flush=True)
        return float(self._reply())

    def _reply(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process of the benchmark ended")
        return str(json.loads(line))


def measure(
    processes: dict[str, Process], tasks: list[str], ends: float
) -> dict[tuple[str, str, bool], list[float]]:
    """Return the seconds of each task, row, and whether the busy process was there."""
    found: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    longest = 0.0
    while not found or time.monotonic() + longest < ends:
        began = time.monotonic()
        for busy in (False, True):
            with busy_neighbour() if busy else nullcontext():
                for task in tasks:
                    for name, process in processes.items():
                        found[task, name, busy].append(process.seconds(task))
        longest = max(longest, time.monotonic() - began)
        print(f"  a round took {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found


def table(
    task: str,
    seconds: dict[tuple[str, str, bool], list[float]],
    processes: dict[str, Process],
) -> str:
    """Return a table of medians, and whether what was chosen reaches the goals."""
    median = {key: statistics.median(times) for key, times in seconds.items()}
    best = min(median[task, name, False] for name in processes)
    header = ("spins", "quiet ms", "/ best", "beside a busy process ms", "/ its quiet", "min")
    rows: list[tuple[str, ...]] = [header]
    for name, process in processes.items():
        quiet, busy = median[task, name, False], median[task, name, True]
        fastest = min(seconds[task, name, True])
        setting = f": {process.setting}" if name in (CHOSEN, CHOSEN_BESIDE) else ""
        figures = [f"{1e3 * quiet:.1f}", f"{quiet / best:.2f}", f"{1e3 * busy:.1f}"]
        rows.append((name + setting, *figures, f"{busy / quiet:.2f}", f"{1e3 * fastest:.1f}"))
    loss = median[task, CHOSEN, False] / best
    factors = {
        name: median[task, name, True] / median[task, CHOSEN, False]
        for name in (CHOSEN, CHOSEN_BESIDE)
    }
    enough = [
        int(name)
        for name in processes
        if name.isdecimal() and median[task, name, False] <= LARGEST_LOSS * best
    ]
    verdict = (
        f"Chosen, quiet: {loss:.2f} of the best (goal {LARGEST_LOSS}); beside a busy process, of "
        f"quiet: {factors[CHOSEN_BESIDE]:.2f} chosen beside it (goal {LARGEST_FACTOR}), "
        f"{factors[CHOSEN]:.2f} if it came later. "
        + (
            f"The smallest number that loses at most {LARGEST_LOSS}: {min(enough)}.\n"
            if enough
            else f"None of the numbers loses at most {LARGEST_LOSS}.\n"
        )
    )
    rounds = len(seconds[task, CHOSEN, True])
    return aligned_table(f"{TASKS[task][0]}, {rounds} rounds", rows) + "\n" + verdict


# --- the processes --------------------------------------------------------------------------------


def work(names: list[str]) -> None:
    """Be one of the processes."""
    if os.environ.get(SPINS) == "default":
        del os.environ[SPINS]
    else:
        choose_before_torch()
    tasks = {name: TASKS[name][1]() for name in names}
    print(json.dumps(os.environ.get(SPINS, "default")), flush=True)
    for line in sys.stdin:
        print(json.dumps(tasks[line.strip()]()), flush=True)


def inference(batch: int, times: int, peer: bool = False) -> Callable[[], float]:
    """Return a function that runs R50x1 some times, after once for the caches."""
    import torch

    import bitzoo
    from bitzoo.models.architecture import ARCHITECTURES
    from bitzoo.models.bit import BiT

    network: Callable[[Any], object]
    images = torch.rand(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if peer:
        import timm

        network = timm.create_model(f"resnetv2_{ARCH[1:]}_bit", num_classes=CLASSES).eval()
    else:
        model = BiT(ARCHITECTURES[ARCH], CLASSES).eval()
        model.init_weights(torch.Generator().manual_seed(0))
        network = bitzoo.optimize(model)

    def run() -> float:
        found = []
        with torch.inference_mode():
            for _ in range(1 + times):
                began = time.perf_counter()
                network(images)
                found.append(time.perf_counter() - began)
        return statistics.median(found[1:])

    return run


def training() -> Callable[[], float]:
    """Return a function that trains a small network for some steps, on images in memory."""
    import numpy as np
    import torch

    from bitzoo.data.image_store import Pixels
    from bitzoo.models.architecture import Architecture
    from bitzoo.models.bit import BiT
    from bitzoo.training.recipe import Recipe, Schedule
    from bitzoo.training.trainer import train
    from bitzoo.training.training_config import TrainingConfig

    class InMemory(Pixels):
        size = SMALL_CROP + 4

        def __init__(self) -> None:
            shape = (16 * SMALL_BATCH, self.size, self.size, 3)
            self.images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

        def __len__(self) -> int:
            return len(self.images)

        def rows(self, indices: Any) -> Any:
            return [self.images[index] for index in np.ravel(indices)]

        def close(self) -> None:
            pass

    pixels, model = InMemory(), BiT(Architecture((1, 1, 1, 1), 0.5), 10)
    model.init_weights(torch.Generator().manual_seed(0))
    recipe = Recipe(
        "benchmark",
        *(pixels.size, SMALL_CROP, SMALL_BATCH),
        Schedule(0.003, SMALL_STEPS, 0, ()),
        mixup_alpha=0.1,
    )
    options = TrainingConfig(micro_batch=SMALL_BATCH, checkpoint_every=0)

    def run() -> float:
        found: list[float] = []
        train(
            *(model, recipe, pixels, np.zeros(len(pixels), np.int64), options),
            on_step=lambda step: found.append(SMALL_BATCH / step["images_per_s"]),
        )
        return statistics.median(found[2:])

    return run


TASKS: dict[str, tuple[str, Callable[[], Callable[[], float]]]] = {
    "batch 1": (f"{ARCH}, batch 1, {SIDE} px", lambda: inference(1, 2)),
    "batch 8": (f"{ARCH}, batch 8, {SIDE} px", lambda: inference(8, 1)),
    "timm": (f"timm's {ARCH}, batch 1, {SIDE} px", lambda: inference(1, 1, peer=True)),
    "training": (
        f"A step of R(1,1,1,1)x0.5, {SMALL_BATCH} images of {SMALL_CROP} px",
        training,
    ),
}
"""Name -> what it is, and a function that prepares it."""

if __name__ == "__main__":
    main()
