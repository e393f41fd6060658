"""A run as the record that its report and its model card are written from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.report.svg import Point

__all__ = ["Mistake", "RunRecord", "find_mistakes", "wilson_interval"]

_Z95 = 1.959963984540054
"""The standard normal distribution's 97.5 % point."""


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for something else.

    Attributes:
        image: Its content, uint8 pixels (height, width, 3) or the bytes of a PNG or JPEG file.
        key: What the data set calls it.
        true: Name of its class.
        predicted: Name of the class it was taken for.
        score: Probability given to `predicted`, in [0, 1].
    """

    image: bytes | npt.NDArray[np.uint8]
    key: str
    true: str
    predicted: str
    score: float


@dataclass(frozen=True)
class RunRecord:
    """All that report and card tell of a run.

    Attributes:
        title: What the run is called.
        model: What training started from: a catalogue name, a path, or ``random weights``.
        architecture: Name of the network, as `bitzoo.models.architecture.Architecture.name` has it.
        image_size: Edge of the images that the network sees in evaluation.
        classes: Class names.
        dataset: What the data set is called.
        data: Facts about the data, as names and values.
        recipe: The whole recipe, as names and values.
        options: What the user asked for.
        history: The objects of metrics.jsonl in their order. Those whose ``event`` is ``train``
            have ``step``, ``loss``, ``lr`` and ``images_per_s``; those of ``eval`` have ``step``,
            ``top1``, ``top5`` and ``loss``. Of several for one step the last counts.
        evaluation: How well the final weights did; None if no images were held out.
        mistakes: The worst ones, the worst first.
        versions: Libraries and machine, as names and values.
        folder: The run directory, as one would type it.
        base: Catalogue name of the weights at the root of it all, where one is known.
        info: What is known of the trained model.
    """

    title: str
    model: str
    architecture: str
    image_size: int
    classes: Sequence[str]
    dataset: str
    data: Sequence[tuple[str, str]]
    recipe: Sequence[tuple[str, str]]
    options: Mapping[str, object] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    evaluation: Evaluation | None = None
    mistakes: Sequence[Mistake] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    folder: str = "runs/name"
    base: str | None = None
    info: ModelInfo | None = None

    def series(self, event: str, key: str) -> list[Point]:
        """(step, value) of one recorded number, by ascending step, finite values only."""
        values = {
            int(record["step"]): float(record[key])
            for record in self.history
            if record.get("event") == event and isinstance(record.get(key), (int, float))
        }
        return sorted((step, value) for step, value in values.items() if math.isfinite(value))


class _PixelSource(Protocol):
    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]: ...


def find_mistakes(
    evaluation: Evaluation, pixels: _PixelSource, keys: Sequence[str], limit: int = 24
) -> list[Mistake]:
    """Pick the wrong predictions with the highest loss, with their images.

    Args:
        evaluation: Of the images.
        pixels: What was evaluated.
        keys: What the data set calls each image.
        limit: How many at most.
    """
    worst = evaluation.worst(limit)
    rows = evaluation.rows[worst]
    images = pixels.take(rows) if len(rows) else ()
    return [
        Mistake(
            image,
            keys[row],
            evaluation.classes[evaluation.labels[position]],
            evaluation.classes[evaluation.predicted[position]],
            float(evaluation.scores[position]),
        )
        for image, row, position in zip(images, rows.tolist(), worst.tolist(), strict=True)
    ]


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, in [0, 1], sound for small counts too.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    JASA 22 (1927), 209-212.
    """
    share, square = correct / count, _Z95**2 / count
    middle = (share + square / 2) / (1 + square)
    spread = _Z95 * math.sqrt((share * (1 - share) + square / 4) / count) / (1 + square)
    return max(0.0, middle - spread), min(1.0, middle + spread)
