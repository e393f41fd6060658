"""Measure images/s from JPEG files to augmented batches on the device: bitzoo and a DataLoader.

Part of `finetune.py`. No network runs at the same time. Both use one worker per core.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import plain_loop
import torch
from measure import Sample, interleave, rate_table
from torch import Tensor

from bitzoo.data.dataset import read_dataset
from bitzoo.data.image_store import Pixels, open_pixels
from bitzoo.data.loader import BatchPlan, Feed, prefetch
from bitzoo.data.validation import inspect

T = TypeVar("T")
BASELINE = "DataLoader"


@dataclass(frozen=True)
class DataConfig:
    """The data, preprocessing and device of both contestants."""

    photographs: Path
    cache: Path
    resize: int
    crop: int
    batch: int
    device: str


def report(config: DataConfig, rounds: int) -> str:
    """Time bitzoo's first epoch and its parts, then warm epochs of both in turn."""
    images, checking = timed(
        "bitzoo: checking", lambda: inspect(read_dataset(config.photographs))[0].train
    )
    labels = np.array([example.label for example in images.examples])
    pixels, decoding = timed(
        "bitzoo: decoding into the cache",
        lambda: open_pixels(
            images, config.resize, cache=config.cache, budget_bytes=100_000_000_000
        ),
    )
    loader = plain_loop.make_loader(
        *(config.photographs / "train", config.resize, config.crop, config.batch),
        pin=config.device == "cuda",
    )
    with pixels:
        _, reading = timed("bitzoo: the epoch itself", lambda: our_epoch(config, pixels, labels, 0))
        contestants: dict[str, Callable[[], Sample]] = {
            BASELINE: lambda: sample(lambda: plain_epoch(config, loader)),
            "bitzoo, cache warm": lambda: sample(lambda: our_epoch(config, pixels, labels, 1)),
        }
        turns = interleave(contestants, rounds)
    first = {
        "bitzoo, every image checked": checking,
        "bitzoo, first epoch, cache being built": decoding + reading,
    }
    samples = {
        BASELINE: turns.pop(BASELINE),
        **{name: [Sample(seconds, 0, "")] for name, seconds in first.items()},
        **turns,
    }
    title = (
        f"Data: {len(images):,} JPEGs of 500x400, resize {config.resize}, crop {config.crop}, "
        f"batch {config.batch}, {config.device}"
    )
    return rate_table(title, samples, len(images), baseline=BASELINE)


def our_epoch(
    config: DataConfig,
    pixels: Pixels,
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    n: int,
) -> None:
    plan = BatchPlan(len(pixels), config.batch, config.resize, config.crop)
    feed = Feed(pixels, labels, int(labels.max()) + 1, torch.device(config.device))
    steps = -(-len(pixels) // config.batch)
    work = [(step, slice(None)) for step in range(n * steps, (n + 1) * steps)]
    exhaust(config, (batch.images for batch in prefetch(plan, work, feed)))


def plain_epoch(config: DataConfig, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
    exhaust(config, (images.to(config.device, non_blocking=True) for images, _ in loader))


def exhaust(config: DataConfig, batches: Iterable[Tensor]) -> None:
    for _ in batches:
        pass
    if config.device == "cuda":
        torch.cuda.synchronize()


def timed(what: str, work: Callable[[], T]) -> tuple[T, float]:
    print(f"  {what}", file=sys.stderr)
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def sample(epoch: Callable[[], object]) -> Sample:
    started = time.perf_counter()
    epoch()
    return Sample(time.perf_counter() - started, 0, "")
