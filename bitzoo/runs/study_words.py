"""The words of a study's file: its tables, and the options of the functions that a cell calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

TOP_WORDS = frozenset(
    {
        *("title", "about", "grid", "exclude", "data", "pretrain", "transfer"),
        *("published", "claim", "scales"),
    }
)
AXIS_WORDS = frozenset({"arch", "norm", "weight_standardization"})
"""What an axis may be besides an option of `bitzoo.pretrain`."""

UPSTREAM = "upstream"
"""The metric of the pre-training run itself."""
OWN_WORDS = (UPSTREAM, "pretrain", "seed")
"""What no transfer may be called."""

EXECUTION = frozenset(
    {
        *("device", "micro_batch", "channels_last", "compile", "recompute_norms"),
        *("checkpoint_blocks", "checkpoint_every", "keep_checkpoints", "cache_gb", "workers"),
        *("log", "discard_weights"),
    }
)
"""Options that change no result by more than rounding; a cell may go on with others."""

_SET_BY_THE_STUDY = frozenset(
    {
        *("arch", "model", "out", "seed", "resume", "overwrite", "progress", "callbacks", "say"),
        "repeats",
    }
)


@dataclass(frozen=True)
class Kind:
    """A function that a cell calls.

    Attributes:
        module: Its module.
        name: Its name.
        takes_data: Whether it needs a data set.
    """

    module: str
    name: str
    takes_data: bool = True

    @property
    def function(self) -> Callable[..., Any]:
        """The function, loaded when it is asked for."""
        found: Callable[..., Any] = getattr(import_module(self.module), self.name)
        return found


KINDS = {
    "pretrain": Kind("bitzoo.runs.pretrain", "pretrain"),
    "finetune": Kind("bitzoo.runs.finetune", "finetune"),
    "fewshot": Kind("bitzoo.runs.fewshot", "fewshot"),
    "vtab": Kind("bitzoo.runs.vtab", "vtab", takes_data=False),
}

HEADINGS = {
    "weight_standardization": "WS",
    "weight_decay": "decay",
    "batch_size": "batch",
}
"""Axis -> the heading of its column, where that is not the axis's name."""


@cache
def options_of_kind(kind: str) -> frozenset[str]:
    """Return the options of a kind of run that a study's file may name.

    Args:
        kind: One of `KINDS`.
    """
    parameters = inspect.signature(KINDS[kind].function).parameters
    return frozenset(parameters) - _SET_BY_THE_STUDY
