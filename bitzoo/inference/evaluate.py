"""How well a classifier does on labelled images, counted exactly."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bitzoo.data.dataset import DataSource, ImageSet, Split, list_splits
from bitzoo.data.image_store import open_pixels
from bitzoo.data.validation import inspect
from bitzoo.errors import UsageError
from bitzoo.files import Progress
from bitzoo.inference.metrics import Evaluation, Integers, checked_labels
from bitzoo.inference.optimize import chosen_device
from bitzoo.inference.runner import Runner, batches_of, compute_dtype, one_ahead
from bitzoo.inference.selection import judged, record_of, select
from bitzoo.zoo.classifier import Classifier, load_classifier, title_of
from bitzoo.zoo.info import create_transform, labels

__all__ = ["PixelSource", "evaluate", "evaluate_pixels", "labels_of"]


def evaluate(
    model: Classifier,
    data: DataSource,
    *,
    split: str | None = None,
    skip_bad: bool = False,
    batch_size: int = 32,
    dtype: str = "float32",
    backend: str = "eager",
    device: torch.device | str | None = None,
    cache_gb: float = 20.0,
    workers: int | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a classifier on labelled images, as `bitzoo evaluate` does.

    A run of `bitzoo finetune` knows the images that it trained on, by their content. On data
    without a split of their own, they are left out: on those of the run, exactly the held-out
    images count. `Evaluation.selection` says which images were counted, and how many of them were
    trained on.

    Args:
        model: A run folder, another checkpoint or name that says what its classes are called, or
            a model of `bitzoo.create_model`.
        data: A folder of class folders, a manifest, arrays or a Hugging Face data set, as for
            `bitzoo.finetune`.
        split: What to count: "train", "val" or "test", of the data or else of the run, or "all".
            None for val, else test, else the images that were not trained on, else all.
        skip_bad: Whether to leave out images that cannot be judged: damaged ones, and those of
            classes that the network does not have. They are listed in the result.
        batch_size: Images per batch.
        dtype: Compute dtype: ``float32``, or ``bfloat16`` or ``float16``, which are faster.
        backend: What runs the network; see `bitzoo.optimize`.
        device: Where to compute; None is a GPU if there is one that the backend runs on.
        cache_gb: Most disk space for decoded images, in GB.
        workers: Processes that decode; None is one per core.
        weights: Which weights of a training checkpoint; as for `bitzoo.create_model`.
        progress: Called with a task, how much of it is done, and how much there is.

    Returns:
        Counts, shares and losses, image by image.

    Raises:
        UsageError: If the model does not name its classes, an option is out of range, the split
            does not exist, or no image is left.
        DatasetError: If an image cannot be read; lists all of them.
        EvaluationError: If the network's output is not finite.
    """
    network = load_classifier(model, weights)
    names = labels(network)
    if names is None:
        raise UsageError(
            f"{title_of(model)} does not say what its classes are called, so its outputs cannot be "
            "matched with the data's. Evaluate a run of `bitzoo finetune`."
        )
    precision = compute_dtype(dtype)
    title, record = title_of(model), record_of(network)
    listed = list_splits(data, names, skip_unknown=skip_bad)
    chosen, selection = select(listed, split, record, title, workers=workers, progress=progress)
    transform = create_transform(network)
    images, summary = inspect(
        ImageSet(
            tuple(names),
            Split("train", ()),
            Split("val", chosen),
            listed.source,
            problems=listed.problems,
        ),
        skip_bad=skip_bad,
        training=False,
        workers=workers,
        progress=progress,
        bit_depth=transform.bit_depth,
    )
    counted = images.val or images.train
    trained = record.trained if record and record.can_compare(chosen) else None
    selection = judged(selection, counted.examples, trained, title, summary.skipped)
    selection = replace(selection, notes=(*selection.notes, *summary.notes))
    with open_pixels(
        counted,
        transform,
        budget_bytes=int(cache_gb * 1e9),
        workers=workers,
        progress=progress,
        bit_depth=summary.bit_depth,
    ) as pixels:
        found = evaluate_pixels(
            network,
            pixels,
            labels_of(counted),
            names,
            batch_size=batch_size,
            dtype=precision,
            backend=backend,
            device=chosen_device(device, backend),
            progress=progress,
        )
    return replace(found, selection=selection)


def labels_of(split: Split) -> Integers:
    """Return the class index of every example, int64."""
    return np.array([example.label for example in split.examples], np.int64)


class PixelSource(Protocol):
    """What `evaluate_pixels` needs of `bitzoo.data.image_store.Pixels`."""

    def __len__(self) -> int: ...

    def take(self, indices: Integers) -> npt.NDArray[np.uint8]:
        """Images by number: uint8 (n, size, size, 3), RGB."""


def evaluate_pixels(
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
    """Run a network over labelled pixels and count.

    No image's logits depend on another image: batch size and number of processes change them by
    rounding at most, so they change a count only where two logits are equal to within that. A
    batch too large for a GPU's memory is halved until it fits. `model` keeps its mode, precision
    and place.

    Args:
        model: A `BiT`, which is optimized here, or any module from images (n, 3, size, size) in
            [-1, 1] to logits, which is used as and where it is, under autocast.
        pixels: The images, resized to the edge that the network is to see (BiT-HyperRule's test
            rule: google-research/big_transfer, bit_pytorch/train.py).
        labels: True classes, integers of the same length.
        classes: Class names.
        batch_size: Images per batch.
        device: Where to compute; None is where the model is.
        dtype: float32, or bfloat16 or float16 for all but the head, which stays in float32.
        backend: How a `BiT` is run, see `bitzoo.optimize`.
        keep_logits: Whether the result holds the logits.
        rank: Which share of the images this process takes: rows rank, rank + world, ...
        world: Number of processes; `Evaluation.merge` puts their results together.
        progress: Called with ``"evaluate"`` and numbers of images.

    Returns:
        The result of this process's share.

    Raises:
        UsageError: If there are no images, or labels do not fit.
        LayoutError: If the model does not have one output per class.
        EvaluationError: If the network's output is not finite.
    """
    if not len(pixels):
        raise UsageError("There are no images to evaluate: expected at least one, found 0.")
    truth = checked_labels(labels, len(pixels), len(classes))
    rows = np.arange(len(truth), dtype=np.int64)[rank::world]
    network = Runner(model, device, dtype, backend)
    empty = np.empty((0, len(classes)), np.float32)
    parts = [Evaluation.of_logits(classes, truth[:0], empty, rows[:0], keep_logits=keep_logits)]
    done = 0
    with ThreadPoolExecutor(1) as pool:
        batches = batches_of(rows, batch_size)
        for batch, images in one_ahead(batches, lambda batch: pool.submit(pixels.take, batch)):
            logits = network(images.result())
            parts.append(
                Evaluation.of_logits(classes, truth[batch], logits, batch, keep_logits=keep_logits)
            )
            done += len(batch)
            if progress is not None:
                progress("evaluate", done, len(rows))
    return Evaluation.merge(parts)
