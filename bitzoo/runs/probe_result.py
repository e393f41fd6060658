"""What a probe found: a row per model, and which of them to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bitzoo.display import Displayed, list_names
from bitzoo.inference.intervals import wilson

Outcome = Literal["done", "failed", "not tried"]
DONE: Outcome = "done"
FAILED: Outcome = "failed"
NOT_TRIED: Outcome = "not tried"


@dataclass(frozen=True)
class Probed:
    """One model, and how a classifier on its features does.

    Attributes:
        model: What the user called it.
        outcome: ``done``, ``failed`` or ``not tried``.
        reason: Why it is not done; "" if it is.
        architecture: Name of the architecture; None if that is not known.
        params: Number of parameters without a head; None as for `architecture`.
        features: Width of the features.
        correct: Judged images that the classifier with the chosen strength gets right.
        correct_lsr: The same of the classifier with the strength of big_vision's `fewshot_lsr`.
        count: Judged images.
        l2: The strength that leave-one-out chose; one for each fold.
        left_out: Top-1 accuracy of leave-one-out on the images that were learned from, the mean
            over folds; it chose the strength, so it is no estimate.
        images_per_s: How many images the network computes in a second; None if that was not
            measured.
        memory_bytes: Most memory of the process (on a GPU: of its tensors there) while it computed.
        computed: Images whose features were computed now; the others' were in the cache. With 0,
            speed and memory are those of an earlier call.
        trained_on: How many of the judged images its run was trained on; None if that is unknown.
        seconds: Time that the model took in this call, all in all.
    """

    model: str
    outcome: Outcome
    reason: str = ""
    architecture: str | None = None
    params: int | None = None
    features: int | None = None
    correct: int = 0
    correct_lsr: int = 0
    count: int = 0
    l2: tuple[float, ...] = ()
    left_out: float | None = None
    images_per_s: float | None = None
    memory_bytes: int | None = None
    computed: int = 0
    trained_on: int | None = None
    seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self.outcome == DONE

    @property
    def top1(self) -> float:
        """Accuracy with the chosen strength, in [0, 1]; only if it is done."""
        return self.correct / self.count

    @property
    def top1_lsr(self) -> float:
        """Accuracy with the strength of `fewshot_lsr`, in [0, 1]; only if it is done."""
        return self.correct_lsr / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `top1`: what other images of the same kind might show."""
        return wilson(self.correct, self.count)

    @property
    def sentence(self) -> str:
        """What is said of it."""
        if not self.is_done:
            return f"{self.model}: {self.outcome}: {self.reason}"
        speed = f", {rate_in_words(self.images_per_s)} images/s" if self.images_per_s else ""
        return f"{self.model}: top-1 {self.top1:.2%} ({self.correct:,} of {self.count:,}){speed}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        record = asdict(self) | {"l2": list(self.l2)}
        if not self.is_done:
            names = ("model", "outcome", "reason", "architecture", "params")
            return {name: record[name] for name in names}
        shares = {"top1": self.top1, "interval": list(self.interval), "top1_lsr": self.top1_lsr}
        return record | shares


@dataclass(frozen=True)
class Advice:
    """Which model to take.

    Attributes:
        take: Its name; None if there is none to choose.
        why: Why, in a sentence or two.
    """

    take: str | None
    why: str


