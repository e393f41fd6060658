"""`RunRecord`: everything that a run's report and model card are written from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.report.leakage import Leakage, ShownPair
from bitzoo.runs.report.svg import Point
from bitzoo.runs.teaching import Teaching
from bitzoo.training.model_selection import Choice
from bitzoo.training.recipe import Recipe

__all__ = ["Gallery", "Mistake", "RunRecord", "Tile", "find_mistakes", "wilson_interval"]

_Z95 = 1.959963984540054
"""The standard normal distribution's 97.5 % point."""


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
        image: Its content, uint8 pixels (height, width, 3) or the bytes of a PNG or JPEG file.
        key: Its name in the data set.
        true: Name of its class.
        predicted: Name of the predicted class.
        score: Probability given to `predicted`, in [0, 1].
    """

    image: bytes | npt.NDArray[np.uint8]
    key: str
    true: str
    predicted: str
    score: float


@dataclass(frozen=True)
class Tile:
    """An image of a gallery.

    Attributes:
        image: As in `Mistake`.
        lines: What stands below it; the first stands out.
        alt: What the image shows, for those who do not see it.
    """

    image: bytes | npt.NDArray[np.uint8]
    lines: Sequence[str]
    alt: str


@dataclass(frozen=True)
class Gallery:
    """A section of the report that shows images.

    Attributes:
        title: Its heading.
        note: What the images are, in a sentence or two.
        tiles: The images.
    """

    title: str
    note: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class RunRecord:
    """Everything that report and card say about a run.

    Attributes:
        title: Name of the run.
        model: What training started from: a catalogue name, a path, or ``random weights``.
        architecture: Name of the architecture, as in `Architecture.name`.
        image_size: Edge of the images that the network sees in evaluation.
        classes: Class names.
        dataset: Name of the data set.
        data: Facts about the data, as names and values.
        recipe: The whole recipe, as names and values.
        options: The options that change the result; `freeze` and `pretrained` change the captions.
        history: The objects of metrics.jsonl in their order. Those whose ``event`` is ``train``
            have ``step``, ``loss``, ``lr`` and ``images_per_s``; those with ``eval`` have ``step``,
            ``top1``, ``top5`` and ``loss``. If a step has several, the last one counts.
        evaluation: Evaluation of the final weights; None if no images were held out.
        mistakes: The worst mistakes, worst first.
        versions: Libraries and machine, as names and values.
        folder: The run folder, as one would type it.
        base: Catalogue name of the weights that all training started from, if known.
        info: What is known about the trained model.
        leakage: Near-duplicates across the splits; None without held-out images.
        near_pairs: Some of them, with their images.
        plan: The recipe, from which captions say what was done to the images; if None they do not.
        made: When, for how long and on what it ran, as names and values.
        command: The command line that makes the run again; None if there is none.
        galleries: More sections with images.
        choice: Which weights the trained model has; None if not known.
        teaching: Of a distilled model: its teachers, and how it compares with them.
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
    leakage: Leakage | None = None
    near_pairs: Sequence[ShownPair] = ()
    plan: Recipe | None = None
    made: Sequence[tuple[str, str]] = ()
    command: str | None = None
    galleries: Sequence[Gallery] = ()
    choice: Choice | None = None
    teaching: Teaching | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether only the head was trained."""
        return self.options.get("freeze") is True

    @property
    def is_pretrained(self) -> bool:
        """Whether training started from other than random weights."""
        return self.options.get("pretrained") is not False

    @property
    def optimism(self) -> str:
        """What to say next to the accuracy, if it was chosen for being the highest; else empty."""
        return self.choice.sentence if self.choice and self.choice.is_optimistic else ""

    def series(self, event: str, key: str) -> list[Point]:
        """Return (step, value) of one recorded number, by ascending step, finite values only."""
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
    """Return the wrong predictions with the highest loss, with their images.

    Args:
        evaluation: The evaluation.
        pixels: The evaluated images.
        keys: Name of each image in the data set.
        limit: Most mistakes to return.
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
    """Return the 95 % confidence interval of a proportion, in [0, 1], also for small counts.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    JASA 22 (1927), 209-212.
    """
    share, square = correct / count, _Z95**2 / count
    middle = (share + square / 2) / (1 + square)
    spread = _Z95 * math.sqrt((share * (1 - share) + square / 4) / count) / (1 + square)
    return max(0.0, middle - spread), min(1.0, middle + spread)
