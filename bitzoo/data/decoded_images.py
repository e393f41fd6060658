"""Decoded images by index: read from the pixel cache, or decoded at every use.

BiT-HyperRule resizes every image to a fixed square before the random crop, and an evaluation
resizes and crops it in a fixed way. These pixels never change: `CachedPixels` reads them from the
cache (see `pixel_cache` for the format). A data set too large for the budget or the disk is instead
decoded at each use by worker processes (`DecodingPixels`). The bytes are exactly the same either
way.

A random-resized crop needs whole images instead: they are decoded and cropped at each use
(`WholeImages`).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitzoo.data import pixel_cache
from bitzoo.data.decode_workers import Decoder, Pixels8
from bitzoo.data.inception_crop import CropKey
from bitzoo.data.stand_ins import StandIns
from bitzoo.errors import UsageError
from bitzoo.models.preprocessing import EvalTransform

if TYPE_CHECKING:
    from bitzoo.data.dataset import Example


@dataclass(frozen=True)
class Contents:
    """What names the pixels of images: the same names, the same pixels.

    Attributes:
        hashes: SHA-256 of each image's content, as `Example.sha256`.
        prepared: How pixels were made of them.
    """

    hashes: Sequence[bytes]
    prepared: str


class Pixels(ABC):
    """Decoded, resized images of a split, by index.

    Safe to use from several threads. A context manager; `close` frees its resources.

    Attributes:
        size: Edge of every image in pixels.
        are_whole: Whether these are whole images, of which each use takes another crop.
    """

    size: int
    are_whole = False
    _stand_ins: StandIns | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    def crops(self, indices: npt.ArrayLike, keys: Sequence[CropKey]) -> Sequence[Pixels8]:
        """Return random-resized crops of whole images, uint8 (size, size, 3).

        Args:
            indices: Indices of n examples; repeats are allowed.
            keys: Which crop of each.

        Raises:
            IndexError: If an index is not in 0..len-1.
            UsageError: If these are no whole images, or a file can no longer be decoded.
        """
        raise UsageError(
            "These images are resized to squares, of which there are no random-resized crops. "
            "Open them with `open_whole_images`."
        )

    @abstractmethod
    def rows(self, indices: npt.ArrayLike) -> Sequence[Pixels8]:
        """Return images, uint8 (size, size, 3); read-only if they are cached.

        Raises:
            IndexError: If an index is not in 0..len-1.
        """

    def take(self, indices: npt.ArrayLike, out: Pixels8 | None = None) -> Pixels8:
        """Return copies of images: uint8 (n, size, size, 3), RGB.

        Args:
            indices: Indices of n examples; repeats are allowed.
            out: Where to write them, if given.

        Raises:
            IndexError: If an index is not in 0..len-1.
            UsageError: If a file can no longer be decoded.
        """
        rows = self.rows(indices)
        if out is None:
            out = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for number, row in enumerate(rows):
            out[number] = row
        return out

    def _checked(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        numbers = np.asarray(indices, np.int64).ravel()
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(
                f"Image indices must be in 0..{len(self) - 1}, found {numbers.min()}.."
                f"{numbers.max()}."
            )
        return numbers

    def used(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the images that were read in place of others that cannot be used.

        Args:
            indices: Indices that have been read.

        Returns:
            Which image each is: itself, or with `StandIns` another, whose classes then count.
        """
        return (
            np.asarray(indices, np.int64)
            if self._stand_ins is None
            else self._stand_ins.of(indices)
        )

    @property
    def contents(self) -> Contents | None:
        """What names the pixels; None if that is not known."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release files or worker processes; the pixels cannot be used afterwards."""

    def __enter__(self) -> Pixels:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class CachedPixels(Pixels):
    """Images read from cache shards.

    Every row is compared with its checksum each time that it is read, so not even a change under a
    running process goes unnoticed. An image whose row is damaged is decoded instead from its file,
    which must still have the content that was checked; and the shard's file is removed, so that
    the next run decodes its images into the cache again.
    """

    def __init__(
        self,
        transform: EvalTransform,
        examples: Sequence[Example],
        hashes: Sequence[bytes],
        found: Sequence[pixel_cache.Shard],
    ) -> None:
        self.size, self._transform = transform.crop, transform
        self._shards = list(found)
        located = pixel_cache.locate(found)
        self._rows = np.array([located[digest] for digest in hashes], np.int32).reshape(-1, 2)
        self._examples, self._hashes = examples, hashes
        self._removed: set[int] = set()
        self._reporting = threading.Lock()
        self._decoder = Decoder(transform, 1, use_processes=False)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, indices: npt.ArrayLike) -> list[Pixels8]:
        """Return images, read-only.

        Raises:
            IndexError: If an index is not in 0..len-1.
            UsageError: If a row is damaged, and its image cannot be decoded again.
        """
        return [self._row(number) for number in self._checked(indices).tolist()]

    @property
    def contents(self) -> Contents:
        """What names the pixels."""
        return Contents(self._hashes, pixel_cache.way_of(self._transform))

    def _row(self, number: int) -> Pixels8:
        shard, row = self._rows[number].tolist()
        found: Pixels8 | None = self._shards[shard].read(row)
        if found is not None:
            return found
        with self._reporting:
            if shard not in self._removed:
                self._removed.add(shard)
                pixel_cache.remove_damaged(self._shards[shard].path)
        expected = self._hashes[number].hex()
        return self._decoder.decode(replace(self._examples[number], sha256=expected))

    def close(self) -> None:
        """Release the shards; images already returned stay readable."""
        self._shards, self._rows = [], self._rows[:0]
        self._decoder.close()


