"""How well a classifier does on labelled images, counted exactly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bitzoo.data.dataset import DataSource, Example, ImageSet, Listed, Split, list_splits
from bitzoo.data.decode_workers import count_cores
from bitzoo.data.image_check import ImageCheck
from bitzoo.data.image_store import open_pixels
from bitzoo.data.kept_checks import KeptChecks, describe_kept
from bitzoo.data.label_sets import label_sets_of
from bitzoo.data.label_space import output_space
from bitzoo.data.problems import DatasetError
from bitzoo.data.rows_while_checking import WantedRows
from bitzoo.data.validation import DataSummary, check_images, inspect
from bitzoo.errors import BitzooError, UsageError
from bitzoo.files import Progress
from bitzoo.inference.metrics import Evaluation, Integers, checked_labels
from bitzoo.inference.optimize import chosen_device
from bitzoo.inference.own_data import OwnData, own_data
from bitzoo.inference.processes import (
    in_all_processes,
    join_processes,
    local_processes,
    process_device,
)
from bitzoo.inference.published import Judged, names_of_source, published_about
from bitzoo.inference.runner import Runner, batches_of, compute_dtype, one_ahead
from bitzoo.inference.selection import judged, record_of, select
from bitzoo.inference.truth import find_truth, task_of
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.progress import shown
from bitzoo.zoo.classifier import Classifier, load_classifier, title_of
from bitzoo.zoo.info import create_transform, info

__all__ = ["PixelSource", "evaluate", "evaluate_pixels", "labels_of"]


def evaluate(
    model: Classifier,
    data: DataSource | None = None,
    *,
    split: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    outputs: str | None = None,
    skip_bad: bool = False,
    recheck: bool = False,
    batch_size: int = 32,
    dtype: str = "float32",
    backend: str = "eager",
    device: torch.device | str | None = None,
    cache_gb: float = 20.0,
    workers: int | None = None,
    weights: str | None = None,
    progress: Progress | bool | None = None,
) -> Evaluation:
    """Evaluate a classifier on labelled images, as `bitzoo evaluate` does.

    Images are prepared as the model states (`bitzoo.create_transform`), and are the same pixels
    that `bitzoo.predict` sees. The data set's classes are matched with the model's outputs by
    WordNet id, by name, or by number in a published order; `Evaluation.matched` says how.

    A run of `bitzoo finetune` knows the images that it trained on, by their content. On data
    without a split of their own, they are left out: on those of the run, exactly the held-out
    images count. `Evaluation.selection` says which images were counted, and how many of them were
    trained on.

    In the processes of ``torchrun`` or ``accelerate launch``, each decodes and judges its share of
    the images, and all return the whole result; all of them must call this.

    Args:
        model: A catalogue name, a checkpoint file, a run folder, or a model of
            `bitzoo.create_model`.
        data: Labelled images in any form that `bitzoo.finetune` takes. None for those of the
            model's own task, where that is known: the task's test images for a checkpoint of VTAB,
            ILSVRC-2012's validation images for a model of its classes, and a run's own data.
        split: What to count: "train", "val" or "test", of the data or else of the run, or "all".
            None for val, else test, else the images that were not trained on, else all.
        labels: "real" for ReaL's labels, of which an image of ILSVRC-2012's validation set may have
            several or none, or a file like them; or, for classes that are called by number, whose
            numbers they are: "index" for the outputs', "imagenet1k" or "imagenet21k_goog" for a
            published list's, or a task. None for the classes that the data have.
        outputs: Which outputs compete: "all", or "data" for those of the data's classes. None for
            what the published protocol of the data does; it is said.
        skip_bad: Whether to leave out images that cannot be judged: damaged ones, and those of
            classes that the network does not have. They are listed in the result.
        recheck: Whether to read and decode all images to check them, also those that were checked
            before and are unchanged by size, time and inode.
        batch_size: Images per batch.
        dtype: Compute dtype: ``float32``, or ``bfloat16`` or ``float16``, which are faster.
        backend: What runs the network; see `bitzoo.optimize`.
        device: Where to compute; None is a GPU if there is one that the backend runs on.
        cache_gb: Most disk space for decoded images, in GB.
        workers: Processes that decode; None is one per core.
        weights: Which weights of a training checkpoint; as for `bitzoo.create_model`.
        progress: As for `bitzoo.finetune`.

    Returns:
        Counts, shares with their 95 % interval, losses image by image, and what others published.

    Raises:
        UsageError: If an option is out of range, the split does not exist, no image is left, or it
            is not known on which data the model is to be evaluated.
        DatasetError: If the classes cannot be matched, or an image cannot be read; lists all of
            them.
        EvaluationError: If the network's output is not finite.
    """
    precision = compute_dtype(dtype)
    own = _Share.of(device, backend)
    with shown(progress) as report:
        network = load_classifier(model, weights)
        known, title, record = info(network), title_of(model), record_of(network)
        sigmoid = known.activation == "sigmoid"
        given = own_data(known, title) if data is None else OwnData(data)
        space = output_space(known)
        listed = _listed(given, space.names or (), report)
        truth = find_truth(listed, space, task_of(given.source), labels, outputs, skip_bad)
        listed = listed.with_targets(truth.names, truth.target)
        workers, budget = workers or max(1, count_cores() // local_processes()), int(cache_gb * 1e9)
        kept = KeptChecks.of(listed.source, recheck=recheck)
        chosen, selection = select(
            listed, split, record, title, workers=workers, progress=report, kept=kept
        )
        examples = truth.judgeable(chosen)
        transform = create_transform(network)
        counted, summary = _inspect(
            listed, examples, truth.names, own, transform, skip_bad, workers, report, kept, budget
        )
        if not counted.examples:
            raise _nothing_to_count()
        trained = record.trained if record and record.can_compare(chosen) else None
        selection = judged(selection, counted.examples, trained, title, summary.skipped)
        notes = (*selection.notes, *truth.notes, *summary.notes)
        selection = replace(selection, notes=(given.chosen, *notes) if given.chosen else notes)
        transform = replace(transform, bit_depth=summary.bit_depth)

        def evaluate_share() -> Evaluation:
            part = Split(counted.name, counted.examples[own.rank :: own.world])
            if not part.examples:  # fewer images than processes
                return Evaluation.of_logits(
                    truth.names, *_nothing(len(truth.names)), accepted=truth.accepted_by(())
                )
            with open_pixels(
                part,
                transform,
                budget_bytes=budget,
                workers=workers,
                progress=report,
            ) as pixels:
                found = evaluate_pixels(
                    network,
                    pixels,
                    labels_of(part),
                    truth.names,
                    batch_size=batch_size,
                    dtype=precision,
                    backend=backend,
                    device=own.device,
                    outputs=truth.match.competing,
                    accepted=truth.accepted_by(part.examples),
                    sigmoid=sigmoid,
                    progress=report,
                )
            return replace(found, rows=found.rows * own.world + own.rank)

        found = Evaluation.merge(in_all_processes(evaluate_share))
        about = Judged(
            names_of_source(given.source, selection.split),
            truth.ids(counted.examples),
            found.count,
            len(chosen),
            real=truth.is_real,
            restricted=truth.match.competing is not None,
        )
        return replace(
            found,
            selection=selection,
            matched=truth.how,
            kept=summary.kept,
            published=published_about(known, about, transform),
        )


@dataclass(frozen=True)
class _Share:
    """Which of the processes this is, and where it computes."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def of(cls, device: torch.device | str | None, backend: str) -> _Share:
        """Return this process's; one that was started alone joins no group."""
        chosen = chosen_device(device, backend)
        if "LOCAL_RANK" not in os.environ:
            return cls(0, 1, chosen)
        name = device if isinstance(device, str) else None
        processes = join_processes(name)
        if name is not None or processes.device.type == chosen.type:
            chosen = process_device(name)
        return cls(processes.process_index, processes.num_processes, chosen)


