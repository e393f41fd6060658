"""The records of a large data set as arrays: a few bytes each, objects only for those in use.

A million `Row` or `Example` objects need half a gigabyte and seconds to make. A table keeps the
number of each record in its source, and its class; it makes an object when one is asked for. What
that says (its name, where its bytes are) is for the source to tell.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo.data.label_sets import LabelSets

Load = Callable[[], Image.Image]
Item = TypeVar("Item")


class Records(ABC):
    """Stored records by number, from 0."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, number: int) -> str:
        """Return the display name of a record."""

    @abstractmethod
    def load(self, number: int) -> Load | None:
        """Return what loads its image, which can be pickled; None if it has a path."""

    def path(self, number: int) -> Path | None:
        """Return the file of its image, if it has its own."""
        return None

    def extra(self, number: int) -> Mapping[str, str]:
        """Return its values in the other columns of the source, as text."""
        return {}

    def sizes(self, numbers: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64] | None:
        """Return how many bytes the images have; None if that is not known."""
        return None

    @property
    def digest(self) -> str:
        """A digest of what the source is known to hold, wherever it lies."""
        return ""


@dataclass(frozen=True)
class Renamed(Records):
    """Records under other names: with a prefix."""

    records: Records
    prefix: str

    def __len__(self) -> int:
        return len(self.records)

    def key(self, number: int) -> str:
        """Return the display name of a record."""
        return f"{self.prefix}{self.records.key(number)}"

    def load(self, number: int) -> Load | None:
        """Return what loads its image."""
        return self.records.load(number)

    def path(self, number: int) -> Path | None:
        """Return the file of its image."""
        return self.records.path(number)

    def extra(self, number: int) -> Mapping[str, str]:
        """Return its values in the other columns."""
        return self.records.extra(number)

    def sizes(self, numbers: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64] | None:
        """Return how many bytes the images have."""
        return self.records.sizes(numbers)

    @property
    def digest(self) -> str:
        """A digest of what the source is known to hold."""
        return f"{self.prefix}{self.records.digest}"


@dataclass(frozen=True, eq=False)
class RecordTable:
    """Records of one or several sources, with their classes.

    Attributes:
        sources: The sources.
        numbers: The number of each record in its source: uint32 (n,).
        label_sets: The classes of each record, as indices; the first of each is *the* label.
        which: The number of each record's source, uint16 (n,); None if there is only one.
        labels: The first class of each record: int32 (n,).
    """

    sources: tuple[Records, ...]
    numbers: npt.NDArray[np.uint32]
    labels: npt.NDArray[np.int32]
    several: LabelSets | None = None
    which: npt.NDArray[np.uint16] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(
        cls, records: Records, labels: npt.ArrayLike, several: LabelSets | None = None
    ) -> RecordTable:
        """Return the table of all records of a source.

        Args:
            records: The source.
            labels: The first class of each record.
            several: All its classes; None if each has one.
        """
        numbers = np.arange(len(records), dtype=np.uint32)
        return cls((records,), numbers, np.asarray(labels, np.int32), several)

    @classmethod
    def joined(cls, tables: Sequence[RecordTable]) -> RecordTable:
        """Return the records of several tables, one after the other."""
        if len(tables) == 1:
            return tables[0]
        sources: list[Records] = []
        which = []
        for table in tables:
            own = []
            for source in table.sources:
                if not any(source is known for known in sources):
                    sources.append(source)
                own.append(next(k for k, known in enumerate(sources) if known is source))
            places = np.array(own, np.uint16)
            which.append(
                np.full(len(table), places[0]) if table.which is None else places[table.which]
            )
        several = None
        if any(table.several is not None for table in tables):
            several = LabelSets.joined([table.label_sets for table in tables])
        return cls(
            tuple(sources),
            np.concatenate([table.numbers for table in tables]),
            np.concatenate([table.labels for table in tables]),
            several,
            np.concatenate(which) if len(sources) > 1 else None,
        )

    @property
    def label_sets(self) -> LabelSets:
        """The classes of every record."""
        return self.several if self.several is not None else LabelSets.of_single(self.labels)

    def take(self, positions: npt.ArrayLike) -> RecordTable:
        """Return the records at some positions, in this order."""
        chosen = np.asarray(positions)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        return replace(
            self,
            numbers=self.numbers[chosen],
            labels=self.labels[chosen],
            several=None if self.several is None else self.several.take(chosen),
            which=None if self.which is None else self.which[chosen],
        )

    def relabelled(self, labels: npt.ArrayLike) -> RecordTable:
        """Return the records with other indices of the same classes.

        Args:
            labels: The new index of each class, by its index.
        """
        index = np.asarray(labels, np.int32)
        several = self.several
        if several is not None:
            several = LabelSets(index[several.values], several.offsets)
        return replace(self, labels=index[self.labels], several=several)

    def renamed(self, prefix: str) -> RecordTable:
        """Return the records with a prefix before their names."""
        return replace(self, sources=tuple(Renamed(source, prefix) for source in self.sources))

    def place(self, position: int) -> tuple[Records, int]:
        """Return the source of a record, and its number there."""
        source = 0 if self.which is None else int(self.which[position])
        return self.sources[source], int(self.numbers[position])

    def classes(self, position: int) -> tuple[int, ...]:
        """Return the classes of a record, if it may have several; otherwise ()."""
        return () if self.several is None else self.several[position]

    def sizes(self) -> npt.NDArray[np.int64] | None:
        """Return how many bytes each image has, (n,); None if a source does not know."""
        sizes = np.zeros(len(self), np.int64)
        for number, source in enumerate(self.sources):
            rows = slice(None) if self.which is None else np.flatnonzero(self.which == number)
            found = source.sizes(self.numbers[rows])
            if found is None:
                return None
            sizes[rows] = found
        return sizes

    def digest(self) -> str:
        """Return a digest of which records these are, and of their classes."""
        digest = hashlib.sha256(json.dumps([source.digest for source in self.sources]).encode())
        sets = self.several
        arrays = [self.numbers.astype("<u4"), self.labels.astype("<i4")]
        arrays += [] if self.which is None else [self.which.astype("<u2")]
        arrays += [] if sets is None else [sets.values.astype("<i4"), sets.offsets.astype("<i8")]
        for array in arrays:
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class TableView(Sequence[Item], Generic[Item]):
    """A table as a sequence of objects that are made when they are asked for.

    Args:
        table: The records.
    """

    def __init__(self, table: RecordTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @abstractmethod
    def make(self, position: int) -> Item:
        """Make the object at a position."""

    @overload
    def __getitem__(self, position: int) -> Item: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Item]: ...
    def __getitem__(self, position: int | slice) -> Item | Sequence[Item]:
        """Return an object, or several as a tuple."""
        if isinstance(position, slice):
            return tuple(map(self.make, range(len(self))[position]))
        return self.make(range(len(self))[position])

    def __iter__(self) -> Iterator[Item]:
        return map(self.make, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (TableView, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


Extra = Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class LazyCells(Mapping[str, str]):
    """The other cells of a record, asked of its source when one is used."""

    records: Records = field(repr=False)
    number: int

    def _cells(self) -> Mapping[str, str]:
        return self.records.extra(self.number)

    def __getitem__(self, name: str) -> str:
        return self._cells()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells())

    def __len__(self) -> int:
        return len(self._cells())
