"""Linear probe (`freeze=True`): train only the head, on features that are computed once.

Without the backbone in the loop a step is a product of two small matrices, so the whole run takes
about as long as one pass over the images. The images are prepared as for evaluation: resized, no
crop and no flip, because their features are cached.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitzoo.data.image_store import Pixels
from bitzoo.data.sampler import Batch, BatchPlan
from bitzoo.files import Progress
from bitzoo.inference.runner import Runner, one_ahead
from bitzoo.models.bit import BiT
from bitzoo.training.recipe import Recipe

_BATCH = 64


def compute_features(
    model: BiT, pixels: Pixels, device: torch.device, progress: Progress | None = None
) -> Tensor:
    """Return the pooled features of every image, float32 (n, num_features), on the CPU.

    Args:
        model: The network; its head is not used.
        pixels: Images at the edge length that the network evaluates.
        device: Where to compute.
        progress: Called with ``"features"``, images done, and their total.
    """
    network = Runner(_encoder(model), device, torch.float32)
    rows = np.arange(len(pixels))
    batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    features, done = [], 0
    with ThreadPoolExecutor(1) as pool:
        for batch, images in one_ahead(batches, lambda batch: pool.submit(pixels.take, batch)):
            features.append(torch.from_numpy(np.array(network(images.result()))))
            done += len(batch)
            if progress:
                progress("features", done, len(rows))
    return torch.cat(features)


def train_head(
    model: BiT,
    recipe: Recipe,
    features: Tensor,
    labels: npt.NDArray[np.integer],
    seed: int,
    on_step: Callable[[dict[str, float]], None],
) -> None:
    """Train the head of `model` in place, with the recipe's schedule, batches and MixUp.

    Args:
        model: Its head is trained; nothing else changes.
        recipe: Its crop and flip are not used.
        features: The result of `compute_features`.
        labels: Class of each image.
        seed: Seed of the batches.
        on_step: Called with `step`, `loss` and `lr`.
    """
    plan = BatchPlan(
        len(labels), recipe.batch_size, 1, 1, flip=False, mixup_alpha=recipe.mixup_alpha, seed=seed
    )
    head = model.get_classifier()
    assert isinstance(head, nn.Conv2d)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    targets = F.one_hot(torch.from_numpy(labels.astype(np.int64)), model.num_classes).float()
    for step in range(recipe.schedule.steps):
        batch = plan.batch(step)
        optimizer.param_groups[0]["lr"] = recipe.schedule.lr_at(step)
        inputs, wanted = (_mixed(rows, batch).to(head.weight) for rows in (features, targets))
        loss = F.cross_entropy(head(inputs[:, :, None, None]).flatten(1), wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        on_step({"step": step + 1, "loss": loss.item(), "lr": recipe.schedule.lr_at(step)})


def _mixed(table: Tensor, batch: Batch) -> Tensor:
    """Return the rows of the batch, mixed with their partners' rows if MixUp is on."""
    rows = table[torch.from_numpy(batch.indices)]
    if batch.mix is None:
        return rows
    return batch.lam * rows + (1 - batch.lam) * rows[torch.from_numpy(batch.mix)]


def _encoder(model: BiT) -> BiT:
    """Return the model without its head; all other parameters are shared."""
    encoder = copy.copy(model)
    encoder._modules = dict(model._modules)
    encoder.reset_classifier(0)
    return encoder
