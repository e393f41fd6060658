"""Which of several sets of weights in one file are averages over training steps (EMA, SWA).

Trainers that keep an average evaluate and publish it, so it is what bitzoo takes first, as timm
does (`timm.models.load_state_dict`). What they call it differs; this module has the names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from bitzoo.errors import UsageError

AVERAGE, RAW = "ema", "raw"
"""Kinds of weights; a user chooses one with ``weights="ema"`` or ``weights="raw"``."""
_WORDS = {"average", "averaged", "averaging", "avg", "ema", "exponentialmovingaverage", "polyak"}
_WORDS |= {"shadow", "swa"}
"""timm: `state_dict_ema`, `model_ema`; others: `ema`, `ema_model`, `ema_state_dict`, `shadow`;
Lightning's StochasticWeightAveraging: `average_model_state`."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", re.ASCII)
_SWAPPED = (("ema_state_dict", "steps"), ("current_model_state", ""))
"""Trainers that store the average as `state_dict`, and the raw weights under this key; a tensor of
that name is in it. mmengine, hooks/ema_hook.py (`_swap_ema_state_dict`); Lightning,
callbacks/weight_averaging.py (`on_save_checkpoint`)."""
_COUNTER = "n_averaged"
"""A tensor of `torch.optim.swa_utils.AveragedModel`, which holds nothing but an average."""
_TF1_AVERAGE = "/ExponentialMovingAverage"
"""What `tf.train.ExponentialMovingAverage` appends to a variable's name."""
_Stored = TypeVar("_Stored")


def names_average(part: str) -> bool:
    """Whether a key or a part of a tensor's name says that weights are an average."""
    words = [word.lower() for word in _WORD.findall(part)]
    return any(word in _WORDS for word in (*words, "".join(words)))


def is_average(
    path: tuple[str, ...], names: Collection[str], parent: Mapping[str, object], prefix: str
) -> bool:
    """Whether the weights at a place in a training checkpoint are an average.

    Args:
        path: Keys that lead to the weights.
        names: The names in the weights' mapping.
        parent: The mapping that has this one as a value.
        prefix: What the names of the weights begin with; other networks may be beside them.
    """
    last = path[-1:]
    for raw, tensor in _SWAPPED:
        other = parent.get(raw)
        if isinstance(other, Mapping) and (not tensor or tensor in other):
            if last == (raw,):
                return False
            if last == ("state_dict",):
                return True
    counters = (name for name in names if name.rpartition(".")[2] == _COUNTER)
    counted = any(prefix.startswith(name.removesuffix(_COUNTER)) for name in counters)
    return counted or any(names_average(part) for part in path)


def choose_average(
    found: Mapping[str, _Stored], weights: str | None = None, *, file: object = "the checkpoint"
) -> tuple[dict[str, _Stored], str | None, tuple[str, ...]]:
    """Choose between the variables of a TensorFlow 1 checkpoint and their moving averages.

    A variable without an average, as one that is not trained, is taken as it is
    (`tf.train.ExponentialMovingAverage.variables_to_restore`).

    Args:
        found: Tensors by their names in the file.
        weights: ``ema``, ``raw``, or None for the averages if there are any.
        file: Name of the file in messages.

    Returns:
        The chosen tensors under the variables' own names; which kind was chosen, None if there was
        no choice; and notes for the user.

    Raises:
        UsageError: If the kind that was asked for is not there.
    """
    averages = {name.removesuffix(_TF1_AVERAGE) for name in found if name.endswith(_TF1_AVERAGE)}
    if weights not in (None, AVERAGE, RAW) or (weights == AVERAGE and not averages):
        raise no_such_weights(file, str(weights), [AVERAGE, RAW] if averages else [])
    if not averages:
        return dict(found), None, ()
    taken = weights or AVERAGE
    chosen = {name: tensor for name, tensor in found.items() if not name.endswith(_TF1_AVERAGE)}
    if taken == AVERAGE:
        chosen |= {name: found[name + _TF1_AVERAGE] for name in averages}
    count, other = f"{len(averages):,}", RAW if taken == AVERAGE else AVERAGE
    what = f"the moving averages (EMA) of {count}" if taken == AVERAGE else f"{count} raw"
    return chosen, taken, (f'Took {what} variables; `weights="{other}"` takes the others.',)


def no_such_weights(file: object, wanted: str, places: Iterable[str]) -> UsageError:
    """Return the error for weights that were asked for and are not there; lists what is."""
    listed = ", ".join(f'`weights="{place}"`' for place in places)
    there = f"It has {listed}." if listed else "It has one set of weights; leave `weights` out."
    return UsageError(
        f"{file}: expected weights called {wanted!r:.100}, but there are none. {there}"
    )
