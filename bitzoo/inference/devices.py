"""Which devices this machine has, and the one that a name means."""

from __future__ import annotations

import re

import torch

from bitzoo.errors import UsageError

_KNOWN = re.compile(r"(cpu|cuda|mps)(?::(\d{1,4}))?")


def available_devices() -> list[str]:
    """Return the names of the devices of this machine, the CPU first."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def checked_device(name: str) -> torch.device:
    """Return the device of a name: ``cpu``, ``cuda`` (the first GPU), ``cuda:1`` or ``mps``.

    Raises:
        UsageError: If this machine has no such device; lists those that it has.
    """
    there = available_devices()
    match = _KNOWN.fullmatch(name)
    if match:
        kind, index = match[1], match[2]
        wanted = f"cuda:{int(index or 0)}" if kind == "cuda" else kind
        if wanted in there and (kind == "cuda" or index in (None, "0")):
            return torch.device(wanted)
    reason = "" if torch.cuda.is_available() else f" ({_why_no_gpu()})"
    raise UsageError(
        f"`device` must be one that this machine has: {', '.join(there)}; found {name!r}{reason}. "
        "Choose one of these, or leave it out to use a GPU if there is one."
    )


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "the installed torch is built without CUDA"
    return "torch finds no GPU that it can use"
