"""On-disk cache of decoded images: immutable shards, looked up by content.

A shard is a file of up to `SHARD_BYTES`, in a folder per image size and decoder::

    pixels/448-pillow-11.0.0-2/<hash of all its SHA-256>-<count>.shard
        count x 32 bytes   SHA-256 of each image's content, as `Example.sha256`
        count x 4 bytes    CRC-32C of each image's pixels, little-endian
        count x 448x448x3  the pixels, uint8, RGB

The folder's name says how images were resized if not simply to a square, bilinear:
`224-of-256-short-bicubic-pillow-...` has the central 224 pixels of images whose shorter edge was
resized to 256. It ends in `-12-bit` if images of more than 8 bits per channel were read as 12-bit
values: the same file has other pixels then.

The reasons: images are looked up by content, regardless of the data set, split, few-shot choice or
folder they come from, so every run reuses what earlier runs decoded, and only missing images are
added, in new shards. A shard gets its name by an atomic rename once its bytes are on the disk, so
an interrupted build loses at most the shard being written. Nothing is ever appended or patched, so
there is no index to keep consistent, and removing a file is always safe.

Disks and people change bytes: a row is checked against its checksum when it is first used.

A shard in use carries a shared lock (flock), which the kernel drops with the last process that maps
it; when the cache needs room, shards without a lock are removed, least recently used first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import google_crc32c
import numpy as np
import numpy.typing as npt
import PIL

from bitzoo.data.decode_workers import Decoder, Pixels8
from bitzoo.files import remove_unfinished, replaced
from bitzoo.locks import hold_shared, is_held
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.portable import pwrite

if TYPE_CHECKING:
    from bitzoo.data.dataset import Example

SHARD_BYTES = 1 << 30
SHARD_ROWS = 4096
"""Most images per shard: bounds what an interrupted build loses when images are small."""
RESERVE_BYTES = 1 << 30
"""Disk space that stays free, for checkpoints and the system."""
DECODER = f"pillow-{PIL.__version__}-2"
"""Changes whenever the same file may decode to other pixels; the last number is bitzoo's."""

_HASH_BYTES, _SUM_BYTES = 32, 4
ROW_HEAD_BYTES = _HASH_BYTES + _SUM_BYTES
"""Bytes of a row besides its pixels."""
_SUFFIX = ".shard"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """An open shard. Its pixels stay readable even after its file is removed.

    Attributes:
        path: Its file.
        hashes: SHA-256 of each image.
        sums: uint32 (count,), the CRC-32C of each image's pixels.
        pixels: uint8 (count, size, size, 3), mapped into memory.
    """

    path: Path
    hashes: list[bytes]
    sums: npt.NDArray[np.uint32]
    pixels: Pixels8

    def is_intact(self, row: int) -> bool:
        """Whether an image's pixels are those that were written; reads them once."""
        data = cast("bytes", self.pixels[row])  # taken without a copy, as it is read-only
        return int(google_crc32c.value(data)) == int(self.sums[row])


def row_bytes(size: int) -> int:
    """Bytes of one image's pixels."""
    return size * size * 3


