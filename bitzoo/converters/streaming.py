"""Process a checkpoint block by block, on all cores, with bounded memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bitzoo.converters.source import Array, Scratch, Source, StoredTensor
from bitzoo.files import Progress
from bitzoo.models.architecture import Slot

WORKERS = min(4, os.cpu_count() or 1)
BLOCK_BYTES = (168 << 20) // WORKERS
"""Bytes of blocks that a thread may hold: small enough to bound the total memory, large enough to
need few system calls for gathering a block from a tensor of many rows."""
PIECE_BYTES = (12 << 20) // WORKERS
"""Bytes of one piece of a block: small enough to stay in the cache from one operation to the next,
large enough that a row of its outputs spans several cache lines."""
_FLOAT32_BYTES = 4
_LINE = 16
"""Numbers per cache line; pieces cut at multiples of it share no line."""


@dataclass(frozen=True)
class Block:
    """A range of output channels of one tensor.

    Attributes:
        slot: The tensor's slot in the network.
        tensor: The stored tensor.
        start: The first output.
        stop: The output after the last.
        output_bytes: Bytes per output in memory: as stored, or as float32 if that is more.
    """

    slot: Slot
    tensor: StoredTensor
    start: int
    stop: int
    output_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of the block in memory."""
        return (self.stop - self.start) * self.output_bytes

    def pieces(self) -> Iterator[Block]:
        """Split the block along the outputs into pieces of about `PIECE_BYTES`."""
        step = max(_LINE, PIECE_BYTES // self.output_bytes // _LINE * _LINE)
        for start in range(self.start, self.stop, step):
            yield replace(self, start=start, stop=min(start + step, self.stop))


class Slabs:
    """Reads the numbers of a block, piece by piece.

    Outputs that are contiguous in the file are read per piece; scattered ones, which need one
    system call per row, are read once for the whole block.
    """

    def __init__(self, block: Block, tensor: StoredTensor, axis: int, scratch: Scratch) -> None:
        """Read nothing yet, unless the outputs are scattered.

        Args:
            block: Which outputs to read.
            tensor: The tensor to read: the block's own, or its counterpart in another file.
            axis: The output axis of `tensor`.
            scratch: Memory to read into.
        """
        self._block, self._tensor, self._axis, self._scratch = block, tensor, axis, scratch
        self._whole: Array | None = None
        if math.prod(tensor.shape[:axis]) > 1:
            self._whole = tensor.read_slab(axis, block.start, block.stop, scratch)

    def of(self, piece: Block) -> Array:
        """Return the numbers of a piece of the block, in the file's axis order."""
        if self._whole is None:
            return self._tensor.read_slab(self._axis, piece.start, piece.stop, self._scratch)
        first = self._block.start
        inside = slice(piece.start - first, piece.stop - first)
        part: Array = self._whole[(slice(None),) * self._axis + (inside,)]
        return part


def plan_blocks(
    tensors: Mapping[Slot, StoredTensor], shapes: Mapping[Slot, tuple[int, ...]], held: int = 1
) -> list[Block]:
    """Split tensors into blocks of at least one output, sorted largest first.

    The small blocks then keep all threads busy at the end.

    Args:
        tensors: The tensors to split.
        shapes: Logical shape of each (outputs first).
        held: How many blocks a thread holds at once; together at most `BLOCK_BYTES`.
    """
    blocks, most = [], BLOCK_BYTES // held
    for slot, tensor in tensors.items():
        outputs = shapes[slot][0]
        output_bytes = math.prod(shapes[slot][1:]) * max(tensor.dtype.itemsize, _FLOAT32_BYTES)
        step = max(1, most // output_bytes)
        blocks += [
            Block(slot, tensor, start, min(start + step, outputs), output_bytes)
            for start in range(0, outputs, step)
        ]
    return sorted(blocks, key=lambda block: block.nbytes, reverse=True)


class WorkerPool:
    """Worker threads that share one task's progress, and one more thread that hashes."""

    def __init__(
        self, pool: ThreadPoolExecutor, hasher: ThreadPoolExecutor, advance: Callable[[int], None]
    ) -> None:
        self._pool, self._hasher = pool, hasher
        self._memory = threading.local()
        self.advance = advance

    def scratch(self, name: str) -> Scratch:
        """Return this thread's own scratch memory with that name."""
        mine: dict[str, Scratch] = self._memory.__dict__
        return mine.setdefault(name, Scratch())

    def hash(self, source: Source) -> Future[str]:
        """Start computing a file's SHA-256 and checking its own checksums."""
        return self._hasher.submit(source.sha256, self.advance)

    def each(self, work: Callable[[Block], None], blocks: Iterable[Block]) -> None:
        """Run `work` on every block; raises the first error."""
        for future in [self._pool.submit(work, block) for block in blocks]:
            future.result()


@contextmanager
def worker_pool(task: str, total: int, progress: Progress | None) -> Iterator[WorkerPool]:
    """Run threads for one task; after an error or Ctrl-C they end at their next progress report.

    Args:
        task: Name shown with the progress.
        total: Bytes that the task will report in total.
        progress: Called with the sums.
    """
    lock, done, ended = threading.Lock(), 0, threading.Event()

    def advance(count: int) -> None:
        nonlocal done
        if ended.is_set():
            raise CancelledError
        with lock:
            done += count
            if progress:
                progress(task, done, total)

    pools = ThreadPoolExecutor(WORKERS), ThreadPoolExecutor(1)
    try:
        yield WorkerPool(*pools, advance)
    finally:
        ended.set()
        for pool in pools:  # after success, nothing is left to cancel
            pool.shutdown(wait=True, cancel_futures=True)
