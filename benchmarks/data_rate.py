"""Images/s from JPEG files to augmented batches on the device: bitzoo and a DataLoader, for
`finetune.py`. No network runs beside them. Both have as many workers as there are cores.
"""  # noqa: D205

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
class Course:
    """What both do."""

    photographs: Path
    cache: Path
    resize: int
    crop: int
    batch: int
    device: str


def report(course: Course, rounds: int) -> str:
    """Time bitzoo's first epoch and its parts, then let both take turns."""
    images, checking = timed(
        "bitzoo: checking", lambda: inspect(read_dataset(course.photographs))[0].train
    )
    labels = np.array([example.label for example in images.examples])
    pixels, decoding = timed(
        "bitzoo: decoding into the cache",
        lambda: open_pixels(
            images, course.resize, cache=course.cache, budget_bytes=100_000_000_000
        ),
    )
    loader = plain_loop.make_loader(
        *(course.photographs / "train", course.resize, course.crop, course.batch),
        pin=course.device == "cuda",
    )
    with pixels:
        _, reading = timed("bitzoo: the epoch itself", lambda: our_epoch(course, pixels, labels, 0))
        contestants: dict[str, Callable[[], Sample]] = {
            BASELINE: lambda: sample(lambda: plain_epoch(course, loader)),
            "bitzoo, cache warm": lambda: sample(lambda: our_epoch(course, pixels, labels, 1)),
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
        f"Data: {len(images):,} JPEGs of 500x400, resize {course.resize}, crop {course.crop}, "
        f"batch {course.batch}, {course.device}"
    )
    return rate_table(title, samples, len(images), baseline=BASELINE)


def our_epoch(
    course: Course, pixels: Pixels, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]], n: int
) -> None:
    plan = BatchPlan(len(pixels), course.batch, course.resize, course.crop)
    feed = Feed(pixels, labels, int(labels.max()) + 1, torch.device(course.device))
    steps = -(-len(pixels) // course.batch)
    work = [(step, slice(None)) for step in range(n * steps, (n + 1) * steps)]
    exhaust(course, (batch.images for batch in prefetch(plan, work, feed)))


def plain_epoch(course: Course, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
    exhaust(course, (images.to(course.device, non_blocking=True) for images, _ in loader))


def exhaust(course: Course, batches: Iterable[Tensor]) -> None:
    for _ in batches:
        pass
    if course.device == "cuda":
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