def rows_per_shard(size: int) -> int:
    """Number of images per shard."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes(size)))


def folder_of(cache: Path, transform: EvalTransform) -> Path:
    """Folder of the shards for one way of decoding and resizing images."""
    return cache / way_of(transform)


def way_of(transform: EvalTransform) -> str:
    """Name of one way of decoding and resizing images."""
    how, depth = str(transform.crop), transform.bit_depth
    if not transform.fills_square:
        edges = "both" if transform.square else "short"
        how += f"-of-{transform.resize}-{edges}-{transform.interpolation}"
    return f"{how}-{DECODER}{'' if depth is None else f'-{depth}-bit'}"


def find_shards(
    cache: Path, transform: EvalTransform, wanted: Collection[bytes]
) -> Iterator[Shard]:
    """Open the shards that hold any of the wanted images, and remove damaged ones."""
    for path in sorted(folder_of(cache, transform).glob(f"*{_SUFFIX}")):
        shard = _open_shard(path, transform.crop)
        if shard is None:
            remove_damaged(path)
        elif any(digest in wanted for digest in shard.hashes):
            with contextlib.suppress(OSError):  # another user's cache can still be read
                os.utime(path)  # the time of last use, for `make_room`
            yield shard


def missing_from(
    cache: Path, transform: EvalTransform, wanted: Collection[bytes]
) -> frozenset[bytes]:
    """Return which of the wanted images, by their SHA-256, have no decoded pixels in the cache."""
    found = {digest for shard in find_shards(cache, transform, wanted) for digest in shard.hashes}
    return frozenset(wanted) - found


def remove_damaged(path: Path) -> None:
    """Remove a shard whose content is not what was written, and say so."""
    _log.warning("Removed the damaged shard %s; its images are decoded again", path)
    with contextlib.suppress(OSError):  # of another user's cache
        path.unlink()


def write_shard(
    cache: Path,
    decoder: Decoder,
    contents: Sequence[tuple[bytes, Example]],
    advance: Callable[[int], object],
) -> None:
    """Decode images into a new shard. The caller holds the cache's lock.

    Args:
        cache: Folder of all shards.
        decoder: Its `transform` makes the shard's images.
        contents: SHA-256 and example of each image, without repeats.
        advance: Called with the number of images done.

    Raises:
        UsageError: If an image cannot be decoded, or is not the one with that SHA-256 any more.
        OSError: If the disk is full or the folder cannot be written. Nothing is kept.
    """
    hashes = [digest for digest, _ in contents]
    folder = folder_of(cache, decoder.transform)
    folder.mkdir(parents=True, exist_ok=True)
    # durable: otherwise a power cut could leave zeros under a valid name
    with (
        replaced(folder / _name(hashes), durable=True) as part,
        part.open("wb", buffering=0) as file,
    ):
        _write_at(file.fileno(), b"".join(hashes), 0)
        sums_at, step = len(hashes) * _HASH_BYTES, row_bytes(decoder.transform.crop)
        start = len(hashes) * ROW_HEAD_BYTES

        def store(number: int, pixels: Pixels8) -> None:
            data = bytes(pixels.data)  # the checksum takes nothing that could change
            checksum = int(google_crc32c.value(data)).to_bytes(_SUM_BYTES, "little")
            # not through a memory map: on a full disk that would be a bus error
            _write_at(file.fileno(), data, start + number * step)
            _write_at(file.fileno(), checksum, sums_at + number * _SUM_BYTES)

        examples = [replace(example, sha256=digest.hex()) for digest, example in contents]
        decoder.decode_each(examples, store, advance)


def make_room(cache: Path, needed: int, budget: int, keep: Collection[Path]) -> bool:
    """Remove shards, least recently used first, until `needed` more bytes fit.

    Shards in use by any process stay, and nothing is removed if removing all others would not be
    enough. The caller holds the cache's lock, so unfinished shards belong to dead processes and are
    removed too.

    Args:
        cache: Folder of all shards, of every size.
        needed: Bytes to be added.
        budget: Most bytes of the whole cache.
        keep: Shards that the caller is about to use.

    Returns:
        Whether the bytes fit into the budget and on the disk.
    """
    for folder in cache.glob("*/"):
        remove_unfinished(folder)
    sizes, order = {}, []
    for path in cache.glob(f"*/*{_SUFFIX}"):
        status = path.stat()
        sizes[path] = status.st_size
        order.append((status.st_mtime_ns, path))
    free = shutil.disk_usage(cache).free - RESERVE_BYTES
    excess = needed + max(sum(sizes.values()) - budget, -free)
    idle = [path for _, path in sorted(order) if path not in keep and not is_held(path)]
    if excess > sum(sizes[path] for path in idle):
        return False
    while excess > 0:
        path = idle.pop(0)
        path.unlink(missing_ok=True)
        excess -= sizes[path]
        _log.info("Removed %s to make room", path)
    return True


def _open_shard(path: Path, size: int) -> Shard | None:
    count_text = path.stem.rpartition("-")[2]
    try:
        with path.open("rb") as file:
            hold_shared(file)  # the map keeps a duplicate of the descriptor, and with it the lock
            data = np.memmap(file, np.uint8, "r")
        count = int(count_text)
    except (OSError, ValueError):
        return None
    sums_at, start = count * _HASH_BYTES, count * ROW_HEAD_BYTES
    if count < 1 or len(data) != start + count * row_bytes(size):
        return None
    head = data[:sums_at].tobytes()
    hashes = [head[i : i + _HASH_BYTES] for i in range(0, sums_at, _HASH_BYTES)]
    if path.name != _name(hashes):
        return None
    sums = np.frombuffer(data[sums_at:start].tobytes(), "<u4")
    return Shard(path, hashes, sums, np.asarray(data[start:]).reshape(count, size, size, 3))


def _name(hashes: Sequence[bytes]) -> str:
    return f"{hashlib.sha256(b''.join(hashes)).hexdigest()[:32]}-{len(hashes)}{_SUFFIX}"


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = pwrite(descriptor, view, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[written:], offset + written
