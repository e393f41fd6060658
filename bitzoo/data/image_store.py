"""Decoded pictures by number: from the cache where they fit, else decoded anew at every use.

BiT-HyperRule resizes every picture to a fixed square before the random crop, so the resized pixels
never change: they are decoded once, by all cores, and mapped into memory from then on (`shards`
tells how they are kept). A set too large for the budget or the disk is decoded at each use by
worker processes instead. The bytes are exactly the same either way.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitzoo.data import pixel_cache
from bitzoo.data.decode_workers import Decoder, Pixels8, count_cores, source_of
from bitzoo.errors import UsageError
from bitzoo.files import file_lock, sha256_of
from bitzoo.models.preprocessing import read_rgb

if TYPE_CHECKING:
    from bitzoo.data.dataset import Example, Split

Progress = Callable[[str, int, int], None]
"""Called as ``progress(task, done, total)`` by the thread that opened the pixels."""

_FEW = 64
"""So few pictures are decoded by threads: before processes have started, they are done."""
_log = logging.getLogger(__name__)


class Pixels(ABC):
    """Decoded, square-resized pictures of a split, by number.

    Safe to use from several threads. A context manager; `close` frees what it holds.

    Attributes:
        size: Edge of every picture in pixels.
    """

    size: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, indices: npt.ArrayLike) -> Sequence[Pixels8]:
        """Pictures uint8 (size, size, 3), not copied where they are cached: only to be read.

        Raises:
            IndexError: If an index is not in 0..len-1.
        """

    def take(self, indices: npt.ArrayLike, out: Pixels8 | None = None) -> Pixels8:
        """Copies of pictures: uint8 (n, size, size, 3), RGB.

        Args:
            indices: n numbers of examples; repeats are fine.
            out: Where to put them, if given.

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
                f"Numbers of pictures must be in 0..{len(self) - 1}, found {numbers.min()}.."
                f"{numbers.max()}."
            )
        return numbers

    @abstractmethod
    def close(self) -> None:
        """Free maps or worker processes; the pixels cannot be used afterwards."""

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
    """Pictures mapped into memory from shards."""

    def __init__(
        self, size: int, hashes: Sequence[bytes], found: Sequence[pixel_cache.Shard]
    ) -> None:
        self.size = size
        self._shards = [shard.pixels for shard in found]
        places = _places(found)
        self._places = np.array([places[digest] for digest in hashes], np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, indices: npt.ArrayLike) -> list[Pixels8]:
        """Views of the shards."""
        places = self._places[self._checked(indices)].tolist()
        return [self._shards[shard][row] for shard, row in places]

    def close(self) -> None:
        """Let go of the shards; pictures already handed out stay readable."""
        self._shards, self._places = [], self._places[:0]


class DecodingPixels(Pixels):
    """Pictures decoded at every use, by worker processes that stay."""

    def __init__(self, size: int, examples: Sequence[Example], workers: int) -> None:
        self.size = size
        self._examples = examples
        self._decoder = Decoder(size, workers)

    def __len__(self) -> int:
        return len(self._examples)

    def rows(self, indices: npt.ArrayLike) -> list[Pixels8]:
        """Freshly decoded pictures; one that is asked for twice is decoded once."""
        numbers, positions = np.unique(self._checked(indices), return_inverse=True)
        decoded: dict[int, Pixels8] = {}
        self._decoder.decode_each([self._examples[n] for n in numbers], decoded.__setitem__)
        return [decoded[position] for position in positions.tolist()]

    def close(self) -> None:
        """End the worker processes."""
        self._decoder.close()


