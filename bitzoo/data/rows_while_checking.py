"""Fill the pixel cache while images are checked: each is read, hashed and decoded once.

The check decodes every image in full; to resize what it has decoded costs less than to read and
decode it again. `open_pixels` later finds the rows by the images' SHA-256, as it finds those of
earlier runs, and decodes what is missing: images of more than 8 bits per channel, whose white is
known only when all have been seen; and all of them, if there was no room or the guess how they
would be resized was wrong. So a row that is made here, or not made, changes no pixel of a run.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bitzoo.data import pixel_cache
from bitzoo.data.pixel_cache import ShardWriter
from bitzoo.errors import BitzooError
from bitzoo.files import cache_dir
from bitzoo.locks import file_lock
from bitzoo.models.preprocessing import EvalTransform

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WantedRows:
    """Which decoded images will be wanted when all are checked.

    Attributes:
        transforms: Split -> how its images will be opened; none for other splits. If its
            `bit_depth` is None, it will be that of the data set.
        budget_bytes: Most bytes of the cache, as for `bitzoo.data.image_store.open_pixels`.
        cache: Its folder; None for the usual one.
    """

    transforms: Mapping[str, EvalTransform]
    budget_bytes: int
    cache: Path | None = None


class RowKeeper:
    """Writes rows into the cache; holds its lock until it is closed.

    A context manager. If the cache cannot be used, or has no room for all rows, it makes none, and
    says nothing: `open_pixels` does, if nothing has changed by then.

    Args:
        wanted: The cache.
        transforms: The transform of each image that will be checked; None for those of which no
            row is wanted.
    """

    def __init__(self, wanted: WantedRows, transforms: Iterable[EvalTransform | None]) -> None:
        self._wanted = wanted
        self._left = Counter(filter(None, transforms))
        self._cache = Path()
        self._present: dict[EvalTransform, set[bytes]] = {}
        self._open: dict[EvalTransform, ShardWriter] = {}
        self._made: list[tuple[EvalTransform, int, Future[Path]]] = []
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not self._left or self._wanted.budget_bytes <= 0:
            return self
        try:
            self._cache = self._wanted.cache or cache_dir() / "pixels"
            self._lock.enter_context(file_lock(self._cache / "build"))
            needed = sum(pixel_cache.bytes_of(*item) for item in self._left.items())
            if not pixel_cache.has_room(self._cache, needed, self._wanted.budget_bytes):
                self._lock.close()
                return self
            for way in self._left:
                shards = pixel_cache.find_shards(self._cache, way)
                self._present[way] = {digest for shard in shards for digest in shard.hashes}
            # a shard is synced to the disk while the images of the next one are decoded
            self._sealer = self._lock.enter_context(ThreadPoolExecutor(1, "bitzoo-seal"))
        except OSError as error:
            self._give_up(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def prepare(self, way: EvalTransform, rgb: Image.Image, digest: bytes) -> bytes | None:
        """Return the pixels of an image's row; None if the cache has them. From any thread.

        Args:
            way: How the image is resized.
            rgb: The decoded image.
            digest: SHA-256 of its content.
        """
        present = self._present.get(way)
        if present is None or digest in present:
            return None
        try:
            return np.ascontiguousarray(way.array(rgb)).tobytes()
        except (BitzooError, MemoryError):  # too narrow, or too large: `open_pixels` says so
            return None

    def keep(self, way: EvalTransform, digest: bytes, pixels: bytes | None) -> None:
        """Write a row, or count an image that has none; from one thread.

        Args:
            way: How the image was resized.
            digest: SHA-256 of its content.
            pixels: What `prepare` returned.
        """
        present = self._present.get(way)
        if pixels is None or present is None or digest in present:
            self._left[way] -= 1
            return
        try:
            shard = self._open.get(way) or self._begin(way)
            if shard is not None:
                shard.put(len(shard), digest, pixels)
                present.add(digest)
                if len(shard) == pixel_cache.rows_per_shard(way.crop):
                    self._finish(way)
        except OSError as error:
            self._give_up(error)
        self._left[way] -= 1

    def finish(self, bit_depth: int | None) -> None:
        """Name what was written, once the bit depth of the data set is known.

        All rows here are of images of 8 bits per channel, which are the same whatever it is.

        Args:
            bit_depth: As `DataSummary.bit_depth`.
        """
        try:
            for way in list(self._open):
                self._finish(way)
            for way, _, sealed in self._made:
                path = sealed.result()
                if way.bit_depth is None and bit_depth is not None:
                    folder = pixel_cache.folder_of(self._cache, replace(way, bit_depth=bit_depth))
                    folder.mkdir(parents=True, exist_ok=True)
                    path.replace(folder / path.name)
        except OSError as error:
            self._give_up(error)

    def _begin(self, way: EvalTransform) -> ShardWriter | None:
        needed = sum(self._bytes_left(each) for each in {*self._open, way})
        needed += sum(size for _, size, sealed in self._made if not sealed.done())
        ours = {sealed.result() for _, _, sealed in self._made if sealed.done()}
        if not pixel_cache.make_room(self._cache, needed, self._wanted.budget_bytes, ours):
            self._present.clear()  # others have filled the disk since
            return None
        self._open[way] = ShardWriter(self._cache, way)
        return self._open[way]

    def _bytes_left(self, way: EvalTransform) -> int:
        rows = pixel_cache.rows_per_shard(way.crop)
        written = len(self._open[way]) if way in self._open else 0
        return pixel_cache.bytes_of(way, min(rows - written, self._left[way]))

    def _finish(self, way: EvalTransform) -> None:
        shard = self._open.pop(way)
        size = pixel_cache.bytes_of(way, len(shard))
        self._made.append((way, size, self._sealer.submit(shard.finish)))

    def _give_up(self, error: OSError) -> None:
        """Make no more rows; checking goes on."""
        _log.info("No rows are made while images are checked: %s", error)
        self._discard()

    def _discard(self) -> None:
        """Drop what is not complete, and let others use the cache."""
        self._present.clear()
        for shard in self._open.values():
            shard.close()
        self._open.clear()
        self._lock.close()
