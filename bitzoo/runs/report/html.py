"""A run's report, as a self-contained HTML page, and its model card draft."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import shlex
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo._version import __version__
from bitzoo.catalogue.registry import ModelSpec, find_spec
from bitzoo.files import write_text
from bitzoo.inference.metrics import MIN_TOP5_CLASSES, Evaluation
from bitzoo.model_cards.text import clean, escape, timm_loads
from bitzoo.models.architecture import ARCHITECTURES
from bitzoo.models.image_files import open_image
from bitzoo.runs.report.captions import loss_caption, origin
from bitzoo.runs.report.confusion_groups import group_confused
from bitzoo.runs.report.run_summary import (
    Gallery,
    Mistake,
    RunRecord,
    Tile,
    find_mistakes,
    wilson_interval,
)
from bitzoo.runs.report.svg import Curve, confusion_matrix, line_chart, matrix_overview, smoothed

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "Mistake",
    "RunRecord",
    "find_mistakes",
    "render",
    "write_card",
    "write_page",
    "write_report",
]

MAX_MATRIX = 30
"""Most classes for which a confusion matrix with names is readable. Of more, the groups of classes
that are confused the most are shown with names, and the whole without."""

_THUMBNAIL = 128
_FIRST_CLASSES, _MAX_CLASSES = 30, 1000
_PAIRS, _MANY_PAIRS = 15, 30
_GROUPS = 6


def write_report(path: str | os.PathLike[str], run: RunRecord) -> Path:
    """Write a run's report: one HTML file that needs no other file, no network and no script.

    Args:
        path: Where to; an existing file is replaced at once.
        run: What to tell.

    Returns:
        `path`.
    """
    page = render(
        "report.html.j2",
        run=run,
        facts=_headline(run),
        charts=_charts(run),
        origin=origin(run),
        results=_results(run.evaluation),
        leakage=run.leakage,
        near_pairs=[
            (pair, *(_data_uri(side) if side is not None else "" for side in sides))
            for pair in run.near_pairs
            for sides in ((pair.held_out, pair.train),)
        ],
        matrices=_matrices(run.evaluation),
        galleries=[(gallery, _pictured(gallery)) for gallery in _galleries(run)],
        loading=_loading(run, run.folder),
        version=__version__,
    )
    return write_page(Path(path), page)


def write_card(path: str | os.PathLike[str], run: RunRecord) -> Path:
    """Write the draft of a model card in the form of the Hugging Face Hub.

    Its front matter names a base model where the run's `base` is in the catalogue and on the Hub.

    Args:
        path: Where to; an existing file is replaced at once.
        run: What to tell.

    Returns:
        `path`.
    """
    card = render(
        "card.md.j2",
        run=run,
        front_matter=_front_matter(run),
        base=find_spec(run.base) if run.base else None,
        origin=origin(run),
        results=_results(run.evaluation),
        leakage=run.leakage,
        loading=_loading(run, "FOLDER"),
        version=__version__,
    )
    return write_page(Path(path), card)


def _headline(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the figures at the top: value, name, note."""
    found = run.evaluation
    facts = []
    if found is not None and found.count:
        low, high = wilson_interval(found.correct, found.count)
        note = f"{found.correct:,} of {found.count:,}; 95 % interval {low:.1%} to {high:.1%}"
        facts.append((_percent(found.top1), "top-1 accuracy", note))
        leakage = run.leakage
        if leakage and leakage.matters:
            share = _percent(leakage.correct / leakage.count) if leakage.count else "unknown"
            note = (
                f"{leakage.correct:,} of {leakage.count:,} held-out images that have none in train"
            )
            facts.append((share, "top-1 without near-duplicates", note))
        if found.has_top5:
            note = f"{found.correct_top5:,} of {found.count:,}"
            facts.append((_percent(found.top5), "top-5 accuracy", note))
        if not found.several:
            note = "mean over the classes of their accuracy"
            facts.append((_percent(found.balanced_accuracy), "balanced accuracy", note))
            note = "mean over the classes of their F1 score"
            facts.append((_percent(found.macro_f1), "macro F1", note))
        classes = len(run.classes)
        even = classes * math.log(2) if found.of_sigmoid else math.log(classes)
        kind = "mean sigmoid cross-entropy" if found.of_sigmoid else "mean cross-entropy"
        facts.append((f"{found.loss:.4f}", kind, f"{even:.3f} is guessing evenly"))
    facts.append((f"{len(run.classes):,}", "classes", f"at {run.image_size} x {run.image_size} px"))
    if speeds := run.series("train", "images_per_s"):
        median = statistics.median(speed for _, speed in speeds)
        shown = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
        facts.append((shown, "images per second", "median of training"))
    return facts


