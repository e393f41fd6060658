"""On-disk cache of decoded images: immutable shards, looked up by content.

A shard is a file of up to `SHARD_BYTES`, in a folder per image size and decoder::

    pixels/448-pillow-11.0.0-2/<hash of all its SHA-256>-<count>.rows
        count x 448x448x3  the pixels, uint8, RGB
        count x 32 bytes   SHA-256 of each image's content, as `Example.sha256`
        count x 4 bytes    CRC-32C of each image's pixels, little-endian

Earlier versions wrote the same parts with the pixels last, and the suffix ``.shard``; such shards
are read as well.

The folder's name says how images were resized if not simply to a square, bilinear:
`224-of-256-short-bicubic-pillow-...` has the central 224 pixels of images whose shorter edge was
resized to 256. It ends in `-12-bit` if images of more than 8 bits per channel were read as 12-bit
values: the same file has other pixels then.

The reasons: images are looked up by content, regardless of the data set, split, few-shot choice or
folder they come from, so every run reuses what earlier runs decoded, and only missing images are
added, in new shards. A shard gets its name by an atomic rename once its bytes are on the disk, so
an interrupted build loses at most the shard being written. Nothing is ever appended or patched, so
there is no index to keep consistent, and removing a file is always safe.

Disks and people change bytes: a row is copied and the copy is compared with its checksum each time
that it is read.

A shard in use carries a shared lock (flock), which the kernel drops with the last process that has
it open; when the cache needs room, shards without a lock are removed, least recently used first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
import PIL

from bitzoo.data.decode_workers import Decoder, Pixels8
from bitzoo.files import remove_unfinished, sync, workspace
from bitzoo.locks import hold_shared, is_held
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.portable import pread, pwrite

if TYPE_CHECKING:
    from typing_extensions import Self

    from bitzoo.data.dataset import Example

SHARD_BYTES = 1 << 30
SHARD_ROWS = 4096
"""Most images per shard: bounds what an interrupted build loses when images are small."""
RESERVE_BYTES = 1 << 30
"""Disk space that stays free, for checkpoints and the system."""
DECODER = f"pillow-{PIL.__version__}-3"
"""Changes whenever the same file may decode to other pixels; the last number is bitzoo's."""

_HASH_BYTES, _SUM_BYTES = 32, 4
ROW_HEAD_BYTES = _HASH_BYTES + _SUM_BYTES
"""Bytes of a row besides its pixels."""
_SUFFIX, _EARLIER = ".rows", ".shard"
_log = logging.getLogger(__name__)


class Shard:
    """An open shard. Its rows stay readable even after its file is removed.

    Safe to use from several threads. The file is read, not mapped: whoever truncates a mapped file
    ends the process.

    Attributes:
        path: Its file.
        hashes: SHA-256 of each image.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Open a shard.

        Args:
            path: Its file.
            size: Edge of its images in pixels.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is damaged.
        """
        self._descriptor = -1
        self.path, self._shape = path, (size, size, 3)
        count = int(path.stem.rpartition("-")[2])
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        hold_shared(self._descriptor)  # until it is closed
        rest = count * row_bytes(size)
        if count < 1 or os.fstat(self._descriptor).st_size != rest + count * ROW_HEAD_BYTES:
            raise ValueError("its length is another")
        early = path.suffix == _EARLIER
        self._start = count * ROW_HEAD_BYTES if early else 0
        head = pread(self._descriptor, count * ROW_HEAD_BYTES, 0 if early else rest)
        ends = range(_HASH_BYTES, count * _HASH_BYTES + 1, _HASH_BYTES)
        self.hashes = [head[end - _HASH_BYTES : end] for end in ends]
        if path.stem != _name(self.hashes).removesuffix(_SUFFIX):
            raise ValueError("its name is that of others")
        self._sums = np.frombuffer(head[count * _HASH_BYTES :], "<u4").tolist()

    def read(self, row: int) -> Pixels8 | None:
        """Return a copy of an image, read-only; None if it is not what was written.

        What is compared with the checksum is the copy: what happens to the file in between or
        later, changes nothing of it.
        """
        step = row_bytes(self._shape[0])
        try:
            data = pread(self._descriptor, step, self._start + row * step)
        except OSError:
            return None
        if len(data) != step or int(google_crc32c.value(data)) != self._sums[row]:
            return None
        return np.frombuffer(data, np.uint8).reshape(self._shape)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def row_bytes(size: int) -> int:
    """Bytes of one image's pixels."""
    return size * size * 3


