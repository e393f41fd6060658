"""The features of one model for a probe: computed once, with what that took, within a time limit.

Speed and memory are measured while the features are computed, and kept beside them in the cache.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitzoo.data.dataset import Split
from bitzoo.data.image_store import Pixels, open_pixels
from bitzoo.errors import BitzooError, CheckpointError, UsageError
from bitzoo.files import Progress, write_json
from bitzoo.inference.feature_cache import Features
from bitzoo.inference.features import BATCH, TASK, Work, compute_features, find_features
from bitzoo.inference.peak_memory import PeakMemory, free_memory
from bitzoo.inference.runner import compute_dtype
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.small_files import read_json

MEASURED_NAME = "measured.json"
_STEM_MAPS = 5
"""Activations at the peak, in maps of the stem: R50x1 took 5.0 of them at 128 px and at 224 px, at
batches of 64 and 32, beside its weights."""
_COPIES = {"eager": 1, "compile": 2, "onnxruntime": 3, "openvino": 3}
"""Copies of the weights that a backend makes: folded, and as a graph, and packed."""


@dataclass(frozen=True)
class Way:
    """How features are computed.

    Attributes:
        transform: How images are prepared.
        device: Where.
        dtype: Name of the compute dtype.
        backend: What runs the network.
        cache_bytes: Most bytes of the cache of features, and as many of decoded images.
        workers: Processes that decode.
    """

    transform: EvalTransform
    device: torch.device
    dtype: str
    backend: str
    cache_bytes: int
    workers: int | None


@dataclass(frozen=True)
class Found:
    """The features of a model's images, and what they took.

    Attributes:
        features: float32 (n, width).
        computed: Images that were computed now; the others' features were in the cache.
        images_per_s: Images that the network computes in a second; None if that was not measured.
        memory_bytes: As in `Probed`.
    """

    features: Features
    computed: int
    images_per_s: float | None
    memory_bytes: int | None


class TimeIsUpError(BitzooError):
    """The time limit was reached; `done` of `total` images are in the cache."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"{done:,} of {total:,} images")
        self.done, self.total = done, total


class TimeLimit:
    """The time that is left, if there is a limit."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def is_reached(self) -> bool:
        """Whether no time is left."""
        return self._end is not None and time.monotonic() >= self._end

    def ending(self, progress: Progress | None) -> Progress:
        """Return a callback that reports to `progress`, and ends features when the time is up."""

        def report(task: str, done: int, total: int) -> None:
            if progress is not None:
                progress(task, done, total)
            if task == TASK and done < total and self.is_reached:
                raise TimeIsUpError(done, total)

        return report


class Images:
    """The images of a probe, prepared as all of its networks are to see them.

    They are decoded when the first network needs them: into the cache if others come after it, or
    else as it takes them.
    """

    def __init__(self, split: Split, way: Way, progress: Progress | None) -> None:
        self._split, self._way, self._progress = split, way, progress
        self._resources = contextlib.ExitStack()
        self._decoding = self._open(0)
        self._cached: Pixels | None = None

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def named(self) -> Pixels:
        """Return the images without decoding any: their contents are known."""
        return self._decoding

    def for_networks(self, count: int) -> Pixels:
        """Return the images for so many networks that are still to come."""
        if self._cached is None and count > 1 and self._way.cache_bytes:
            self._cached = self._open(self._way.cache_bytes)
        return self._cached or self._decoding

    def _open(self, budget: int) -> Pixels:
        opened = open_pixels(
            self._split,
            self._way.transform,
            budget_bytes=budget,
            workers=self._way.workers,
            progress=self._progress,
        )
        return self._resources.enter_context(opened)


def find_or_compute(
    network: BiT, images: Images, way: Way, left: int, progress: Progress | None
) -> Found:
    """Return a model's features, from the cache as far as they are there.

    Args:
        network: The model; its head is not used.
        images: The images.
        way: How to compute.
        left: How many models are still to be tried, this one among them.
        progress: As for `compute_features`; may raise to end the work, and what is done is kept.

    Raises:
        UsageError: If the memory is too little, or the network takes other than RGB images.
        BitzooError: As computing raises.
    """
    if network.architecture.in_chans != 3:
        raise UsageError(
            f"The network takes images of {network.architecture.in_chans} channels; expected 3, as "
            "images are read as RGB."
        )
    work, dtype = Work(), compute_dtype(way.dtype)
    known = find_features(
        network,
        images.named(),
        way.device,
        dtype=dtype,
        backend=way.backend,
        budget_bytes=way.cache_bytes,
        work=work,
    )
    if known is not None:
        return Found(known, 0, *_measured(work.place))
    _require_memory(network, way)
    pixels = images.for_networks(left)
    with _memory_errors(), PeakMemory(way.device) as peak:
        features = compute_features(
            network,
            pixels,
            way.device,
            progress,
            dtype=dtype,
            backend=way.backend,
            budget_bytes=way.cache_bytes,
            work=work,
        )
    if work.place is not None:
        _keep(work.place, work.images_per_s, peak.bytes)
    return Found(features, work.images, work.images_per_s, peak.bytes)


def _require_memory(network: BiT, way: Way) -> None:
    free, needed = free_memory(way.device), needed_memory(network, way)
    if free is not None and needed > free:
        raise UsageError(
            f"It needs about {needed / 1e9:.1f} GB of memory at {way.transform.crop} px, and "
            f"{free / 1e9:.1f} GB are free. Use a machine with more, or a lower `resolution`."
        )


def needed_memory(network: BiT, way: Way) -> int:
    """Return about how many bytes of memory computing takes, besides the libraries."""
    form = network.architecture
    size = 4 if way.dtype == "float32" else 2
    weights = 4 * form.num_params(0) * _COPIES[way.backend]
    stem = BATCH * form.stem_channels * (way.transform.crop // 2) ** 2 * size
    return weights + _STEM_MAPS * stem


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn what torch raises where memory does not suffice into an error of ours."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_little(error) from error
    except RuntimeError as error:
        if isinstance(error, BitzooError) or "allocate" not in str(error):
            raise
        raise _too_little(error) from error


def _too_little(error: BaseException) -> UsageError:
    return UsageError(
        f"The memory does not suffice ({str(error).splitlines()[0][:100] if str(error) else 'full'}"
        "). Use a machine with more, or a lower `resolution`."
    )


def _keep(place: Path, images_per_s: float | None, memory_bytes: int) -> None:
    with contextlib.suppress(OSError):  # said where the features themselves cannot be kept
        if place.is_dir():
            record = {"images_per_s": images_per_s, "memory_bytes": memory_bytes}
            write_json(place / MEASURED_NAME, record)


def _measured(place: Path | None) -> tuple[float | None, int | None]:
    """Return what an earlier call measured; None for what is not known."""
    if place is None:
        return None, None
    try:
        record = read_json(place / MEASURED_NAME)
    except (CheckpointError, OSError):
        return None, None
    rate: Any = record.get("images_per_s")
    memory = record.get("memory_bytes")
    return (
        float(rate) if type(rate) in (int, float) and 0 < rate <= sys.float_info.max else None,
        memory if type(memory) is int and 0 < memory <= sys.maxsize else None,
    )
