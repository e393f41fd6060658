"""What a finished run leaves: a model folder, its evaluation, a report and a card draft."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitzoo.data.dataset import ImageSet
from bitzoo.data.image_store import Pixels
from bitzoo.data.validation import DataSummary
from bitzoo.files import write_json
from bitzoo.inference.metrics import Evaluation
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.runs.report.html import write_card, write_report
from bitzoo.runs.report.run_summary import RunRecord, find_mistakes
from bitzoo.training.hyperrule import explain
from bitzoo.training.recipe import Recipe
from bitzoo.zoo.create import Origin
from bitzoo.zoo.model_folder import render_config, write_model_folder

REPORT_NAME = "report.html"
CARD_NAME = "README.md"
EVALUATION_NAME = "evaluation.json"
_PACKAGES = ("bitzoo", "torch", "numpy", "pillow", "safetensors", "accelerate")


@dataclass(frozen=True)
class FinishedRun:
    """What a run ended with.

    Attributes:
        model: The trained network.
        recipe: What was done.
        images: The data.
        summary: What they are like.
        evaluation: On the held-out images; None without any.
        held_out: Their pixels.
    """

    model: BiT
    recipe: Recipe
    images: ImageSet
    summary: DataSummary
    evaluation: Evaluation | None
    held_out: Pixels | None


def write_artifacts(
    folder: Path,
    finished: FinishedRun,
    identity: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Write everything a finished run leaves into its folder.

    Args:
        folder: The run directory.
        finished: What the run ended with.
        identity: What it was asked, as in `run.json`.
        history: Its metrics.
    """
    recipe, images = finished.recipe, finished.images
    transform = EvalTransform(recipe.crop, recipe.crop, "bilinear", square=True)
    base = _base(finished.model)
    config = render_config(
        finished.model,
        transform,
        class_names=images.classes,
        facts={"base_model": base, "recipe": recipe.to_dict(), "activation": "softmax"},
    )
    write_model_folder(folder, finished.model, config, {"base_model": base} if base else None)
    if finished.evaluation:
        write_json(folder / EVALUATION_NAME, finished.evaluation.to_dict())
    record = _record(folder, finished, identity, history, base)
    write_report(folder / REPORT_NAME, record)
    write_card(folder / CARD_NAME, record)


def _base(model: BiT) -> str | None:
    """Return the catalogue name of the weights that training started from, where known."""
    origin = model.origin
    if isinstance(origin, Origin) and origin.spec and origin.path:
        return origin.spec.name
    return None


def _record(
    folder: Path,
    finished: FinishedRun,
    identity: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    base: str | None,
) -> RunRecord:
    images, found = finished.images, finished.evaluation
    mistakes = []
    if found and finished.held_out and images.val:
        keys = [example.key for example in images.val.examples]
        mistakes = find_mistakes(found, finished.held_out, keys)
    return RunRecord(
        title=folder.resolve().name,
        model=str(identity["model"]) if identity["pretrained"] else "random weights",
        architecture=finished.model.architecture.name,
        image_size=finished.recipe.crop,
        classes=images.classes,
        dataset=images.source,
        data=_data_rows(finished),
        recipe=explain(finished.recipe),
        options={key: identity[key] for key in ("seed", "dtype", "freeze", "pretrained")},
        history=history,
        evaluation=found,
        mistakes=mistakes,
        versions={name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version(), "machine": platform.machine()},
        folder=str(folder),
        base=base,
    )


def _data_rows(finished: FinishedRun) -> list[tuple[str, str]]:
    summary = finished.summary
    height, width = summary.resolution
    rows = [(f"{split} images", f"{count:,}") for split, count in summary.counts.items()]
    rows += [
        ("classes", f"{len(finished.images.classes):,}"),
        ("median size", f"{height} x {width} px (height x width)"),
        ("fingerprint", finished.images.fingerprint),
    ]
    rows += [(trait, f"{count:,}") for trait, count in summary.traits.items()]
    return rows