class DecodingPixels(Pixels):
    """Images decoded at every use, by long-lived worker processes."""

    def __init__(
        self,
        transform: EvalTransform,
        examples: Sequence[Example],
        workers: int,
        stand_ins: StandIns | None = None,
    ) -> None:
        self.size, self._transform = transform.crop, transform
        self._examples, self._stand_ins = examples, stand_ins
        self._decoder = Decoder(transform, workers)

    def __len__(self) -> int:
        return len(self._examples)

    def rows(self, indices: npt.ArrayLike) -> list[Pixels8]:
        """Decode and return images; an index that occurs twice is decoded once."""
        numbers, positions = np.unique(self._checked(indices), return_inverse=True)
        decoded: dict[int, Pixels8] = {}
        once = numbers.tolist()

        def work(place: int) -> None:
            decoded[place] = _read(
                self._examples, once[place], self._decoder.decode, self._stand_ins
            )

        self._decoder.run_each(len(once), work)
        return [decoded[position] for position in positions.tolist()]

    @property
    def contents(self) -> Contents | None:
        """What names the pixels; None if an example's content is not known."""
        hashes = [bytes.fromhex(example.sha256) for example in self._examples]
        if not all(hashes):
            return None
        return Contents(hashes, pixel_cache.way_of(self._transform))

    def close(self) -> None:
        """End the worker processes."""
        self._decoder.close()


class WholeImages(Pixels):
    """Whole images, decoded at every use by long-lived worker processes, and cropped there."""

    are_whole = True

    def __init__(
        self,
        size: int,
        examples: Sequence[Example],
        workers: int,
        depth: int | None,
        stand_ins: StandIns | None = None,
    ) -> None:
        self.size, self._examples, self._stand_ins = size, examples, stand_ins
        self._decoder = Decoder(size, workers, bit_depth=depth)

    def __len__(self) -> int:
        return len(self._examples)

    def rows(self, indices: npt.ArrayLike) -> Sequence[Pixels8]:
        """Refuse: without a key there is no crop.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "These are whole images, which have a size of their own: take their `crops`, or open "
            "them with `open_pixels`."
        )

    def crops(self, indices: npt.ArrayLike, keys: Sequence[CropKey]) -> list[Pixels8]:
        """Decode images and return one crop of each; see `Pixels.crops`."""
        numbers = self._checked(indices)
        found: dict[int, Pixels8] = {}

        def work(place: int) -> None:
            index, decode = int(numbers[place]), partial(self._decoder.decode, crop=keys[place])
            found[place] = _read(self._examples, index, decode, self._stand_ins)

        self._decoder.run_each(len(numbers), work)
        return [found[place] for place in range(len(numbers))]

    def close(self) -> None:
        """End the worker processes."""
        self._decoder.close()


def _read(
    examples: Sequence[Example],
    index: int,
    decode: Callable[[Example], Pixels8],
    stand_ins: StandIns | None,
) -> Pixels8:
    return decode(examples[index]) if stand_ins is None else stand_ins.read(index, decode)
