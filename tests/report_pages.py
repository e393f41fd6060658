"""Runs to report on, with 6, 60 and 1,000 classes, as a trained network would leave them.

    record_of(60)           # a `RunRecord`; the same every time
    probe_result(folder)    # what the other commands report on

Names have one word or several, some are very long or have no space at all; classes are confused
mostly within groups that are scattered over the alphabet, as they are in real data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from images import photo

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.registry import get_spec
from bitzoo.catalogue.vtab_tasks import TASKS
from bitzoo.data.dataset import Example
from bitzoo.data.near_duplicates import NearDuplicates, Pair
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.fewshot_result import FewShotResult, Trial
from bitzoo.runs.probe_result import Probed, ProbeResult
from bitzoo.runs.report.captions import first_batch_note
from bitzoo.runs.report.leakage import Leakage, ShownPair
from bitzoo.runs.report.run_summary import Gallery, Mistake, RunRecord, Tile
from bitzoo.runs.study_cell import Score
from bitzoo.runs.study_grid import plan_study
from bitzoo.runs.study_result import StudyResult
from bitzoo.runs.vtab_result import RunScore, TaskScore, VtabResult
from bitzoo.training.hyperrule import hyperrule
from bitzoo.training.model_selection import Choice
from bitzoo.training.recipe_text import explain

SIZES = (6, 60, 1000)
_FIRST = ("great", "lesser", "northern", "painted", "common", "red-breasted", "ringed", "alpine")
_SECOND = ("woodpecker", "warbler", "flycatcher", "owl", "tit", "merganser", "plover", "nutcracker")
LONG_NAMES = (
    "yellow-breasted-and-rather-long-tailed-tyrannulet-of-the-western-slopes-of-the-andes",
    "a bird of a kind that nobody was sure about when the images were labelled in the field",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
)


def names_of(count: int) -> tuple[str, ...]:
    """Class names, all different; the long ones first, so that every size has them."""
    made = [
        f"{first} {second}" if number < 3 else f"{first} {second} of the {number}th kind"
        for number in range(count)
        for first in _FIRST
        for second in _SECOND
    ]
    short = ["robin", "wren", "owl"]
    return (*short, *LONG_NAMES, *dict.fromkeys(made))[:count]


def evaluation_of(count: int, per_class: int = 20, seed: int = 1) -> Evaluation:
    """An evaluation that is right for three of four images or so; the last class has no images."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count - 1), per_class)
    kin = random.permutation(count) // 4  # groups of four, scattered
    logits = random.normal(0, 1, (len(labels), count)).astype(np.float32)
    logits[kin[labels][:, None] == kin[None, :]] += 2.0
    logits[np.arange(len(labels)), labels] += 0.6 + 0.35 * np.log10(count)
    return Evaluation.of_logits(names_of(count), labels, logits)


def record_of(count: int, **changes: Any) -> RunRecord:
    """A run with this many classes."""
    classes, found = names_of(count), evaluation_of(count)
    recipe = hyperrule(25_000, (480, 640))
    values: dict[str, Any] = {
        "title": f"A run with {count:,} classes",
        "model": "BiT-M-R50x1",
        "architecture": "R50x1",
        "image_size": recipe.crop,
        "classes": classes,
        "dataset": "photos",
        "data": [
            ("train images", "25,000"),
            ("val images", f"{found.count:,}"),
            ("val images are", "0.1 of the images of each class, drawn with seed 0"),
            ("classes", f"{count:,}"),
            ("median size", "480 x 640 px (height x width)"),
            ("fingerprint", "5f3a9c" * 10 + "01ab"),
        ],
        "recipe": explain(recipe),
        "options": {"seed": 0, "dtype": "float32", "freeze": False, "pretrained": True},
        "history": _history(),
        "evaluation": found,
        "mistakes": _mistakes(found),
        "versions": {"bitzoo": "1.0", "torch": "2.13.0", "machine": "x86_64"},
        "folder": "runs/photos",
        "base": "BiT-M-R50x1",
        "info": ModelInfo(
            "R50x1", count, base=Identity("BiT-M-R50x1", "google"), license="apache-2.0"
        ),
        "plan": recipe,
        "made": [
            ("started", "2026-01-02 03:04 UTC"),
            ("finished", "2026-01-02 05:06 UTC"),
            ("duration", "2 h 02 min to decode, train and evaluate"),
            ("device", "NVIDIA H100"),
        ],
        "command": "bitzoo finetune BiT-M-R50x1 --data photos --out runs/photos",
        "galleries": [
            Gallery(
                "First training batch",
                first_batch_note(recipe, 16, freeze=False),
                [
                    Tile(
                        _image(100 + number, 128, 128),
                        (
                            f"70.0 % {classes[number % count]}",
                            f"30.0 % {classes[-1 - number % count]}",
                        ),
                        f"First batch, image {number + 1}",
                    )
                    for number in range(16)
                ],
            )
        ],
    }
    return RunRecord(**values | changes)


def leaking_record() -> RunRecord:
    """A run with near-duplicates across its splits that kept its best weights."""
    run = record_of(6)
    found = run.evaluation
    assert found is not None
    names = [f"val/{name[:20]}/burst {number}.jpg" for number, name in enumerate(run.classes)]
    pairs = [
        Pair(Example(0, key=name.replace("val", "train")), Example(0, key=name), distance)
        for distance, name in enumerate(names)
    ]
    near = NearDuplicates(tuple(pairs), tuple(names))
    counted = found.count - len(names)
    return replace(
        run,
        title="A run with near-duplicates",
        leakage=Leakage(near, found.correct - len(names), counted, found.count),
        near_pairs=[
            ShownPair(
                None if pair.distance == 1 else _image(200 + pair.distance, 192, 128),
                _image(200 + pair.distance, 192, 120),
                pair.held_out.key,
                pair.train.key,
                (run.classes[pair.distance], run.classes[pair.distance]),
                pair.distance,
            )
            for pair in pairs
        ],
        choice=Choice("best", 350, 500, 500, 10),
    )