def open_pixels(
    split: Split,
    size: int,
    *,
    cache: Path,
    budget_bytes: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Pixels:
    """Make the decoded pictures of a split ready to use.

    What the cache lacks is decoded into it first; another process that needs the cache meanwhile
    waits, and finds it done. Where the cache cannot be used (no room in the budget or on the disk,
    a folder that cannot be written), a warning is logged and pictures are decoded at each use.

    Args:
        split: Examples; those without `sha256` are read once to take it.
        size: Both edges of every picture, in pixels.
        cache: Folder of decoded pictures, for all data sets: ``cache_dir() / "pixels"``.
        budget_bytes: What the whole folder may hold. Shards that no process uses are removed for
            new ones, the longest unused first. 0 never caches.
        workers: Worker processes; as many as this process may use cores if None.
        progress: Called with ``"reading"`` or ``"decoding"``, pictures done, and their total.

    Returns:
        `CachedPixels` or `DecodingPixels`.

    Raises:
        UsageError: If the size is not positive or a picture cannot be read or decoded.
    """
    if size < 1:
        raise UsageError(f"Pictures must be resized to at least 1 pixel, found {size}.")
    workers = max(1, workers or count_cores())
    report = progress or (lambda task, done, total: None)
    if split.examples and budget_bytes > 0:
        hashes = _content_hashes(split.examples, workers, report)
        by_hash = dict(zip(hashes, split.examples, strict=True))
        try:
            found = _fill_cache(cache, size, by_hash, budget_bytes, workers, report)
        except OSError as error:
            _log.warning("Pictures are decoded at each step: the cache %s fails: %s", cache, error)
        else:
            if found is not None:
                return CachedPixels(size, hashes, found)
    return DecodingPixels(size, split.examples, workers)


def _content_hashes(examples: Sequence[Example], workers: int, report: Progress) -> list[bytes]:
    """SHA-256 of each example, taken here where inspection has not."""
    known = [example.sha256 for example in examples]
    lacking = [number for number, digest in enumerate(known) if not digest]
    with ThreadPoolExecutor(workers) as pool:
        digests = pool.map(_content_hash, [examples[number] for number in lacking])
        for done, (number, digest) in enumerate(zip(lacking, digests, strict=True), start=1):
            known[number] = digest
            report("reading", done, len(lacking))
    return [bytes.fromhex(digest) for digest in known]


def _content_hash(example: Example) -> str:
    if example.path is None:
        rgb = read_rgb(source_of(example))
        return hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).hexdigest()
    try:
        return sha256_of(example.path)
    except OSError as error:
        raise UsageError(
            f"The picture {str(example.path)!r} cannot be read: {error}. Check the path."
        ) from error


def _fill_cache(
    cache: Path,
    size: int,
    by_hash: dict[bytes, Example],
    budget: int,
    workers: int,
    report: Progress,
) -> list[pixel_cache.Shard] | None:
    """Shards that have all the pictures; None if there is no room for them."""
    found, missing = _look(cache, size, by_hash)
    if not missing:  # needs no lock, and no right to write
        return found
    with file_lock(cache / "build"):
        found, missing = _look(cache, size, by_hash)
        needed = len(missing) * (pixel_cache.row_bytes(size) + 32)
        if needed and not pixel_cache.make_room(cache, needed, budget, {s.path for s in found}):
            _log.warning(
                "Pictures are decoded at each step: %.1f GB more are needed in the cache %s, "
                "which may hold %.1f GB; raise that (--cache-gb) or free some space",
                needed / 1e9,
                cache,
                budget / 1e9,
            )
            return None
        _decode_missing(cache, size, missing, workers, report)
        return _look(cache, size, by_hash)[0]


def _look(
    cache: Path, size: int, by_hash: dict[bytes, Example]
) -> tuple[list[pixel_cache.Shard], dict[bytes, Example]]:
    found = list(pixel_cache.find_shards(cache, size, by_hash.keys()))
    present = _places(found)
    return found, {digest: e for digest, e in by_hash.items() if digest not in present}


def _places(found: Sequence[pixel_cache.Shard]) -> dict[bytes, tuple[int, int]]:
    """Content -> number of the shard, number of the row on it."""
    return {
        digest: (number, row)
        for number, shard in enumerate(found)
        for row, digest in enumerate(shard.hashes)
    }


def _decode_missing(
    cache: Path, size: int, missing: dict[bytes, Example], workers: int, report: Progress
) -> None:
    contents, step, before = list(missing.items()), pixel_cache.rows_per_shard(size), 0

    def advance(done: int) -> None:
        report("decoding", before + done, len(contents))

    decoder = Decoder(size, workers, apart=len(contents) > _FEW)
    try:
        for before in range(0, len(contents), step):
            pixel_cache.write_shard(cache, decoder, contents[before : before + step], advance)
    finally:
        decoder.close()
