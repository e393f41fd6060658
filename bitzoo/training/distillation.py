"""Distillation by function matching: the loss, and several teachers as one.

The student imitates the function of its teachers (arXiv 2106.05237): both see the same pixels, and
the only loss is the distance between their outputs. Labels play no part in it, so images need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bitzoo.errors import LayoutError, UsageError


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T**2 * KL(softmax(teacher / T) || softmax(student / T))`` of each row.

    The factor keeps the size of the gradient about the same at every temperature, as the gradient
    of the divergence falls with ``1 / T**2`` (arXiv 1503.02531, section 2).

    Args:
        student: Logits (n, classes).
        teacher: Logits (n, classes); the gradient does not reach them if they were computed without
            one.
        temperature: T, above 0.

    Returns:
        Shape (n,), in nats, at least 0 but for rounding.

    Source: google-research/big_vision, evaluators/proj/distill/distance.py, kind ``kl``.
    """
    wanted = F.log_softmax(teacher / temperature, dim=1)
    found = F.log_softmax(student / temperature, dim=1)
    distances = F.kl_div(found, wanted, reduction="none", log_target=True)
    return temperature**2 * distances.sum(dim=1)


@dataclass(frozen=True)
class Teacher:
    """A teacher in the terms of its student.

    Attributes:
        forward: Images (n, channels, size, size) to logits (n, outputs), without gradients.
        columns: Which of its outputs each class of the student is; None if they are the same.
    """

    forward: Callable[[Tensor], Tensor]
    columns: Sequence[int] | None = None


class Ensemble:
    """Several teachers as one: the mean of their logits, class by class.

    That is the ensemble of arXiv 2106.05237. big_vision's trainer adds the divergences
    of the teachers instead, whose gradient is that of an ensemble of probabilities; for one teacher
    both are the same.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        """Take at least one teacher.

        Raises:
            UsageError: If there is none.
        """
        if not teachers:
            raise UsageError("Distillation needs a teacher, found none. Name at least one.")
        self._teachers = tuple(teachers)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the mean logits, (n, classes) on the device of the images, without gradients.

        Raises:
            LayoutError: If teachers have different numbers of classes.
        """
        total: Tensor | None = None
        for teacher in self._teachers:
            with torch.no_grad():
                logits = teacher.forward(images).to(images.device)
            if logits.is_inference():  # which a loss with a gradient could not take
                logits = logits.clone()
            if teacher.columns is not None:
                chosen = torch.as_tensor(teacher.columns, device=logits.device)
                logits = logits.index_select(1, chosen)
            if total is not None and total.shape != logits.shape:
                raise LayoutError(
                    "Teachers must have the same classes, found outputs of shape "
                    f"{tuple(total.shape)} and {tuple(logits.shape)}. Leave one of them out."
                )
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(self._teachers)
