"""What the network reads: one check of its images, and the words for what does not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitzoo.errors import LayoutError

_RGB = 3
SCALING = "images.float() / 127.5 - 1"
"""From pixels (0 to 255) to what the network reads."""


def require_images(images: Tensor, channels: int, dtype: torch.dtype | None) -> None:
    """Raise unless the network can read `images`; their values are not looked at.

    Only shape and dtype are compared, which takes about a microsecond, waits for no device, and is
    decided once where the call is traced or compiled.

    Args:
        images: (batch, channels, height, width), RGB scaled to [-1, 1].
        channels: Channels that the network reads.
        dtype: Dtype of its kernels; None for any float type. Under autocast, the other float types
            that autocast converts are taken too.

    Raises:
        LayoutError: With what was expected, what was found and how to convert it.
    """
    if torch.jit.is_scripting():
        if images.dim() != 4 or images.shape[1] != channels:
            raise LayoutError(
                f"Images must be (batch, channels, height, width) with {channels} channels, found "
                f"shape {images.shape}"
            )
    # While torch.jit traces, comparing shapes would only warn.
    elif not torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        problem = _problem(images, channels, dtype)
        if problem:
            raise LayoutError(f"{_expected(channels, dtype)}, found {problem}")


def words_for_channels(channels: int) -> str:
    """Return what the channels of an image are: ``RGB`` or their number."""
    return "RGB" if channels == _RGB else f"{channels} channel{'s' if channels > 1 else ''}"


def name_of_dtype(dtype: torch.dtype) -> str:
    """Return ``float32`` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def _expected(channels: int, dtype: torch.dtype | None) -> str:
    named = "floats" if dtype is None else name_of_dtype(dtype)
    return (
        f"Images must be (batch, channels, height, width) with {channels} channels, "
        f"{words_for_channels(channels)} as {named} in [-1, 1]"
    )


def _problem(images: Any, channels: int, dtype: torch.dtype | None) -> str | None:
    """Return what does not fit and what to do, or None."""
    if not isinstance(images, Tensor):
        kind = type(images)
        how = "torch.from_numpy(images)" if kind.__module__ == "numpy" else "torch.stack(images)"
        return f"a {kind.__module__}.{kind.__qualname__}, not a tensor. Convert it, as with {how}."
    shape = images.shape
    if len(shape) != 4:
        adds = " Add the batch dimension: images[None]." if len(shape) == 3 else ""
        return f"shape {tuple(shape)}.{adds}"
    if shape[1] != channels:
        if shape[3] == channels:
            return f"shape {tuple(shape)}. Put channels first: images.permute(0, 3, 1, 2)."
        return f"shape {tuple(shape)}. Create the model with other `in_chans`, or convert them."
    if dtype is not None and images.dtype == dtype:
        return None
    name = name_of_dtype(images.dtype)
    if not images.dtype.is_floating_point:
        return f"{name}. Scale pixels (0 to 255): {SCALING}."
    if dtype is None or _autocast_converts(images):
        return None
    wanted = name_of_dtype(dtype)
    return f"{name}. Convert images.to(torch.{wanted}), or the model: model.to(torch.{name})."


def _autocast_converts(images: Tensor) -> bool:
    return images.dtype != torch.float64 and torch.is_autocast_enabled(images.device.type)
