"""What a classifier sees in images: its likeliest classes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bitzoo.data.dataset import Example
from bitzoo.data.decode_workers import checked_image
from bitzoo.data.folder import Row
from bitzoo.data.folder_scan import FolderScan
from bitzoo.data.readers import read_listing
from bitzoo.data.source_names import library_of
from bitzoo.display import Displayed
from bitzoo.errors import BitzooError, UsageError
from bitzoo.files import Progress
from bitzoo.inference.metrics import check_logits, log_sum_exp
from bitzoo.inference.optimize import chosen_device
from bitzoo.inference.runner import Runner, batches_of, compute_dtype, one_ahead
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.progress import shown
from bitzoo.zoo.classifier import Classifier, load_classifier
from bitzoo.zoo.info import create_transform, info, labels

__all__ = ["Guess", "Prediction", "Predictions", "find_images", "predict", "predict_images"]

Place = str | os.PathLike[str]
Activation = Literal["softmax", "sigmoid"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guess:
    """A class that the network sees in an image, and how strongly."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, repr=False)
class Prediction(Displayed):
    """What a network says of an image: its best guesses, or why the image cannot be read."""

    path: str
    guesses: tuple[Guess, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data: `path`, `error`, and `predictions` with `label` and `score`."""
        guesses = [{"label": guess.label, "score": guess.score} for guess in self.guesses]
        return {"path": self.path, "error": self.error, "predictions": guesses}

    def display_rows(self) -> list[tuple[str, object]]:
        """Return the path, then a row per guess."""
        guesses = [(guess.label, f"{guess.score:.4f}") for guess in self.guesses]
        return [("path", self.path), *guesses, *([("error", self.error)] if self.error else [])]


class Predictions(Displayed, list[Prediction]):
    """A prediction per image, in order.

    Attributes:
        skipped: What could not be read and was left out, as `skip_bad` asks; with their `error`.
    """

    def __init__(self, items: Iterable[Prediction] = (), skipped: Sequence[Prediction] = ()):
        super().__init__(items)
        self.skipped = tuple(skipped)

    @property
    def failed(self) -> list[Prediction]:
        """Those of images that cannot be read."""
        return [prediction for prediction in self if prediction.error]

    def display_rows(self) -> list[tuple[str, object]]:
        """Return a row per image."""
        rows: list[tuple[str, object]] = [
            (
                prediction.path,
                prediction.error
                or ", ".join(f"{guess.label} {guess.score:.4f}" for guess in prediction.guesses),
            )
            for prediction in self
        ]
        if self.skipped:
            rows.append(("left out", f"{len(self.skipped):,} that cannot be read"))
        return rows

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return JSON-ready data: `Prediction.to_dict` of each."""
        return [prediction.to_dict() for prediction in self]


def predict(
    model: Classifier,
    paths: Place | Iterable[Place],
    *,
    top: int = 1,
    activation: Activation | None = None,
    skip_bad: bool = False,
    batch_size: int = 32,
    dtype: str = "float32",
    backend: str = "eager",
    device: torch.device | str | None = None,
    weights: str | None = None,
    progress: Progress | bool | None = None,
) -> Predictions:
    """Classify images, as `bitzoo predict` does.

    Args:
        model: A catalogue name, a checkpoint file, a run folder, or a model of
            `bitzoo.create_model`.
        paths: An image, a folder of images, the name of a library's data set such as
            `tfds:NAME@test`, or several of these.
        top: Classes per image, the likeliest first.
        activation: What makes scores of logits, ``softmax`` or ``sigmoid``; None is what the model
            states, or softmax, with a warning, where it states none.
        skip_bad: Whether to leave out images that cannot be read; `Predictions.skipped` has them.
        batch_size: Images per batch.
        dtype: Compute dtype: ``float32``, or ``bfloat16`` or ``float16``, which are faster.
        backend: What runs the network; see `bitzoo.optimize`.
        device: Where to compute; None is a GPU if there is one that the backend runs on.
        weights: Which weights of a training checkpoint; as for `bitzoo.create_model`.
        progress: As for `bitzoo.finetune`.

    Returns:
        One prediction per image, in order; those of unreadable images have their `error` set.
        Web addresses are not fetched: each is such an error.

    Raises:
        UsageError: If an option is out of range.
        EvaluationError: If the network's output is not finite.
        BitzooError: As `bitzoo.create_model` raises.
    """
    with shown(progress) as report:
        network = load_classifier(model, weights)
        found = predict_images(
            network,
            [paths] if isinstance(paths, str | os.PathLike) else paths,
            create_transform(network),
            names=labels(network),
            activation=_activation_of(network, activation),
            top=top,
            batch_size=batch_size,
            dtype=compute_dtype(dtype),
            backend=backend,
            device=chosen_device(device, backend),
            progress=report,
        )
    if not skip_bad:
        return found
    return Predictions((p for p in found if not p.error), skipped=found.failed)


def _activation_of(model: BiT, wanted: Activation | None) -> Activation:
    """Return what turns a model's logits into scores; what is chosen for the user is said."""
    stated = wanted or info(model).activation
    if stated is None:
        _log.warning(
            "The model does not state its activation, so softmax is used. Say which is right if "
            "you know it: softmax or sigmoid."
        )
    return stated or "softmax"


def predict_images(
    model: nn.Module,
    paths: Iterable[Place],
    transform: EvalTransform,
    *,
    names: Sequence[str] | None = None,
    activation: Activation = "softmax",
    top: int = 5,
    batch_size: int = 32,
    workers: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "eager",
    progress: Progress | None = None,
) -> Predictions:
    """Classify images; the next batch is decoded while the network runs on one.

    Args:
        model: As in `bitzoo.inference.evaluate.evaluate_pixels`.
        paths: Images, and folders, which `find_images` expands, and names of libraries' data sets;
            web addresses become errors.
        transform: How the model wants images prepared (`bitzoo.create_transform`).
        names: A name for each output; None uses the outputs' numbers.
        activation: Turns logits into scores: ``softmax`` (they sum to 1) or ``sigmoid``
            (multi-label: one sigmoid per class, as BiT-M's head of ImageNet-21k).
        top: Guesses per image, best first; of equal ones the lower index.
        batch_size: Images per batch.
        workers: Threads that decode; None is the number of processors, at most 8.
        device: Where to compute; None is where the model is.
        dtype: As in `evaluate_pixels`.
        backend: As in `evaluate_pixels`.
        progress: Called with ``"predict"`` and numbers of images.

    Returns:
        One prediction per image, in order; those of unreadable images have their `error` set.

    Raises:
        UsageError: If `top` or `activation` is out of range.
        LayoutError: If there is not one name for each output.
        EvaluationError: If the network's output is not finite.
    """
    if top < 1:
        raise UsageError(f"`top` must be at least 1, found {top!r}.")
    if activation not in _ACTIVATIONS:
        raise UsageError(
            f"`activation` must be one of {', '.join(_ACTIVATIONS)}, found {activation!r}."
        )
    files: list[Place | Row] = []
    for kind, group in groupby(paths, _kind):
        some = list(group)
        if kind is _Kind.NAMED:
            files += (row for name in some for row in _rows(str(name), progress))
        else:
            files += map(str, some) if kind is _Kind.WEB else find_images(some)
    network = Runner(model, device, dtype, backend)
    predictions = Predictions()
    threads = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    with warnings.catch_warnings(), threads as pool:
        warnings.simplefilter("ignore")  # Pillow's, about broken EXIF data, as in validation
        for batch, loading in one_ahead(
            batches_of(files, batch_size),
            lambda batch: [pool.submit(_load, path, transform) for path in batch],
        ):
            loaded = [future.result() for future in loading]
            images = [item for item in loaded if isinstance(item, np.ndarray)]
            logits = network(np.stack(images)) if images else np.empty((0, 0), np.float32)
            guesses = iter(_guesses(logits, names, activation, top))
            predictions += [
                Prediction(_shown(place), error=item)
                if isinstance(item, str)
                else Prediction(_shown(place), next(guesses))
                for place, item in zip(batch, loaded, strict=True)
            ]
            if progress is not None:
                progress("predict", len(predictions), len(files))
    return predictions


def find_images(paths: Iterable[Place]) -> list[Path]:
    """Expand folders into the images below them, sorted; a folder's own come before its folders'.

    In a folder, `bitzoo.data.folder_scan` says what is an image, as for training; what it leaves
    out is said. Files, missing paths and folders without an image stay as they are.
    """
    scan = FolderScan()
    found: list[Path] = []
    for path in map(Path, paths):
        found += (scan.images_below(path, set()) if path.is_dir() else []) or [path]
    for note in scan.notes():
        _log.warning(note)
    for folder, why in scan.unreadable:
        _log.warning("Ignored: the folder %s cannot be read: %s.", folder, why)
    return found


def _is_web_address(path: Place) -> bool:
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))


