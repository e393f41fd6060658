"""Choose the memory format that a network trains in on a CPU, by measuring both.

Which one is faster depends on processor, network, image size and dtype: channels last is not on
every CPU. The format decides the last bits of the result, because sums are taken in another order,
so it is chosen once: checkpoints keep it, and a resumed run goes on in it.

The measured passes are forward and backward passes over images that a generator of their own draws.
They change neither weights nor running statistics nor the state of any random numbers, and they are
also what an estimate of the run's time can start from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WORTH_MEASURING = 300.0
"""Seconds of training, by a first small pass, from which on measuring pays. Shorter runs always use
channels last, so what is over in minutes does not depend on how busy the machine was."""
PASS_SECONDS = 2.0
"""About how long a measured pass is to take: there are four, and nobody should wait for long."""
CLEARLY = 0.97
"""Share of channels last's time that the other format must stay below to be taken: within 3 % a
single pass of each decides nothing."""

NAMES = {True: "channels last", False: "contiguous"}
"""By whether it is channels last: what a memory format is called."""


@dataclass(frozen=True)
class MemoryLayout:
    """The memory format of a run, and what was measured.

    Attributes:
        channels_last: Whether it is channels last; otherwise contiguous.
        images: Images of a measured pass; 0 if nothing was measured.
        seconds: Duration of a pass, forward and backward, by whether it was in channels last; in
            several processes, the mean of them.
    """

    channels_last: bool
    images: int = 0
    seconds: Mapping[bool, float] = field(default_factory=dict)

    @property
    def memory_format(self) -> torch.memory_format:
        """The format as torch calls it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def convert(self, network: nn.Module, others: Iterable[Tensor] = ()) -> None:
        """Bring a network's parameters, and other tensors like them, into the format, in place."""
        network.to(memory_format=self.memory_format)
        for tensor in others:
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=self.memory_format)

    @property
    def is_compared(self) -> bool:
        """Whether both formats were measured."""
        return len(self.seconds) == len(NAMES)

    @property
    def seconds_per_image(self) -> float | None:
        """Seconds per image of a process, forward and backward, in this format; None if unknown."""
        measured = self.seconds.get(self.channels_last)
        return None if measured is None else measured / self.images

    def describe(self) -> str:
        """Return its name and both times: ``contiguous (2 s for 8 images, channels last 3 s)``."""
        if not self.is_compared:
            return NAMES[self.channels_last]
        mine, other = self.seconds[self.channels_last], self.seconds[not self.channels_last]
        count = f"{self.images} image{'' if self.images == 1 else 's'}"
        return (
            f"{NAMES[self.channels_last]} ({mine:.3g} s for {count}, "
            f"{NAMES[not self.channels_last]} {other:.3g} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        seconds = {NAMES[last]: round(found, 4) for last, found in self.seconds.items()}
        measured = {"images": self.images, "seconds": seconds} if self.images else {}
        return {"channels_last": self.channels_last, **measured}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> MemoryLayout:
        """Read what `to_dict` returned."""
        by_name = record.get("seconds", {})
        seconds = {last: by_name[name] for last, name in NAMES.items() if name in by_name}
        return cls(record["channels_last"], record.get("images", 0), seconds)


def choose_layout(
    time_pass: Callable[[bool, int], float],
    images_left: int,
    *,
    fewest: int = 1,
    most: int,
    formats: Sequence[bool] = (True, False),
    pass_seconds: float = PASS_SECONDS,
) -> MemoryLayout:
    """Measure a pass, after a warm-up, in each format, and return the faster one.

    Channels last is preferred: the other one must be clearly faster; see `CLEARLY`. Runs that are
    short by the first pass are not measured further; see `WORTH_MEASURING`.

    Args:
        time_pass: Called with whether the format is channels last, and a number of images: makes a
            forward and a backward pass, and returns its seconds. With several processes, the mean
            over all of them, so that all choose the same. Infinity if it ran out of memory.
        images_left: Images that a process has to train on until the run ends.
        fewest: Fewest images of a pass.
        most: Most images of a pass, as many as a micro-batch has.
        formats: Which formats may be chosen, the preferred one first.
        pass_seconds: About how long a pass is to take.
    """
    preferred = formats[0]
    time_pass(preferred, fewest)
    first = time_pass(preferred, fewest)
    each = first / fewest
    short = MemoryLayout(preferred, fewest, {preferred: first} if math.isfinite(first) else {})
    if not WORTH_MEASURING <= each * images_left < math.inf:
        return short
    count = max(fewest, min(most, int(pass_seconds / each)))
    seconds = {}
    for channels_last in formats:
        time_pass(channels_last, count)
        seconds[channels_last] = time_pass(channels_last, count)
    if not all(map(math.isfinite, seconds.values())):
        return short
    fastest = min(formats, key=lambda last: seconds[last])
    is_clear = seconds[fastest] < CLEARLY * seconds[preferred]
    return MemoryLayout(fastest if is_clear else preferred, count, seconds)