def fewshot_result(folder: Path) -> FewShotResult:
    """Return few-shot runs as the paper's: five sizes, five runs each, the last one missing."""
    rng = np.random.default_rng(7)
    shots, runs, count = (1, 5, 10, 25, 100), 5, 1180
    trials = [
        Trial(per, run, run, 60 * per, round(count * rng.normal(1 - 0.6 / per**0.4, 0.02)), count)
        for per in shots
        for run in range(runs)
    ]
    settings = {"model": "BiT-M-R50x1", "dataset": "birds", "method": "ridge", "seed": 0}
    test = f"all {count:,} images of the data set's own test split"
    return FewShotResult(folder, settings, shots, runs, test, tuple(trials[:-1]), LONG_NAMES[:2])


def probe_result(folder: Path) -> ProbeResult:
    """Return a probe of all models of ImageNet-21k; one could not be used, one was not tried."""
    rng = np.random.default_rng(8)
    models = []
    for rank, arch in enumerate(("R152x4", "R101x3", "R50x3", "R101x1", "R50x1")):
        spec = get_spec(f"BiT-M-{arch}")
        correct = 1020 - 25 * rank - int(rng.integers(10))
        rate = 3e9 / spec.num_params
        models.append(
            Probed(
                spec.name,
                "done",
                architecture=arch,
                params=spec.num_params,
                features=2048,
                correct=correct,
                correct_lsr=correct - 30,
                count=1180,
                l2=(0.5,),
                images_per_s=rate,
                memory_bytes=6 * spec.num_params,
                computed=1180,
            )
        )
    models += [Probed(f"runs/{LONG_NAMES[0]}", "failed", "It has no weights."),
               Probed("BiT-M-R152x2", "not tried", "The time limit was reached.")]  # fmt: skip
    settings = {"seed": 0, "train": 4720, "judged": 1180, "strengths": (2**-10, 2**20, 31)}
    judged = "all 1,180 images of the data set's own val split"
    notes = (f"Not read again: {LONG_NAMES[1]}.",)
    return ProbeResult(
        "birds", names_of(60), judged, settings, tuple(models), notes=notes, folder=folder
    )


def vtab_result(folder: Path) -> VtabResult:
    """Return three runs of 18 of the 19 tasks."""
    rng = np.random.default_rng(9)
    scores = {}
    for name, task in list(TASKS.items())[:-1]:
        count = task.counts[2]
        runs = tuple(
            RunScore(seed, f"{name}/seed-{seed}", round(count * rng.uniform(0.6, 0.9)), count)
            for seed in range(3)
        )
        scores[name] = TaskScore(name, task.versions[0], runs, (LONG_NAMES[1],))
    missing = {list(TASKS)[-1]: "not prepared"}
    return VtabResult("BiT-M-R50x1", folder, scores, missing, ("steps: 100 instead of 500",))


def study_result(folder: Path) -> StudyResult:
    """Return a study of three axes, with published figures and claims."""
    axes = {"norm": ["batch", "group"], "batch_size": [32, 128, 512], "seeds": 3}
    document = {
        "title": "Normalizations at several batch sizes",
        "grid": axes,
        "pretrain": {"arch": "R50x1", "data": "photos"},
        "published": [
            {"where": {"norm": "batch"}, "metric": "upstream", "value": 75.6, "source": "Table 4"}
        ],
        "claim": [{"text": "Group norm with weight standardization is best.", "source": "Table 4"}],
    }
    rng = np.random.default_rng(10)
    plan = plan_study("norms", document)
    scores = {}
    for cell in plan.cells[:-1]:
        hits = int(rng.integers(600, 900))
        scores[cell.name] = {"upstream": Score(hits / 1180, hits, 1180, "held-out images")}
    return StudyResult(folder, plan, scores, {plan.cells[-1].name: "out of memory"})


def _history() -> list[dict[str, Any]]:
    random = np.random.default_rng(2)
    lines: list[dict[str, Any]] = []
    for step in range(1, 501):
        loss = 0.6 + 4 * np.exp(-step / 90) + random.normal(0, 0.08)
        speed = 240 + random.normal(0, 12)
        lr = 0.003 * min(1, step / 100) * 0.1 ** sum(step > bound for bound in (150, 300, 450))
        lines.append(
            {"event": "train", "step": step, "loss": loss, "lr": lr, "images_per_s": speed}
        )
        if step % 50 == 0:
            share = 0.75 * (1 - np.exp(-step / 100))
            scores = {"top1": share, "top5": share**0.4, "loss": 3 - 2.5 * share}
            lines.append({"event": "eval", "step": step, **scores})
    return lines


def _mistakes(found: Evaluation) -> Sequence[Mistake]:
    return [
        Mistake(
            _image(int(position), 61 + int(position) % 40, 60),
            f"val/{found.classes[found.labels[position]][:30]}/IMG_{position:06}_from_camera.jpg",
            found.classes[found.labels[position]],
            found.classes[found.predicted[position]],
            float(found.scores[position]),
        )
        for position in found.worst(24)
    ]


def _image(seed: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    return np.asarray(photo(seed, width, height))
