"""Twenty steps of pre-training in float64 against the plain loop: the same weights."""

import math
from typing import Any

import numpy as np
import plain_training
import pytest
from compared_loops import BATCH, CROP, IMAGES, STEP_LRS, STEPS, compare, write_photos
from plain_training import Net

from bitzoo.data.label_sets import LabelSets
from bitzoo.training.recipe import Recipe, Schedule

pytestmark = pytest.mark.slow

STEPWISE = Schedule(0.003, STEPS, 5, (9, 15))
COSINE_LRS = [0.0, 0.005, 0.01, 0.015] + [
    0.01 * (1 + math.cos(math.pi * done / 16)) for done in range(16)
]
"""Warmup over 4 steps to 0.02, then half a cosine over the other 16, whose end is beyond them."""

CLASSES = 10
LABELS = np.arange(IMAGES) * 7 % CLASSES
ONE_HOT = np.eye(CLASSES)[LABELS]

SEVERAL = [[], [0], [1, 4], [2, 3, 9], [9]] * 5
"""Classes of each image: none, one or several."""


def multi_hot():
    targets = np.zeros((IMAGES, CLASSES))
    for row, classes in zip(targets, SEVERAL, strict=False):
        row[classes] = 1
    return targets


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def recipe(**changes):
    given: dict[str, Any] = {"schedule": STEPWISE, "weight_decay": 0.1, "decayed": "kernels"}
    given |= changes
    return Recipe("test", CROP, CROP, BATCH, augmentation="inception_crop", **given)


def test_softmax(photos):
    """As bit-s: SGD, and a decay of the kernels that is large enough to be seen."""
    compare(
        Net(), photos, recipe(), STEP_LRS, LABELS, ONE_HOT, plain_training.softmax_loss,
        plain_training.Momentum(0.1), micro_batch=3,
    )  # fmt: skip


def test_sigmoid_of_several_labels(photos):
    """As bit-m; the head's biases do not start at zero."""
    compare(
        Net(), photos, recipe(loss="sigmoid_cross_entropy"), STEP_LRS,
        LabelSets.of(SEVERAL[:IMAGES]), multi_hot(), plain_training.sigmoid_loss,
        plain_training.Momentum(0.1),
    )  # fmt: skip


def test_cosine_and_clipping(photos):
    """As big_vision; gradients are longer than 15 in some steps and shorter in others."""
    schedule = Schedule(0.02, STEPS, 4, shape="cosine")
    norms = compare(
        Net(), photos,
        recipe(loss="sigmoid_cross_entropy", schedule=schedule, clip_norm=15.0),
        COSINE_LRS, LabelSets.of(SEVERAL[:IMAGES]), multi_hot(), plain_training.sigmoid_loss,
        plain_training.Momentum(0.1), clip=15.0,
    )  # fmt: skip
    assert min(norms) < 15 < max(norms), norms


@pytest.mark.parametrize(
    "net", [Net("batch", False), Net("batch", True), Net("group", False)], ids=str
)
def test_the_norm_grid(net, photos):
    """The other three cells; with batch norm also the running statistics."""
    compare(
        net, photos, recipe(), STEP_LRS, LABELS, ONE_HOT, plain_training.softmax_loss,
        plain_training.Momentum(0.1), micro_batch=BATCH,
    )  # fmt: skip
