"""Decoded images by index: memory-mapped from the pixel cache, or decoded at every use.

BiT-HyperRule resizes every image to a fixed square before the random crop, and an evaluation
resizes and crops it in a fixed way. These pixels never change: they are decoded once, on all cores,
and mapped into memory from then on (see `pixel_cache` for the format). A data set too large for the
budget or the disk is instead decoded at each use by worker processes. The bytes are exactly the
same either way.

A random-resized crop needs whole images instead: they are decoded and cropped at each use
(`WholeImages`).
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitzoo.data import pixel_cache
from bitzoo.data.decode_workers import (
    Decoder,
    Pixels8,
    as_transform,
    count_cores,
    hash_stored,
)
from bitzoo.data.inception_crop import CropKey
from bitzoo.data.stand_ins import StandIns
from bitzoo.errors import UsageError
from bitzoo.files import Progress, cache_dir, sha256_of
from bitzoo.locks import file_lock
from bitzoo.models.preprocessing import EvalTransform

if TYPE_CHECKING:
    from bitzoo.data.dataset import Example, Split

_FEW = 64
"""Up to this many images are decoded by threads, which finish before processes have started."""
_log = logging.getLogger(__name__)


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
        """Return images, uint8 (size, size, 3); read-only views if they are cached.

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
        """Release memory maps or worker processes; the pixels cannot be used afterwards."""

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
    """Images mapped into memory from cache shards.

    A row is checked against its checksum when it is first used, which reads it once more than its
    use does. An image whose row is damaged is decoded at each use instead, and its shard's file is
    removed, so that the next run decodes it into the cache again.
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
        located = _locate(found)
        self._rows = np.array([located[digest] for digest in hashes], np.int32).reshape(-1, 2)
        self._examples, self._hashes = examples, hashes
        self._checked_rows = np.zeros(len(hashes), bool)
        self._damaged: set[int] = set()
        self._removed: set[int] = set()
        self._reporting = threading.Lock()
        self._decoder = Decoder(transform, 1, use_processes=False)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, indices: npt.ArrayLike) -> list[Pixels8]:
        """Return views of the shards.

        Raises:
            IndexError: If an index is not in 0..len-1.
            UsageError: If a row is damaged, and its image cannot be decoded again.
        """
        numbers = self._checked(indices)
        for number in np.unique(numbers[~self._checked_rows[numbers]]).tolist():
            self._check(number)
        return [
            self._shards[shard].pixels[row] if number not in self._damaged else self._decode(number)
            for number, (shard, row) in zip(
                numbers.tolist(), self._rows[numbers].tolist(), strict=True
            )
        ]

    @property
    def contents(self) -> Contents:
        """What names the pixels."""
        return Contents(self._hashes, pixel_cache.way_of(self._transform))

    def _check(self, number: int) -> None:
        shard, row = self._rows[number].tolist()
        if not self._shards[shard].is_intact(row):
            self._damaged.add(number)
            with self._reporting:
                if shard not in self._removed:
                    self._removed.add(shard)
                    pixel_cache.remove_damaged(self._shards[shard].path)
        self._checked_rows[number] = True

    def _decode(self, number: int) -> Pixels8:
        expected = self._hashes[number].hex()
        return self._decoder.decode(replace(self._examples[number], sha256=expected))

    def close(self) -> None:
        """Release the shards; images already returned stay readable."""
        self._shards, self._rows = [], self._rows[:0]


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


def open_whole_images(
    split: Split,
    size: int,
    *,
    workers: int | None = None,
    bit_depth: int | None = None,
    stand_ins: StandIns | None = None,
) -> WholeImages:
    """Open the images of a split for random-resized crops (`bitzoo.data.inception_crop`).

    Args:
        split: Examples.
        size: Edge of the crops in pixels, at least 1.
        workers: Number of worker processes; None means one per core that this process may use.
        bit_depth: As for `open_pixels`.
        stand_ins: As for `open_pixels`.

    Raises:
        UsageError: If the size is not positive.
    """
    workers = max(1, workers or count_cores())
    return WholeImages(as_transform(size).crop, split.examples, workers, bit_depth, stand_ins)


def open_pixels(
    split: Split,
    size: int | EvalTransform,
    *,
    cache: Path | None = None,
    budget_bytes: int,
    workers: int | None = None,
    progress: Progress | None = None,
    bit_depth: int | None = None,
    stand_ins: StandIns | None = None,
) -> Pixels:
    """Open the decoded images of a split.

    Images missing from the cache are decoded into it first; another process that needs the cache
    waits until this is done. If the cache cannot be used (no room in the budget or on the disk, or
    an unwritable folder), a warning is logged and images are decoded at each use.

    Args:
        split: Examples; those without `sha256` are read once to compute it.
        size: How images are resized and cropped; a number of pixels is the edge of the square to
            which they are resized, as BiT-HyperRule does (`EvalTransform.to_square`).
        cache: Folder of decoded images of all data sets; default ``cache_dir() / "pixels"``.
        budget_bytes: Most bytes that the whole folder may hold. Shards that no process uses are
            removed to make room, least recently used first. 0 never caches.
        workers: Number of worker processes; None means one per core that this process may use.
        progress: Called with ``"reading"`` or ``"decoding"``, images done, and their total.
        bit_depth: Bits of the values of images of more than 8 bits per channel, as
            `DataSummary.bit_depth`; see `bitzoo.models.preprocessing.read_rgb`. With an
            `EvalTransform`, None is that of the transform.
        stand_ins: What is done about images that cannot be decoded, if they were not all checked
            before (`inspect(..., lazily=True)`); they are then decoded at each use, not cached.

    Returns:
        `CachedPixels` or `DecodingPixels`.

    Raises:
        UsageError: If the size is not positive, or an image cannot be read or decoded, or is not
            the one that was validated any more.
    """
    transform = as_transform(size, bit_depth)
    workers = max(1, workers or count_cores())
    report = progress or (lambda task, done, total: None)
    if split.examples and budget_bytes > 0 and stand_ins is None:
        hashes = _content_hashes(split.examples, workers, report)
        by_hash = dict(zip(hashes, split.examples, strict=True))
        try:
            cache = cache or cache_dir() / "pixels"
            folder = _Folder(cache, transform)
            found = _fill_cache(folder, by_hash, budget_bytes, workers, report)
        except OSError as error:
            _log.warning(
                "Images are decoded at every step: the cache %s cannot be used: %s",
                cache or "of decoded images",
                error,
            )
        else:
            if found is not None:
                return CachedPixels(transform, split.examples, hashes, found)
    return DecodingPixels(transform, split.examples, workers, stand_ins)


@dataclass(frozen=True)
class _Folder:
    """Which decoded images of a cache are meant."""

    cache: Path
    transform: EvalTransform

    @property
    def size(self) -> int:
        return self.transform.crop


def _content_hashes(examples: Sequence[Example], workers: int, report: Progress) -> list[bytes]:
    """Return the SHA-256 of each example, computing those that validation has not."""
    known = [example.sha256 for example in examples]
    missing = [number for number, digest in enumerate(known) if not digest]
    with ThreadPoolExecutor(workers) as pool:
        digests = pool.map(_content_hash, [examples[number] for number in missing])
        for done, (number, digest) in enumerate(zip(missing, digests, strict=True), start=1):
            known[number] = digest
            report("reading", done, len(missing))
    return [bytes.fromhex(digest) for digest in known]


def _content_hash(example: Example) -> str:
    if example.path is None:
        return hash_stored(example)
    try:
        return sha256_of(example.path)
    except OSError as error:
        raise UsageError(
            f"The image {str(example.path)!r} cannot be read: {error}. Check the path."
        ) from error


def _fill_cache(
    folder: _Folder,
    by_hash: dict[bytes, Example],
    budget: int,
    workers: int,
    report: Progress,
) -> list[pixel_cache.Shard] | None:
    """Return shards that hold all the images; None if there is no room for them."""
    cache = folder.cache
    found, missing = _look_up(folder, by_hash)
    if not missing:  # needs neither a lock nor write permission
        return found
    with file_lock(cache / "build"):
        found, missing = _look_up(folder, by_hash)
        needed = len(missing) * (pixel_cache.row_bytes(folder.size) + pixel_cache.ROW_HEAD_BYTES)
        if needed and not pixel_cache.make_room(cache, needed, budget, {s.path for s in found}):
            _log.warning(
                "Images are decoded at every step: the cache %s needs %.1f GB more, but may hold "
                "%.1f GB in all; raise `cache_gb` or free some disk space",
                cache,
                needed / 1e9,
                budget / 1e9,
            )
            return None
        _decode_missing(folder, missing, workers, report)
        return _look_up(folder, by_hash)[0]


def _look_up(
    folder: _Folder, by_hash: dict[bytes, Example]
) -> tuple[list[pixel_cache.Shard], dict[bytes, Example]]:
    found = list(pixel_cache.find_shards(folder.cache, folder.transform, by_hash.keys()))
    present = _locate(found)
    return found, {digest: e for digest, e in by_hash.items() if digest not in present}


def _locate(found: Sequence[pixel_cache.Shard]) -> dict[bytes, tuple[int, int]]:
    """Return content hash -> index of the shard, row in it."""
    return {
        digest: (number, row)
        for number, shard in enumerate(found)
        for row, digest in enumerate(shard.hashes)
    }


def _decode_missing(
    folder: _Folder, missing: dict[bytes, Example], workers: int, report: Progress
) -> None:
    contents, step, before = list(missing.items()), pixel_cache.rows_per_shard(folder.size), 0

    def advance(done: int) -> None:
        report("decoding", before + done, len(contents))

    decoder = Decoder(folder.transform, workers, use_processes=len(contents) > _FEW)
    try:
        for before in range(0, len(contents), step):
            pixel_cache.write_shard(
                folder.cache, decoder, contents[before : before + step], advance
            )
    finally:
        decoder.close()