class _Kind(Enum):
    """What stands for images: files and folders, a web address, or a library's data set."""

    FILES, WEB, NAMED = range(3)


def _kind(path: Place) -> _Kind:
    if _is_web_address(path):
        return _Kind.WEB
    return _Kind.NAMED if isinstance(path, str) and library_of(path) else _Kind.FILES


def _rows(name: str, progress: Progress | None) -> tuple[Row, ...]:
    """Return the images of a library's data set, labelled or not."""
    listing = read_listing(name, progress=progress)
    for problem in listing.problems:
        _log.warning("Ignored: %s.", problem)
    return (*listing.rows, *listing.unlabelled)


def _shown(place: Place | Row) -> str:
    return place.key if isinstance(place, Row) else str(place)


def _load(path: Place | Row, transform: EvalTransform) -> npt.NDArray[np.uint8] | str:
    """Return the image's pixels, or why there are none."""
    if isinstance(path, Row):
        example = Example(0, path.path, path.load, path.key)
        try:
            return transform.array(checked_image(example, transform.bit_depth))
        except BitzooError as error:
            return str(error)
    if _is_web_address(path):
        return "Images are not fetched from the web. Save the image as a file, and give its path."
    if os.path.isdir(path):
        return f"The folder {str(path)!r} has no images in it or below it."
    if not os.path.lexists(path):
        return f"The image {str(path)!r} cannot be read: no such file or folder. Check the path."
    try:
        return transform.array(path)
    except UsageError as error:
        return str(error)


def _guesses(
    logits: npt.NDArray[np.float32], names: Sequence[str] | None, activation: str, top: int
) -> list[tuple[Guess, ...]]:
    outputs = logits.shape[1]
    names = [str(index) for index in range(outputs)] if names is None else names
    if len(logits):
        check_logits(logits, len(logits), len(names))
    scores = _ACTIVATIONS[activation](logits.astype(np.float64))
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        tuple(Guess(names[index], index, float(row[index])) for index in order)
        for row, order in zip(scores, best.tolist(), strict=True)
    ]


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.exp(logits - log_sum_exp(logits)[:, None]))


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))  # of -1000 too, without a warning


_ACTIVATIONS = {"softmax": _softmax, "sigmoid": _sigmoid}
