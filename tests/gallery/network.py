"""The small network of the examples' figures: it has seen other drawings of the same kinds.

A released model has seen people, telephones, leaves and insects among its photographs. This one
stands in for it: R(1,1,1,1)x0.5, trained from random weights on drawings with other persons and
other leaves, in nine classes, of which the examples have some under other names.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from random import Random
from typing import Any

from checkpoints import make_checkpoint, timm_name, write_npz

import bitzoo
from bitzoo.cli.quickstart import write_random_checkpoint
from bitzoo.models.architecture import Architecture

DOINGS = ("phoning", "smoking", "drinking", "scratching", "resting")
EACH = 200
PLAN: dict[str, Any] = {
    "steps": 500,
    "batch_size": 32,
    "lr": 0.03,
    "resolution": (80, 80),
    "mixup": 0,
}


def draw(scripts: Path, folder: Path) -> None:
    """Draw `EACH` images of each class with the examples' scripts, in class folders."""
    people = runpy.run_path(str(scripts / "draw_people.py"), run_name="drawing")
    leaves = runpy.run_path(str(scripts / "draw_leaves.py"), run_name="drawing")
    random = Random(99)
    for name in (*DOINGS, *leaves["LEAVES"]):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(EACH):
        for name in DOINGS:  # the examples' persons have numbers below a hundred
            image = people["draw"](1000 + random.randrange(10**6), name, random)
            image.save(folder / name / f"{number:03}.jpg", quality=90)
        for name in leaves["LEAVES"]:
            image = leaves["photograph"](leaves["leaf"](random, name), random)
            image.save(folder / name / f"{number:03}.jpg", quality=90)


def train(scripts: Path, work: Path) -> Path:
    """Train it, which takes minutes, unless that was done; returns its run folder."""
    run = work / "network"
    if not (run / "report.html").exists():
        draw(scripts, work / "drawings")
        write_random_checkpoint(work / "random.npz", Architecture((1, 1, 1, 1), 0.5), 1000)
        bitzoo.finetune(work / "random.npz", work / "drawings", run, overwrite=True, **PLAN)
    return run


def write_as_release(run: Path, path: Path, classes: int) -> None:
    """Write it as an `.npz` in Google's layout.

    Args:
        run: Its run folder, or a file with its weights.
        path: File to write.
        classes: Outputs of the head, which is random: a probe and a fine-tuning replace it.
    """
    weights = bitzoo.create_model(run).state_dict()
    arrays = make_checkpoint(num_classes=classes)
    for name, random in arrays.items():
        if "/head/" not in name:
            tensor = weights[timm_name(name)].numpy()
            arrays[name] = tensor.transpose(2, 3, 1, 0) if random.ndim == 4 else tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, arrays)
