"""What a run will take: time, memory and disk, from what there is to do and from measured speeds.

Everything here is arithmetic; `bitzoo.runs.rehearsal` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from bitzoo.durations import duration
from bitzoo.progress_line import size_of
from bitzoo.training.recipe import Recipe

REPORT_SECONDS = 5.0
"""Assumed, not measured: what is left after the last evaluation, the report and the card."""
WRITTEN_PER_SECOND = 200e6
"""Assumed, not measured: bytes per second of a checkpoint that is hashed and synced to a disk."""
TOLD_FROM = 60.0
"""Seconds from which on an estimate is worth a line; the bar shows the rest of shorter runs."""
LONG = 3600.0
"""Seconds from which on, on a CPU, cheaper ways are named."""


@dataclass(frozen=True)
class Work:
    """What a run has left to do.

    Attributes:
        steps: Updates, of the head alone if it is `frozen`.
        batch_size: Images per update.
        crop: Edge in pixels of the images that the network sees.
        frozen: Whether only the head is trained.
        features: Images whose features are computed first; 0 unless `frozen`.
        evaluations: Evaluations, the last one included.
        held_out: Images of an evaluation.
        teachers_judge: Whether the teachers are evaluated at the end.
        decoded: Images to decode into the cache.
        checkpoints: Checkpoints to write.
        checkpoint_bytes: Size of one.
        kept_checkpoints: Most that exist at a time.
        model_bytes: Size of the finished model's file.
        cache_bytes: What decoding adds to the cache.
        processes: Among how many processes the images are divided.
        repeats: How many such runs there are.
    """

    steps: int
    batch_size: int
    crop: int
    frozen: bool = False
    features: int = 0
    evaluations: int = 0
    held_out: int = 0
    teachers_judge: bool = False
    decoded: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    kept_checkpoints: int = 2
    model_bytes: int = 0
    cache_bytes: int = 0
    processes: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class Speeds:
    """Measured seconds, each of one process.

    Attributes:
        trained: Per image: forward, backward and its pixels, with the teacher's forward pass.
        update: Per update of the weights.
        judged: Per image of an evaluation, or per image whose features are computed.
        begun: Once per evaluation: the network is prepared for inference.
        taught: Per image that the teachers judge.
        decoded: Per image decoded into the cache, by all its processes.
        head: Per update of the head alone.
        images: How many images a measured pass had.
        memory_bytes: What the process will have at most; 0 if that is not known.
    """

    trained: float = 0.0
    update: float = 0.0
    judged: float = 0.0
    begun: float = 0.0
    taught: float = 0.0
    decoded: float = 0.0
    head: float = 0.0
    images: int = 0
    memory_bytes: int = 0

    def scaled(self, factor: float) -> Speeds:
        """Return the speeds of a network and image size of `factor` times the operations."""
        return replace(
            self,
            trained=self.trained * factor,
            judged=self.judged * factor,
            taught=self.taught * factor,
        )


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        work: What there is to do.
        parts: Seconds by what they are spent on: ``decoding``, ``training``, ``features``,
            ``evaluating``, ``writing``; of all repeats.
        memory_bytes: Memory of each process; 0 if that is not known.
        device: Kind of the device: ``cpu``, ``cuda`` or ``mps``.
        measured: How the speeds are known, as a phrase.
        is_most: Whether training may end earlier, as with `patience`.
    """

    work: Work
    parts: Mapping[str, float]
    memory_bytes: int = 0
    device: str = "cpu"
    measured: str = ""
    is_most: bool = False

    @property
    def seconds(self) -> float:
        """Seconds from now to the end."""
        return sum(self.parts.values())

    @property
    def disk_bytes(self) -> int:
        """Bytes that are written and stay, or stay for a while: cache, checkpoints and model."""
        work = self.work
        kept = min(work.kept_checkpoints + 1, work.checkpoints)  # one more while it is written
        return work.cache_bytes + work.repeats * (kept * work.checkpoint_bytes + work.model_bytes)

    @property
    def is_long_on_cpu(self) -> bool:
        """Whether cheaper ways should be named."""
        return self.device == "cpu" and self.seconds > LONG

    def sentences(self, now: datetime) -> list[str]:
        """Return what is to be said, a line each.

        Args:
            now: From when the seconds count.
        """
        most = "at most " if self.is_most else ""
        lines = [
            f"This takes {most}about {duration(self.seconds)}, until about "
            f"{clock(now, self.seconds)}: {self._what()}."
        ]
        memory = f"Memory: about {size_of(self.memory_bytes)}" if self.memory_bytes else ""
        each = " per process" if memory and self.work.processes > 1 else ""
        disk = f"disk: about {size_of(self.disk_bytes)}"
        cache = self.work.cache_bytes
        of = f", {size_of(cache)} of it decoded images in the cache" if cache else ""
        known = f"{memory}{each}; {disk}{of}." if memory else f"{disk.capitalize()}{of}."
        return [*lines, known, *([f"Estimated from {self.measured}."] if self.measured else [])]

    def _what(self) -> str:
        work, parts = self.work, self.parts
        times = f"{work.repeats:,} runs, each of " if work.repeats > 1 else ""
        steps = f"{work.steps:,} step{'' if work.steps == 1 else 's'}"
        images = f"of {work.batch_size:,} images at {work.crop} px"
        if work.frozen:
            rate = _rate(work.repeats * work.features, parts.get("features", 0.0))
            text = f"{work.features:,} images at {work.crop} px{rate}, then {steps} of the head"
        else:
            seen = work.repeats * work.steps * work.batch_size
            text = f"{steps} {images}{_rate(seen, parts.get('training', 0.0))}"
        others = [
            f"{duration(parts[name])} of {name}"
            for name in ("decoding", "evaluating")
            if parts.get(name, 0.0) >= 1
        ]
        return times + ", ".join([text, *others])

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data; seconds and bytes."""
        work = self.work
        return {
            "seconds": round(self.seconds, 1),
            "parts": {name: round(seconds, 1) for name, seconds in self.parts.items()},
            "memory_bytes": self.memory_bytes or None,
            "disk_bytes": self.disk_bytes,
            "steps": work.steps,
            "batch_size": work.batch_size,
            "crop": work.crop,
            "freeze": work.frozen,
            "repeats": work.repeats,
            "processes": work.processes,
            "device": self.device,
            "measured": self.measured,
            "is_most": self.is_most,
        }


@dataclass(frozen=True)
class Way:
    """A cheaper way to do about the same.

    Attributes:
        options: What is to be given, as Python.
        command: The whole command; None if it cannot be typed, as for arrays.
        seconds: About how long it takes.
        how: How that is known.
    """

    options: str
    command: str | None
    seconds: float
    how: str


@dataclass(frozen=True)
class Forecast:
    """What a run will take, and what would take less.

    Attributes:
        recipe: The plan.
        estimate: The estimate.
        lines: What is to be said of it; nothing of a run of less than a minute.
        ways: Cheaper ways, the cheapest first; none unless it is long.
    """

    recipe: Recipe
    estimate: Estimate
    lines: tuple[str, ...]
    ways: tuple[Way, ...] = ()

    @property
    def text(self) -> str:
        """All of it as lines."""
        rows = [
            f"  about {duration(way.seconds)} ({way.how}): {way.command or f'`{way.options}`'}"
            for way in self.ways
        ]
        return "\n".join([*self.lines, *(["Cheaper ways:"] if rows else []), *rows])

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        ways = [
            {
                "options": way.options,
                "command": way.command,
                "seconds": round(way.seconds, 1),
                "how": way.how,
            }
            for way in self.ways
        ]
        return {**self.estimate.to_dict(), "sentences": list(self.lines), "cheaper": ways}


def estimate(work: Work, speeds: Speeds, **about: Any) -> Estimate:
    """Return what some work takes at some speeds.

    Args:
        work: What there is to do.
        speeds: How fast it is done.
        about: The other attributes of `Estimate`.
    """
    share = 1 / work.processes
    judging = speeds.begun + work.held_out * speeds.judged * share
    if work.frozen:  # the features of held-out images are computed once, and then judged at once
        training = {
            "features": (speeds.begun + work.features * speeds.judged) if work.features else 0.0,
            "training": work.steps * speeds.head,
        }
        evaluating = 0.0
    else:
        seen = work.batch_size * speeds.trained * share + speeds.update
        training = {"training": work.steps * seen}
        evaluating = work.evaluations * judging if work.held_out else 0.0
    if work.teachers_judge:
        evaluating += work.held_out * speeds.taught * share
    written = work.checkpoints * work.checkpoint_bytes + work.model_bytes
    once = {"decoding": work.decoded * speeds.decoded}
    each = {
        **training,
        "evaluating": evaluating,
        "writing": REPORT_SECONDS + written / WRITTEN_PER_SECOND,
    }
    parts = once | {name: seconds * work.repeats for name, seconds in each.items()}
    return Estimate(work, parts, speeds.memory_bytes, **about)


def evaluations_left(step: int, steps: int, every: int) -> int:
    """Return how many evaluations are left after `step` of `steps` updates, the last one included.

    Args:
        step: Updates made.
        steps: Updates of the run.
        every: Updates between evaluations; 0 for only at the end.
    """
    within = (steps - 1) // every - step // every if every and step < steps else 0
    return max(0, within) + 1


def checkpoints_left(step: int, steps: int, every: int) -> int:
    """Return how many checkpoints are left to write; as for `evaluations_left`."""
    return evaluations_left(step, steps, every) if step < steps else 0


def clock(now: datetime, seconds: float) -> str:
    """Return when something ends: "18:20", "tomorrow, 07:15", "Mon 30 Nov, 20:15"."""
    end = now + timedelta(seconds=seconds)
    days = (end.date() - now.date()).days
    day = {0: "", 1: "tomorrow, "}.get(days, f"{end:%a} {end.day} {end:%b}, ")
    if days > 300:
        day = f"{end.day} {end:%b} {end.year}, "
    return f"{day}{end:%H:%M}"


def _rate(images: int, seconds: float) -> str:
    if not images or not seconds:
        return ""
    rate = images / seconds
    return f" ({rate:,.0f} images/s)" if rate >= 10 else f" ({rate:.2g} images/s)"
