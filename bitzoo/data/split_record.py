"""`split.csv` of a run: which images it trained on and which it held out, by name and content.

It is written when a run starts and read by `bitzoo evaluate`, which so repeats the held-out images
and recognises those that were trained on, also under other names. It has people's file names and
labels, so it is never published.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bitzoo.data.dataset import Example, ImageSet
from bitzoo.data.problems import DatasetError
from bitzoo.errors import CheckpointError
from bitzoo.files import write_text
from bitzoo.small_files import read_bytes

SPLIT_NAME = "split.csv"
MAX_BYTES = 1 << 30
"""Bound on the file: millions of lines of 150 bytes."""

_FILES, _PIXELS = "sha256", "pixels_sha256"
"""Name of the last column: the SHA-256 is that of files, or of images in memory."""
TRAIN, HELD_OUT, BEFORE = "train", "val", "before"
"""Splits in the file: trained on, held out, and trained on by the runs that this one began from."""


@dataclass(frozen=True)
class Entry:
    """One image of a run.

    Attributes:
        path: Its name in the data set, see `Example.key`.
        label: Name of its class.
        split: `TRAIN`, `HELD_OUT` or `BEFORE`.
        sha256: See `Example.sha256`.
    """

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class SplitRecord:
    """The images of a run.

    Attributes:
        entries: Its images, as in the file.
        of_files: Whether the SHA-256 are those of files; otherwise of pixels in memory. Those of
            different kinds never agree, so they cannot be compared.
    """

    entries: tuple[Entry, ...]
    of_files: bool

    @cached_property
    def trained(self) -> frozenset[str]:
        """SHA-256 of what was trained on, by the run or by those before it."""
        return frozenset(e.sha256 for e in self.entries if e.split != HELD_OUT)

    def of(self, split: str) -> tuple[Entry, ...]:
        """Return the images of a split."""
        return tuple(entry for entry in self.entries if entry.split == split)

    def can_compare(self, examples: Sequence[Example]) -> bool:
        """Whether the SHA-256 of these examples are of the same kind as the run's."""
        return self.of_files == are_files(examples)


def are_files(examples: Iterable[Example]) -> bool:
    """Whether examples are files, or stored as such, whose SHA-256 is that of their bytes."""
    return all(e.path is not None or e.stored is not None for e in examples)


def write_split(folder: Path, images: ImageSet, before: SplitRecord | None = None) -> None:
    """Write the split of a run into its folder, atomically.

    Args:
        folder: The run folder.
        images: The inspected data set, with the SHA-256 of every example. If these are not known,
            because images are checked when they are used, nothing is written: it is then unknown
            what the run was trained on.
        before: Record of the run that this one starts from. Images that it trained on, or a run
            before it, stay known as trained on.
    """
    if any(example.sha256 == "" for example in images.train.examples[:1]):
        return
    examples = [example for split in images.splits for example in split.examples]
    entries = [
        Entry(example.key, images.classes[example.label], split.name, example.sha256)
        for split in images.splits
        for example in split.examples
    ]
    if before and before.can_compare(examples):
        own = {entry.sha256 for entry in entries if entry.split == TRAIN}
        entries += [
            replace(entry, split=BEFORE)
            for entry in before.entries
            if entry.split != HELD_OUT and entry.sha256 not in own
        ]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("path", "label", "split", _FILES if are_files(examples) else _PIXELS))
    lines.writerows((e.path, e.label, e.split, e.sha256) for e in entries)
    write_text(folder / SPLIT_NAME, text.getvalue())


def read_split(folder: Path) -> SplitRecord | None:
    """Return the split of a run; None if its folder has none, as those of older versions.

    Raises:
        DatasetError: If the file is damaged.
    """
    path = folder / SPLIT_NAME
    try:
        text = read_bytes(path, MAX_BYTES).decode()
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(lines, [])
        if header[:3] != ["path", "label", "split"] or header[3:] not in ([_FILES], [_PIXELS]):
            raise ValueError(f"its first line is {','.join(header)[:100]!r}")
        entries = []
        for cells in lines:
            if len(cells) != 4 or cells[2] not in (TRAIN, HELD_OUT, BEFORE) or len(cells[3]) != 64:
                raise ValueError(f"line {lines.line_num} is none of it")
            entries.append(Entry(*cells))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (CheckpointError, OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"{path}: expected the images of a run, as it wrote them at its start, but it cannot "
            f"be read ({error}). Restore the file, or remove it; then it is unknown what the run "
            "was trained on."
        ) from error
    return SplitRecord(tuple(entries), header[3] == _FILES)
