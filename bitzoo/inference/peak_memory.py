"""How much memory computing takes, and how much there is."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from typing_extensions import Self

_EVERY = 0.02
"""Seconds between two looks at the process. What is shorter than a layer's work is not seen."""
_CGROUP = Path("/sys/fs/cgroup")


class PeakMemory:
    """The most memory that is in use while a body runs; a context manager.

    On a GPU it is that of torch's tensors there, exactly. Elsewhere it is the resident memory of
    this process, with all of its libraries, looked at 50 times a second.

    Attributes:
        bytes: The most so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self.bytes = device, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._ended.wait(_EVERY):
            self.bytes = max(self.bytes, process.memory_info().rss)
        self.bytes = max(self.bytes, process.memory_info().rss)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can still take; None if that is not known.

    Of a control group with a limit, as a container has it, what is left of that limit if that is
    less. Pages that the system could give back, such as those of files, count as free.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        files = next(int(line.split()[1]) for line in lines if line.startswith("file "))
        used = int((_CGROUP / "memory.current").read_text()) - files
        free = min(free, max(0, limit - used))
    return free
