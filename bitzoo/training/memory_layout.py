"""Choose the memory format that a network trains in on a CPU, by measuring both.

Which one is faster depends on processor, network, image size and dtype: channels last is not on
every CPU. In channels last, normalization and ReLU may be one compiled operator besides (see
`bitzoo.training.fused_norm`), which is measured too. Format and operator decide the last bits of
the result, because sums are taken in another order, so they are chosen once: checkpoints keep them,
and a resumed run goes on with them.

The measured passes are forward and backward passes over images that a generator of their own draws.
They change neither weights nor running statistics nor the state of any random numbers, and they are
also what an estimate of the run's time can start from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
FUSED = "channels last, fused norms"
"""What channels last with the compiled operator is called."""


@dataclass(frozen=True)
class MemoryLayout:
    """The memory format of a run, and what was measured.

    Attributes:
        channels_last: Whether it is channels last; otherwise contiguous.
        images: Images of a measured pass; 0 if nothing was measured.
        seconds: Duration of a pass, forward and backward, by whether it was in channels last; in
            several processes, the mean of them. With torch's operators.
        fused: Whether normalization and ReLU are the compiled operator.
        fused_seconds: Duration of a pass in channels last with that operator; None if it was not
            measured.
    """

    channels_last: bool
    images: int = 0
    seconds: Mapping[bool, float] = field(default_factory=dict)
    fused: bool = False
    fused_seconds: float | None = None

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
        """Whether more than one form was measured."""
        return len(self._seconds_by_name()) > 1

    @property
    def seconds_per_image(self) -> float | None:
        """Seconds per image of a process, forward and backward, in this format; None if unknown."""
        measured = self.pass_seconds
        return None if measured is None else measured / self.images

    @property
    def pass_seconds(self) -> float | None:
        """Duration of a measured pass in this form; None if it was not measured."""
        return self.fused_seconds if self.fused else self.seconds.get(self.channels_last)

    @property
    def name(self) -> str:
        """What it is called."""
        return FUSED if self.fused else NAMES[self.channels_last]

    def describe(self) -> str:
        """Return its name and all times: ``contiguous (2 s for 8 images, channels last 3 s)``."""
        if not self.is_compared:
            return self.name
        found = self._seconds_by_name()
        mine = found.pop(self.name)
        count = f"{self.images} image{'' if self.images == 1 else 's'}"
        others = "".join(f", {name} {seconds:.3g} s" for name, seconds in found.items())
        return f"{self.name} ({mine:.3g} s for {count}{others})"

    def _seconds_by_name(self) -> dict[str, float]:
        found = {NAMES[last]: seconds for last, seconds in self.seconds.items()}
        return found if self.fused_seconds is None else {**found, FUSED: self.fused_seconds}

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        seconds = {name: round(found, 4) for name, found in self._seconds_by_name().items()}
        measured = {"images": self.images, "seconds": seconds} if self.images else {}
        fused = {"fused_norms": True} if self.fused else {}
        return {"channels_last": self.channels_last, **fused, **measured}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> MemoryLayout:
        """Read what `to_dict` returned.

        Raises:
            Exception: Of several kinds, if it is something else.
        """
        by_name = record.get("seconds", {})
        fused, images = record.get("fused_norms", False), record.get("images", 0)
        if type(record["channels_last"]) is not bool or type(fused) is not bool:
            raise TypeError(f"it says neither yes nor no of a memory format: {record!r:.80}")
        if type(images) is not int or images < bool(by_name):
            raise ValueError(f"a pass over {images!r:.40} images was measured")
        if not all(
            type(found) in (int, float) and 0 <= float(found) < math.inf
            for found in by_name.values()
        ):
            raise ValueError(f"a measured pass took {by_name!r:.80}")
        seconds = {last: by_name[name] for last, name in NAMES.items() if name in by_name}
        return cls(record["channels_last"], images, seconds, fused, by_name.get(FUSED))


def usual_layout(wanted: bool | None, device: torch.device) -> MemoryLayout:
    """Return the form of a run that is not measured.

    Args:
        wanted: Whether the format is to be channels last; None leaves that to the device.
        device: Where the network trains.
    """
    if wanted is None:  # CUDA's group normalization has no channels-last kernel and copies
        wanted = device.type == "cpu"
    return MemoryLayout(wanted)


def choose_layout(
    time_pass: Callable[[MemoryLayout, int], float],
    images_left: int,
    *,
    fewest: int = 1,
    most: int,
    formats: Sequence[bool] = (True, False),
    can_fuse: Callable[[], bool] = lambda: False,
    pass_seconds: float = PASS_SECONDS,
) -> MemoryLayout:
    """Measure a pass, after a warm-up, in each format, and return the fastest.

    Channels last is preferred: another must be clearly faster; see `CLEARLY`. Runs that are short
    by the first pass are not measured further; see `WORTH_MEASURING`. A form that runs out of
    memory is left out.

    Args:
        time_pass: Called with a form and a number of images: makes a forward and a backward pass,
            and returns its seconds. With several processes, the mean over all of them, so that all
            choose the same. Infinity if it ran out of memory.
        images_left: Images that a process has to train on until the run ends.
        fewest: Fewest images of a pass.
        most: Most images of a pass, as many as a micro-batch has.
        formats: Which formats may be chosen, the preferred one first.
        can_fuse: Makes the compiled operator ready, and returns whether it is, in all processes;
            called only if the run is measured. It takes a while where it has to be compiled.
        pass_seconds: About how long a pass is to take.
    """

    def measure(form: MemoryLayout, images: int) -> float:
        time_pass(form, images)
        return time_pass(form, images)

    preferred = MemoryLayout(formats[0])
    first = measure(preferred, fewest)
    each = first / fewest
    known = {preferred.channels_last: first} if math.isfinite(first) else {}
    short = replace(preferred, images=fewest, seconds=known)
    if not WORTH_MEASURING <= each * images_left < math.inf:
        return short
    count = max(fewest, min(most, int(pass_seconds / each)))
    forms = [MemoryLayout(last) for last in formats]
    if True in formats and can_fuse():
        forms.append(MemoryLayout(True, fused=True))
    measured = {form.name: measure(form, count) for form in forms}
    found = {name: seconds for name, seconds in measured.items() if math.isfinite(seconds)}
    if not found:
        return short
    fastest = min(forms, key=lambda form: measured[form.name])
    is_clear = measured[fastest.name] < CLEARLY * measured[preferred.name]
    return replace(
        fastest if is_clear else preferred,
        images=count,
        seconds={last: found[NAMES[last]] for last in formats if NAMES[last] in found},
        fused_seconds=found.get(FUSED),
    )
