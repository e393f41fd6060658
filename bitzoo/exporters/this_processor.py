"""The name of the processor that an exported file was run on."""

from __future__ import annotations

import platform
from pathlib import Path

_LINUX = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the processor's name and the instructions that torch uses on it."""
    import torch

    return f"{_model() or platform.processor() or platform.machine()}, " + (
        torch.backends.cpu.get_cpu_capability()
    )


def _model() -> str:
    try:
        lines = _LINUX.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
