"""The artifacts of a finished run: a model folder, its evaluation, a report and a card draft."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.run_info import HELD_OUT, RunInfo
from bitzoo.data.dataset import ImageSet
from bitzoo.data.image_store import Pixels
from bitzoo.data.label_sets import label_sets_of
from bitzoo.data.validation import DataSummary
from bitzoo.files import write_json
from bitzoo.inference.metrics import Evaluation
from bitzoo.models.bit import BiT
from bitzoo.models.wide_values import white_of
from bitzoo.runs.config import RunConfig
from bitzoo.runs.report.first_batch import show_first_batch
from bitzoo.runs.report.html import write_card, write_report
from bitzoo.runs.report.leakage import Leakage, measure_leakage, show_pairs
from bitzoo.runs.report.run_command import command_of
from bitzoo.runs.report.run_summary import RunRecord, find_mistakes
from bitzoo.runs.teachers import Faculty, taught
from bitzoo.runs.teaching import Teaching
from bitzoo.training.model_selection import Choice
from bitzoo.training.recipe import SIGMOID, Recipe
from bitzoo.training.recipe_text import explain
from bitzoo.zoo.info import info as info_of
from bitzoo.zoo.model_folder import write_model_folder

REPORT_NAME = "report.html"
CARD_NAME = "README.md"
EVALUATION_NAME = "evaluation.json"
_OPTIONS = ("seed", "dtype", "freeze", "pretrained", "kind")
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
        config: The other options of the run.
        data: The data set as it was given.
        training: Pixels of the training images.
        sessions: When, for how long and on what it ran, as names and values.
        choice: Which weights the network has.
        faculty: The teachers of a distillation.
        teaching: How the network compares with them.
    """

    model: BiT
    recipe: Recipe
    images: ImageSet
    summary: DataSummary
    evaluation: Evaluation | None
    held_out: Pixels | None
    config: RunConfig
    data: object
    training: Pixels
    sessions: Sequence[tuple[str, str]]
    choice: Choice
    faculty: Faculty | None = None
    teaching: Teaching | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the network's classes: the data set's, or those of its teachers."""
        return self.faculty.classes_of(self.images) if self.faculty else self.images.classes


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
        leakage, choice = _leakage(finished), finished.choice
        more = {"near_duplicates": leakage.to_dict()} if leakage else {}
        more |= {"weights": choice.to_dict()} if choice.sentence else {}
        more |= {"teaching": finished.teaching.to_dict()} if finished.teaching else {}
        write_json(folder / EVALUATION_NAME, finished.evaluation.to_dict() | more)
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
            **({HELD_OUT: images.held_out} if images.held_out else {}),
            **({"left_out": len(finished.summary.skipped)} if finished.summary.skipped else {}),
        },
        recipe=recipe.to_dict(),
        seed=int(identity["seed"]),
        teachers=finished.faculty.records if finished.faculty else (),
    )
    way = Preprocessing(
        *(recipe.crop, recipe.eval_resize or recipe.crop, "bilinear", recipe.eval_resize is None),
        "the recipe of this run",
        bit_depth=finished.summary.bit_depth,
    )
    began = info_of(finished.model)
    made = replace(
        began,
        identity=Identity(None, "unknown", finished.config.made_how),
        license=None,  # only the owner of the trained weights can state it
        label_set=None,
        own_names=images.classes,
        activation="sigmoid" if recipe.loss == SIGMOID else "softmax",
        preprocessing=way,
        refused={},
        run=run,
        sources={"own_names": "the training data", "activation": "the training loss"},
    )
    return taught(made, finished.faculty, images) if finished.faculty else made


def _record(
    folder: Path,
    finished: FinishedRun,
    identity: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    info: ModelInfo,
) -> RunRecord:
    images, found, config = finished.images, finished.evaluation, finished.config
    mistakes = []
    if found and finished.held_out and images.val:
        keys = [example.key for example in images.val.examples]
        mistakes = find_mistakes(found, finished.held_out, keys)
    first_batch = show_first_batch(
        finished.recipe,
        finished.training,
        label_sets_of(images.train),
        images.classes,
        seed=config.seed,
        freeze=config.freeze,
    )
    command = command_of(str(identity["model"]), finished.data, folder, config)
    return RunRecord(
        title=_title(folder.resolve(), config.seed),
        model=str(identity["model"]) if identity["pretrained"] else "random weights",
        architecture=finished.model.architecture.name,
        image_size=finished.recipe.crop,
        classes=finished.classes,
        dataset=images.source,
        data=_data_rows(finished),
        recipe=[
            *explain(finished.recipe, freeze=config.freeze),
            *(finished.teaching.rows() if finished.teaching else []),
            *([("weights", finished.choice.sentence)] if finished.choice.sentence else []),
        ],
        options={key: identity[key] for key in _OPTIONS if key in identity},
        history=history,
        evaluation=found,
        mistakes=mistakes,
        versions=package_versions(),
        folder=str(folder),
        base=info.base.name if info.base else None,
        info=info,
        leakage=_leakage(finished),
        near_pairs=show_pairs(
            finished.summary.near_duplicates, images.classes, finished.summary.bit_depth
        ),
        plan=finished.recipe,
        made=finished.sessions,
        command=command,
        galleries=[first_batch],
        choice=finished.choice,
        teaching=finished.teaching,
    )


def package_versions() -> dict[str, str]:
    """Return the versions of what results depend on, and the kind of machine."""
    found = {name: version(name) for name in _PACKAGES}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def _leakage(finished: FinishedRun) -> Leakage | None:
    return measure_leakage(finished.summary, finished.evaluation, finished.images)


def _title(folder: Path, seed: int) -> str:
    """Return the folder's name; of one of several repeats, the name that they have in common."""
    is_repeat = folder.name == f"seed-{seed}" and folder.parent.name
    return f"{folder.parent.name}, seed {seed}" if is_repeat else folder.name


def _data_rows(finished: FinishedRun) -> list[tuple[str, str]]:
    summary = finished.summary
    height, width = summary.resolution
    rows = [(f"{split} images", f"{count:,}") for split, count in summary.counts.items()]
    if finished.images.held_out:
        rows.append(("val images are", finished.images.held_out))
    if leakage := _leakage(finished):
        rows.append(("near-duplicates", leakage.finding))
    if finished.config.examples_per_class:
        few = f"at most {finished.config.examples_per_class:,} images per class, drawn at random"
        rows.append(("few-shot", few))
    rows += [
        ("classes", f"{len(finished.classes):,}"),
        ("median size", f"{height} x {width} px (height x width)"),
        ("fingerprint", finished.images.fingerprint),
    ]
    if (depth := summary.bit_depth) is not None:
        rows.append(
            ("more than 8 bits", f"read as {depth}-bit values: {white_of(depth):,} is white")
        )
    rows += [(trait, f"{count:,}") for trait, count in summary.traits.items()]
    kinds = summary.skipped.reasons
    rows += [(f"left out: {kind.title}", f"{len(summary.skipped.of(kind)):,}") for kind in kinds]
    return rows
