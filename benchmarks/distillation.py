"""Compare a distilled student with the same student trained from labels, for as many steps.

    python benchmarks/distillation.py [--steps 400] [--seeds 3] [--quick]

scikit-learn's handwritten digits, enlarged to 32x32. The teacher is trained on all training images;
the student, of the same tiny architecture, sees ten images of each digit: with the teacher's
outputs as targets and MixUp, or with labels, with MixUp and without. All have the same steps,
batches, optimizer and schedule; students of one seed start from the same weights and see the same
crops.
The held-out images are those that nobody was trained on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import aligned_table, machine
from PIL import Image
from sklearn.datasets import load_digits

from bitzoo.data.dataset import ImageSet, read_dataset
from bitzoo.data.image_store import open_pixels, open_whole_images
from bitzoo.data.validation import inspect
from bitzoo.inference.evaluate import evaluate_pixels, labels_of
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.optimize import optimize
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.training.distillation import Ensemble, Teacher
from bitzoo.training.recipe import DISTILLATION, INCEPTION_CROP, SOFTMAX, TEMPERATURE, Recipe
from bitzoo.training.schedule import Schedule
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig

ARCH, SIDE, HELD_OUT, FEW = "R(1,1,1,1)x0.5", 32, 50, 10
TEACHER_STEPS, BATCH, LR = 450, 32, 0.003
WAYS = {
    "distilled, MixUp": (DISTILLATION, 1.0),
    "labels": (SOFTMAX, 0.0),
    "labels, MixUp": (SOFTMAX, 1.0),
}
"""Way of training -> loss, and alpha of MixUp."""


def main() -> None:
    """Train the teacher and the students, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="updates of each student")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind")
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps")
    options = parser.parse_args()
    steps, seeds = (20, 1) if options.quick else (options.steps, options.seeds)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        everything = digits(Path(name, "all"), None)
        few = digits(Path(name, "few"), FEW)
        rule = recipe(SOFTMAX, 0.0, 20 if options.quick else TEACHER_STEPS)
        network, taught = trained(everything, rule, seed=100)
        teacher = Ensemble([Teacher(optimize(network))])
        found = {
            way: [
                trained(few, recipe(*how, steps), seed, teacher if how[0] == DISTILLATION else None)
                for seed in range(seeds)
            ]
            for way, how in WAYS.items()
        }
    rows = [["way", *(f"seed {seed}" for seed in range(seeds)), "median"]]
    for way, runs in found.items():
        shares = [evaluation.top1 for _, evaluation in runs]
        rows.append([way, *(f"{s:.1%}" for s in shares), f"{statistics.median(shares):.1%}"])
    print(machine())
    print(
        f"Teacher: {len(everything.train):,} images, {rule.schedule.steps} steps, "
        f"top-1 {taught.top1:.1%}; students: {len(few.train)} images, {steps} steps of {BATCH}.\n"
    )
    print(aligned_table(f"Top-1 on {taught.count} held-out digits", rows))


def digits(folder: Path, per_class: int | None) -> ImageSet:
    """Write the digits as files, and list them."""
    data = load_digits()
    pixels = np.minimum(data.images * 16, 255).astype(np.uint8)  # 0 to 16 in the original
    for digit in range(10):
        rows = np.flatnonzero(data.target == digit)
        splits = {"val": rows[:HELD_OUT], "train": rows[HELD_OUT:][:per_class]}
        for split, chosen in splits.items():
            into = folder / split / str(digit)
            into.mkdir(parents=True)
            for row in chosen:
                image = Image.fromarray(pixels[row])
                image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(into / f"{row:04}.png")
    images, _ = inspect(read_dataset(folder))
    return images


def recipe(loss: str, mixup: float, steps: int) -> Recipe:
    """Return the recipe that all have in common but for the loss and MixUp."""
    made = Recipe(
        "digits",
        SIDE,
        SIDE,
        BATCH,
        Schedule(LR, steps, steps // 10, shape="cosine"),
        optimizer="adamw",
        weight_decay=1e-4 / LR,
        decayed="kernels",
        clip_norm=1.0,
        mixup_alpha=mixup,
        augmentation=INCEPTION_CROP,
        flip=False,
        loss=loss,
    )
    return replace(made, loss_options={TEMPERATURE: 2.0}) if loss == DISTILLATION else made


def trained(
    images: ImageSet, rule: Recipe, seed: int, teacher: Ensemble | None = None
) -> tuple[BiT, Evaluation]:
    """Train from random weights, and evaluate."""
    network = BiT(Architecture.parse(ARCH), len(images.classes))
    network.init_weights(torch.Generator().manual_seed(seed))
    assert images.val is not None
    with (
        open_whole_images(images.train, SIDE, workers=1) as pixels,
        open_pixels(images.val, SIDE, budget_bytes=10**9, workers=1) as held_out,
    ):
        config = TrainingConfig(seed=seed, micro_batch=BATCH, device="cpu")
        train(network, rule, pixels, labels_of(images.train), config, teacher=teacher)
        found = evaluate_pixels(network, held_out, labels_of(images.val), images.classes)
    return network, found


if __name__ == "__main__":
    main()
