"""The optimizer that a recipe names: its parameters in groups, its state by name, and clipping.

The state exists from the start, so that a checkpoint before the first step has the same tensors as
any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitzoo.training.recipe import Recipe

ADAM_EPS = 1e-8
"""torch's default, and that of arXiv 1412.6980."""

_Groups = list[dict[str, Any]]


def _sgd(groups: _Groups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=recipe.schedule.base_lr, momentum=recipe.momentum)


def _adamw(groups: _Groups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.schedule.base_lr, betas=recipe.betas, eps=ADAM_EPS)


OPTIMIZERS: Mapping[str, Callable[[_Groups, Recipe], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}
"""Optimizers that a recipe may name."""

_STATE: Mapping[str, Mapping[str, str]] = {
    "sgd": {"momentum": "momentum_buffer"},
    "adamw": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
}
"""By optimizer: what a checkpoint calls each of its tensors, and what torch calls it."""


def is_decayed(parameter: Tensor, recipe: Recipe) -> bool:
    """Whether the weight decay is on a parameter; see `Recipe.decayed`.

    The kernels of the convolutions and of the head, which is a 1x1 convolution, have four
    dimensions; scales, shifts and biases have one.
    """
    return recipe.decayed == "all" or parameter.ndim > 1


class NamedOptimizer:
    """A recipe's optimizer, with its state by the names of the parameters.

    Attributes:
        torch: The optimizer itself.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        """Create it for the parameters of `model` that are trained, with a state of zeros."""
        self._recipe = recipe
        self._trained = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        groups: _Groups = [
            {"params": parameters, "weight_decay": decay}
            for holds, decay in ((True, recipe.weight_decay), (False, 0.0))
            if (parameters := [p for p in self._trained.values() if is_decayed(p, recipe) is holds])
        ]
        self.torch = OPTIMIZERS[recipe.optimizer](groups, recipe)
        for parameter in self._trained.values():  # torch would do it at the first step: too late
            state = self.torch.state[parameter]
            for key in _STATE[recipe.optimizer].values():
                state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            if recipe.optimizer == "adamw":
                state["step"] = torch.tensor(0.0)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of the state by ``KIND.PARAMETER``; themselves, not copies."""
        return {
            f"{kind}.{name}": self.torch.state[parameter][key]
            for name, parameter in self._trained.items()
            for kind, key in _STATE[self._recipe.optimizer].items()
        }

    @property
    def updates(self) -> int | None:
        """Updates that AdamW has made, on which its correction of the averages depends.

        None for SGD, which needs no such number. With float16 they may be fewer than the steps:
        an update whose gradients overflow is left out.
        """
        steps = [int(step) for step in self._steps()]
        return steps[0] if steps else None

    @updates.setter
    def updates(self, count: int) -> None:
        for step in self._steps():
            step.fill_(float(count))

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next update."""
        for group in self.torch.param_groups:
            group["lr"] = rate

    def clip(self) -> float | None:
        """Scale the gradients down to the recipe's `clip_norm`, if they are larger.

        Call it when they are those of the whole batch: summed over processes, and unscaled.

        Returns:
            Their global L2 norm before; None if the recipe does not clip.

        Source: optax, `clip_by_global_norm`. (`torch.nn.utils.clip_grad_norm_` adds 1e-6 to the
        norm that it divides by.)
        """
        most = self._recipe.clip_norm
        if most is None:
            return None
        gradients = [p.grad for p in self._trained.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if norm > most:
            for gradient in gradients:
                gradient.mul_(most / norm)
        return norm

    def _steps(self) -> Iterator[Tensor]:
        if self._recipe.optimizer == "adamw":
            for parameter in self._trained.values():
                yield self.torch.state[parameter]["step"]
