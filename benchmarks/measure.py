"""Run contestants in turn and tabulate medians; shared by the scripts of this folder."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from bitzoo.openmp_waiting import (
    REASON,
    SPINS,
    choose,
    description,
    measure_load,
    team_size,
    user_settings,
)

T = TypeVar("T")

_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
"""Lets Python write bytecode, which a pip installation has but a checkout may not."""


@dataclass(frozen=True)
class Sample:
    """One finished process: wall seconds, peak resident bytes, and what it printed."""

    seconds: float
    peak_bytes: int
    output: str


def run(command: Sequence[str | Path]) -> Sample:
    """Run a command to its end, measured by the operating system.

    Earlier writes are flushed to disk first, so that they are not timed.
    """
    words = [str(word) for word in command]
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} exited with {process.returncode}")
    return Sample(seconds, usage.ru_maxrss * 1024, output)


def in_subprocess(function: Callable[..., T], *args: object) -> T:
    """Call a function in a separate process and return its result.

    The process is forked from a server that has only done the script's imports, so it starts fast
    and its peak memory excludes that of others.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(function, *args).result()


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_checkpoint(path: Path, arch: str, num_classes: int) -> None:
    """Write a random checkpoint in Google's layout, in a separate process.

    A child process inherits its parent's peak memory in the operating system's accounting, so the
    measuring process must stay small.
    """
    code = (
        "import sys; from pathlib import Path; "
        "from bitzoo.models.architecture import ARCHITECTURES; "
        "from bitzoo.cli.quickstart import write_random_checkpoint; "
        "write_random_checkpoint(Path(sys.argv[1]), ARCHITECTURES[sys.argv[2]], int(sys.argv[3]))"
    )
    run([sys.executable, "-c", code, path, arch, str(num_classes)])


def interleave(
    contestants: Mapping[str, Callable[[], Sample]], rounds: int
) -> dict[str, list[Sample]]:
    """Run every contestant once per round, so that drifts of the machine affect all equally."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, contestant in contestants.items():
            print(f"  round {turn + 1} of {rounds}: {name}", file=sys.stderr)
            samples[name].append(contestant())
    return samples


def table(
    title: str, samples: Mapping[str, Sequence[Sample]], baseline: str, rival: str | None = None
) -> str:
    """Return a Markdown table: median, minimum, maximum, peak memory, ratio to `baseline`.

    If `rival` is among the samples, also the ratio of its time to each.
    """
    rivals = [rival] if rival in samples else []
    medians = {
        name: statistics.median(sample.seconds for sample in runs) for name, runs in samples.items()
    }
    lines = [
        f"### {title}",
        "",
        f"| | median s | min | max | peak MiB | time / {baseline} |"
        + "".join(f" {name} / this |" for name in rivals),
        "|---|---:|---:|---:|---:|---:|" + "---:|" * len(rivals),
    ]
    for name, runs in samples.items():
        seconds = [sample.seconds for sample in runs]
        peak = max(sample.peak_bytes for sample in runs) / 2**20
        lines.append(
            f"| {name} | {medians[name]:.2f} | {min(seconds):.2f} | {max(seconds):.2f} "
            f"| {peak:.0f} | {medians[name] / medians[baseline]:.2f} |"
            + "".join(f" {medians[other] / medians[name]:.2f} |" for other in rivals)
        )
    return "\n".join(lines) + "\n"


def rate_table(
    title: str,
    samples: Mapping[str, Sequence[Sample]],
    images: int,
    baseline: str,
    beside: Mapping[str, Sequence[Sample]] | None = None,
) -> str:
    """Return a Markdown table of images/s: median, minimum, maximum, peak memory, ratio.

    Each sample's seconds are for `images` images. `beside` are those beside a busy process.
    """
    rates = {name: [images / sample.seconds for sample in runs] for name, runs in samples.items()}
    base = statistics.median(rates[baseline])
    rows: list[tuple[str, ...]] = [
        ("", "median images/s", "min", "max", "peak MB", f"rate / {baseline}")
    ]
    if beside:
        rows[0] += BESIDE
    for name, found in rates.items():
        peak = max(sample.peak_bytes for sample in samples[name]) / 1e6
        median = statistics.median(found)
        cells = [f"{rate:.1f}" for rate in (median, min(found), max(found))]
        cells += [f"{peak:.0f}" if peak else "", f"{median / base:.2f}"]
        if beside:
            rate = statistics.median(images / sample.seconds for sample in beside[name])
            cells += [f"{rate:.1f}", f"{rate / median:.2f}"]
        rows.append((name, *cells))
    return aligned_table(title, rows)


BESIDE = ("beside a busy process", "/ quiet")
"""Headers of the columns with what was measured beside a `neighbour.busy_neighbour`."""


def aligned_table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for name, *cells in [rows[0], rule, *rows[1:]]:
        padded = [
            name.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)),
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join([f"### {title}", "", *lines]) + "\n"


def wait_as_commands_do() -> None:
    """Start this script again with what a command of bitzoo would choose for OpenMP's threads.

    The runtime reads it when torch is loaded, and then for all contestants.
    """
    if sys.platform == "linux" and not user_settings(os.environ):
        load = measure_load()
        choice = choose(load, team_size(os.environ, load.cpus))
        os.environ |= {SPINS: str(choice.spins), REASON: choice.reason}
        os.execv(sys.executable, sys.orig_argv)


def machine() -> str:
    """Return the date, machine and package versions of a measurement, and how threads wait."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("bitzoo", "numpy", "torch", "timm"))
    return (
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {len(os.sched_getaffinity(0))} cores{gpu()}, "
        f"Python {platform.python_version()}, {packages}. Threads wait: "
        f"{description(os.environ)}\n"
    )


def processor() -> str:
    """Return the processor's name, or what kind it is where the system does not tell."""
    about = Path("/proc/cpuinfo")
    for line in about.read_text().splitlines() if about.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def gpu() -> str:
    """Return the GPU's name after a comma, if the script has loaded torch and there is one."""
    torch = sys.modules.get("torch")
    return f", {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""
