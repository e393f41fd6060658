"""Measure checking and decoding in one pass against two, and starting again on unchanged files.

    python benchmarks/one_pass.py [--images 5000] [--edge 448] [--rounds 3] [--files 60000]

Some minutes; writes up to 4 GB below the folder of temporary files (TMPDIR), and removes them.

1. JPEGs of 500x400: to check them and to fill the cache of decoded images. "two passes" does what
   earlier versions did: `inspect`, then `open_pixels`, each of which reads and decodes every file,
   with the C library's memory as it comes. "one pass" lets the check make the rows. Each turn is a
   process of its own with an empty cache; the time begins when its modules are loaded.
2. Small JPEGs: `inspect` with kept checks, of which the first time keeps them, the second time uses
   them, and `--recheck` does not; and what reading every row with its checksum takes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measure import aligned_table, machine
from photographs import write_photographs
from PIL import Image

_PASSES = """
import sys, time
from bitzoo.data.dataset import read_dataset
from bitzoo.data.image_store import open_pixels
from bitzoo.data.rows_while_checking import WantedRows
from bitzoo.data.validation import inspect
from bitzoo.models.preprocessing import EvalTransform
folder, edge, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
way, budget = EvalTransform.to_square(edge), 10**12
listed = read_dataset(folder)
began = time.perf_counter()
rows = WantedRows({"train": way, "val": way}, budget) if how == "one" else None
images, _ = inspect(listed, rows=rows)
checked = time.perf_counter()
decoded = []
opened = [
    open_pixels(split, way, budget_bytes=budget, progress=lambda *call: decoded.append(call))
    for split in images.splits
]
assert (len(decoded) == 0) == (how == "one")
print(checked - began, time.perf_counter() - began)
began = time.perf_counter()
for pixels in opened:
    for start in range(0, len(pixels), 64):
        pixels.rows(range(start, min(start + 64, len(pixels))))
print((time.perf_counter() - began) / sum(map(len, opened)) * 1e3)
"""

_START = """
import sys, time
from bitzoo.data.dataset import read_dataset
from bitzoo.data.validation import inspect
began = time.perf_counter()
listed = read_dataset(sys.argv[1], val_fraction=0.1)
read = time.perf_counter()
images, summary = inspect(listed, keep_checks=True, recheck=sys.argv[2] == "recheck")
print(read - began, time.perf_counter() - read)
print(summary.kept, file=sys.stderr)
"""


def measured(code: str, *arguments: object, cache: Path, usual_memory: bool = False) -> list[float]:
    """Run code in a process of its own, and return the numbers that it prints."""
    environment = {**os.environ, "BITZOO_CACHE": str(cache)}
    if usual_memory:  # glibc's own default, which has bitzoo leave its memory alone
        environment["MALLOC_ARENA_TEST"] = "8"
    call = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(call, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.split()]


def passes(folder: Path, work: Path, edge: int, rounds: int) -> str:
    """Compare two passes and one, in turn."""
    found: dict[str, list[list[float]]] = {"two": [], "one": []}
    for turn in range(rounds):
        for how in sorted(found, reverse=turn % 2 == 0):
            cache = work / "pixels"
            found[how].append(
                measured(_PASSES, folder, edge, how, cache=cache, usual_memory=how == "two")
            )
            shutil.rmtree(cache)
            print(how, found[how][-1], file=sys.stderr)
    median = {how: [statistics.median(c) for c in zip(*t, strict=True)] for how, t in found.items()}
    rows: list[tuple[str, ...]] = [("", "check", "check and fill", "read a row")]
    for how, (check, both, row) in median.items():
        rows.append((f"{how} pass{'es' * (how == 'two')}", *seconds(check, both), f"{row:.2f} ms"))
    rows.append(("ratio", "", f"{median['one'][1] / median['two'][1]:.2f}x", ""))
    title = f"{len(list(folder.glob('*/*/*.jpg'))):,} JPEGs of 500x400, rows of {edge}x{edge}"
    return aligned_table(f"{title}, medians of {rounds}", rows)


def starts(folder: Path, work: Path, count: int) -> str:
    """Measure the first start on a folder, the second, and one that reads all again."""
    rows: list[tuple[str, ...]] = [("", "list", "check")]
    for name, how in (("first start", ""), ("second start", ""), ("--recheck", "recheck")):
        rows.append((name, *seconds(*measured(_START, folder, how, cache=work / "kept"))))
        print(rows[-1], file=sys.stderr)
    return aligned_table(f"{count:,} JPEGs of 64x64", rows)


def seconds(*times: float) -> tuple[str, ...]:
    return tuple(f"{time:.2f} s" for time in times)


def write_small(folder: Path, count: int) -> Path:
    """Write small JPEGs, each of another random pattern, in ten classes."""

    def write(number: int) -> None:
        pattern = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        image = Image.fromarray(pattern).resize((64, 64), Image.Resampling.BILINEAR)
        image.save(folder / str(number % 10) / f"{number:06}.jpg")

    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))
    return folder


def main() -> None:
    """Measure both, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--edge", type=int, default=448, help="448 is that of BiT-HyperRule")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=60_000)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="bitzoo-one-pass-") as name:
        work = Path(name)
        if options.images:
            folder = write_photographs(work / "photographs", options.images)
            print(passes(folder, work, options.edge, options.rounds), flush=True)
            shutil.rmtree(folder)
        if options.files:
            folder = write_small(work / "small", options.files)
            print(starts(folder, work, options.files))


if __name__ == "__main__":
    main()
