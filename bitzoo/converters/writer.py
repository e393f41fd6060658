"""Write tensors to known positions of a file, slab by slab, in any order and from any thread."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitzoo.converters.source import Array
from bitzoo.portable import pwrite


@dataclass(frozen=True)
class Place:
    """Position and shape of a tensor in a file.

    Attributes:
        offset: Position of its first byte.
        shape: Its dimensions as stored.
        axis: The output axis.
    """

    offset: int
    shape: tuple[int, ...]
    axis: int


class Writer(ABC):
    """A checkpoint being written; call `finish` when every slab is written."""

    @abstractmethod
    def write(self, name: str, start: int, block: Array) -> None:
        """Write some outputs of a tensor; called from any thread.

        Args:
            name: Name of the tensor.
            start: First output: index along the output axis.
            block: C-contiguous, in the stored axis order and the file's dtype.
        """

    @abstractmethod
    def finish(self, metadata: Mapping[str, str]) -> None:
        """Complete the file with the final metadata, and close it."""

    @abstractmethod
    def close(self) -> None:
        """Close the file, complete or not."""


class SlabWriter(Writer):
    """A file whose tensors are stored raw, in order and at known positions."""

    def __init__(
        self, path: Path, places: Mapping[str, Place], itemsize: int, size: int | None = None
    ) -> None:
        """Open the file.

        Args:
            path: File to write; replaced and reserved if `size` is given, else it must exist.
            places: Position of each tensor.
            itemsize: Bytes per number.
            size: Bytes of the whole file.
        """
        self._places, self._itemsize = places, itemsize
        mode = "r+b" if size is None else "w+b"
        self._file = open(path, mode, buffering=0)  # noqa: SIM115 - closed by close()
        try:
            if size is not None:
                self._file.truncate(size)
        except OSError:
            self._file.close()
            raise

    def write(self, name: str, start: int, block: Array) -> None:
        """Write some outputs of a tensor; called from any thread."""
        place = self._places[name]
        if place.axis == 0:
            row = math.prod(place.shape[1:]) * self._itemsize
            self._put(block.data.cast("B"), place.offset + start * row)
            return
        inner = math.prod(place.shape[place.axis + 1 :]) * self._itemsize
        rows = math.prod(place.shape[: place.axis])
        count = block.shape[place.axis]
        offset, stride = place.offset + start * inner, place.shape[place.axis] * inner
        data, chunk = block.reshape(-1).data.cast("B"), count * inner
        if chunk == stride:  # the whole axis: contiguous
            chunk, rows = chunk * rows, 1
        for row in range(rows):
            self._put(data[row * chunk : (row + 1) * chunk], offset + row * stride)

    def close(self) -> None:
        """Close the file, complete or not."""
        self._file.close()

    def _put(self, data: bytes | memoryview, position: int) -> None:
        view = memoryview(data)
        while len(view):  # a write may be partial, as on a disk that fills up
            count = pwrite(self._file.fileno(), view, position)
            view, position = view[count:], position + count