def rows_per_shard(size: int) -> int:
    """Number of images per shard."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes(size)))


def bytes_of(transform: EvalTransform, count: int) -> int:
    """Bytes that so many images take, as shards."""
    return count * (row_bytes(transform.crop) + ROW_HEAD_BYTES)


def locate(found: Sequence[Shard]) -> dict[bytes, tuple[int, int]]:
    """Return content hash -> index of the shard, row in it."""
    return {
        digest: (number, row)
        for number, shard in enumerate(found)
        for row, digest in enumerate(shard.hashes)
    }


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
    cache: Path, transform: EvalTransform, wanted: Collection[bytes] | None = None
) -> Iterator[Shard]:
    """Open the shards that hold any of the wanted images, and remove damaged ones.

    Args:
        cache: Folder of all shards.
        transform: How their images were made.
        wanted: SHA-256 of images; None opens every shard and counts none as used now.
    """
    for path in _shards_in(folder_of(cache, transform)):
        try:
            shard = Shard(path, transform.crop)
        except ValueError:
            remove_damaged(path)
            continue
        except OSError:  # another process has just removed it, or it may not be read
            continue
        if wanted is None:
            yield shard
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


class ShardWriter:
    """A shard that is being written, row by row; it gets its name when it is complete.

    A context manager: without `finish`, nothing is kept. The caller holds the cache's lock.

    Args:
        cache: Folder of all shards.
        transform: What its images went through.

    Raises:
        OSError: Here and in the methods, if the disk is full or the folder cannot be written.
    """

    def __init__(self, cache: Path, transform: EvalTransform) -> None:
        self._folder, self._step = folder_of(cache, transform), row_bytes(transform.crop)
        self._heads: dict[int, tuple[bytes, bytes]] = {}
        self._stack = contextlib.ExitStack()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._part = self._stack.enter_context(workspace(self._folder)) / "part"
        try:
            self._file = self._stack.enter_context(self._part.open("wb", buffering=0))
        except BaseException:
            self._stack.close()
            raise

    def __len__(self) -> int:
        return len(self._heads)

    def put(self, row: int, digest: bytes, pixels: bytes) -> None:
        """Write a row; rows may come in any order, from any thread, each of them once.

        Args:
            row: Its number.
            digest: SHA-256 of the image's content.
            pixels: Its pixels: `bytes`, which nothing changes while the checksum is taken.
        """
        checksum = int(google_crc32c.value(pixels)).to_bytes(_SUM_BYTES, "little")
        # not through a memory map: on a full disk that would be a bus error
        _write_at(self._file.fileno(), pixels, row * self._step)
        self._heads[row] = digest, checksum

    def finish(self) -> Path:
        """Give the shard its name, once its bytes are on the disk, and return it."""
        heads = [self._heads[row] for row in range(len(self._heads))]
        hashes = [digest for digest, _ in heads]
        tail = b"".join(hashes) + b"".join(checksum for _, checksum in heads)
        with self._stack:
            _write_at(self._file.fileno(), tail, len(heads) * self._step)
            self._file.close()
            sync(self._part)  # otherwise a power cut could leave zeros under a valid name
            path = self._folder / _name(hashes)
            os.replace(self._part, path)
            sync(self._folder)
        return path

    def close(self) -> None:
        """Remove what was written, unless it has its name."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
    with ShardWriter(cache, decoder.transform) as shard:

        def store(number: int, pixels: Pixels8) -> None:
            shard.put(number, contents[number][0], pixels.tobytes())

        examples = [replace(example, sha256=digest.hex()) for digest, example in contents]
        decoder.decode_each(examples, store, advance)
        shard.finish()


def has_room(cache: Path, needed: int, budget: int) -> bool:
    """Whether `make_room` would succeed, all shards counting that no process uses."""
    sizes = {path: path.stat().st_size for path in _shards_in(cache, "*/")}
    excess = _excess(cache, needed, budget, sum(sizes.values()))
    return excess <= 0 or excess <= sum(size for path, size in sizes.items() if not is_held(path))


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
    for path in _shards_in(cache, "*/"):
        status = path.stat()
        sizes[path] = status.st_size
        order.append((status.st_mtime_ns, path))
    excess = _excess(cache, needed, budget, sum(sizes.values()))
    idle = [path for _, path in sorted(order) if path not in keep and not is_held(path)]
    if excess > sum(sizes[path] for path in idle):
        return False
    while excess > 0:
        path = idle.pop(0)
        path.unlink(missing_ok=True)
        excess -= sizes[path]
        _log.info("Removed %s to make room", path)
    return True


def _excess(cache: Path, needed: int, budget: int, used: int) -> int:
    """Return by how many bytes the cache or the disk would be too small."""
    free = shutil.disk_usage(cache).free - RESERVE_BYTES
    return needed + max(used - budget, -free)


def _shards_in(folder: Path, below: str = "") -> list[Path]:
    return sorted(
        path for suffix in (_SUFFIX, _EARLIER) for path in folder.glob(f"{below}*{suffix}")
    )


def _name(hashes: Sequence[bytes]) -> str:
    return f"{hashlib.sha256(b''.join(hashes)).hexdigest()[:32]}-{len(hashes)}{_SUFFIX}"


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = pwrite(descriptor, view, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[written:], offset + written