def _listed(given: OwnData, names: Sequence[str], progress: Progress | None) -> Listed:
    """List the data; where the model chose them, an error says what to give instead."""
    try:
        return list_splits(given.source, names, progress=progress)
    except BitzooError as error:
        if not given.otherwise:
            raise
        raise DatasetError(f"{given.chosen} {error} {given.otherwise}") from error


def _inspect(
    listed: Listed,
    examples: Sequence[Example],
    names: Sequence[str],
    own: _Share,
    transform: EvalTransform,
    skip_bad: bool,
    workers: int,
    progress: Progress | None,
    kept: KeptChecks,
    budget: int,
) -> tuple[Split, DataSummary]:
    """Check that the images can be read, each process its share, and return those that can.

    Of several processes, each would wait for the others to fill the cache: they only check.
    """
    share = examples[own.rank :: own.world]

    def check_share() -> tuple[list[ImageCheck], list[int]]:
        checks = check_images(
            share,
            workers=workers,
            progress=progress,
            kept=kept,
            rows=WantedRows({"": transform}, budget) if own.world == 1 else None,
            splits=[""] * len(share),
        )
        return checks, kept.used

    done = in_all_processes(check_share)
    parts = [checks for checks, _ in done]
    images, summary = inspect(
        ImageSet(
            tuple(names),
            Split("train", ()),
            Split("val", tuple(examples)),
            listed.source,
            problems=listed.problems,
        ),
        skip_bad=skip_bad,
        training=False,
        bit_depth=transform.bit_depth,
        checks=[parts[row % own.world][row // own.world] for row in range(len(examples))],
    )
    used = [at for _, times in done for at in times]
    return images.val or images.train, replace(summary, kept=describe_kept(used, len(examples)))


def _nothing_to_count() -> UsageError:
    return UsageError("There are no images to evaluate: expected at least one, found 0.")


def _nothing(classes: int) -> tuple[Integers, npt.NDArray[np.float32]]:
    return np.empty(0, np.int64), np.empty((0, classes), np.float32)


def labels_of(split: Split) -> Integers:
    """Return the class index of every example, int64.

    Raises:
        DatasetError: If an example has several classes; `label_sets_of` returns those.
    """
    labels = label_sets_of(split).single
    if labels is None:
        raise DatasetError(
            f"Every image must have one class here, but images of {split.name} have several "
            "labels. `bitzoo.pretrain` trains on several, with the recipe bit-m."
        )
    return labels


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
    outputs: Sequence[int] | None = None,
    accepted: Sequence[Sequence[int]] | None = None,
    sigmoid: bool = False,
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
        pixels: The images, prepared as the network is to see them. An image that stands in for
            another (`Pixels.used`) counts by its own class.
        labels: True classes, integers of the same length.
        classes: Class names.
        batch_size: Images per batch.
        device: Where to compute; None is where the model is.
        dtype: float32, or bfloat16 or float16 for all but the head, which stays in float32.
        backend: How a `BiT` is run, see `bitzoo.optimize`.
        keep_logits: Whether the result holds the logits.
        rank: Which share of the images this process takes: rows rank, rank + world, ...
        world: Number of processes; `Evaluation.merge` puts their results together.
        outputs: The outputs that compete, one per class; None for all of them.
        accepted: The labels of each image that are right, at least one; None for `labels`.
        sigmoid: Whether scores and losses are those of a sigmoid for each class.
        progress: Called with ``"evaluate"`` and numbers of images.

    Returns:
        The result of this process's share.

    Raises:
        UsageError: If there are no images, or labels do not fit.
        LayoutError: If the model does not have one output per class.
        EvaluationError: If the network's output is not finite.
    """
    if not len(pixels):
        raise _nothing_to_count()
    truth = checked_labels(labels, len(pixels), len(classes))
    columns = None if outputs is None else np.asarray(outputs, np.int64)
    rows = np.arange(len(truth), dtype=np.int64)[rank::world]
    network = Runner(model, device, dtype, backend)
    stand_ins = getattr(pixels, "used", None)

    def of(batch: Integers, logits: npt.NDArray[np.float32]) -> Evaluation:
        used = batch if stand_ins is None else stand_ins(batch)
        right = None if accepted is None else [accepted[row] for row in used]
        return Evaluation.of_logits(
            *(classes, truth[used], logits, batch),
            keep_logits=keep_logits,
            accepted=right,
            sigmoid=sigmoid,
        )

    parts = [of(rows[:0], _nothing(len(classes))[1])]
    done = 0
    with ThreadPoolExecutor(1) as pool:
        batches = batches_of(rows, batch_size)
        for batch, images in one_ahead(batches, lambda batch: pool.submit(pixels.take, batch)):
            logits = network(images.result())
            parts.append(of(batch, logits if columns is None else logits[:, columns]))
            done += len(batch)
            if progress is not None:
                progress("evaluate", done, len(rows))
    return Evaluation.merge(parts)
