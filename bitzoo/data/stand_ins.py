"""Images that turn out to be unusable while they are trained on, and those that stand in for them.

A data set of millions is not decoded in full before training. An image that cannot be decoded ends
the run with its name, or if bad images are to be skipped, another takes its place, with its own
classes: the next one by index, after the last the first, that can be decoded. Which that is depends
on the data alone, so a resumed run sees the same images.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bitzoo.data.examples import Example
from bitzoo.data.file_ranges import ChangedFileError
from bitzoo.data.image_check import ImageCheck, check_image
from bitzoo.data.kept_checks import KeptChecks
from bitzoo.data.problems import DatasetError, Problem, Reason
from bitzoo.errors import BitzooError, UsageError

T = TypeVar("T")

MOST_IN_A_ROW = 1000
"""So many bad images one after another are no accident."""


class StandIns:
    """Reads images, or those that stand in for them; safe to use from several threads.

    Args:
        examples: The images.
        skip_bad: Whether other images stand in for those that cannot be used.
        kept: Where the checks of bad images are kept, so that later runs know them.
        on_bad: Called once for each bad image that is met, from any thread.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        skip_bad: bool,
        kept: KeptChecks | None = None,
        on_bad: Callable[[Problem], None] | None = None,
    ) -> None:
        self._examples, self._skip_bad = examples, skip_bad
        self._kept, self._on_bad = kept, on_bad
        self._bad: dict[int, Problem] = {}
        self._for: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, index: int, decode: Callable[[Example], T]) -> T:
        """Return what an image is decoded to, or what the one that stands in for it is.

        Args:
            index: The image.
            decode: Decodes an image.

        Raises:
            DatasetError: If the image cannot be used and bad images are not skipped, or if there
                is none that could stand in for it.
        """
        for step in range(min(len(self._examples), MOST_IN_A_ROW)):
            number = (index + step) % len(self._examples)
            if number in self._bad:
                continue
            example = self._examples[number]
            known = self._kept.find_bad(example) if self._kept and self._skip_bad else None
            if known is not None:
                self._remember(number, example, known, "")
                continue
            try:
                found = decode(example)
            except ChangedFileError:
                raise
            except (UsageError, DatasetError) as error:
                self._report(number, example, error)
                continue
            if step:
                with self._lock:
                    self._for[index] = number
            return found
        raise DatasetError(
            f"So many images one after another cannot be used that none stands in for them: "
            f"{min(len(self._examples), MOST_IN_A_ROW):,} from {self._examples[index].key} on. "
            "Copy or download them again."
        )

    def of(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the image that was read in place of each; it must have been read before."""
        numbers = np.array(indices, np.int64)
        if self._for:
            flat = numbers.reshape(-1)
            flat[:] = [self._for.get(number, number) for number in flat.tolist()]
        return numbers

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The bad images that were met so far, by index."""
        with self._lock:
            return tuple(self._bad[number] for number in sorted(self._bad))

    def _report(self, number: int, example: Example, error: BitzooError) -> None:
        """Remember a bad image, or end the run with it."""
        seen = None if self._kept is None else self._kept.look_at(example)
        check = check_image(example)
        if not self._skip_bad:
            problem = _problem(example, check, str(error))
            raise DatasetError(
                f"The image {problem} ({problem.reason.title.lower()}). The data were not checked "
                "in full before training, so this shows only now. Fix it and resume, or start with "
                "`skip_bad=True`: then the next image stands in for one that cannot be used."
            ) from error
        self._remember(number, example, check, str(error))
        if self._kept is not None:
            self._kept.add(seen, check)

    def _remember(self, number: int, example: Example, check: ImageCheck, said: str) -> None:
        problem = _problem(example, check, said)
        with self._lock:
            if number in self._bad:
                return
            self._bad[number] = problem
        if self._on_bad is not None:
            self._on_bad(problem)


def _problem(example: Example, check: ImageCheck, said: str) -> Problem:
    """Return what is wrong by the check of an image, or as its decoding said."""
    if check.reason is None:
        return Problem(Reason.DAMAGED, example.key, said)
    return Problem(check.reason, example.key, check.detail)
