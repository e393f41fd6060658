"""Training images/s, from files to updated weights: bitzoo and a plain loop, for `finetune.py`.

Every turn is a process of its own that trains from random weights; the first steps, in which
workers start and caches are filled, are not counted. Peak is that of the process itself, without
workers; on a GPU, what torch allocated there.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import plain_loop
import torch
from measure import Sample, apart, interleave, peak_bytes, rate_table
from photographs import CLASSES

import bitzoo

WARM_UP = 2
"""Steps that are not counted."""


@dataclass(frozen=True)
class Course:
    """What every contestant does."""

    photographs: Path
    cache: Path
    arch: str
    resize: int
    crop: int
    batch: int
    steps: int
    device: str


def report(course: Course, rounds: int, *, only_two: bool = False) -> str:
    """Let the contestants, or the first of either side, take turns and return their table."""
    few = 1 if only_two else None
    contestants: dict[str, Callable[[], Sample]] = {}
    for dtype in ("float32", "bfloat16") if course.device == "cuda" else ("float32",):
        note = "" if dtype == "float32" else f", {dtype}"
        for name, options in list(OURS.items())[:few]:
            contestants[name + note] = partial(apart, ours, course, {**options, "dtype": dtype})
        for name, form in list(PLAIN.items())[:few]:
            contestants[name + note] = partial(apart, plain, course, dtype, form)
    title = (
        f"Training: {course.arch}, resize {course.resize}, crop {course.crop}, "
        f"batch {course.batch}, {course.device}"
    )
    images = course.batch * (course.steps - WARM_UP)
    return rate_table(title, interleave(contestants, rounds), images, baseline="plain loop")


OURS: dict[str, dict[str, Any]] = {
    "bitzoo": {},
    "bitzoo, GN+ReLU recomputed": {"recompute_norms": True},
}
PLAIN = {
    "plain loop": torch.contiguous_format,
    "plain loop, channels last": torch.channels_last,
}


def ours(course: Course, options: dict[str, Any]) -> Sample:
    os.environ["BITZOO_CACHE"] = str(course.cache)
    if course.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        bitzoo.finetune(
            f"BiT-M-{course.arch}",
            course.photographs,
            run,
            pretrained=False,
            steps=course.steps,
            batch_size=course.batch,
            resolution=(course.resize, course.crop),
            micro_batch=course.batch,
            checkpoint_every=0,
            **options,
        )
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_s"] for line in lines if line["event"] == "train"]
    return Sample(sum(course.batch / rate for rate in rates[WARM_UP:]), peak(course.device), "")


def plain(course: Course, dtype: str, memory_format: torch.memory_format) -> Sample:
    on_gpu = course.device == "cuda"
    loader = plain_loop.make_loader(
        *(course.photographs / "train", course.resize, course.crop, course.batch),
        pin=on_gpu,
        whole=True,
    )
    steps = plain_loop.train_steps(
        loader, course.arch, CLASSES, course.device, getattr(torch, dtype), memory_format
    )
    next(itertools.islice(steps, WARM_UP - 1, None))
    started = time.perf_counter()
    next(itertools.islice(steps, course.steps - WARM_UP - 1, None))
    return Sample(time.perf_counter() - started, peak(course.device), "")


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()