@dataclass(frozen=True, repr=False)
class ProbeResult(Displayed):
    """The outcome of `bitzoo.probe`.

    Attributes:
        data: Name of the data set.
        classes: Names of its classes.
        judged: What the accuracies are over, as a phrase.
        settings: What else determines the result.
        models: The models: those that are done, highest accuracy first, then the others.
        not_here: Names that match a pattern and whose weights are not on this machine.
        notes: What was chosen or is to be known, as sentences.
        folder: Where the report and `probe.json` are; None if none were asked for.
        saved: The model folder that was written, if any.
        seconds: Time that it took.
    """

    data: str
    classes: tuple[str, ...]
    judged: str
    settings: Mapping[str, Any]
    models: tuple[Probed, ...]
    not_here: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    saved: Path | None = None
    seconds: float = 0.0

    @property
    def done(self) -> tuple[Probed, ...]:
        """The models that have a result, the highest accuracy first."""
        return tuple(probed for probed in self.models if probed.is_done)

    @property
    def left(self) -> tuple[Probed, ...]:
        """The models that have none."""
        return tuple(probed for probed in self.models if not probed.is_done)

    @property
    def advice(self) -> Advice:
        """Which model to take, and why."""
        return advise(self.done)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; that of `probe.json`."""
        return {
            "data": self.data,
            "classes": list(self.classes),
            "judged": self.judged,
            "settings": dict(self.settings),
            "models": [probed.to_dict() for probed in self.models],
            "take": self.advice.take,
            "why": self.advice.why,
            "not_here": list(self.not_here),
            "notes": list(self.notes),
            "saved": str(self.saved) if self.saved else None,
            "seconds": self.seconds,
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        rows: list[tuple[str, object]] = [
            (probed.model, f"{probed.top1:.2%} ({in_tenths(probed.interval)})")
            for probed in self.done
        ]
        rows = [("advice", self.advice.why), ("top-1 over", self.judged), *rows]
        return rows + [(probed.model, f"{probed.outcome}: {probed.reason}") for probed in self.left]

    def table(self) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        """Return headers and rows: a row for each model that is done."""
        headers = ("model", "top-1", "95 % interval", "lsr", "images/s", "params", "memory")
        rows: list[tuple[object, ...]] = [
            (
                probed.model,
                f"{100 * probed.top1:5.1f} %",
                in_tenths(probed.interval),
                f"{100 * probed.top1_lsr:5.1f} %",
                rate_in_words(probed.images_per_s),
                count_in_words(probed.params),
                bytes_in_words(probed.memory_bytes),
            )
            for probed in self.done
        ]
        return headers, rows


def advise(done: Sequence[Probed]) -> Advice:
    """Return which model to take: the fastest that is not clearly worse than the best.

    Not clearly worse is one whose accuracy is within the 95 % interval of the highest. A model that
    was trained on some of the judged images is not advised, and neither is it compared with.

    Args:
        done: Models with results, the highest accuracy first.
    """
    fair = [probed for probed in done if not probed.trained_on]
    if not fair:
        why = "No model has a result" + (
            " on images that it was not trained on." if done else ", so there is none to choose."
        )
        return Advice(None, why)
    best = fair[0]
    low, high = best.interval
    shown = f"{share_in_words(best.top1)} (95 % interval {in_tenths((low, high))})"
    if len(fair) == 1:
        return Advice(
            best.model,
            f"{best.model} is the only model with a result, so there is nothing to choose: it has "
            f"{shown}.",
        )
    near = [probed for probed in fair if probed.top1 >= low]
    take = min(near, key=lambda own: (*_cost(own, near), -own.correct))
    others = list_names([probed.model for probed in near if probed not in (take, best)], 3)
    beyond = next((probed for probed in fair if probed not in near), None)
    if take is best:
        if others:
            cheaper = "faster" if all(own.images_per_s for own in near) else "smaller"
            why = (
                f"Take {best.model}: it has the highest accuracy, {shown}, and what is within that "
                f"interval is not {cheaper}: {others}. That difference in accuracy may be chance."
            )
        else:
            assert beyond is not None
            why = (
                f"Take {best.model}: it has the highest accuracy, {shown}; the next, "
                f"{beyond.model} with {share_in_words(beyond.top1)}, is outside that interval."
            )
        return Advice(best.model, why)
    faster = _times(take, best)
    why = (
        f"Take {take.model}: it is {faster}, and its {share_in_words(take.top1)} is within the "
        f"interval of the highest accuracy, {best.model} with {shown}, so they cannot be told "
        "apart on these images."
    )
    if others:
        why += f" Nor can {others}."
    return Advice(take.model, why)


def _cost(probed: Probed, near: Sequence[Probed]) -> tuple[float, float]:
    """Return what is to be small: seconds an image if all were measured, then parameters."""
    timed = all(own.images_per_s for own in near)
    seconds = 1 / probed.images_per_s if timed and probed.images_per_s else 0.0
    return seconds, float(probed.params or 0)


def _times(take: Probed, best: Probed) -> str:
    if take.images_per_s and best.images_per_s:
        return f"{take.images_per_s / best.images_per_s:.1f} times as fast"
    return f"smaller ({count_in_words(take.params)} parameters)"


def share_in_words(share: float) -> str:
    """Return a share as ``95.2 %``."""
    return f"{100 * share:.1f} %"


def in_tenths(interval: tuple[float, float]) -> str:
    """Return an interval of shares as ``93.1 to 97.2 %``."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def rate_in_words(rate: float | None) -> str:
    """Return a number of images a second, to three digits."""
    if rate is None:
        return "unknown"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def count_in_words(count: int | None) -> str:
    """Return a number of parameters, as ``23.5 M``."""
    if count is None:
        return "unknown"
    return f"{count / 1e6:,.1f} M" if count < 1e8 else f"{count / 1e6:,.0f} M"


def bytes_in_words(count: int | None) -> str:
    """Return an amount of memory, as ``1.2 GB``."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
