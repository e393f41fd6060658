"""Large pages for torch's maps on a CPU: asked for before torch is loaded.

A training step allocates and frees gigabytes of maps, whose pages the kernel hands out and clears
anew each time. With pages of 2 MiB instead of 4 KiB, R50x1's step took an eighth less (batch 16,
128 px, one thread: 2.43 s of CPU time instead of 2.76; benchmarks/training_floor.py). torch asks
Linux for them if a variable is set when it first allocates. No result depends on it, and a kernel
without such pages ignores it.
"""

from __future__ import annotations

import os
import sys

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's variable: 1 asks for transparent huge pages for tensors of 2 MiB and more."""


def ask_before_torch() -> None:
    """Ask for large pages, unless torch is loaded already or the user has set the variable."""
    if sys.platform == "linux" and "torch" not in sys.modules:
        os.environ.setdefault(LARGE_PAGES, "1")
