"""Running work over a checkpoint block by block, on every core, with bounded memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from bitzoo.arch import Slot
from bitzoo.converters.tensors import BLOCK_BYTES, Progress, Scratch, StoredTensor

_MAX_WORKERS = 4
Result = TypeVar("Result")


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
    """Cut tensors into blocks of at most `BLOCK_BYTES` as stored (one output at least).

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
    """Threads that share one task's progress; the first error stops them all."""

    def __init__(self, pool: ThreadPoolExecutor, advance: Callable[[int], None]) -> None:
        self._pool = pool
        self._memory = threading.local()
        self.advance = advance

    def scratch(self, name: str) -> Scratch:
        """Return this thread's own memory of that name."""
        mine: dict[str, Scratch] = self._memory.__dict__
        return mine.setdefault(name, Scratch())

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Start one piece of work beside the others."""
        return self._pool.submit(work)

    def each(self, work: Callable[[Block], Result], blocks: Iterable[Block]) -> list[Result]:
        """Run `work` on every block; return the results in order, or raise the first error."""
        futures = [self._pool.submit(work, block) for block in blocks]
        return [future.result() for future in futures]


@contextmanager
def crew(task: str, total: int, progress: Progress | None) -> Iterator[Crew]:
    """Run threads for one task; on an error or Ctrl-C what has not begun is dropped.

    Args:
        task: Name shown with the progress.
        total: Bytes the task will report.
        progress: Receives the sums.
    """
    lock, done = threading.Lock(), 0

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if progress:
                progress(task, done, total)

    workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers + 1, thread_name_prefix="bitzoo")  # one of them hashes
    try:
        yield Crew(pool, advance)
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()
