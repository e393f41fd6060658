"""The card of a released checkpoint, or of a file that someone converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bitzoo._version import __version__
from bitzoo.catalogue.metadata import DEFAULT_PREPROCESSING
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.registry import Metric, ModelSpec
from bitzoo.model_cards import facts
from bitzoo.model_cards.text import clean, environment, proof_rows, snippets, timm_loads
from bitzoo.models.architecture import Architecture

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_TOP = {"top-1": ("accuracy", "top-1 accuracy"), "top-5": ("top_5_accuracy", "top-5 accuracy")}


@dataclass(frozen=True)
class CardSubject:
    """What a card is about.

    Attributes:
        repo: Full name of the repository.
        info: What is known about the model.
        source: What the weights were made from: ``name``, ``bytes``, ``sha256``, ``url``.
        proof: The parity report; None if there is none yet.
    """

    repo: str
    info: ModelInfo
    source: Mapping[str, Any] | None = None
    proof: Mapping[str, Any] | None = None

    @property
    def release(self) -> ModelSpec | None:
        """The release that the weights are, if that is established."""
        return self.info.spec if self.info.identity.established else None


def render_card(subject: CardSubject) -> str:
    """Return the card as Markdown, with its metadata at the top.

    It has the catalogue's facts, such as published scores and training data, only if it is
    established that the weights are that release.
    """
    info, spec = subject.info, subject.release
    architecture = Architecture.parse(info.architecture, info.in_chans)
    training = [facts.TRAINING_SETS[key] for key in _training_keys(spec)]
    return clean(
        environment()
        .get_template("released.md.j2")
        .render(
            front_matter=card_metadata(info, subject.repo.partition("/")[2]),
            card=subject,
            info=info,
            spec=spec,
            way=info.preprocessing or DEFAULT_PREPROCESSING,
            params=architecture.num_params(info.num_classes),
            scores=_scores(spec),
            training=training,
            family_notes=facts.FAMILY_NOTES.get(spec.family, ()) if spec else (),
            limits=facts.LIMITS,
            numerics=facts.NUMERICS,
            proofs=proof_rows(subject.proof) if subject.proof else None,
            proof=subject.proof,
            snippets=snippets(subject.repo, info),
            citations=facts.citations(spec.family if spec else None),
            version=__version__,
        )
    )


def render_vtab_card(specs: Sequence[ModelSpec]) -> str:
    """Return one card for all checkpoints of one architecture that were fine-tuned on VTAB-1k.

    Args:
        specs: The entries of the family ``BiT-M-VTAB`` with that architecture.
    """
    info = ModelInfo.of_release(specs[0])
    tasks: dict[str, dict[str, Any]] = {}
    for spec in specs:
        name = spec.task.partition("/")[2]
        way = spec.preprocessing.in_words()
        tasks.setdefault(name, {"name": name, "classes": spec.num_classes, "images": way})
    return clean(
        environment()
        .get_template("vtab.md.j2")
        .render(
            front_matter=card_metadata(info),
            specs=specs,
            tasks=list(tasks.values()),
            scores=_scores(specs[0]),
            unverified=list(dict.fromkeys(text for spec in specs for text in spec.unverified)),
            family_notes=facts.FAMILY_NOTES[specs[0].family],
            citations=facts.citations(specs[0].family),
            version=__version__,
        )
    )


def card_metadata(info: ModelInfo, title: str = "") -> str:
    """Return the YAML at the top of a card, with only what is known.

    Args:
        info: What is known about the model.
        title: Name under which its results are listed, if it is a release with published ones.
    """
    from huggingface_hub import ModelCardData

    spec = info.spec if info.identity.established else None
    results = _eval_results(spec)
    known = timm_loads(info)
    data = ModelCardData(
        license=info.license,
        library_name="timm" if known else "bitzoo",
        pipeline_tag="image-classification",
        tags=["image-classification", "big-transfer", "bit", "bitzoo"]
        + (["timm", "transformers"] if known else []),
        datasets=[facts.TRAINING_SETS[key].hub_id for key in _training_keys(spec)] or None,
        metrics=["accuracy"] if results else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _training_keys(spec: ModelSpec | None) -> list[str]:
    """Return the data sets of pre-training and task that have facts, without duplicates."""
    wanted = [spec.dataset, spec.task] if spec else []
    return [key for key in dict.fromkeys(wanted) if key in facts.TRAINING_SETS]


def _scores(spec: ModelSpec | None) -> list[tuple[str, list[Metric]]]:
    """Return the published scores by source, in the catalogue's order."""
    metrics = spec.metrics if spec else ()
    return [(source, list(group)) for source, group in groupby(metrics, key=lambda m: m.source)]


def _eval_results(spec: ModelSpec | None) -> list[EvalResult]:
    """Return the scores of exactly these weights on ILSVRC-2012, which the Hub knows by name.

    Those of fine-tuned copies are no results of the file.
    """
    from huggingface_hub import EvalResult

    results = []
    seen = set()
    for metric in spec.metrics if spec else ():
        if metric.name not in _TOP or not metric.note.startswith("these weights"):
            continue
        if metric.dataset != "ILSVRC-2012":
            continue
        kind, name = _TOP[metric.name]
        if (kind, metric.source) in seen:
            continue
        seen.add((kind, metric.source))
        results.append(
            EvalResult(
                task_type="image-classification",
                dataset_type="imagenet-1k",
                dataset_name=metric.dataset,
                dataset_split="validation",
                metric_type=kind,
                metric_name=f"{name}, published, not measured again",
                metric_value=metric.value,
                source_name=metric.source.split(" ")[0],
                source_url=metric.source.split(" ")[0],
            )
        )
    return results
