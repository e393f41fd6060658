"""Twenty steps of the training loop in float64 against the plain loop: the same weights.

What the plain loop is given as data are the numbers that the plan drew, and the learning rates,
written down here by hand. The rest it computes itself.
"""

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
    architecture = Architecture((1, 1, 1, 1), 0.5)
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


def test_fine_tuning():
    """The loop as it was before it learnt other words; decay on everything is 0."""
    images, labels = digits()
    images, labels = images[:40], labels[:40]
    net = Net()
    tensors = plain_loop.draw_tensors(net)
    model = network(net, tensors)
    recipe = Recipe("test", 36, CROP, BATCH, Schedule(0.03, STEPS, 5, (9, 15)), mixup_alpha=0.2)
    losses = []
    train(
        model, recipe, Digits(images), labels, TrainingConfig(),
        on_step=lambda metrics: losses.append(metrics["loss"]),
    )  # fmt: skip

    plan = BatchPlan(len(images), BATCH, 36, CROP, True, 0.2, seed=0)
    draws = []
    for step in range(STEPS):
        drawn = plan.batch(step)
        boxes = [(top, left, CROP, CROP) for top, left in zip(drawn.top, drawn.left, strict=True)]
        draws.append(Draw(list(drawn.indices), boxes, list(drawn.flip), drawn.mix, drawn.lam))
    batches = [plain_loop.batch_of(draw, images, np.eye(10)[labels], CROP) for draw in draws]
    lrs = [0.03 * step / 5 for step in range(5)] + [0.03] * 5 + [0.003] * 6 + [0.0003] * 4
    optimizer = plain_loop.Momentum()
    wanted, values, _ = plain_loop.train(
        net, tensors, batches, lrs, plain_loop.softmax_loss, optimizer
    )
    assert losses == pytest.approx(values, rel=1e-9)
    assert max(differences(model, wanted).values()) <= TOLERANCE
    assert not torch.equal(wanted["stem.conv.weight"], tensors["stem.conv.weight"])
    print(sorted(differences(model, wanted).items(), key=lambda i: -i[1])[:5])
