"""The examples of a data set: `Example`, and sequences of them as objects or as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo.data.folder import Load, Row
from bitzoo.data.label_sets import LabelSets
from bitzoo.data.record_table import LazyCells, RecordTable, TableView
from bitzoo.models.preprocessing import ImageLike


@dataclass(frozen=True)
class Example:
    """One image and its class.

    Attributes:
        label: Index into the classes.
        path: The image's file; None if `load` is set.
        load: Returns the image; None if `path` is set. Can be pickled, so that other processes can
            load it too.
        key: Display name: a path below the data set's folder, or "row 17".
        sha256: Of the file's or the stored bytes, else of the pixels that `load` returns; ""
            before validation.
        group: Name of the group that stays in one split; "" for none.
        labels: All its classes, `label` first, if the source can give an image several; ().
            Splits and few-shot choices are drawn by `label` alone.
    """

    label: int
    path: Path | None = None
    load: Load | None = None
    key: str = ""
    sha256: str = ""
    group: str = ""
    labels: tuple[int, ...] = ()

    @property
    def classes(self) -> tuple[int, ...]:
        """All its classes."""
        return self.labels or (self.label,)

    @property
    def stored(self) -> Callable[[], bytes] | None:
        """What returns the bytes of the image, if `load` decodes bytes as a file's are decoded."""
        content: Callable[[], bytes] | None = getattr(self.load, "content", None)
        return content

    def with_content(self, sha256: str) -> Example:
        """Return the example with another `sha256`; faster than `dataclasses.replace`."""
        return Example(self.label, self.path, self.load, self.key, sha256, self.group, self.labels)

    def image(self) -> ImageLike:
        """Return what `bitzoo.models.preprocessing.read_rgb` takes: the path, or the image."""
        return self.load_image() if self.path is None else self.path

    def load_image(self) -> Image.Image:
        """Return the image that `load` returns."""
        if self.load is None:
            raise ValueError(f"The example {self.key!r} has neither a path nor a load function.")
        return self.load()


class ExampleTable(TableView[Example]):
    """Examples as arrays, see `bitzoo.data.record_table`."""

    def make(self, position: int) -> Example:
        """Make the example at a position."""
        source, number = self.table.place(position)
        return Example(
            int(self.table.labels[position]),
            source.path(number),
            source.load(number),
            source.key(number),
            labels=self.table.classes(position),
        )

    @overload
    def __getitem__(self, position: int) -> Example: ...
    @overload
    def __getitem__(self, position: slice) -> ExampleTable: ...
    def __getitem__(self, position: int | slice) -> Example | ExampleTable:
        """Return an example, or several, as arrays too."""
        if isinstance(position, slice):
            return ExampleTable(self.table.take(np.arange(len(self))[position]))
        return self.make(range(len(self))[position])

    @property
    def label_sets(self) -> LabelSets:
        """The classes of every example."""
        return self.table.label_sets


class RowTable(TableView[Row]):
    """The rows of a listing as arrays.

    Args:
        table: The records; their classes are indices into `classes`.
        classes: Names of the classes.
        splits: The names of splits that occur.
        split_of: Which of them each row is in, uint8 (n,); None if there is only one.
    """

    def __init__(
        self,
        table: RecordTable,
        classes: Sequence[str],
        splits: tuple[str, ...] = ("",),
        split_of: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        super().__init__(table)
        self.classes, self.splits = tuple(classes), splits
        self.split_of = np.zeros(len(table), np.uint8) if split_of is None else split_of

    def make(self, position: int) -> Row:
        """Make the row at a position."""
        source, number = self.table.place(position)
        return Row(
            source.key(number),
            self.classes[int(self.table.labels[position])],
            self.splits[self.split_of[position]],
            source.path(number),
            source.load(number),
            LazyCells(source, number),
            labels=tuple(self.classes[k] for k in self.table.classes(position)),
        )

    @property
    def used_splits(self) -> frozenset[str]:
        """The splits that have rows."""
        return frozenset(self.splits[number] for number in np.unique(self.split_of).tolist())

    @property
    def used_classes(self) -> frozenset[str]:
        """The classes that have rows."""
        labels = np.unique(self.table.label_sets.values).tolist()
        return frozenset(self.classes[label] for label in labels)

    def in_split(self, split: str, prefix: str = "") -> RowTable:
        """Return the rows in another split, all of them, with a prefix before their names."""
        table = self.table.renamed(prefix) if prefix else self.table
        return RowTable(table, self.classes, (split,))

    def examples(self, classes: Sequence[str]) -> dict[str, ExampleTable]:
        """Return split -> its examples; no key for an empty split.

        Args:
            classes: The names of the classes that labels are to be indices of.
        """
        index = {name: label for label, name in enumerate(classes)}
        table = self.table.relabelled([index.get(name, -1) for name in self.classes])
        if len(self.splits) == 1:
            return {self.splits[0]: ExampleTable(table)} if len(table) else {}
        found = {}
        for number in np.unique(self.split_of).tolist():
            found[self.splits[number]] = ExampleTable(table.take(self.split_of == number))
        return found

    @classmethod
    def joined(cls, parts: Sequence[RowTable], classes: Sequence[str]) -> RowTable:
        """Return the rows of several tables, one after the other.

        Args:
            parts: The tables.
            classes: Names of all their classes.
        """
        index = {name: label for label, name in enumerate(classes)}
        splits = tuple(dict.fromkeys(split for part in parts for split in part.splits))
        places = [np.array([splits.index(s) for s in part.splits], np.uint8) for part in parts]
        tables = [
            part.table.relabelled([index.get(name, -1) for name in part.classes]) for part in parts
        ]
        split_of = [place[part.split_of] for place, part in zip(places, parts, strict=True)]
        return cls(RecordTable.joined(tables), classes, splits, np.concatenate(split_of))


def labels_in(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Return the first class of each example, (n,)."""
    if isinstance(examples, ExampleTable):
        return examples.table.labels.astype(np.int64)
    return np.fromiter((example.label for example in examples), np.int64, len(examples))


def count_classes(examples: Sequence[Example], num_classes: int) -> npt.NDArray[np.int64]:
    """Return how many examples have each class, (num_classes,)."""
    if isinstance(examples, ExampleTable):
        return np.bincount(examples.label_sets.values, minlength=num_classes)
    every = [label for example in examples for label in example.classes]
    return np.bincount(np.array(every, np.int64), minlength=num_classes)


def pick(examples: Sequence[Example], positions: npt.ArrayLike) -> Sequence[Example]:
    """Return the examples at some positions, in this order; of a table another one."""
    if isinstance(examples, ExampleTable):
        return ExampleTable(examples.table.take(positions))
    return tuple(examples[position] for position in np.asarray(positions, np.int64).tolist())


def without(examples: Sequence[Example], positions: npt.ArrayLike) -> Sequence[Example]:
    """Return the examples that are not at some positions."""
    left = np.ones(len(examples), bool)
    left[np.asarray(positions, np.int64)] = False
    return pick(examples, np.flatnonzero(left))


def join(first: Sequence[Example], second: Sequence[Example]) -> Sequence[Example]:
    """Return examples one after the other; of two tables, another one."""
    if isinstance(first, ExampleTable) and isinstance(second, ExampleTable):
        return ExampleTable(RecordTable.joined([first.table, second.table]))
    if not first or not second:
        return first or second
    return (*first, *second)


def groups_in(examples: Sequence[Example]) -> Iterator[str]:
    """Yield the group of each example; nothing if there are none."""
    if not isinstance(examples, ExampleTable):
        yield from (example.group for example in examples)
