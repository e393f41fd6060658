"""How well the teachers of a distillation do on held-out images, and its student beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitzoo.catalogue.run_info import TeacherInfo
from bitzoo.data.dataset import ImageSet
from bitzoo.data.image_store import Pixels
from bitzoo.files import Progress
from bitzoo.inference.evaluate import evaluate_pixels, labels_of
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.processes import gather, join_processes
from bitzoo.inference.selection import record_of
from bitzoo.runs.teachers import Faculty


@dataclass(frozen=True)
class Teaching:
    """What a student learned from, and how close it came.

    Attributes:
        teachers: The teachers; of several, the logits were averaged.
        temperature: Of both sides of the loss.
        count: Held-out images that were judged; 0 if nothing was.
        correct: How many of them the teachers, together, classify right.
        agreed: On how many of them teachers and student give the same class.
        seen: How many of them a teacher was trained on, by the teachers' records; None if a teacher
            has no record.
    """

    teachers: tuple[TeacherInfo, ...]
    temperature: float
    count: int = 0
    correct: int = 0
    agreed: int = 0
    seen: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        measured = {
            "count": self.count,
            "top1": self.correct / self.count,
            "correct": self.correct,
            "agreement": self.agreed / self.count,
            "agreed": self.agreed,
            "trained_on": self.seen,
        }
        return {
            "teachers": [asdict(teacher) for teacher in self.teachers],
            "temperature": self.temperature,
            **(measured if self.count else {}),
        }

    @property
    def names(self) -> str:
        """The teachers in a phrase."""
        names = [teacher.name for teacher in self.teachers]
        return names[0] if len(names) == 1 else f"the mean of {' and '.join(names)}"

    @property
    def verdict(self) -> str:
        """The measured figures as a sentence; empty if nothing was measured."""
        if not self.count:
            return ""
        whose = "teacher" if len(self.teachers) == 1 else "teachers together"
        of = f"of {self.count:,} held-out images"
        text = (
            f"On the same images, the {whose}: top-1 {self.correct / self.count:.1%} "
            f"({self.correct:,} {of}); student and {whose.split()[0]} give the same class for "
            f"{self.agreed / self.count:.1%} ({self.agreed:,})."
        )
        if self.seen is None:
            return f"{text} Which images the {whose.split()[0]} was trained on is not recorded."
        if self.seen:
            return f"{text} {self.seen:,} of these images were trained on by the teacher."
        return text

    def rows(self) -> list[tuple[str, str]]:
        """Return readable names and values."""
        rows = [("teacher", teacher.in_words) for teacher in self.teachers]
        rows.append(
            ("temperature", f"{self.temperature:g}, of both sides; the loss times its square")
        )
        return rows + ([("teacher and student", self.verdict)] if self.verdict else [])


class _Module(nn.Module):
    """A function of images as a module, which evaluation takes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, images: Tensor) -> Tensor:
        return self._function(images)


def measure_teaching(
    faculty: Faculty,
    temperature: float,
    images: ImageSet,
    pixels: Pixels | None,
    found: Evaluation | None,
    device: torch.device,
    progress: Progress | None,
) -> Teaching:
    """Judge the teachers on the images that the student was judged on; in all processes.

    Args:
        faculty: The teachers.
        temperature: Of the recipe.
        images: The data set, in terms of the teachers' outputs.
        pixels: The held-out images; None without any.
        found: The student's evaluation on them.
        device: Where to compute.
        progress: Called with numbers of images.
    """
    if images.val is None or pixels is None or found is None:
        return Teaching(faculty.records, temperature)
    processes = join_processes()
    own = evaluate_pixels(
        _Module(faculty.ensemble(device)),
        pixels,
        labels_of(images.val),
        images.classes,
        device=device,
        rank=processes.process_index,
        world=processes.num_processes,
        progress=progress,
    )
    taught = Evaluation.merge(gather(own))
    agreed = int(np.count_nonzero(taught.predicted == found.predicted))
    return Teaching(
        faculty.records, temperature, taught.count, taught.correct, agreed, _seen(faculty, images)
    )


def _seen(faculty: Faculty, images: ImageSet) -> int | None:
    """Return how many held-out images a teacher was trained on; None if that is unknown."""
    assert images.val is not None
    trained: set[str] = set()
    for network in faculty.networks:
        record = record_of(network)
        if record is None or not record.can_compare(images.val.examples):
            return None
        trained |= record.trained
    return sum(example.sha256 in trained for example in images.val.examples)
