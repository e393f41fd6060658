"""The artifacts of a finished run: a model folder, its evaluation, a report and a card draft."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo, RunInfo
from bitzoo.data.dataset import ImageSet
from bitzoo.data.image_store import Pixels
from bitzoo.data.validation import DataSummary
from bitzoo.files import write_json
from bitzoo.inference.metrics import Evaluation
from bitzoo.models.bit import BiT
from bitzoo.runs.report.html import write_card, write_report
from bitzoo.runs.report.run_summary import RunRecord, find_mistakes
from bitzoo.training.hyperrule import explain
from bitzoo.training.model_selection import Choice
from bitzoo.training.recipe import Recipe
from bitzoo.zoo.info import info as info_of
from bitzoo.zoo.model_folder import write_model_folder

REPORT_NAME = "report.html"
CARD_NAME = "README.md"
EVALUATION_NAME = "evaluation.json"
_PACKAGES = ("bitzoo", "torch", "numpy", "pillow", "safetensors", "accelerate")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        model: The trained network.
        recipe: The recipe.
        images: The data.
        summary: Its properties.
        evaluation: On the held-out images; None without held-out images.
        held_out: Pixels of the held-out images.
        choice: Which weights the network has.
    """

    model: BiT
    recipe: Recipe
    images: ImageSet
    summary: DataSummary
    evaluation: Evaluation | None
    held_out: Pixels | None
    choice: Choice


def write_artifacts(
    folder: Path,
    finished: FinishedRun,
    identity: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Write the artifacts of a finished run into its folder.

    Args:
        folder: The run folder.
        finished: The run.
        identity: Its options, as in `run.json`.
        history: Its metrics.
    """
    info = _info(finished, identity)
    write_model_folder(folder, finished.model, info)
    if finished.evaluation:
        chosen = finished.choice.to_dict() if finished.choice.sentence else None
        write_json(
            folder / EVALUATION_NAME,
            finished.evaluation.to_dict() | ({"weights": chosen} if chosen else {}),
        )
    record = _record(folder, finished, identity, history, info)
    write_report(folder / REPORT_NAME, record)
    write_card(folder / CARD_NAME, record)


def _info(finished: FinishedRun, identity: Mapping[str, Any]) -> ModelInfo:
    """Return what is known about the trained model: its base's record, changed by the run."""
    recipe, images = finished.recipe, finished.images
    run = RunInfo(
        data=images.source,
        fingerprint=images.fingerprint,
        split={
            **{split.name: len(split) for split in images.splits},
            **({"held_out": images.held_out} if images.held_out else {}),
        },
        recipe=recipe.to_dict(),
        seed=int(identity["seed"]),
    )
    way = Preprocessing(recipe.crop, recipe.crop, "bilinear", True, "the recipe of this run")
    began = info_of(finished.model)
    return replace(
        began,
        identity=Identity(None, "unknown", "fine-tuned by bitzoo"),
        license=None,  # only the owner of the trained weights can state it
        label_set=None,
        own_names=images.classes,
        activation="softmax",
        preprocessing=way,
        refused={},
        run=run,
        sources={"own_names": "the training data", "activation": "the training loss"},
    )


def _record(
    folder: Path,
    finished: FinishedRun,
    identity: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    info: ModelInfo,
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
        recipe=[
            *explain(finished.recipe),
            *([("weights", finished.choice.sentence)] if finished.choice.sentence else []),
        ],
        options={key: identity[key] for key in ("seed", "dtype", "freeze", "pretrained")},
        history=history,
        evaluation=found,
        mistakes=mistakes,
        versions={name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version(), "machine": platform.machine()},
        folder=str(folder),
        base=info.base.name if info.base else None,
        info=info,
        choice=finished.choice,
    )


def _data_rows(finished: FinishedRun) -> list[tuple[str, str]]:
    summary = finished.summary
    height, width = summary.resolution
    rows = [(f"{split} images", f"{count:,}") for split, count in summary.counts.items()]
    if finished.images.held_out:
        rows.append(("val images are", finished.images.held_out))
    rows += [
        ("classes", f"{len(finished.images.classes):,}"),
        ("median size", f"{height} x {width} px (height x width)"),
        ("fingerprint", finished.images.fingerprint),
    ]
    rows += [(trait, f"{count:,}") for trait, count in summary.traits.items()]
    return rows
