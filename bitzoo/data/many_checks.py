"""Check or hash many images, in threads; checks may be those of earlier runs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bitzoo.data.decode_workers import count_cores
from bitzoo.data.examples import Example
from bitzoo.data.image_check import ImageCheck, check_image, hash_content
from bitzoo.data.kept_checks import KeptChecks
from bitzoo.files import Progress

TASK = "checking images"
"""The task that `progress` is called with."""

_SLICE = 256
"""Number of images given to the threads at once; an interrupt waits for no more than these."""


def check_images(
    examples: Sequence[Example],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    kept: KeptChecks | None = None,
) -> list[ImageCheck]:
    """Decode every image and say what is wrong or special about it.

    Args:
        examples: The examples.
        workers: Decoding threads; None means one per core that this process may use.
        progress: Called with the task, the number of images done and their total.
        kept: Checks of earlier runs; what is not among them is decoded and added.

    Returns:
        A check per example, which other processes can be sent.
    """
    checks: list[ImageCheck] = []
    check = check_image if kept is None else kept.checking(check_image)
    saving = contextlib.nullcontext() if kept is None else kept
    with warnings.catch_warnings(), saving, ThreadPoolExecutor(workers or count_cores()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of broken EXIF data and of large images
        for start in range(0, len(examples), _SLICE):
            for found in pool.map(check, examples[start : start + _SLICE]):
                checks.append(found)
                if progress is not None:
                    progress(TASK, len(checks), len(examples))
    return checks


def hash_contents(
    examples: Sequence[Example], *, workers: int | None = None, progress: Progress | None = None
) -> list[str]:
    """Return each example's `sha256` without checking it; "" for what cannot be read.

    Files are only read, not decoded.

    Args:
        examples: The examples.
        workers: Threads; None means one per core that this process may use.
        progress: Called with "reading images", the number done and their total.
    """
    found: list[str] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or count_cores()) as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(examples), _SLICE):
            found += pool.map(hash_content, examples[start : start + _SLICE])
            if progress is not None:
                progress("reading images", len(found), len(examples))
    return found
