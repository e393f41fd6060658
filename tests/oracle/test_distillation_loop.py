"""Twenty steps of distillation in float64 against the plain loop: the same weights."""

import math

import numpy as np
import plain_training
import pytest
import torch
from compared_loops import BATCH, CROP, IMAGES, STEPS, compare, network, write_photos
from plain_training import Net

from bitzoo.training.distillation import Ensemble, Teacher
from bitzoo.training.recipe import Recipe, Schedule

pytestmark = pytest.mark.slow

LRS = [0.0, 0.00075, 0.0015, 0.00225] + [
    0.0015 * (1 + math.cos(math.pi * done / 16)) for done in range(16)
]
CLASSES = 7


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def recipe(temperature, **changes):
    return Recipe(
        "test", CROP, CROP, BATCH, Schedule(0.003, STEPS, 4, shape="cosine"),
        augmentation="inception_crop", optimizer="adamw", weight_decay=0.1, decayed="kernels",
        mixup_alpha=1.0, clip_norm=1.0, loss="distillation",
        loss_options={"temperature": temperature}, **changes,
    )  # fmt: skip


def teacher_tensors(seed):
    """A teacher that is sure of something: its logits are spread over several units."""
    tensors = plain_training.draw_tensors(Net(), CLASSES, head="random", seed=seed)
    tensors["head.fc.weight"] *= 10
    return tensors


@pytest.mark.parametrize(("temperature", "teachers"), [(1.0, 1), (2.5, 2)])
def test_distillation(temperature, teachers, photos):
    """The teachers see the student's pixels, after crop, flip and MixUp; labels see nothing."""
    drawn = [teacher_tensors(seed) for seed in range(50, 50 + teachers)]
    asked = []

    def plain_teacher(images):
        logits = [plain_training.logits_of(Net(), t, images, training=False) for t in drawn]
        assert max(float(logit.std()) for logit in logits) > 0.3
        asked.append(images)
        return sum(logits) / teachers

    models = [network(Net(), tensors).eval() for tensors in drawn]
    seen = []

    def watched(images):
        seen.append(images)
        return Ensemble([Teacher(model) for model in models])(images)

    norms = compare(
        Net(), photos, recipe(temperature), LRS, np.zeros(IMAGES, int),
        np.zeros((IMAGES, CLASSES)),
        lambda logits, wanted: plain_training.distillation_loss(logits, wanted, temperature),
        plain_training.Adam(0.1), clip=1.0, micro_batch=BATCH, teacher=watched,
        plain_teacher=plain_teacher,
    )  # fmt: skip
    assert max(norms) > 1
    assert len(seen) == len(asked) == STEPS
    for found, wanted in zip(seen, asked, strict=True):
        assert torch.equal(found, wanted)
