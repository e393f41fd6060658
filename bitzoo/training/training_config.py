"""Options of the training loop beyond the recipe: seed, dtype, memory, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from bitzoo.errors import UsageError
from bitzoo.inference.backends import BACKENDS
from bitzoo.inference.optimize import COMPUTE_DTYPES
from bitzoo.training.model_selection import Keep


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the recipe says what to train.

    Only `seed`, `dtype`, `freeze`, and `eval_every` with `keep` or `patience`, change the result by
    more than rounding.

    Attributes:
        seed: Seed of the batches, in [0, 2**64).
        dtype: Dtype of activations, a key of `COMPUTE_DTYPES`. Below float32 it uses autocast;
            float16 also scales losses.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for a GPU if there is one.
        freeze: Whether to train only the head.
        backend: What computes the features of a run that trains only the head, a key of
            `bitzoo.inference.backends.BACKENDS`; `dtype` is then theirs.
        micro_batch: Most images that a process computes at once; None chooses automatically.
        channels_last: Memory format; None uses the faster one on a CPU, as measured by
            `bitzoo.training.memory_layout`, and contiguous elsewhere.
        compile: Whether to use `torch.compile`.
        recompute_norms: See `bitzoo.training.activation_checkpointing`.
        checkpoint_blocks: See `bitzoo.training.activation_checkpointing`.
        checkpoint_every: Steps between checkpoints; 0 writes one only at the end and when stopped.
        keep_checkpoints: How many checkpoints to keep.
        eval_every: Steps between evaluations; 0 for none before the end. None is up to the rule
            `bitzoo.training.model_selection.evaluation_interval`, where the number of held-out
            images is known; otherwise 0.
        keep: ``last`` keeps the weights of the last step, which is BiT's protocol; ``best`` those
            of the best evaluation on the held-out images. None is ``best`` with `patience`,
            otherwise ``last``.
        patience: Evaluations in a row without a better top-1 accuracy after which training stops;
            None never stops early.

    Raises:
        UsageError: If a value is out of its range.
    """

    seed: int = 0
    dtype: str = "float32"
    device: str | None = None
    freeze: bool = False
    backend: str = "eager"
    micro_batch: int | None = None
    channels_last: bool | None = None
    compile: bool = False
    recompute_norms: bool = False
    checkpoint_blocks: bool = False
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    eval_every: int | None = None
    keep: Keep | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in COMPUTE_DTYPES:
            raise UsageError(
                f"`dtype` must be one of {', '.join(COMPUTE_DTYPES)}, found {self.dtype!r}."
            )
        if self.backend not in BACKENDS:
            raise UsageError(
                f"`backend` must be one of {', '.join(BACKENDS)}, found {self.backend!r}."
            )
        if self.backend != "eager" and not self.freeze:
            raise UsageError(
                f"`backend={self.backend!r}` computes features that only the head is trained on. "
                "Add `freeze=True`, or leave it out."
            )
        if self.keep not in (None, *get_args(Keep)):
            raise UsageError(
                f"`keep` must be one of {', '.join(get_args(Keep))}, found {self.keep!r}."
            )
        least = {
            "micro_batch": 1,
            "checkpoint_every": 0,
            "keep_checkpoints": 1,
            "eval_every": 0,
            "patience": 1,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"`{name}` must be at least {bound}, found {value!r}. Change it.")

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best evaluation are kept, not the last ones."""
        return self.keep == "best" or (self.keep is None and self.patience is not None)

    @property
    def selects(self) -> bool:
        """Whether evaluations decide on the result: on its weights, or on the end of training."""
        return self.keeps_best or self.patience is not None
