"""Keep a GPU's float32 convolutions from rounding to TF32.

torch lets cuDNN round the factors of a convolution to TF32's 10 bits unless told otherwise. On an
NVIDIA H100, R50x1's float32 logits were then 4.8e-3 from those of float64 (relative L2), and one
of 32 images got another class; without it 5.3e-6, at 1.7 times the time. Who says float32 means the
latter; bfloat16 is the faster of the roundings that one can ask for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_AMPERE = 8
"""Compute capability of the first GPUs with TF32."""


@contextmanager
def exact_convolutions(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute convolutions in float32 as float32; what torch is set to comes back afterwards.

    Products of matrices stay as torch is set: not TF32 unless someone has asked for it.

    Args:
        device: Where is computed; only CUDA has TF32.
        dtype: What is computed in; others than float32 have nothing to round.
    """
    if device.type != "cuda" or dtype != torch.float32:
        yield
        return
    owner, name, exact = _setting()
    before = getattr(owner, name)
    try:
        setattr(owner, name, exact)
        yield
    finally:
        setattr(owner, name, before)


def rounds_to_tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions in float32 round to TF32 on a device, as torch is set now."""
    if device.type != "cuda" or dtype != torch.float32:
        return False
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0" or torch.version.cuda is None:
        return False
    owner, name, exact = _setting()
    return torch.cuda.get_device_capability(device)[0] >= _AMPERE and getattr(owner, name) != exact


def _setting() -> tuple[Any, str, Any]:
    """Return where torch keeps the setting, its name there, and the value for no TF32.

    torch has two interfaces to it, and the older one fails once the newer has been used for
    convolutions alone. Otherwise the older is taken, because whoever reads it would fail too.
    """
    cudnn: Any = torch.backends.cudnn
    try:
        _ = cudnn.allow_tf32
    except RuntimeError:
        return cudnn.conv, "fp32_precision", "ieee"
    return cudnn, "allow_tf32", False
