"""Train by bitzoo's loop and by the plain one, from the same files, and compare all there is.

What the plain loop is given are the numbers that bitzoo drew for each step, as data, and the
learning rates, which the tests write down. The rest it computes itself.
"""

from dataclasses import dataclass

import numpy as np
import plain_training
import pytest
import torch
from images import photo
from plain_training import Draw

from bitzoo.data.dataset import Example, Split
from bitzoo.data.image_store import open_whole_images
from bitzoo.data.inception_crop import CropKey, crop_box
from bitzoo.data.sampler import BatchPlan
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.training.recipe import Recipe
from bitzoo.training.trainer import train
from bitzoo.training.training_config import TrainingConfig

STEPS, BATCH, CROP, SEED, IMAGES = 20, 8, 32, 3, 24

TOLERANCE = 1e-10
"""Largest difference of any element of a tensor after the last step, relative to the largest
magnitude in that tensor; of a loss, relative to it."""

STEP_LRS = [0.0, 0.0006, 0.0012, 0.0018, 0.0024] + [0.003] * 5 + [0.0003] * 6 + [0.00003] * 4
"""Warmup over 5 steps, then a tenth after step 9 and a hundredth after step 15. With ten times
these rates the network with batch norm diverges, and twenty steps enlarge a change of the last bit
to 4e-10; with these to 1e-13."""


@dataclass(frozen=True)
class Photos:
    """Photographs of different sizes: the files, as bitzoo takes them, and their pixels.

    Attributes:
        split: The files.
        pixels: uint8 (height, width, 3) of each.
    """

    split: Split
    pixels: list[np.ndarray]


def write_photos(folder) -> Photos:
    """Write the same `IMAGES` PNGs each time."""
    examples, pixels = [], []
    for number in range(IMAGES):
        image = photo(number, width=30 + 7 * (number % 6), height=25 + 11 * (number % 5))
        image.save(folder / f"{number}.png")
        examples.append(Example(0, folder / f"{number}.png", key=str(number)))
        pixels.append(np.asarray(image))
    return Photos(Split("train", tuple(examples)), pixels)


def network(net, tensors):
    """bitzoo's network in float64 with these tensors."""
    architecture = Architecture(
        (1, 1, 1, 1), 0.5, norm=net.norm, weight_standardization=net.standardized
    )
    model = BiT(architecture, len(tensors["head.fc.bias"])).double()
    model.load_state_dict(tensors)
    return model


def draws_of(recipe: Recipe, pixels) -> list[Draw]:
    """What bitzoo drew for each step."""
    mirrors, mixes = recipe.flip, recipe.mixup_alpha
    plan = BatchPlan(len(pixels), BATCH, CROP, CROP, mirrors, mixes, SEED, random_resized=True)
    draws = []
    for step in range(STEPS):
        batch = plan.batch(step)
        boxes = [
            crop_box(CropKey(SEED, step, row).stream(), *pixels[index].shape[:2])
            for row, index in enumerate(batch.indices)
        ]
        draws.append(Draw(list(batch.indices), boxes, list(batch.flip), batch.mix, batch.lam))
    return draws


def compare(
    net, photos, recipe, lrs, labels, targets, loss, optimizer,
    *, clip=None, micro_batch=None, teacher=None, plain_teacher=None,
):  # fmt: skip
    """Train by both loops and compare weights, running statistics and losses.

    Args:
        net: Which network.
        photos: What to train on.
        recipe: What bitzoo is told.
        lrs: The learning rate of each step.
        labels: What bitzoo is told.
        targets: The same for the plain loop, (images, classes).
        loss: For the plain loop, as `optimizer` and `clip`.
        optimizer: See `loss`.
        clip: See `loss`.
        micro_batch: For bitzoo.
        teacher: For bitzoo.
        plain_teacher: For the plain loop.

    Returns:
        The norms of the plain loop's gradients before clipping.
    """
    tensors = plain_training.draw_tensors(net, targets.shape[1], head="random")
    model, found = network(net, tensors), []
    with open_whole_images(photos.split, CROP, workers=1) as pixels:
        train(
            model, recipe, pixels, labels,
            TrainingConfig(seed=SEED, micro_batch=micro_batch, channels_last=True),
            on_step=lambda metrics: found.append((metrics["lr"], metrics["loss"])),
            teacher=teacher,
        )  # fmt: skip

    batches = [
        plain_training.batch_of(draw, photos.pixels, targets, CROP)
        for draw in draws_of(recipe, photos.pixels)
    ]
    wanted, losses, norms = plain_training.train(
        net, tensors, batches, lrs, loss, optimizer, clip=clip, teacher=plain_teacher
    )
    assert [lr for lr, _ in found] == pytest.approx(lrs, rel=1e-15)
    assert [value for _, value in found] == pytest.approx(losses, rel=TOLERANCE)
    after = model.state_dict()
    assert after.keys() == wanted.keys()
    for name, tensor in wanted.items():
        apart = float((after[name] - tensor).abs().max() / tensor.abs().max())
        assert apart <= TOLERANCE, f"{name}: {apart}"
        assert not torch.equal(tensor, tensors[name]), f"{name} is not trained"
    return norms
