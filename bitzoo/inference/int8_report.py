"""What is known of an int8 file: how far it is from the float32 file, and how fast both are."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo._version import __version__
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.display import Displayed, in_percent
from bitzoo.errors import AccuracyLossError
from bitzoo.exporters.export import report_of
from bitzoo.exporters.export_formats import FORMATS
from bitzoo.exporters.quantize import Quantization
from bitzoo.inference.intervals import paired_difference, wilson
from bitzoo.inference.metrics import Evaluation

PAYS = 1.1
"""An int8 file that is this many times as fast is called faster; less is within the noise."""


@dataclass(frozen=True)
class Compared:
    """Two files on the same images, by count.

    Attributes:
        count: Images.
        before: How many of them the float32 file has right; None if no labels are known.
        after: How many the int8 file has right; None if no labels are known.
        lost: Right in float32, wrong in int8; without labels, those whose first class changed.
        gained: Wrong in float32, right in int8; 0 without labels.
        agreeing: How many have the same first class in both.
        relative_l2: Distance of all logits from those of the float32 file, over their norm.
    """

    count: int
    before: int | None
    after: int | None
    lost: int
    gained: int
    agreeing: int
    relative_l2: float

    @classmethod
    def of(cls, before: Evaluation, after: Evaluation, *, labelled: bool) -> Compared:
        """Compare two evaluations of the same images that kept their logits."""
        assert before.logits is not None
        assert after.logits is not None
        exact = before.logits.astype(np.float64)
        distance = np.linalg.norm(after.logits - exact) / np.linalg.norm(exact)
        same = before.predicted == after.predicted
        was, now = (before.ranks == 0, after.ranks == 0) if labelled else (same | True, same)
        return cls(
            before.count,
            before.correct if labelled else None,
            after.correct if labelled else None,
            int((was & ~now).sum()),
            int((now & ~was).sum()),
            int(same.sum()),
            float(distance),
        )

    @property
    def loss(self) -> float:
        """Share of the images that int8 loses, less those that it gains."""
        return (self.lost - self.gained) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `loss`, see `intervals.paired_difference`."""
        return paired_difference(self.lost, self.gained, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        sides = {
            name: None
            if right is None
            else {
                "correct": right,
                "top1": right / self.count,
                "interval": list(wilson(right, self.count)),
            }
            for name, right in (("float32", self.before), ("int8", self.after))
        }
        return {
            "judged_by": "accuracy" if self.before is not None else "agreement",
            "count": self.count,
            **sides,
            "right_to_wrong": self.lost if self.before is not None else None,
            "wrong_to_right": self.gained if self.before is not None else None,
            "same_top1": self.agreeing,
            "loss": self.loss,
            "loss_interval": list(self.interval),
            "relative_l2": self.relative_l2,
        }


@dataclass(frozen=True)
class Speed:
    """Seconds of both files on batches of one size, run in turn.

    Attributes:
        batch: Images per batch.
        float32: Seconds of each round.
        int8: Seconds of each round.
    """

    batch: int
    float32: tuple[float, ...]
    int8: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        """Median seconds in float32 and int8."""
        return statistics.median(self.float32), statistics.median(self.int8)

    @property
    def ratio(self) -> float:
        """How many times as fast int8 is, by the medians."""
        before, after = self.medians
        return before / after

    @property
    def best_ratio(self) -> float:
        """The same by the fastest rounds, which other work on the machine disturbed least."""
        return min(self.float32) / min(self.int8)

    @property
    def pays(self) -> bool:
        """Whether int8 is faster by both."""
        return min(self.ratio, self.best_ratio) >= PAYS

    def in_words(self) -> str:
        """Return how fast int8 is, as a phrase."""
        return (
            f"{self.ratio:.2f} times as fast as float32 at batch {self.batch} "
            f"({self.best_ratio:.2f} by the fastest rounds)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        before, after = self.medians
        return {
            "batch": self.batch,
            "rounds": len(self.int8),
            "float32_ms": 1e3 * before,
            "int8_ms": 1e3 * after,
            "times_as_fast": self.ratio,
            "times_as_fast_at_best": self.best_ratio,
        }


@dataclass(frozen=True, repr=False)
class Int8Report(Displayed):
    """What was written, and how far it is from the float32 file; `to_dict` gives JSON.

    An int8 file computes another function than its network. So nothing here says that it computes
    the same: it says how far it is, on which images.

    Attributes:
        path: The file.
        to: Its format, a key of `QUANTIZERS`.
        metadata: Its metadata.
        quantization: How it was made.
        compared: It and the float32 file, on the images that were held out.
        max_loss: Largest share of images that it may lose.
        float32: The report of the float32 file that it was made from, which was judged against the
            float64 reference.
        calibration: What it was calibrated on, as JSON-ready data.
        judged: What it was judged on, as a phrase.
        speeds: What both files took, on this processor.
        runtime: The runtime, its version, what it ran on and in which precision.
        bytes: Size of the float32 and of the int8 file.
        files: Name of each file written -> its SHA-256.
        notes: What was chosen for the user, as sentences.
    """

    path: Path
    to: str
    metadata: Mapping[str, str]
    quantization: Quantization
    compared: Compared
    max_loss: float
    float32: Mapping[str, Any]
    calibration: Mapping[str, Any]
    judged: str
    speeds: tuple[Speed, ...]
    runtime: Mapping[str, Any]
    bytes: tuple[int, int]
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()

    dtype = "int8"

    @property
    def passed(self) -> bool:
        """Whether what int8 loses is within what is allowed; no statement beyond that."""
        return self.compared.loss <= self.max_loss

    @property
    def report(self) -> Path:
        """The file next to it with these figures."""
        return report_of(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {
            "name": self.path.name,
            "format": self.to,
            "dtype": self.dtype,
            "bitzoo_version": __version__,
            "passed": self.passed,
            "max_loss": self.max_loss,
            **self.compared.to_dict(),
            "judged": self.judged,
            "calibration": dict(self.calibration),
            "quantization": self.quantization.to_dict(),
            "runtime": dict(self.runtime),
            "speed": [speed.to_dict() for speed in self.speeds],
            "bytes": {"float32": self.bytes[0], "int8": self.bytes[1]},
            "files": dict(self.files),
            "not_judged": list(self.not_judged),
            "notes": list(self.notes),
            "advice": self.advice,
            "float32_file": dict(self.float32),
            "metadata": {key: text for key, text in self.metadata.items() if key != RECORD_KEY},
            RECORD_KEY: json.loads(self.metadata[RECORD_KEY]),
        }

    @property
    def not_judged(self) -> tuple[str, ...]:
        """Other ways to run it."""
        return (
            "other images than those, and other processors, on which speed differs most: those "
            "with VNNI or AMX have instructions for int8",
            *FORMATS[self.to].not_judged,
        )

    @property
    def verdict(self) -> str:
        """What was found on the held-out images, as a sentence."""
        found = self.compared
        if found.before is None or found.after is None:
            return (
                f"In int8, {found.count - found.agreeing:,} of {found.count:,} images have another "
                f"first class than in float32 ({found.loss:.2%}, allowed {self.max_loss:.2%}); "
                "which of them are right is unknown."
            )
        return (
            f"Right in float32: {found.before:,} of {found.count:,} "
            f"({found.before / found.count:.2%}), in int8: {found.after:,} "
            f"({found.after / found.count:.2%}); {found.lost:,} went from right to wrong and "
            f"{found.gained:,} from wrong to right."
        )

    @property
    def precision(self) -> str:
        """How much that says, as a sentence."""
        low, high = self.compared.interval
        said = (
            f"By these {self.compared.count:,} images, the loss is {self.compared.loss:.2%}, 95 % "
            f"interval {in_percent((low, high))}"
        )
        if high > self.max_loss >= self.compared.loss:
            return (
                f"{said}: a loss of more than the allowed {self.max_loss:.2%} is not ruled out. "
                "More held-out images would say more."
            )
        return f"{said}."

    @property
    def advice(self) -> str:
        """Whether it pays on this processor, as a sentence."""
        figures = ", ".join(speed.in_words() for speed in self.speeds)
        size = f"It is {self.bytes[1] / self.bytes[0]:.0%} of its size."
        if all(speed.pays for speed in self.speeds):
            return f"int8 pays on this processor: {figures}. {size}"
        if any(speed.pays for speed in self.speeds):
            return f"int8 pays at some batch sizes on this processor: {figures}. {size}"
        return (
            f"int8 is not faster on this processor: {figures}. {size} Where neither the size nor "
            'another processor calls for it, float32 or `dtype="float16"` loses nothing like it.'
        )

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        return [
            ("output", self.path),
            ("format", self.to),
            ("network", self.metadata.get("architecture", "")),
            ("kernels", self.metadata.get("kernels", self.dtype)),
            ("judged on", self.judged),
            ("found", self.verdict),
            ("precision", self.precision),
            ("speed", self.advice),
            *(("note", note) for note in self.notes),
            ("report", self.report),
        ]

    def require(self) -> None:
        """Raise if int8 loses more than is allowed.

        Raises:
            AccuracyLossError: With both accuracies and what to do.
        """
        if self.passed:
            return
        error = AccuracyLossError(
            f"{self.path.name}: {self.verdict} That is a loss of {self.compared.loss:.2%}, and "
            f"{self.max_loss:.2%} is allowed (`max_loss={self.max_loss:g}`), so nothing was kept. "
            f"{self.precision} Calibrate on more images, and on such as the network is to see "
            f"(`calibration_images`, here {self.calibration['images']:,}); or keep 16 bits of each "
            'kernel, `dtype="float16"`, which changes logits by about a thousandth; or allow more '
            "with `max_loss`."
        )
        error.report = self
        raise error


def files_of(paths: Sequence[Path]) -> int:
    """Return the bytes of files, of those that exist."""
    return sum(path.stat().st_size for path in paths if path.is_file())
