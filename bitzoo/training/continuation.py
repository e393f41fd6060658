"""What a training loop does with a checkpoint that it continues from: check, copy, and warn."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bitzoo.errors import TensorMismatchError, damage_reported
from bitzoo.training.checkpointing import Checkpoint
from bitzoo.training.memory_layout import MemoryLayout
from bitzoo.training.model_selection import ModelSelection

_ROUNDING = ("processes", "machines", "threads", "device", "torch")
"""What a checkpoint's metadata say that decides on the last bits."""

_COUNTS = {"micro_batch": 1, "processes": 1, "updates": 0}
"""What is counted, and the least that it can be."""
_SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
"""What `torch.amp.GradScaler` keeps; nothing if it scales nothing."""

_log = logging.getLogger(__name__)


def loop_of(start: Checkpoint) -> dict[str, Any]:
    """Return what the loop recorded of itself, `Trainer.facts`, if a loop can go on from it.

    The checksum of a checkpoint shows that it is as it was written, not who wrote it.

    Raises:
        CheckpointError: If something is missing, or is nothing that a loop records.
    """
    advice = "It was not written by a run as it is: delete it, and the one before it is used."
    with damage_reported(start.path, "the record of a training loop", advice):
        loop = dict(start.meta["loop"])
        for name, least in _COUNTS.items():
            if name not in loop and name == "updates":  # only some optimizers count
                continue
            if type(loop[name]) is not int or loop[name] < least:
                raise ValueError(f"{name} is {loop[name]!r:.80}")
        scaler = loop["scaler"]
        if scaler and (scaler.keys() != _SCALER or not all(map(_is_number, scaler.values()))):
            raise ValueError(f"scaler is {scaler!r:.80}")
        if loop.get("layout"):  # none from before formats were measured
            MemoryLayout.from_dict(loop["layout"])
        ModelSelection(None, loop.get("selection"))
    return loop


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def copy_state(state: Mapping[str, Tensor], start: Checkpoint) -> None:
    """Copy a checkpoint's tensors into those of a network and its optimizer.

    Args:
        state: The tensors by name, overwritten.
        start: The checkpoint.

    Raises:
        TensorMismatchError: If it has other tensors.
    """
    found = {name: tuple(tensor.shape) for name, tensor in start.state.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != wanted:
        diff = [f"- {name} {shape}" for name, shape in wanted.items() - found.items()]
        diff += [f"+ {name} {shape}" for name, shape in found.items() - wanted.items()]
        raise TensorMismatchError(
            f"{start.path} belongs to another network: missing (-) and extra (+) tensors "
            f"{', '.join(sorted(diff)[:8])}. Resume with the options that the run began with."
        )
    for name, tensor in state.items():
        tensor.detach().copy_(start.state[name])


def warn_of_rounding(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn if the run had something else that decides on the last bits.

    Args:
        then: What the checkpoint says.
        now: What it would say now.
    """
    for name in _ROUNDING:
        if then.get(name, now[name]) != now[name]:
            _log.warning(
                "The run had %s %s, now it has %s: training continues, but the result may "
                "differ in the last bits from an uninterrupted run.",
                name,
                then[name],
                now[name],
            )


def warn_of_missing_operator(why: str | None) -> None:
    """Warn that the run normalized by the compiled operator, which this machine does not have.

    Args:
        why: The reason; None if another process lacks it.
    """
    _log.warning(
        "The run normalized by the operator that bitzoo compiles, which cannot be had here: %s. "
        "Training continues with torch's: the result may differ in the last bits from an "
        "uninterrupted run.",
        why or "another process lacks it",
    )
