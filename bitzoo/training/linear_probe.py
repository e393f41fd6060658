"""Linear probe (`freeze=True`): train only the head, on features that are computed once.

Without the backbone in the loop a step is a product of two small matrices, so the whole run takes
about as long as one pass over the images. The images are prepared as for evaluation: resized, no
crop and no flip, because their features are cached. So are those of the held-out images: an
evaluation costs no more than a few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitzoo.data.sampler import Batch, BatchPlan
from bitzoo.inference.metrics import Evaluation
from bitzoo.models.bit import BiT
from bitzoo.training.losses import LOSSES, loss_weights
from bitzoo.training.model_selection import ModelSelection, Scores
from bitzoo.training.recipe import Recipe
from bitzoo.training.training_config import TrainingConfig

_JUDGED = 1024


@dataclass(frozen=True)
class HeadResult:
    """The result of `train_head`.

    Attributes:
        step: Number of updates.
        selection: The evaluations so far; that after the last step is up to the caller.
        best: Weights of the head at `selection.best`, if they are to be kept.
    """

    step: int
    selection: ModelSelection
    best: Mapping[str, Tensor] | None


def train_head(
    model: BiT,
    recipe: Recipe,
    features: Tensor,
    labels: npt.NDArray[np.integer],
    options: TrainingConfig,
    on_step: Callable[[dict[str, float]], None],
    on_eval: Callable[[int], Scores | None] = lambda step: None,
) -> HeadResult:
    """Train the head of `model` in place, with the recipe's schedule, batches, MixUp and loss.

    Training is short and always starts from the beginning, so there are no checkpoints: the best
    head stays in memory.

    Args:
        model: Its head is trained; nothing else changes.
        recipe: Its crop and flip are not used.
        features: float32 (n, num_features), see `bitzoo.inference.features`.
        labels: Class of each image.
        options: Its `seed`, `eval_every`, `keep` and `patience` are used.
        on_step: Called with `step`, `loss` and `lr`.
        on_eval: As for `bitzoo.training.trainer.train`.
    """
    steps, every = recipe.schedule.steps, options.eval_every or 0
    plan = BatchPlan(
        len(labels),
        recipe.batch_size,
        1,
        1,
        flip=False,
        mixup_alpha=recipe.mixup_alpha,
        seed=options.seed,
    )
    head = model.get_classifier()
    assert isinstance(head, nn.Conv2d)
    parameters = list(head.parameters())
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    targets = F.one_hot(torch.from_numpy(labels.astype(np.int64)), model.num_classes).float()
    weights = loss_weights(recipe, labels, model.num_classes, head.weight.device)
    step, selection, best = 0, ModelSelection(options.patience), None
    while step < steps and not selection.is_exhausted:
        batch = plan.batch(step)
        inputs, wanted = (_mixed(rows, batch).to(head.weight) for rows in (features, targets))
        logits = head(inputs[:, :, None, None]).flatten(1)
        loss = LOSSES[recipe.loss](logits, wanted, weights, recipe.loss_options).sum()
        loss = loss / recipe.batch_size
        # The same operations as torch.optim.SGD, whose first use imports torch's whole compiler,
        # which takes longer than all steps of the head.
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, momentum, gradient in zip(parameters, momenta, gradients, strict=True):
                decayed = gradient.add(parameter, alpha=recipe.weight_decay)
                momentum.mul_(recipe.momentum).add_(decayed)
                parameter.add_(momentum, alpha=-recipe.schedule.lr_at(step))
        step += 1
        on_step({"step": step, "loss": loss.item(), "lr": recipe.schedule.lr_at(step - 1)})
        if step < steps and every and step % every == 0:
            scores = on_eval(step)
            if scores is not None and selection.add(step, scores) and options.keeps_best:
                best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    return HeadResult(step, selection, best)


def evaluate_features(
    model: BiT,
    features: Tensor,
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
) -> Evaluation:
    """Judge the head of `model` on features of images; draws no random numbers.

    The same as `bitzoo.inference.evaluate.evaluate_pixels` for the pixels, up to rounding.
    """
    head = model.get_classifier()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(features), _JUDGED):
            rows = np.arange(start, min(start + _JUDGED, len(features)))
            own = features[start : start + _JUDGED].to(next(head.parameters()))
            logits = head(own[:, :, None, None]).flatten(1).float().cpu().numpy()
            parts.append(Evaluation.of_logits(classes, labels[rows].astype(np.int64), logits, rows))
    return Evaluation.merge(parts)


def _mixed(table: Tensor, batch: Batch) -> Tensor:
    """Return the rows of the batch, mixed with their partners' rows if MixUp is on."""
    rows = table[torch.from_numpy(batch.indices)]
    if batch.mix is None:
        return rows
    return batch.lam * rows + (1 - batch.lam) * rows[torch.from_numpy(batch.mix)]
