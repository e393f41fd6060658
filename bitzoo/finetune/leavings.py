"""What a finished run leaves: a model folder, its evaluation, a report and a card draft."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitzoo.finetune.dataset import ImageSet
from bitzoo.finetune.evaluate import Evaluation
from bitzoo.finetune.hyperrule import explain
from bitzoo.finetune.inspection import Facts
from bitzoo.finetune.pixels import Pixels
from bitzoo.finetune.recipe import Recipe
from bitzoo.finetune.record import RunRecord, find_mistakes
from bitzoo.finetune.report import write_card, write_report
from bitzoo.model import BiT
from bitzoo.model_folder import render_config, write_model_folder
from bitzoo.preprocess import EvalTransform
from bitzoo.zoo import Origin

REPORT_NAME = "report.html"
CARD_NAME = "README.md"
EVALUATION_NAME = "evaluation.json"
_PACKAGES = ("bitzoo", "torch", "numpy", "pillow", "safetensors", "accelerate")


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        model: The trained network.
        recipe: What was done.
        images: The data.
        facts: What they are like.
        evaluation: On the held-out images, with logits; None without any.
        held_out: Their pixels.
    """

    model: BiT
    recipe: Recipe
    images: ImageSet
    facts: Facts
    evaluation: Evaluation | None
    held_out: Pixels | None


def leave(
    folder: Path,
    outcome: Outcome,
    identity: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Write everything a finished run leaves into its folder.

    Args:
        folder: The run directory.
        outcome: What the run ended with.
        identity: What it was asked, as in `run.json`.
        history: Its metrics.
    """
    recipe, images = outcome.recipe, outcome.images
    transform = EvalTransform(recipe.crop, recipe.crop, "bilinear", square=True)
    base = _base(outcome.model)
    config = render_config(
        outcome.model,
        transform,
        class_names=images.classes,
        facts={"base_model": base, "recipe": recipe.to_dict(), "activation": "softmax"},
    )
    write_model_folder(folder, outcome.model, config, {"base_model": base} if base else None)
    if outcome.evaluation:
        text = json.dumps(outcome.evaluation.to_dict(), indent=2) + "\n"
        temporary = folder / f".{EVALUATION_NAME}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / EVALUATION_NAME)
    record = _record(folder, outcome, identity, history, base)
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
    outcome: Outcome,
    identity: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    base: str | None,
) -> RunRecord:
    images, found = outcome.images, outcome.evaluation
    mistakes = []
    if found and outcome.held_out and images.val:
        keys = [example.key for example in images.val.examples]
        mistakes = find_mistakes(found, outcome.held_out, keys)
    return RunRecord(
        title=folder.resolve().name,
        model=str(identity["model"]) if identity["pretrained"] else "random weights",
        architecture=outcome.model.architecture.name,
        image_size=outcome.recipe.crop,
        classes=images.classes,
        dataset=images.source,
        data=_data_rows(outcome),
        recipe=explain(outcome.recipe),
        options={key: identity[key] for key in ("seed", "dtype", "freeze", "pretrained")},
        history=history,
        evaluation=found,
        mistakes=mistakes,
        versions={name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version(), "machine": platform.machine()},
        folder=str(folder),
        base=base,
    )


def _data_rows(outcome: Outcome) -> list[tuple[str, str]]:
    facts = outcome.facts
    height, width = facts.resolution
    rows = [(f"{split} images", f"{count:,}") for split, count in facts.counts.items()]
    rows += [
        ("classes", f"{len(outcome.images.classes):,}"),
        ("median size", f"{height} x {width} px (height x width)"),
        ("fingerprint", outcome.images.fingerprint),
    ]
    rows += [(trait, f"{count:,}") for trait, count in facts.traits.items()]
    return rows
