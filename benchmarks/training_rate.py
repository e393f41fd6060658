"""Measure training images/s, from files to updated weights: bitzoo and a plain loop.

Part of `finetune.py`. Every turn is a separate process that trains from random weights; the first
steps, in which workers start and caches are filled, are not counted. Peak is that of the process
itself, without workers, or on a GPU, torch's allocations. On a CPU, all is done once more beside a
busy process of another session.
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
from measure import Sample, in_subprocess, interleave, peak_bytes, rate_table
from neighbour import busy_neighbour
from photographs import CLASSES

import bitzoo

WARM_UP = 2
"""Steps that are not counted."""


@dataclass(frozen=True)
class TrainingConfig:
    """The data, network, preprocessing and device of every contestant."""

    photographs: Path
    cache: Path
    arch: str
    resize: int
    crop: int
    batch: int
    steps: int
    device: str


def report(config: TrainingConfig, rounds: int, *, only_two: bool = False) -> str:
    """Run the contestants, or the first of either side, in turn and return their table."""
    few = 1 if only_two else None
    contestants: dict[str, Callable[[], Sample]] = {}
    for dtype in ("float32", "bfloat16") if config.device == "cuda" else ("float32",):
        note = "" if dtype == "float32" else f", {dtype}"
        for name, options in list(OURS.items())[:few]:
            contestants[name + note] = partial(
                in_subprocess, ours, config, {**options, "dtype": dtype}
            )
        for name, form in list(PLAIN.items())[:few]:
            contestants[name + note] = partial(in_subprocess, plain, config, dtype, form)
    title = (
        f"Training: {config.arch}, resize {config.resize}, crop {config.crop}, "
        f"batch {config.batch}, {config.device}"
    )
    images = config.batch * (config.steps - WARM_UP)
    quiet, beside = interleave(contestants, rounds), None
    if config.device == "cpu":
        with busy_neighbour():
            beside = interleave(contestants, max(1, rounds // 3))
    return rate_table(title, quiet, images, "plain loop", beside)


OURS: dict[str, dict[str, Any]] = {
    "bitzoo": {},
    "bitzoo, GN+ReLU recomputed": {"recompute_norms": True},
}
PLAIN = {
    "plain loop": torch.contiguous_format,
    "plain loop, channels last": torch.channels_last,
}


def ours(config: TrainingConfig, options: dict[str, Any]) -> Sample:
    os.environ["BITZOO_CACHE"] = str(config.cache)
    if config.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        bitzoo.finetune(
            f"BiT-M-{config.arch}",
            config.photographs,
            run,
            pretrained=False,
            steps=config.steps,
            batch_size=config.batch,
            resolution=(config.resize, config.crop),
            micro_batch=config.batch,
            checkpoint_every=0,
            **options,
        )
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_s"] for line in lines if line["event"] == "train"]
    return Sample(sum(config.batch / rate for rate in rates[WARM_UP:]), peak(config.device), "")


def plain(config: TrainingConfig, dtype: str, memory_format: torch.memory_format) -> Sample:
    on_gpu = config.device == "cuda"
    loader = plain_loop.make_loader(
        *(config.photographs / "train", config.resize, config.crop, config.batch),
        pin=on_gpu,
        whole=True,
    )
    steps = plain_loop.train_steps(
        loader, config.arch, CLASSES, config.device, getattr(torch, dtype), memory_format
    )
    next(itertools.islice(steps, WARM_UP - 1, None))
    started = time.perf_counter()
    next(itertools.islice(steps, config.steps - WARM_UP - 1, None))
    return Sample(time.perf_counter() - started, peak(config.device), "")


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()