def _charts(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the curves: title, drawing, caption. What was not recorded is left out."""
    losses, speeds = run.series("train", "loss"), run.series("train", "images_per_s")
    accuracies = [Curve("top-1", run.series("eval", "top1"), marks=True)]
    if len(run.classes) >= MIN_TOP5_CLASSES:
        accuracies.append(Curve("top-5", run.series("eval", "top5"), "b", marks=True))
    draw = partial(
        line_chart, end=max((int(line.get("step", 0)) for line in run.history), default=0)
    )
    loss = draw(
        "Loss over steps",
        [
            Curve("each step", losses, "faint"),
            Curve("smoothed", smoothed(losses)),
            Curve("held out", run.series("eval", "loss"), "b", marks=True),
        ],
        unit="nats" if run.teaching else "cross-entropy",
    )
    accuracy = draw("Accuracy over steps", accuracies, unit="correct", percent=True)
    rates = [Curve("learning rate", run.series("train", "lr"))]
    rate = draw("Learning rate over steps", rates, unit="learning rate", log=True)
    speed = draw(
        "Speed over steps",
        [Curve("each step", speeds, "faint"), Curve("smoothed", smoothed(speeds))],
        unit="images per second",
    )
    charts = [
        ("Loss", loss, loss_caption(run)),
        ("Accuracy", accuracy, "On all held-out images."),
        ("Learning rate", rate, "Of each step."),
        ("Speed", speed, "Of each step, without evaluations and checkpoints."),
    ]
    return [chart for chart in charts if chart[1]]


def _results(found: Evaluation | None) -> dict[str, Any] | None:
    """Return what the templates show of an evaluation."""
    if found is None or not found.count:
        return None
    pairs = found.confusions()
    confused_with: dict[int, str] = {}
    for pair in pairs:
        confused_with.setdefault(pair.true, f"{found.classes[pair.predicted]} ({pair.count:,})")
    totals = found.per_class
    rows = [row | {"confused": confused_with.get(i, "")} for i, row in enumerate(totals)]
    rows.sort(key=lambda row: (row["accuracy"] is None, row["accuracy"], -row["count"]))
    worst = [
        {
            "true": found.classes[pair.true],
            "predicted": found.classes[pair.predicted],
            "count": pair.count,
            "total": totals[pair.true]["count"],
        }
        for pair in pairs[: _PAIRS if len(found.classes) <= MAX_MATRIX else _MANY_PAIRS]
    ]
    return {
        "evaluation": found,
        "interval": wilson_interval(found.correct, found.count),
        "pairs": worst,
        "all_pairs": len(pairs),
        "first": rows[:_FIRST_CLASSES],
        "more": rows[_FIRST_CLASSES:_MAX_CLASSES],
        "omitted": max(0, len(rows) - _MAX_CLASSES),
        "fewest": min(row["count"] for row in totals),
        "without": sum(row["count"] == 0 for row in totals),
    }


def _matrices(found: Evaluation | None) -> dict[str, Any] | None:
    """Return the drawings of the confusion matrix: one, or groups and an overview."""
    if found is None or not found.count:
        return None
    classes = found.classes
    if len(classes) <= MAX_MATRIX:
        return {"whole": confusion_matrix(classes, found.confusion)}
    pairs = found.confusions()
    grouping = group_confused(len(classes), pairs)
    counts = {(pair.true, pair.predicted): pair.count for pair in pairs}
    totals = [row["count"] for row in found.per_class]
    hits = [row["correct"] for row in found.per_class]
    counts |= {(label, label): right for label, right in enumerate(hits)}
    shown = grouping.groups[:_GROUPS]
    groups = []
    for group, mistakes in zip(shown, grouping.mistakes, strict=False):
        cells = np.array([[counts.get((a, b), 0) for b in group] for a in group], np.int64)
        others = np.array([totals[label] for label in group], np.int64) - cells.sum(axis=1)
        drawing = confusion_matrix([classes[label] for label in group], cells, others)
        groups.append({"drawing": drawing, "mistakes": mistakes, "classes": len(group)})
    return {
        "whole": "",
        "groups": groups,
        "wrong": found.count - found.correct,
        "overview": matrix_overview(classes, grouping.order, totals, hits, pairs, shown),
        "order": [classes[label] for label in grouping.order],
        "omitted": len(classes) - len(grouping.order),
    }


def _galleries(run: RunRecord) -> list[Gallery]:
    """Return all sections with images: the worst mistakes, then the others."""
    tiles = [
        Tile(
            mistake.image,
            (
                mistake.true,
                f"classified as {mistake.predicted}, {100 * mistake.score:.1f}\N{NO-BREAK SPACE}%",
                mistake.key,
            ),
            mistake.key,
        )
        for mistake in run.mistakes
    ]
    note = (
        "The wrongly classified held-out images whose true class got the lowest probability. Some "
        "may be mislabelled."
    )
    worst = [Gallery("Worst mistakes", note, tiles)] if tiles else []
    return [*worst, *run.galleries]


def _pictured(gallery: Gallery) -> list[tuple[Tile, str]]:
    return [(tile, _data_uri(tile.image)) for tile in gallery.tiles]


def _loading(run: RunRecord, folder: str) -> dict[str, str]:
    quoted = json.dumps(folder, ensure_ascii=False)
    lines = [
        "import bitzoo",
        "",
        f"model = bitzoo.create_model({quoted}, pretrained=True)",
        "transform, names = bitzoo.create_transform(model), bitzoo.labels(model)",
        f'scores = model(transform("photo.jpg")[None]).{_activation(run)}[0]',
        "print(names[scores.argmax()], scores.max().item())",
    ]
    released = run.architecture in ARCHITECTURES  # those that timm has under a name too
    place = json.dumps(f"local-dir:{folder}", ensure_ascii=False)
    timm = f"import timm\n\nmodel = timm.create_model({place}, pretrained=True)"
    return {
        "predict": f"bitzoo predict {shlex.quote(folder)} photo.jpg",
        "evaluate": f"bitzoo evaluate {shlex.quote(folder)} --data IMAGES --format json",
        "python": "\n".join(lines),
        "timm": timm if released else "",
    }


def _activation(run: RunRecord) -> str:
    return "sigmoid()" if run.info and run.info.activation == "sigmoid" else "softmax(-1)"


def _front_matter(run: RunRecord) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base = _hub_repository(find_spec(run.base)) if run.base else None
    found = run.evaluation
    shares = {}
    if found is not None and found.count:
        is_best = run.choice is not None and run.choice.is_optimistic
        chosen = ", the best of several evaluations on these images" if is_best else ""
        shares["accuracy"] = (f"top-1 accuracy{chosen}", found.top1)
        if found.has_top5:
            shares["top_5_accuracy"] = ("top-5 accuracy", found.top5)
    data = ModelCardData(
        license=run.info.license if run.info else None,
        library_name="timm" if run.info and timm_loads(run.info) else "bitzoo",
        pipeline_tag="image-classification",
        base_model=base,
        base_model_relation="finetune" if base else None,
        tags=["image-classification", "bitzoo", "big-transfer", "bit"],
        metrics=["accuracy"],
        model_name=run.title if shares else None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="custom",
                dataset_name=run.dataset,
                metric_type=kind,
                metric_name=name,
                metric_value=value,
            )
            for kind, (name, value) in shares.items()
        ]
        or None,
    )
    return data.to_yaml()


def _hub_repository(spec: ModelSpec | None) -> str | None:
    """Return the Hub repository of a catalogue entry: timm's, whose name is among the aliases."""
    names = [alias for alias in spec.aliases if "_bit.goog_" in alias] if spec else []
    return f"timm/{names[0]}" if names else None


def _data_uri(image: bytes | npt.NDArray[np.uint8]) -> str:
    source = open_image(io.BytesIO(image)) if isinstance(image, bytes) else Image.fromarray(image)
    small = source.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def render(template: str, **values: object) -> str:
    """Return a template of this package with its values; what is HTML escapes them."""
    return _environment().get_template(template).render(**values)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "shown": _shown, "md": escape}
    return environment


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _shown(value: object) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return str(value)


def write_page(path: Path, text: str) -> Path:
    """Write a page, without what no page may contain; an existing file is replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, clean(text))
    return path
