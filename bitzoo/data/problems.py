"""The problems that a data set can have, as data, and the report that lists them all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from bitzoo.errors import BitzooError

MAX_LINES = 20
"""Most lines of each kind that a report shows before it says how many more there are."""


class DatasetError(BitzooError, ValueError):
    """A data set that cannot be used: its form is unknown, or it has the reported problems."""


class Reason(Enum):
    """A kind of problem, in the order of the report.

    Attributes:
        title: Name of the kind.
        advice: What to do about it.
        can_skip: Whether training can do without the listed items (`skip_bad`).
    """

    LINE = "Invalid lines of the manifest", "correct the lines", True
    LABEL = "Labels out of range", "correct the labels", True
    FOLDER = "Folders that cannot be read", "check the permissions", True
    SHARD = "Shards that cannot be read to their end", "copy or download them again", True
    RECORD = "Records without one image and a label", "write the shards again", True
    MISSING = "Missing files", "check the paths", True
    UNREADABLE = "Files that cannot be opened", "check the permissions and the disk", True
    NO_BYTES = "Files of 0 bytes", "copy or download them again", True
    NO_IMAGE = "Not an image of a format that is read", "convert to PNG or JPEG, or remove", True
    NEEDS_EXTRA = (
        "HEIC images, which need the package pillow-heif",
        'install it: pip install "bitzoo[heif]", or convert the images to JPEG',
        True,
    )
    DAMAGED = "Truncated or damaged images", "copy or download them again", True
    ANIMATED = "Animated or multi-page files", "save the intended frame as a file", True
    HUGE = "Images too large to decode safely", "make them smaller", True
    NO_8_BIT = "Images without a defined 8-bit form", "scale them to 8 bits per channel", True
    UNKNOWN_CLASS = "Images of classes that the network lacks", "rename or remove them", True
    DUPLICATE = "Identical images in train and val", "keep each in one split", True
    GROUP = "Groups in both train and val", "move each to one, or do not group", False
    ONLY_IN_TRAIN = "Classes of train without images in val", "add some, or check the names", True
    ONLY_IN_VAL = "Classes of val without images in train", "add some, or check the names", False
    EMPTY_CLASS = "Classes without a usable image in train", "add images or remove them", True
    FEW_CLASSES = "Too few classes", "at least two are needed", False
    DARK = "No image is bright", "scale the values to 0..255 (masks of 0 and 1: times 255)", False
    FLAT = "No image has contrast", "scale the values that occur to 0..255", False
    BLANK = "Most images are empty", "check how they were saved", False
    EMPTY_SPLIT = "Splits without a usable image", "add images", False

    def __init__(self, title: str, advice: str, can_skip: bool) -> None:
        self.title = title
        self.advice = advice
        self.can_skip = can_skip


_KIND_END = re.compile(r", found |: ")


@dataclass(frozen=True)
class Problem:
    """One problem of a data set.

    Attributes:
        reason: Its kind.
        subject: Display name of the file, line, folder or class.
        detail: What was found there, if the kind does not say everything.
    """

    reason: Reason
    subject: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.detail}" if self.detail else self.subject


@dataclass(frozen=True)
class Problems:
    """All problems of a data set.

    Attributes:
        source: Display name of the data set.
        problems: In the order of `Reason`, and within a kind in the order of the data set.
    """

    source: str
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.problems)

    def of(self, reason: Reason) -> tuple[Problem, ...]:
        """Return the problems of one kind."""
        return tuple(problem for problem in self.problems if problem.reason is reason)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The kinds of problems that occur."""
        found = {problem.reason for problem in self.problems}
        return tuple(reason for reason in Reason if reason in found)

    @property
    def can_skip(self) -> bool:
        """Whether the data set can be trained on without the listed files and lines."""
        return all(reason.can_skip for reason in self.reasons)

    def report(self, max_lines: int = MAX_LINES) -> str:
        """List the problems by kind, at most `max_lines` lines of each.

        Returns:
            Text of several lines, without a newline at its end; empty if there are no problems.
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
        """Return the error to raise.

        Args:
            skipping: Whether `skip_bad` is set, so that the message must not suggest it.
        """
        fatal = [reason.title for reason in self.reasons if not reason.can_skip]
        if not fatal:
            step = "Fix these problems, or skip the listed items: `skip_bad=True`."
        elif skipping:
            step = f"`skip_bad=True` cannot fix this: {'; '.join(fatal)}."
        else:
            step = f"Fix these problems; `skip_bad=True` alone cannot fix: {'; '.join(fatal)}."
        count, kinds = len(self), len(self.reasons)
        return DatasetError(
            f"The data set {self.source} cannot be used as it is. Every image was checked before "
            f"anything else started; found {count} {'problem' if count == 1 else 'problems'} of "
            f"{kinds} {'kind' if kinds == 1 else 'kinds'}:\n\n{self.report()}\n\n{step}"
        )


def count_by_kind(problems: Sequence[Problem]) -> str:
    """Count problems by what is wrong, the commonest first, with the first of each as an example.

    Details that differ only in what was found, after ", found" or a colon, are of one kind.

    Returns:
        Text of several lines: those of each `Reason` under its title and advice.
    """
    blocks = []
    for reason in Reason:
        kinds: dict[str, list[Problem]] = {}
        for problem in problems:
            if problem.reason is reason:
                kinds.setdefault(_KIND_END.split(problem.detail, maxsplit=1)[0], []).append(problem)
        if not kinds:
            continue
        ordered = sorted(kinds.values(), key=len, reverse=True)
        lines = [f"{reason.title} ({sum(map(len, ordered)):,}); {reason.advice}:"]
        lines += [
            f"  {group[0]}" + (f" (and {len(group) - 1:,} more like it)" if group[1:] else "")
            for group in ordered[:MAX_LINES]
        ]
        if len(ordered) > MAX_LINES:
            lines.append(f"  and {len(ordered) - MAX_LINES:,} other kinds")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def join_some(items: Sequence[object], limit: int = 5) -> str:
    """Join items as `a, b, c and 7 more`, which keeps long lists short."""
    shown = ", ".join(str(item) for item in islice(items, limit))
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def printable(text: str) -> str:
    r"""Return the text with unprintable characters escaped, as `\x1b` or `\udcff`.

    File names may hold control characters, which a terminal obeys, and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
