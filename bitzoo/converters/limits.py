"""One rule for all readers: a file may promise only so many numbers as its bytes can hold.

Shapes are claims. A chunk that was never written, a stride of 0 or a compressed run of zeros lets
eight megabytes promise gigabytes, and whoever believes them allocates. So what a file promises is
compared with what is there before anything is read.
"""

from __future__ import annotations

from pathlib import Path

from bitzoo.converters.source import Source
from bitzoo.errors import CheckpointError

MAX_EXPANSION = 16
"""Bytes of numbers per byte of a file. Trained float32 weights compress by 1.1; rounded to 16 bits
before, by 2; with a head of zeros or nine of ten weights pruned, by 3 to 8."""
ALWAYS_ALLOWED = 64 << 20
"""Bytes that any file may promise: they harm nobody."""


def require_plausible(path: Path, promised: int, there: int) -> None:
    """Refuse a file that promises more than it can hold.

    Args:
        path: The file, for the message.
        promised: Bytes that its contents claim to have.
        there: Bytes of the file.

    Raises:
        CheckpointError: If `promised` is more than `MAX_EXPANSION` times `there`.
    """
    if promised > max(ALWAYS_ALLOWED, MAX_EXPANSION * there):
        raise CheckpointError(
            f"{path}: its contents claim {promised:,} bytes, but the file has only {there:,}; "
            f"expected at most {MAX_EXPANSION} times as many, because weights hardly compress. It "
            "is damaged or was made to fill the memory. If it is real, save it uncompressed."
        )


def require_plausible_source(source: Source) -> None:
    """Refuse an open checkpoint whose tensors promise more than its file can hold; see above."""
    promised = sum(tensor.nbytes for tensor in source.tensors.values())
    require_plausible(source.path, promised, source.size)
