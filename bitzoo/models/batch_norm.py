"""Batch normalization for the paper's ablation, with TensorFlow's numbers under torch's names.

The paper does not publish momentum and eps (arXiv 1912.11370, section 4.3). Those here are the
defaults of `tf.layers.batch_normalization`, which Google's ResNet code of that time leaves as they
are (google-research/revisiting-self-supervised, models/resnet.py): momentum 0.99, eps 1e-3, fused.
TensorFlow's momentum is the share of the old value, torch's that of the new one.

Both normalize with the biased variance of the batch. The running variance takes the unbiased one:
so does TensorFlow's fused operator, which those defaults use, and so does torch. (Keras 3 is not
fused and takes the biased one; for n values a channel they differ by the factor n / (n - 1).)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-3
"""Added to the variance; timm's batch normalization has 1e-5 (see `timm_numbers`)."""
MOMENTUM = 0.01
"""Share of a batch's statistics in the running ones: 1 - 0.99."""

_COUNTER = "num_batches_tracked"
"""torch's counter, which only an average over all batches ever needs. timm's files have it."""


class BatchNormReLU(nn.Module):
    """Batch normalization, then ReLU; the counterpart of `GroupNormReLU`.

    In training mode, the batch's statistics normalize and the running ones follow them; in
    evaluation mode the running ones normalize. A layer whose parameters are frozen
    (``requires_grad`` is False) uses the running ones in training mode too, and leaves them as they
    are, as in Keras: without that, a frozen network would still change.

    Attributes:
        weight: Scale, (channels,).
        bias: Shift, (channels,).
        running_mean: Mean of each channel over the training batches, (channels,).
        running_var: The same of the unbiased variances, (channels,).
        eps: Added to the variance.
        tracks: Whether forward passes in training mode change the running statistics.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = EPS
        self.tracks = True
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def reset_parameters(self) -> None:
        """Set scales and variances to one, shifts and means to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify `x` (batch, channels, height, width)."""
        return self.rectified(x, self.weight, self.bias)

    def rectified(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the same with the given scale and shift instead of the layer's own."""
        return F.relu_(self.normalize(x, weight, bias))

    def normalize(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize `x` with the given scale and shift, without rectifying it."""
        mean, variance = self.running_mean, self.running_var
        if not self.takes_batch:
            return F.batch_norm(x, mean, variance, weight, bias, False, MOMENTUM, self.eps)
        if not self.tracks:  # copies change; without any, other tensors would be saved for backward
            mean, variance = mean.clone(), variance.clone()
        return F.batch_norm(x, mean, variance, weight, bias, True, MOMENTUM, self.eps)

    @property
    def takes_batch(self) -> bool:
        """Whether the batch's statistics normalize, and not the running ones."""
        return self.training and self.weight.requires_grad

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of each channel with the running statistics, float64."""
        scale = self.weight.detach().double() * (self.running_var.double() + self.eps).rsqrt()
        return scale, self.bias.detach().double() - self.running_mean.double() * scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(prefix + _COUNTER, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def float_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes besides the parameters: the averages of batch norms, by name."""
    return {name: tensor for name, tensor in model.named_buffers() if tensor.is_floating_point()}


class AffineReLU(nn.Module):
    """A `BatchNormReLU` in evaluation mode, its four vectors folded to two.

    Args:
        scale: Factor of each channel.
        shift: What is added to it.
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(shift, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale, shift and rectify `x` (batch, channels, height, width)."""
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        # Scale and shift may be of more digits than a half-precision map.
        return F.relu_(torch.addcmul(shift, x, scale)).to(x.dtype)


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let no forward pass change running statistics of batch normalizations.

    For passes that are not a step of training although in training mode: a trial of a micro-batch's
    size, or a block that is computed a second time for its gradient.

    Args:
        model: Any module; nothing changes if it has no `BatchNormReLU`.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNormReLU)]
    before = [norm.tracks for norm in norms]
    for norm in norms:
        norm.tracks = False
    try:
        yield
    finally:
        for norm, tracks in zip(norms, before, strict=True):
            norm.tracks = tracks


def recomputation_of(module: nn.Module) -> dict[str, Any]:
    """Return what `torch.utils.checkpoint.checkpoint` needs to compute a module a second time.

    Without it, each recomputation would change the running statistics once more.
    """
    if not any(isinstance(part, BatchNormReLU) for part in module.modules()):
        return {}
    return {"context_fn": lambda: (contextlib.nullcontext(), statistics_kept(module))}
