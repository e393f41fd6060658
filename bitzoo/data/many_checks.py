"""Check or hash many images, in threads; checks may be those of earlier runs."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from bitzoo.data.brightness import find_bit_depth
from bitzoo.data.decode_workers import count_cores
from bitzoo.data.examples import Example
from bitzoo.data.image_check import ImageCheck, check_image, hash_content
from bitzoo.data.kept_checks import KeptChecks
from bitzoo.data.rows_while_checking import RowKeeper, WantedRows
from bitzoo.files import Progress
from bitzoo.portable import keep_freed_memory

TASK = "checking images"
"""The task that `progress` is called with."""

_SLICE = 256
"""Number of images given to the threads at once; an interrupt waits for no more than these."""
_AHEAD = 4
"""Images per thread that are begun before the first of them is needed: bounds the memory."""

T = TypeVar("T")
U = TypeVar("U")


def check_images(
    examples: Sequence[Example],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    kept: KeptChecks | None = None,
    rows: WantedRows | None = None,
    splits: Sequence[str] = (),
) -> list[ImageCheck]:
    """Decode every image and say what is wrong or special about it.

    Args:
        examples: The examples.
        workers: Decoding threads; None means one per core that this process may use.
        progress: Called with the task, the number of images done and their total.
        kept: Checks of earlier runs; what is not among them is decoded and added.
        rows: Rows of the pixel cache to be made of what is decoded.
        splits: With `rows`, the split of each example.

    Returns:
        A check per example, which other processes can be sent.
    """
    with collecting_later():
        found = [None if kept is None else kept.find(example) for example in examples]
    missing = [number for number, check in enumerate(found) if check is None]
    ways = [rows.transforms.get(split) for split in splits] if rows else [None] * len(examples)
    keeper = RowKeeper(rows or WantedRows({}, 0), [ways[number] for number in missing])

    def work(number: int) -> tuple[ImageCheck, bytes | None]:
        example, way, made = examples[number], ways[number], list[bytes | None]()
        seen = None if kept is None else kept.look_at(example)

        def use(rgb: Image.Image, sha256: str) -> None:
            if way is not None:
                made.append(keeper.prepare(way, rgb, bytes.fromhex(sha256)))

        known = (lambda sha256: None) if kept is None else kept.find_content
        check = check_image(example, known=known, use=use)
        if kept is not None:
            kept.add(seen, check)
        return check, made[0] if made and check.reason is None else None

    keep_freed_memory()
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(TASK, done, len(examples))

    for _ in range(len(examples) - len(missing)):
        advance()
    saving = contextlib.nullcontext() if kept is None else kept
    threads = workers or count_cores()
    with (
        warnings.catch_warnings(),
        saving,
        keeper,
        ThreadPoolExecutor(threads, thread_name_prefix="bitzoo-check") as pool,
    ):
        warnings.simplefilter("ignore")  # Pillow warns of broken EXIF data and of large images
        results = _in_order(pool, work, missing, _AHEAD * threads)
        for number, (check, row) in zip(missing, results, strict=True):
            found[number] = check
            if (way := ways[number]) is not None:
                keeper.keep(way, bytes.fromhex(check.sha256), row)
            advance()
        checks = [check for check in found if check is not None]
        keeper.finish(find_bit_depth(check.levels for check in checks if check.levels))
    return checks


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T], ahead: int
) -> Iterator[U]:
    """Yield what `work` makes of each item, while it works on so many of the next ones."""
    begun = deque[Future[U]]()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


@contextlib.contextmanager
def collecting_later() -> Iterator[None]:
    """Make many objects at once: Python would look for garbage in all of them again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def hash_contents(
    examples: Sequence[Example],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    kept: KeptChecks | None = None,
) -> list[str]:
    """Return each example's `sha256` without checking it; "" for what cannot be read.

    Files are only read, not decoded.

    Args:
        examples: The examples.
        workers: Threads; None means one per core that this process may use.
        progress: Called with "reading images", the number done and their total.
        kept: Checks of earlier runs; images that are among them are not read.
    """

    def work(example: Example) -> str:
        return (kept.hash_of(example) if kept is not None else "") or hash_content(example)

    found: list[str] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or count_cores()) as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(examples), _SLICE):
            found += pool.map(work, examples[start : start + _SLICE])
            if progress is not None:
                progress("reading images", len(found), len(examples))
    return found
