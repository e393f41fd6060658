"""What others published about a model on the data that it is evaluated on, and what differs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bitzoo.catalogue.evaluation_sets import EVALUATION_SETS, EvaluationSet
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.published_lists import subset_synsets
from bitzoo.data.source_names import TFDS, library_of, parse
from bitzoo.data.tfds_datasets import TfdsSource
from bitzoo.models.preprocessing import EvalTransform

__all__ = ["Judged", "Published", "names_of_source", "published_about"]

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
        sources: What the data are called, see `names_of_source`.
        classes: The classes that have images, as WordNet ids where those are known.
        counted: Images that are counted.
        total: Images of the split, counted or not.
        real: Whether the images are judged by ReaL's labels.
        restricted: Whether only the outputs of the data set's classes compete.
    """

    sources: Collection[str]
    classes: frozenset[str]
    counted: int
    total: int
    real: bool = False
    restricted: bool = False


def names_of_source(source: object, split: str) -> tuple[str, ...]:
    """Return the names by which a data set's split is known, without its version.

    Args:
        source: The data as the user named them.
        split: The split that is counted, see `Selection`.
    """
    if isinstance(source, TfdsSource):
        return (f"{TFDS}{source.name}@{source.split}",)
    if not isinstance(source, str) or not library_of(source):
        return ()
    name = parse(source)
    whole = name.library + (f"{name.name}/{name.config}" if name.config else name.name)
    if name.split is not None:
        return (f"{whole}@{name.split}",)
    return tuple(f"{whole}@{word}" for word in {"val": ("val", "validation")}.get(split, (split,)))


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
    found = {data.title: _differences(data, judged) for data in EVALUATION_SETS}
    differs = {title: reasons for title, reasons in found.items() if reasons is not None}
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
                *differs[metric.dataset],
                *_other_pixels(metric.resolution, transform),
            ),
        )
        for metric in spec.metrics
        if metric.dataset in differs and metric.note.startswith(_THESE_WEIGHTS)
    )


def _differences(data: EvaluationSet, judged: Judged) -> tuple[str, ...] | None:
    """Return what is, or may be, other than in a figure on `data`; None if nothing suggests it."""
    if data.real != judged.real:
        return None
    by_name = not set(judged.sources).isdisjoint(data.sources)
    if not by_name and not _may_be(data, judged):
        return None
    return (*_other_images(data, judged, by_name), *_other_outputs(data, judged))


def _may_be(data: EvaluationSet, judged: Judged) -> bool:
    """Whether images that nothing names may be those of a data set, by their classes and number."""
    if data.subset is None or judged.classes != frozenset(subset_synsets(data.subset)):
        return False
    if judged.total == data.images:
        return True
    alike = (other for other in EVALUATION_SETS if other.subset == data.subset)
    return data.is_first and all(judged.total != other.images for other in alike)


def _other_images(data: EvaluationSet, judged: Judged, by_name: bool) -> Iterator[str]:
    if judged.counted != data.counted:
        yield (
            f"It is of {data.counted:,} images and these are {judged.counted:,}, so the figures "
            "are of different images."
        )
    elif not by_name:
        yield (
            f"These images are as many and of the same classes as {data.title}'s; whether they are "
            "the same was not checked."
        )


def _other_outputs(data: EvaluationSet, judged: Judged) -> Iterator[str]:
    if data.restricted and not judged.restricted:
        yield "It is with the outputs restricted to the classes of the data set; here all compete."
    if judged.restricted and not data.restricted:
        yield "Here the outputs are restricted to the classes of the data set."


def _other_model(known: ModelInfo) -> tuple[str, ...]:
    identity = known.identity
    said: list[str] = []
    if not identity.established:
        said.append(
            f"It is of {identity.name}; that this model is it is known only so: {identity}."
        )
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
