"""Twenty steps of the training loop in float64 against the plain loop: the same weights.

What the plain loop is given as data are the numbers that the plan drew, and the learning rates,
written down here by hand. The rest it computes itself.
"""

import math

import numpy as np
import plain_loop
import pytest
import torch
from plain_loop import Draw, Net
from training import Digits, digits

from bitzoo.data.sampler import BatchPlan
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.training.recipe import Recipe, Schedule
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig

STEPS, BATCH, CROP = 20, 8, 32

TOLERANCE = 1e-10
"""Largest difference of any element of a tensor after the last step, relative to the largest
magnitude in that tensor."""


def network(net, tensors):
    """bitzoo's network in float64 with these tensors."""
    architecture = Architecture(
        (1, 1, 1, 1), 0.5, norm=net.norm, weight_standardization=net.standardized
    )
    model = BiT(architecture, len(tensors["head.fc.bias"])).double()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model


def differences(model, tensors):
    """By tensor: the largest difference, relative to the tensor's largest magnitude."""
    found = model.state_dict()
    assert set(tensors) <= set(found)
    return {
        name: float((found[name] - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
        for name, wanted in tensors.items()
    }


def several_labels(labels):
    """Multi-hot targets: an image has its digit, `even` or `prime`, both, or no label at all."""
    targets = np.zeros((len(labels), 12))
    targets[np.arange(len(labels)), labels] = 1
    targets[:, 10] = labels % 2 == 0
    targets[:, 11] = np.isin(labels, (2, 3, 5, 7))
    targets[::7] = 0
    return targets


def check(net, recipe, lrs, targets, loss, optimizer, *, labels=None, clip=None, micro_batch=None):
    """Train by both loops and compare weights, running statistics and losses.

    Returns:
        The norms of the plain loop's gradients before clipping.
    """
    images = digits()[0][: len(targets)]
    tensors = plain_loop.draw_tensors(net, targets.shape[1], head="random")
    model = network(net, tensors)
    found = []
    train(
        model, recipe, Digits(images), targets.argmax(1) if labels is None else labels,
        TrainingConfig(seed=3, micro_batch=micro_batch),
        on_step=lambda metrics: found.append(metrics["loss"]),
    )  # fmt: skip

    draws = drawn(recipe, images)
    batches = [plain_loop.batch_of(draw, images, targets, CROP) for draw in draws]
    wanted, losses, norms = plain_loop.train(
        net, tensors, batches, lrs, loss, optimizer, clip=clip
    )
    assert found == pytest.approx(losses, rel=TOLERANCE)
    apart = differences(model, wanted)
    assert max(apart.values()) <= TOLERANCE, apart
    for name, tensor in tensors.items():
        assert not torch.equal(wanted[name], tensor), name
    return norms


def drawn(recipe, images):
    """What the plan drew for each step."""
    plan = BatchPlan(
        len(images), BATCH, recipe.resize, CROP, recipe.flip, recipe.mixup_alpha, seed=3
    )
    draws = []
    for step in range(STEPS):
        batch = plan.batch(step)
        boxes = [(top, left, CROP, CROP) for top, left in zip(batch.top, batch.left, strict=True)]
        draws.append(Draw(list(batch.indices), boxes, list(batch.flip), batch.mix, batch.lam))
    return draws


STEP_LRS = [0.0, 0.0006, 0.0012, 0.0018, 0.0024] + [0.003] * 5 + [0.0003] * 6 + [0.00003] * 4
"""Warmup over 5 steps, then a tenth after step 9 and a hundredth after step 15. With ten times these
rates the network with batch norm diverges, and twenty steps enlarge a change of the last bit to
4e-10; with these to 1e-13."""
STEPWISE = Schedule(0.003, STEPS, 5, (9, 15))

COSINE_LRS = [0.02 * step / 4 for step in range(4)] + [
    0.01 * (1 + math.cos(math.pi * done / 16)) for done in range(16)
]
COSINE = Schedule(0.02, STEPS, 4, shape="cosine")


def test_softmax_and_decay_of_the_kernels():
    """As bit-s trains; the decay is large enough to be seen."""
    targets = np.eye(10)[digits()[1][:40]]
    recipe = Recipe("test", 36, CROP, BATCH, STEPWISE, weight_decay=0.1, decayed="kernels")
    check(
        Net(), recipe, STEP_LRS, targets, plain_loop.softmax_loss, plain_loop.Momentum(0.1),
        micro_batch=3,
    )  # fmt: skip


NETS = [Net("batch", False), Net("batch", True), Net("group", False)]


@pytest.mark.parametrize("net", NETS, ids=str)
def test_the_norm_grid(net):
    """The other three cells; with batch norm also the running statistics."""
    targets = np.eye(10)[digits()[1][:40]]
    recipe = Recipe("test", 36, CROP, BATCH, STEPWISE, weight_decay=0.1, decayed="kernels")
    check(
        net, recipe, STEP_LRS, targets, plain_loop.softmax_loss, plain_loop.Momentum(0.1),
        micro_batch=BATCH,
    )  # fmt: skip
