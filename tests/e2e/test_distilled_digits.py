"""A distilled student against the same student trained from labels, on real handwritten digits.

100 labelled images, 10 of each digit; the teacher learned from all 1,297 that are not held out. The
students have the same start, batches, steps and optimizer. They differ in the loss, and in MixUp,
which the student from labels is spared: it does worse with it in so few steps.
"""

import numpy as np
import pytest
import torch
from training import CLASSES, CROP, RESIZE, SMALL, Digits, digits

from bitzoo.inference.evaluate import evaluate_pixels
from bitzoo.inference.optimize import optimize
from bitzoo.models.bit import BiT
from bitzoo.training.distillation import Ensemble, Teacher
from bitzoo.training.recipe import Recipe, Schedule
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SEEDS = (0, 1, 2)
STEPS, BATCH, LR = 60, 16, 0.003


def split():
    """Held out: the first 50 of each digit; few: the next 10; the rest too for the teacher."""
    images, labels = digits()
    by_class = [np.flatnonzero(labels == digit) for digit in range(CLASSES)]
    held = np.concatenate([found[:50] for found in by_class])
    few = np.concatenate([found[50:60] for found in by_class])
    many = np.concatenate([found[50:] for found in by_class])
    return [(Digits(images[rows]), labels[rows]) for rows in (held, few, many)]


def recipe(loss, steps, batch, mixup):
    schedule = Schedule(LR, steps, steps // 10, shape="cosine")
    return Recipe(
        "digits", RESIZE, CROP, batch, schedule, optimizer="adamw", weight_decay=0.03,
        decayed="kernels", clip_norm=1.0, mixup_alpha=mixup, flip=False, loss=loss,
        loss_options={"temperature": 2.0} if loss == "distillation" else {},
    )  # fmt: skip


def learn(data, plan, seed, teacher=None):
    network = BiT(SMALL, CLASSES)
    network.init_weights(torch.Generator().manual_seed(seed))
    config = TrainingConfig(seed=seed, micro_batch=plan.batch_size)
    train(network, plan, *data, config, teacher=teacher)
    return network


def accuracy(network, held):
    pixels, labels = held
    middle = (RESIZE - CROP) // 2
    seen = Digits(pixels.images[:, middle : middle + CROP, middle : middle + CROP])
    return evaluate_pixels(network, seen, labels, [str(k) for k in range(CLASSES)]).top1


def test_distillation_beats_labels(capsys):
    held, few, many = split()
    taught = learn(many, recipe("softmax_cross_entropy", 100, 32, 0.0), 100)
    teacher = Ensemble([Teacher(optimize(taught))])
    rows = []
    for seed in SEEDS:
        labels = learn(few, recipe("softmax_cross_entropy", STEPS, BATCH, 0.0), seed)
        distilled = learn(few, recipe("distillation", STEPS, BATCH, 1.0), seed, teacher)
        rows.append((accuracy(labels, held), accuracy(distilled, held)))
        with capsys.disabled():
            print(f"seed {seed}: labels {rows[-1][0]:.3f}, distilled {rows[-1][1]:.3f}", flush=True)
    with capsys.disabled():
        print(f"teacher {accuracy(taught, held):.3f}", flush=True)
    assert all(distilled > labels for labels, distilled in rows), rows
