"""How well a network does on labelled pictures, counted exactly, and what it says of new ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from bitzoo.errors import UsageError
from bitzoo.inference.metrics import (
    Evaluation,
    EvaluationError,
    Integers,
    check_logits,
    checked_labels,
    log_sum_exp,
)
from bitzoo.inference.runner import Runner, one_ahead
from bitzoo.models.preprocessing import EvalTransform

__all__ = [
    "Evaluation",
    "EvaluationError",
    "Guess",
    "Prediction",
    "evaluate",
    "find_pictures",
    "predict",
]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a task's name, how much of it is done, and how much there is."""

Place: TypeAlias = "str | os.PathLike[str]"
_Items = TypeVar("_Items", Integers, list[Path])


class PixelSource(Protocol):
    """What `evaluate` needs of `bitzoo.data.image_store.Pixels`."""

    def __len__(self) -> int: ...

    def take(self, indices: Integers) -> npt.NDArray[np.uint8]:
        """Pictures by number: uint8 (n, size, size, 3), RGB."""


def evaluate(
    model: nn.Module,
    pixels: PixelSource,
    labels: npt.ArrayLike,
    classes: Sequence[str],
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "eager",
    keep_logits: bool = False,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a classifier over labelled pictures and count.

    No picture's logits depend on another picture: batch size and number of processes change them
    by rounding at most, so a count only where two logits are equal to within that. A batch too
    large for a GPU's memory is halved until it fits. `model` keeps its mode, precision and place.

    Args:
        model: A `BiT`, which is optimized here, or any module from images (n, 3, size, size) in
            [-1, 1] to logits, which is used as and where it is, under autocast.
        pixels: The pictures, resized to the edge that the network is to see (BiT-HyperRule's test
            rule: google-research/big_transfer, bit_pytorch/train.py).
        labels: True classes, integers of the same length.
        classes: Class names.
        batch_size: Pictures at a time.
        device: Where to compute; None is where the model is.
        dtype: float32, or bfloat16 or float16 for all but the head, which stays in float32.
        backend: How a `BiT` is run, see `bitzoo.optimize`.
        keep_logits: Whether the result holds the logits.
        rank: Which share of the pictures this process takes: rows rank, rank + world, ...
        world: Number of processes; `Evaluation.merge` puts their results together.
        progress: Called with ``"evaluate"`` and numbers of pictures.

    Raises:
        UsageError: If there are no pictures, or labels do not fit.
        LayoutError: If the model does not have an output a class.
        EvaluationError: If the network's output is no number.
    """
    if not len(pixels):
        raise UsageError("There are no pictures to evaluate: expected at least one, found 0.")
    truth = checked_labels(labels, len(pixels), len(classes))
    rows = np.arange(len(truth), dtype=np.int64)[rank::world]
    network = Runner(model, device, dtype, backend)
    empty = np.empty((0, len(classes)), np.float32)
    parts = [Evaluation.of_logits(classes, truth[:0], empty, rows[:0], keep_logits=keep_logits)]
    done = 0
    with ThreadPoolExecutor(1) as pool:
        batches = _batches(rows, batch_size)
        for batch, images in one_ahead(batches, lambda batch: pool.submit(pixels.take, batch)):
            logits = network(images.result())
            parts.append(
                Evaluation.of_logits(classes, truth[batch], logits, batch, keep_logits=keep_logits)
            )
            done += len(batch)
            if progress is not None:
                progress("evaluate", done, len(rows))
    return Evaluation.merge(parts)


@dataclass(frozen=True)
class Guess:
    """A class the network sees in a picture, and how strongly."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a network says of a picture: its best guesses, or why the picture cannot be read."""

    path: str
    guesses: tuple[Guess, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data: `path`, `error`, and `predictions` with `label` and `score`."""
        guesses = [{"label": guess.label, "score": guess.score} for guess in self.guesses]
        return {"path": self.path, "error": self.error, "predictions": guesses}


def predict(
    model: nn.Module,
    paths: Iterable[Place],
    transform: EvalTransform,
    *,
    names: Sequence[str] | None = None,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    k: int = 5,
    batch_size: int = 32,
    workers: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "eager",
    progress: Progress | None = None,
) -> list[Prediction]:
    """Name what is in pictures; the next ones are decoded while the network looks at some.

    Args:
        model: As in `evaluate`.
        paths: Pictures, and folders, which `find_pictures` expands.
        transform: How the model wants pictures prepared (`bitzoo.create_transform`).
        names: A name for each output; None uses the outputs' numbers.
        activation: Turns logits into scores: ``softmax`` (they sum to 1) or ``sigmoid`` (one
            yes/no question a class, as in BiT-M's head of ImageNet-21k).
        k: Guesses a picture, best first; of equal ones the lower index.
        batch_size: Pictures at a time.
        workers: Threads that decode; None is the number of processors, at most 8.
        device: Where to compute; None is where the model is.
        dtype: As in `evaluate`.
        backend: As in `evaluate`.
        progress: Called with ``"predict"`` and numbers of pictures.

    Returns:
        One prediction a picture, in order; unreadable ones have their `error` set.

    Raises:
        UsageError: If `k` or `activation` is out of range.
        LayoutError: If there is not one name for each output.
        EvaluationError: If the network's output is no number.
    """
    if k < 1 or activation not in _ACTIVATIONS:
        raise UsageError(
            f"Predictions need k of 1 or more and an activation of {', '.join(_ACTIVATIONS)}; "
            f"found k={k!r} and activation={activation!r}."
        )
    files = find_pictures(paths)
    network = Runner(model, device, dtype, backend)
    predictions: list[Prediction] = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for batch, loading in one_ahead(
            _batches(files, batch_size),
            lambda batch: [pool.submit(_load, path, transform) for path in batch],
        ):
            loaded = [future.result() for future in loading]
            images = [item for item in loaded if isinstance(item, np.ndarray)]
            logits = network(np.stack(images)) if images else np.empty((0, 0), np.float32)
            guesses = iter(_guesses(logits, names, activation, k))
            predictions += [
                Prediction(str(path), error=item)
                if isinstance(item, str)
                else Prediction(str(path), next(guesses))
                for path, item in zip(batch, loaded, strict=True)
            ]
            if progress is not None:
                progress("predict", len(predictions), len(files))
    return predictions


def find_pictures(paths: Iterable[Place]) -> list[Path]:
    """Expand folders into the pictures below them, sorted, those of a folder before its folders'.

    In a folder, a picture is a file with an extension that Pillow reads; hidden files and folders
    are left out. Files, missing paths and folders without a picture stay as they are.
    """
    return list(chain.from_iterable(_pictures_at(Path(path)) for path in paths))


def _pictures_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    readable = {ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(folder, name)
            for name in sorted(files)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in readable
        ]
    return found or [path]


def _batches(items: _Items, size: int) -> list[_Items]:
    if size < 1:
        raise UsageError(f"The batch size must be 1 or more, found {size}.")
    return [items[start : start + size] for start in range(0, len(items), size)]


def _load(path: Path, transform: EvalTransform) -> npt.NDArray[np.uint8] | str:
    """The picture's pixels, or why there are none."""
    if path.is_dir():
        return f"The folder {str(path)!r} has no pictures in it or below it."
    try:
        return transform.array(path)
    except UsageError as error:
        return str(error)


def _guesses(
    logits: npt.NDArray[np.float32], names: Sequence[str] | None, activation: str, k: int
) -> list[tuple[Guess, ...]]:
    outputs = logits.shape[1]
    names = [str(index) for index in range(outputs)] if names is None else names
    if len(logits):
        check_logits(logits, len(logits), len(names))
    scores = _ACTIVATIONS[activation](logits.astype(np.float64))
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return [
        tuple(Guess(names[index], index, float(row[index])) for index in order)
        for row, order in zip(scores, best.tolist(), strict=True)
    ]


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.exp(logits - log_sum_exp(logits)[:, None]))


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))  # of -1000 too, without a warning


_ACTIVATIONS = {"softmax": _softmax, "sigmoid": _sigmoid}
