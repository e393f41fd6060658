"""What others published about a model on the data that it is evaluated on, and what differs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitzoo.catalogue.evaluation_sets import EVALUATION_SETS, EvaluationSet
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.published_lists import subset_synsets
from bitzoo.models.preprocessing import EvalTransform

__all__ = ["Judged", "Published", "published_about"]

_THESE_WEIGHTS = "these weights"
"""How the note of a figure begins that was measured on exactly the released weights."""


@dataclass(frozen=True)
class Published:
    """A figure that others published.

    Attributes:
        name: ``top-1`` or ``top-5``.
        dataset: What it was measured on.
        value: Percent.
        resolution: Side of the evaluated crop in pixels, where the source states it.
        source: Who published it.
        note: How it was measured.
        differs: What is known to be, or may be, other here, as sentences. Empty only if model,
            images and preprocessing are known to be those of the figure.
    """

    name: str
    dataset: str
    value: float
    resolution: int | None
    source: str
    note: str
    differs: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The figure, whose it is, and what is other here."""
        at = f" at {self.resolution} px" if self.resolution else ""
        said = f"{self.name} {self.value:.2f}% on {self.dataset}{at} ({self.note}; {self.source})."
        return " ".join([said, *self.differs])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {**asdict(self), "differs": list(self.differs)}


@dataclass(frozen=True)
class Judged:
    """What is evaluated, as far as it matters for a comparison.

    Attributes:
        source: The data as the user named them; None for data in memory.
        classes: The classes that have images, as WordNet ids where those are known.
        counted: Images that are counted.
        total: Images of the split, counted or not.
        real: Whether the images are judged by ReaL's labels.
        restricted: Whether only the outputs of the data set's classes compete.
    """

    source: str | None
    classes: Collection[str]
    counted: int
    total: int
    real: bool = False
    restricted: bool = False


def published_about(
    known: ModelInfo, judged: Judged, transform: EvalTransform
) -> tuple[Published, ...]:
    """Return what others published about a model on these data.

    Only figures of the very weights count, not those of networks that were fine-tuned from them.

    Args:
        known: What is known about the model.
        judged: What is evaluated.
        transform: How the images are prepared.
    """
    spec = known.spec
    if spec is None or known.run is not None:
        return ()
    found = [(data, *_same_images(data, judged)) for data in EVALUATION_SETS]
    titles = {data.title: reasons for data, matches, reasons in found if matches}
    return tuple(
        Published(
            metric.name,
            metric.dataset,
            metric.value,
            metric.resolution,
            metric.source,
            metric.note,
            (
                *_other_model(known),
                *titles[metric.dataset],
                *_other_pixels(metric.resolution, transform),
            ),
        )
        for metric in spec.metrics
        if metric.dataset in titles and metric.note.startswith(_THESE_WEIGHTS)
    )


def _same_images(data: EvaluationSet, judged: Judged) -> tuple[bool, tuple[str, ...]]:
    """Return whether the images may be those of a data set, and why they may not."""
    if data.real != judged.real:
        return False, ()
    reasons: list[str] = []
    by_name = judged.source is not None and judged.source in data.sources
    if not by_name:
        if set(judged.classes) != set(_classes_of(data)):
            return False, ()
        whole = judged.total == data.images
        if not whole and any(
            judged.total == other.images and other.subset == data.subset
            for other in EVALUATION_SETS
        ):
            return False, ()  # as many as those of another set with the same classes
        if whole:
            reasons.append(
                f"These images are as many and of the same classes as {data.title}'s; whether "
                "they are the same was not checked."
            )
        elif not data.is_first:
            return False, ()
    if judged.counted < data.counted:
        reasons.append(
            f"It is of all {data.counted:,} images of {data.title}; here are {judged.counted:,}, "
            "so the two cannot be equal but by chance."
        )
    elif not by_name and judged.counted != data.counted:
        reasons.append(
            f"It is of {data.counted:,} images; here are {judged.counted:,}: other images."
        )
    if data.restricted and not judged.restricted:
        reasons.append("It is with the outputs restricted to the classes of the data set.")
    if judged.restricted and not data.restricted:
        reasons.append("Here the outputs are restricted to the classes of the data set.")
    return True, tuple(reasons)


def _classes_of(data: EvaluationSet) -> Sequence[str]:
    return subset_synsets(data.subset) if data.subset else ()


def _other_model(known: ModelInfo) -> tuple[str, ...]:
    identity = known.identity
    said: list[str] = []
    if not identity.established:
        said.append(f"It is of {identity.name}; that this model is it is known only so: {identity}.")
    provenance = known.provenance
    if provenance is not None and not provenance.is_exact:
        said.append("Here the weights were rounded or scaled.")
    return tuple(said)


def _other_pixels(resolution: int | None, transform: EvalTransform) -> tuple[str, ...]:
    if resolution is None:
        return ("Its preprocessing is not stated.",)
    if resolution != transform.crop:
        return (f"It is at {resolution} px, here are {transform.crop} px.",)
    return ()
