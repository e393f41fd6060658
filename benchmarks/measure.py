"""Running contestants in turn and tabulating medians, for the scripts of this folder."""

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

T = TypeVar("T")

_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
"""Whoever pip installed has bytecode; a checkout has none where Python is told to write none."""


@dataclass(frozen=True)
class Sample:
    """One finished process: wall seconds, peak resident bytes, and what it printed."""

    seconds: float
    peak_bytes: int
    output: str


def run(command: Sequence[str | Path]) -> Sample:
    """Run a command to its end, accounted for by the operating system.

    What others have written goes to the disk before, so that nobody's time has its writing.
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


def apart(function: Callable[..., T], *args: object) -> T:
    """Call a function in a process of its own and return its result.

    The process is forked from a server that has imported what the script imports and computed
    nothing: it starts at once, and nobody else's memory counts as its peak.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(function, *args).result()


def peak_bytes() -> int:
    """Return the most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_checkpoint(path: Path, arch: str, num_classes: int) -> None:
    """Write a random checkpoint in Google's layout, in a process of its own.

    A process that starts another passes its own peak memory on to the other's account, so the one
    that measures has to stay small.
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
    """Run every contestant once a round, so that a drifting machine touches all alike."""
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

    With a `rival` among the samples, also how many times as long it takes.
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
    title: str, samples: Mapping[str, Sequence[Sample]], images: int, baseline: str
) -> str:
    """Return a Markdown table of images/s: median, minimum, maximum, peak memory, ratio.

    Every sample took its seconds for `images` images.
    """
    rates = {name: [images / sample.seconds for sample in runs] for name, runs in samples.items()}
    slowest = statistics.median(rates[baseline])
    rows = [("", "median images/s", "min", "max", "peak MB", f"rate / {baseline}")]
    for name, found in rates.items():
        peak = max(sample.peak_bytes for sample in samples[name]) / 1e6
        middle = statistics.median(found)
        cells = [f"{rate:.1f}" for rate in (middle, min(found), max(found))]
        rows.append((name, *cells, f"{peak:.0f}" if peak else "", f"{middle / slowest:.2f}"))
    return aligned(title, rows)


def aligned(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up in a terminal too; the first row heads it."""
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


def machine() -> str:
    """Return one line about where and with what the figures were taken."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("bitzoo", "numpy", "torch", "timm"))
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {packages}\n"
    )
