"""A probe as a model folder: the network with the ridge classifier as its head.

The files are those of a fine-tuning run, so that everything that takes a run takes it: the weights
with all that is known about them, the images that were learned from and those that were held out,
the evaluation, a report and a card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.run_info import HELD_OUT, RunInfo
from bitzoo.data.dataset import DataSource, Split
from bitzoo.data.image_store import open_pixels
from bitzoo.data.run_folders import RUN_NAME
from bitzoo.data.split_record import write_split
from bitzoo.errors import UsageError
from bitzoo.files import remove_unfinished, write_json
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.selection import held_out_by, record_of
from bitzoo.models.bit import BiT
from bitzoo.runs.job import place_of
from bitzoo.runs.kinds import KEY, PROBED
from bitzoo.runs.probe_data import ProbeData
from bitzoo.runs.probe_features import Way
from bitzoo.runs.probe_result import Probed, ProbeResult, in_tenths
from bitzoo.runs.report.artifacts import (
    CARD_NAME,
    EVALUATION_NAME,
    REPORT_NAME,
    package_versions,
)
from bitzoo.runs.report.html import write_card, write_report
from bitzoo.runs.report.leakage import measure_leakage, show_pairs
from bitzoo.runs.report.run_summary import Mistake, RunRecord, find_mistakes
from bitzoo.runs.run_dir import RunDir, now, read_record
from bitzoo.runs.run_lock import sole_use
from bitzoo.training.ridge import STRENGTHS, LeftOut
from bitzoo.zoo.info import info as info_of
from bitzoo.zoo.model_folder import write_model_folder


@dataclass(frozen=True)
class SavedHead:
    """A classifier that is saved.

    Attributes:
        weight: float32 (classes, features).
        bias: float32 (classes).
        chosen: The strength, and how leave-one-out judged it.
        evaluation: On the held-out images; None if all were learned from.
    """

    weight: Tensor
    bias: Tensor
    chosen: LeftOut
    evaluation: Evaluation | None


def require_free(folder: Path) -> None:
    """Check that a probe can be saved in a folder: it is new, empty, or has an earlier probe.

    Raises:
        UsageError: If it has something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder, found a file. Choose another `save`.")
    has_files = any(not path.name.startswith(".") for path in folder.iterdir())
    if has_files and (read_record(folder) or {}).get(KEY) != PROBED:
        raise UsageError(
            f"{folder} has files but no probe in it. Choose another `save`, so that none of your "
            "files is lost."
        )


def write_probe_folder(
    folder: Path,
    row: Probed,
    known: ProbeData,
    way: Way,
    network: BiT,
    head: SavedHead,
    data: DataSource,
    result: ProbeResult,
) -> None:
    """Write the folder; an earlier probe in it is replaced.

    Args:
        folder: Where to.
        row: The model.
        known: The data.
        way: How its features were computed.
        network: The model's network; its head is replaced here.
        head: The new head.
        data: The data set as it was given.
        result: The probe that it is of.

    Raises:
        UsageError: If the folder has something else, or cannot be written.
    """
    images = known.images
    before = record_of(network)  # of the network as it was
    held_out = held_out_by(images, known.summary.skipped, before, row.model)
    evaluation = head.evaluation and replace(head.evaluation, selection=held_out)
    _set_head(network, head)
    recipe = _recipe(row, way, head)
    info = _info(network, known, way, recipe, result)
    title = folder.resolve().name
    run_dir = RunDir(folder)
    with run_dir.writing("Choose another `save`."), sole_use(folder):
        require_free(folder)
        remove_unfinished(folder)
        record = {
            KEY: PROBED,
            "model": row.model,
            "architecture": network.architecture.name,
            "classes": list(images.classes),
            "data": images.fingerprint,
            "recipe": recipe,
            "seed": result.settings["seed"],
            "options": {"data": place_of(data), "data_name": images.source},
            "finished": {"date": now()},
        }
        write_json(folder / RUN_NAME, record)
        write_split(folder, images, before)
        write_model_folder(folder, network, info)
        leakage = measure_leakage(known.summary, evaluation, images)
        (folder / EVALUATION_NAME).unlink(missing_ok=True)
        if evaluation:
            more = {"near_duplicates": leakage.to_dict()} if leakage else {}
            write_json(folder / EVALUATION_NAME, evaluation.to_dict() | more)
        summary = known.summary
        run = RunRecord(
            title=title,
            model=row.model,
            architecture=network.architecture.name,
            image_size=way.transform.crop,
            classes=images.classes,
            dataset=images.source,
            data=_data_rows(known),
            recipe=_recipe_rows(row, known, way, head, result),
            options={KEY: PROBED, "seed": result.settings["seed"]},
            evaluation=evaluation,
            mistakes=_mistakes(known, way, evaluation),
            versions=package_versions(),
            folder=str(folder),
            base=info.base.name if info.base else None,
            info=info,
            leakage=leakage,
            near_pairs=show_pairs(summary.near_duplicates, images.classes, summary.bit_depth),
            made=[("made", record["finished"]["date"])],
        )
        write_report(folder / REPORT_NAME, run)
        write_card(folder / CARD_NAME, run)


