"""Measure `pretrain` on a million records in shards: time to the first step, memory, resuming.

    python benchmarks/large_data.py --work FOLDER [--records 1000000] [--files 60000]

writes about 2 GB of synthetic shards (small JPEGs, each with other bytes) and the folder of files
below FOLDER, and removes both at the end. Every run is a process of its own with a cache of its
own; its time begins before Python starts. The network is tiny, so that what is measured is the
data. 14 million records are simulated: only the index is real, its shards are links to one.

Measured on 2026-11-26 on two cores of an AMD EPYC, one of which was busy with something else:

| | to the first step | peak memory | to the first step after kill -9 |
|---|---:|---:|---:|
| 1,000 records in shards | 7.1 s | 786 MB | 4.9 s |
| 1,000,000 records in shards, not indexed before | 17.8 s | 843 MB | 5.4 s |
| 60,000 files in a folder | 8.8 s | 824 MB | 10.2 s |

To decode the 60,000 files first, as is done with fewer, took 40.5 s. To list 14,000,000 simulated
records took 2.9 s and 511 MB when they are indexed, of which reading the shards is left out, and
1.5 s and 468 MB from the index.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PER_SHARD = 8000
DISTINCT = 2000
CLASSES = 100

_RUN = """
import os, resource, sys, time
from pathlib import Path
import bitzoo
from bitzoo.runs.config import Callbacks
source, out, last, resume = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "resume"
def report(what):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(what, time.time(), time.process_time(), peak, flush=True)
def on_step(metrics):
    report("step")
    if metrics["step"] == last:
        os._exit(9)  # as kill -9: nothing is cleaned up
bitzoo.pretrain("R(1,1,1,1)x0.5", source, out, steps=1000, batch_size=32, resolution=32,
    val_fraction=0.01, eval_every=0, checkpoint_every=2, cache_gb=0, log="none", resume=resume,
    progress=False, callbacks=Callbacks(on_step=on_step))
"""

_LIST = """
import resource, sys, time
from bitzoo.data import tar_shards
from bitzoo.data.dataset import read_dataset
read, known = tar_shards.read_shard, []
def simulated(descriptor, name):  # all shards are links to one, which is read once
    if not known:
        known.append(read(descriptor, name))
    return known[0]
if sys.argv[2] == "simulated":
    tar_shards.read_shard = simulated
images = read_dataset(sys.argv[1])
examples = images.train.examples
assert examples[len(examples) - 1].stored()[:2] == b"\\xff\\xd8"
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("listed", time.time(), time.process_time(), peak, len(examples))
"""

_CHECK = """
import resource, sys, time
from bitzoo.data.dataset import read_dataset
from bitzoo.data.validation import inspect
images, _ = inspect(read_dataset(sys.argv[1], val_fraction=0.01))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("checked", time.time(), time.process_time(), peak, len(images.train))
"""


def jpegs() -> list[bytes]:
    """Return distinct small JPEGs, 32 to 64 pixels wide and high, below 500 bytes each."""
    random, found = np.random.default_rng(0), []
    for number in range(DISTINCT):
        grey = number % 4 != 0
        coarse = random.integers(0, 256, (3, 3) if grey else (2, 2, 3), np.uint8)
        size = (int(random.integers(32, 65)), int(random.integers(32, 65)))
        file = io.BytesIO()
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
        image.save(file, "JPEG", quality=60 if grey else 40, optimize=True)
        found.append(file.getvalue())
    return found


def records(count: int) -> Iterator[tuple[bytes, int]]:
    """Yield a JPEG and its class; the number of each is in a comment in it."""
    distinct = jpegs()
    for number in range(count):
        content = distinct[number % DISTINCT]
        comment = b"\xff\xfe\x00\x0a" + b"%08d" % number
        yield content[:2] + comment + content[2:], number % DISTINCT % CLASSES


def write_shards(folder: Path, count: int) -> str:
    """Write shards, in less time than `tarfile` needs for a million records; return the source."""
    folder.mkdir(parents=True)
    listed = enumerate(records(count))
    for shard in range(-(-count // PER_SHARD)):
        with open(folder / f"train-{shard:05}.tar", "wb") as file:
            for number, (content, label) in listed:
                for suffix, part in ((b"jpg", content), (b"cls", b"%d" % label)):
                    file.write(_header(b"%08d.%s" % (number, suffix), len(part)))
                    file.write(part + bytes(-len(part) % 512))
                if number % PER_SHARD == PER_SHARD - 1:
                    break
            file.write(bytes(10240))
    return f"tar:{folder}"


def _header(name: bytes, size: int) -> bytes:
    head = bytearray(512)
    head[: len(name)] = name
    head[100:148] = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    head[148:157] = b"        0"
    head[257:265] = b"ustar\x0000"
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def write_folder(folder: Path, count: int) -> str:
    """Write files in class folders; return the source."""
    for number, (content, label) in enumerate(records(count)):
        place = folder / f"{label:02}"
        if number < CLASSES:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08}.jpg").write_bytes(content)
    return str(folder)


def measured(code: str, *arguments: str, cache: Path) -> list[tuple[str, float, float, float]]:
    """Run code in another process; return what it reports: what, seconds, CPU seconds, MB."""
    environment = {**os.environ, "BITZOO_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    started = time.time()
    call = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(call, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 9) or not done.stdout:
        raise SystemExit(f"the measured process ended with {done.returncode}")
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(w, float(t) - started, float(c), int(m) / 1024) for w, t, c, m, *_ in lines]


def first_step_and_resume(source: str, work: Path, name: str) -> dict[str, Any]:
    """Start a run, kill it after its third step, and resume it."""
    cache, out = work / f"cache-{name}", str(work / f"run-{name}")
    first = measured(_RUN, source, out, "3", "new", cache=cache)
    again = measured(_RUN, source, out, "4", "resume", cache=cache)
    shutil.rmtree(out)
    print(name, first, again, file=sys.stderr)
    return {
        "first step": first[0][1],
        "its CPU time": first[0][2],
        "peak MB": max(line[3] for line in first),
        "first step after resuming": again[0][1],
        "its CPU time, resuming": again[0][2],
        "peak MB, resuming": max(line[3] for line in again),
    }


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--simulated", type=int, default=14_000_000)
    options = parser.parse_args()
    work: Path = options.work / "large-data"
    work.mkdir(parents=True)
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine()}
    try:
        few = write_shards(work / "few", 1000)
        found["1,000 records"] = first_step_and_resume(few, work, "few")
        many = write_shards(work / "many", options.records)
        found[f"{options.records:,} records"] = first_step_and_resume(many, work, "many")
        folder = write_folder(work / "folder", options.files)
        found[f"{options.files:,} files"] = first_step_and_resume(folder, work, "folder")
        ((_, *figures),) = measured(_CHECK, folder, cache=work / "cache-check")
        found[f"{options.files:,} files, all decoded first"] = figures
        links = work / "links"
        links.mkdir()
        for number in range(-(-options.simulated // PER_SHARD)):
            (links / f"{number:05}.tar").symlink_to(work / "many" / "train-00000.tar")
        for what in ("indexed", "listed again"):
            how = "simulated" if what == "indexed" else "real"
            ((_, *figures),) = measured(_LIST, f"tar:{links}", how, cache=work / "cache-links")
            found[f"{options.simulated:,} simulated, {what}"] = figures
    finally:
        shutil.rmtree(work)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
