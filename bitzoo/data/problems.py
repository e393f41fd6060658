"""What can be wrong with a data set, as data, and the one report that lists all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from bitzoo.errors import BitzooError

MAX_LINES = 20
"""So many lines of each kind a report shows before it says how many more there are."""


class DatasetError(BitzooError, ValueError):
    """A data set that cannot be used: unknown form, or the full report of what is wrong with it."""


class Reason(Enum):
    """A kind of problem, in the order of the report.

    Attributes:
        title: Names the kind.
        advice: What to do about it.
        can_skip: Whether training can go on without what is listed (`skip_bad`).
    """

    LINE = "Lines of the manifest", "correct the lines", True
    LABEL = "Labels out of range", "correct the labels", True
    FOLDER = "Folders that cannot be read", "check the permissions", True
    MISSING = "Files that are not there", "check the paths", True
    UNREADABLE = "Files that cannot be opened", "check the permissions and the disk", True
    NO_BYTES = "Files of 0 bytes", "copy or download them again", True
    NO_IMAGE = "Not an image that Pillow knows", "convert to PNG or JPEG, or remove", True
    DAMAGED = "Truncated or damaged images", "copy or download them again", True
    ANIMATED = "Animations and files of several pages", "save the frame you mean as a file", True
    HUGE = "Images too large to decode safely", "make them smaller", True
    NO_8_BIT = "Images without a defined 8-bit form", "scale them to 8 bits a channel", True
    DUPLICATE = "In train and in val, byte for byte", "keep each in one split", True
    ONLY_IN_TRAIN = "Classes of train without images in val", "add some, or check the names", True
    ONLY_IN_VAL = "Classes of val without images in train", "add some, or check the names", False
    EMPTY_CLASS = "Classes without a usable image in train", "add images or remove them", False
    FEW_CLASSES = "Too few classes", "there must be two to tell apart", False
    EMPTY_SPLIT = "Splits without a usable image", "add images", False

    def __init__(self, title: str, advice: str, can_skip: bool) -> None:
        self.title = title
        self.advice = advice
        self.can_skip = can_skip


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        reason: Its kind.
        subject: The file, line, folder or class, as people know it.
        detail: What was found there, where the kind does not say it all.
    """

    reason: Reason
    subject: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.detail}" if self.detail else self.subject


@dataclass(frozen=True)
class Problems:
    """All that is wrong with a data set.

    Attributes:
        source: The data set, as people know it.
        problems: In the order of `Reason`, and within one in the order of the data set.
    """

    source: str
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.problems)

    def of(self, reason: Reason) -> tuple[Problem, ...]:
        """The problems of one kind."""
        return tuple(problem for problem in self.problems if problem.reason is reason)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The kinds of problems there are."""
        found = {problem.reason for problem in self.problems}
        return tuple(reason for reason in Reason if reason in found)

    @property
    def can_skip(self) -> bool:
        """Whether what is left without the listed files and lines can be trained on."""
        return all(reason.can_skip for reason in self.reasons)

    def report(self, max_lines: int = MAX_LINES) -> str:
        """Every kind with its problems; of each kind `max_lines` lines at most.

        Returns:
            Text of several lines, without a newline at its end; empty if nothing is wrong.
        """
        return "\n\n".join(self._group(reason, max_lines) for reason in self.reasons)

    def _group(self, reason: Reason, max_lines: int) -> str:
        problems = self.of(reason)
        lines = [f"{reason.title} ({len(problems)}); {reason.advice}:"]
        lines += [f"  {problem}" for problem in problems[:max_lines]]
        if len(problems) > max_lines:
            lines.append(f"  and {len(problems) - max_lines} more")
        return "\n".join(lines)

    def error(self, *, skipping: bool) -> DatasetError:
        """The error to raise.

        Args:
            skipping: Whether `skip_bad` was asked for, so that it must not be advised again.
        """
        fatal = [reason.title for reason in self.reasons if not reason.can_skip]
        if not fatal:
            step = "Correct what is listed, or go on without it: --skip-bad (skip_bad=True)."
        elif skipping:
            step = f"--skip-bad cannot mend this: {'; '.join(fatal)}."
        else:
            step = f"Correct what is listed; --skip-bad alone cannot mend this: {'; '.join(fatal)}."
        count, kinds = len(self), len(self.reasons)
        return DatasetError(
            f"The data set {self.source} cannot be used as it is. Every image was checked before "
            f"anything else was started; expected no problem, found {count} of {kinds} "
            f"{'kind' if kinds == 1 else 'kinds'}:\n\n{self.report()}\n\n{step}"
        )


def join_some(items: Sequence[object], limit: int = 5) -> str:
    """`a, b, c and 7 more`: a list that stays short in a line of text."""
    shown = ", ".join(str(item) for item in islice(items, limit))
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def printable(text: str) -> str:
    r"""The text with everything that a terminal could misunderstand written as `\x1b`, `\udcff`.

    Names of files may hold control characters and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
