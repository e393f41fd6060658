"""Open the decoded images of a split, and decode into the cache first what it lacks."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bitzoo.data import pixel_cache
from bitzoo.data.decode_workers import Decoder, as_transform, count_cores, hash_stored
from bitzoo.data.decoded_images import (
    CachedPixels,
    Contents,
    DecodingPixels,
    Pixels,
    WholeImages,
)
from bitzoo.data.stand_ins import StandIns
from bitzoo.errors import UsageError
from bitzoo.files import Progress, cache_dir, sha256_of
from bitzoo.locks import file_lock
from bitzoo.models.preprocessing import EvalTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitzoo.data.dataset import Example, Split

__all__ = [
    "CachedPixels",
    "Contents",
    "DecodingPixels",
    "Pixels",
    "WholeImages",
    "open_pixels",
    "open_whole_images",
]

_FEW = 64
"""Up to this many images are decoded by threads, which finish before processes have started."""
_log = logging.getLogger(__name__)


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
            found = _fill_cache(cache, transform, by_hash, budget_bytes, workers, report)
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
    cache: Path,
    transform: EvalTransform,
    by_hash: dict[bytes, Example],
    budget: int,
    workers: int,
    report: Progress,
) -> list[pixel_cache.Shard] | None:
    """Return shards that hold all the images; None if there is no room for them."""
    found, missing = _look_up(cache, transform, by_hash)
    if not missing:  # needs neither a lock nor write permission
        return found
    with file_lock(cache / "build"):
        found, missing = _look_up(cache, transform, by_hash)
        needed = pixel_cache.bytes_of(transform, len(missing))
        if needed and not pixel_cache.make_room(cache, needed, budget, {s.path for s in found}):
            _log.warning(
                "Images are decoded at every step: the cache %s needs %.1f GB more, but may hold "
                "%.1f GB in all; raise `cache_gb` or free some disk space",
                cache,
                needed / 1e9,
                budget / 1e9,
            )
            return None
        _decode_missing(cache, transform, missing, workers, report)
        return _look_up(cache, transform, by_hash)[0]


def _look_up(
    cache: Path, transform: EvalTransform, by_hash: dict[bytes, Example]
) -> tuple[list[pixel_cache.Shard], dict[bytes, Example]]:
    found = list(pixel_cache.find_shards(cache, transform, by_hash.keys()))
    present = pixel_cache.locate(found)
    return found, {digest: e for digest, e in by_hash.items() if digest not in present}


def _decode_missing(
    cache: Path,
    transform: EvalTransform,
    missing: dict[bytes, Example],
    workers: int,
    report: Progress,
) -> None:
    contents, step, before = list(missing.items()), pixel_cache.rows_per_shard(transform.crop), 0

    def advance(done: int) -> None:
        report("decoding", before + done, len(contents))

    decoder = Decoder(transform, workers, use_processes=len(contents) > _FEW)
    try:
        for before in range(0, len(contents), step):
            pixel_cache.write_shard(cache, decoder, contents[before : before + step], advance)
    finally:
        decoder.close()
