"""The form of a network while it is trained, and the way back to the plain one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bitzoo.models.bit import BiT
from bitzoo.models.layers import StdConv2d
from bitzoo.training import activation_checkpointing
from bitzoo.training.batch_statistics import synchronize_statistics
from bitzoo.training.fused_norm import fuse_norms
from bitzoo.training.gradient_accumulation import SharingConv2d, recast
from bitzoo.training.training_config import TrainingConfig


@contextlib.contextmanager
def training_form(model: BiT, options: TrainingConfig) -> Iterator[None]:
    """Put the model into its training form; afterwards restore the plain form, in eval mode."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    activation_checkpointing.recompute_norms(model, options.recompute_norms)
    activation_checkpointing.checkpoint_blocks(model, options.checkpoint_blocks)
    if options.freeze:
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    model.train()
    try:
        yield
    finally:
        fuse_norms(model, False)
        activation_checkpointing.recompute_norms(model, False)
        activation_checkpointing.checkpoint_blocks(model, False)
        recast(model, StdConv2d, SharingConv2d, enable=False)
        synchronize_statistics(model, enable=False)
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None
        model.eval()
