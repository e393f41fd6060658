"""Options of the training loop beyond the recipe: seed, dtype, memory, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from bitzoo.errors import UsageError
from bitzoo.inference.optimize import COMPUTE_DTYPES


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the recipe says what to train.

    Only `seed`, `dtype` and `freeze` change the result by more than rounding.

    Attributes:
        seed: Seed of the batches, in [0, 2**64).
        dtype: Dtype of activations, a key of `COMPUTE_DTYPES`. Below float32 it uses autocast;
            float16 also scales losses.
        freeze: Whether to train only the head.
        micro_batch: Most images that a process computes at once; None chooses automatically.
        channels_last: Memory format; None uses channels last on the CPU only.
        compile: Whether to use `torch.compile`.
        recompute_norms: See `bitzoo.training.activation_checkpointing`.
        checkpoint_blocks: See `bitzoo.training.activation_checkpointing`.
        checkpoint_every: Steps between checkpoints; 0 writes one only at the end and when stopped.
        keep_checkpoints: How many checkpoints to keep.
        eval_every: Steps between calls of `on_eval`; 0 never calls it.

    Raises:
        UsageError: If a value is out of its range.
    """

    seed: int = 0
    dtype: str = "float32"
    freeze: bool = False
    micro_batch: int | None = None
    channels_last: bool | None = None
    compile: bool = False
    recompute_norms: bool = False
    checkpoint_blocks: bool = False
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    eval_every: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in COMPUTE_DTYPES:
            raise UsageError(
                f"`dtype` must be one of {', '.join(COMPUTE_DTYPES)}, found {self.dtype!r}."
            )
        least = {"micro_batch": 1, "checkpoint_every": 0, "keep_checkpoints": 1, "eval_every": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"`{name}` must be at least {bound}, found {value!r}. Change it.")