def _set_head(network: BiT, head: SavedHead) -> None:
    """Give the network the classifier as its head."""
    classes = len(head.bias)
    network.reset_classifier(classes)
    network.info = info_of(network).with_head(classes)
    layer = network.get_classifier()
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(head.weight[:, :, None, None])
        layer.bias.copy_(head.bias)
    network.eval()


def _recipe(row: Probed, way: Way, head: SavedHead) -> dict[str, Any]:
    """Return how the head was made, as JSON-ready data."""
    return {
        "name": "ridge regression on features",
        "base": row.model,
        "l2": head.chosen.l2,
        "l2_chosen_by": "leave-one-out accuracy on the training images",
        "l2_tried": [STRENGTHS[0], STRENGTHS[-1], len(STRENGTHS)],
        "leave_one_out": {"correct": head.chosen.correct, "count": head.chosen.count},
        "examples": head.chosen.count,
        "resize": way.transform.resize,
        "crop": way.transform.crop,
        "dtype": way.dtype,
        "backend": way.backend,
    }


def _info(
    network: BiT, known: ProbeData, way: Way, recipe: dict[str, Any], result: ProbeResult
) -> ModelInfo:
    """Return what is known about the model: its base's record, with another head."""
    images, transform = known.images, way.transform
    run = RunInfo(
        data=images.source,
        fingerprint=images.fingerprint,
        split={
            **{split.name: len(split) for split in images.splits},
            **({HELD_OUT: images.held_out} if images.held_out else {}),
            **({"left_out": len(known.summary.skipped)} if known.summary.skipped else {}),
        },
        recipe=recipe,
        seed=int(result.settings["seed"]),
    )
    prepared = Preprocessing(
        *(transform.crop, transform.resize, "bilinear", transform.square),
        "the probe that this head is of",
        bit_depth=transform.bit_depth,
    )
    count = f"{recipe['examples']:,} images"
    return replace(
        info_of(network),
        identity=Identity(
            None, "unknown", f"probed by bitzoo: head by ridge regression on features of {count}"
        ),
        license=None,  # only the owner of the head can state it
        label_set=None,
        own_names=images.classes,
        activation="softmax",
        preprocessing=prepared,
        refused={},
        run=run,
        sources={"own_names": "the training data", "activation": "the probe"},
    )


def _recipe_rows(
    row: Probed, known: ProbeData, way: Way, head: SavedHead, result: ProbeResult
) -> list[tuple[str, str]]:
    transform, chosen = way.transform, head.chosen
    rows = [
        (
            "head",
            f"ridge regression on features of {chosen.count:,} images, solved in closed form; base "
            f"model {row.model}, unchanged",
        ),
        (
            "features",
            f"pooled after the last norm and ReLU, computed in {way.dtype} ({way.backend}), "
            "standardized",
        ),
        (
            "images",
            f"resize to {transform.resize}x{transform.resize}, central "
            f"{transform.crop}x{transform.crop}, not augmented",
        ),
        (
            "strength",
            f"l2 {chosen.l2:g}, of {len(STRENGTHS)} powers of two from {STRENGTHS[0]:g} to "
            f"{STRENGTHS[-1]:,.0f}: the most right answers when each training image is left out "
            f"({chosen.correct:,} of {chosen.count:,}), then the lowest squared error",
        ),
        (
            "scores",
            "a regression to 1 for the image's class and -1 for the others; their softmax ranks "
            "the classes, and is no calibrated probability",
        ),
    ]
    if known.folds:
        rows.append(
            (
                "expected accuracy",
                f"{row.top1:.2%} ({in_tenths(row.interval)}), over {known.judged}; this head "
                "learned from all of them, and was not measured itself",
            )
        )
    if len(result.done) > 1:
        rows.append(
            (
                "choice",
                f"one of {len(result.done)} models that were compared on the same judged images, "
                "so its accuracy on them is optimistic",
            )
        )
    return rows


def _data_rows(known: ProbeData) -> list[tuple[str, str]]:
    height, width = known.summary.resolution
    rows = [(f"{split} images", f"{count:,}") for split, count in known.summary.counts.items()]
    if known.images.held_out:
        rows.append(("val images are", known.images.held_out))
    rows += [
        ("classes", f"{len(known.images.classes):,}"),
        ("median size", f"{height} x {width} px (height x width)"),
        ("fingerprint", known.images.fingerprint),
    ]
    kinds = known.summary.skipped.reasons
    return rows + [
        (f"left out: {kind.title}", f"{len(known.summary.skipped.of(kind)):,}") for kind in kinds
    ]


def _mistakes(known: ProbeData, way: Way, found: Evaluation | None) -> list[Mistake]:
    if found is None or known.images.val is None:
        return []
    held_out = Split("val", known.images.val.examples)
    keys = [example.key for example in held_out.examples]
    with open_pixels(held_out, way.transform, budget_bytes=0, workers=way.workers) as pixels:
        return find_mistakes(found, pixels, keys)
