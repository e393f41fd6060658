"""Running work over a checkpoint block by block, on every core, with bounded memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from bitzoo.arch import Slot
from bitzoo.converters.tensors import Progress, Scratch, Source, StoredTensor

WORKERS = min(4, os.cpu_count() or 1)
BLOCK_BYTES = (56 << 20) // WORKERS
"""Bytes of one block as stored: small enough to bound the memory of all threads together, large
enough to make the system calls cheap that gather it from a tensor of many rows."""


@dataclass(frozen=True)
class Block:
    """Some outputs of one tensor: rows `start` to `stop` along its output axis."""

    slot: Slot
    tensor: StoredTensor
    start: int
    stop: int


def plan_blocks(
    tensors: Mapping[Slot, StoredTensor], shapes: Mapping[Slot, tuple[int, ...]]
) -> list[Block]:
    """Cut tensors into blocks of at most `BLOCK_BYTES` (one output at least).

    Args:
        tensors: What to cut.
        shapes: Logical shape of each (outputs first).
    """
    blocks = []
    for slot, tensor in tensors.items():
        outputs = shapes[slot][0]
        row_bytes = math.prod(shapes[slot][1:]) * tensor.dtype.itemsize
        rows = max(1, BLOCK_BYTES // row_bytes)
        blocks += [
            Block(slot, tensor, start, min(start + rows, outputs))
            for start in range(0, outputs, rows)
        ]
    return blocks


class Crew:
    """Threads that share one task's progress, and beside them one that hashes."""

    def __init__(
        self, pool: ThreadPoolExecutor, hasher: ThreadPoolExecutor, advance: Callable[[int], None]
    ) -> None:
        self._pool, self._hasher = pool, hasher
        self._memory = threading.local()
        self.advance = advance

    def scratch(self, name: str) -> Scratch:
        """Return this thread's own memory of that name."""
        mine: dict[str, Scratch] = self._memory.__dict__
        return mine.setdefault(name, Scratch())

    def hash(self, source: Source) -> Future[str]:
        """Start to compute a file's SHA-256, and to check what it says of its own integrity."""
        return self._hasher.submit(source.sha256, self.advance)

    def each(self, work: Callable[[Block], None], blocks: Iterable[Block]) -> None:
        """Run `work` on every block, or raise the first error."""
        for future in [self._pool.submit(work, block) for block in blocks]:
            future.result()


@contextmanager
def crew(task: str, total: int, progress: Progress | None) -> Iterator[Crew]:
    """Run threads for one task; after an error or Ctrl-C they end at their next report of progress.

    Args:
        task: Name shown with the progress.
        total: Bytes the task will report.
        progress: Receives the sums.
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
        yield Crew(*pools, advance)
    finally:
        ended.set()
        for pool in pools:  # after a success nothing is left to cancel
            pool.shutdown(wait=True, cancel_futures=True)
