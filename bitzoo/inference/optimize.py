"""`bitzoo.optimize`: turn a model into a fast inference function of images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitzoo.errors import LayoutError, UsageError
from bitzoo.inference.backends import BACKENDS
from bitzoo.models.bit import BiT

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes that a network may compute in, by name; in training its parameters stay float32."""

_PROBES = 4
_PROBE_SIDE = 224


class Optimized:
    """A model for inference only; call it with images.

    Attributes:
        backend: A key of `bitzoo.inference.backends.BACKENDS`.
        dtype: Compute dtype; logits are always float32.
        device: Where it computes.
        in_chans: Channels of the images.
    """

    def __init__(self, model: BiT, backend: str, device: torch.device, dtype: torch.dtype) -> None:
        self.backend, self.device, self.dtype = backend, device, dtype
        self.in_chans = model.architecture.in_chans
        self._run = BACKENDS[backend].build(model, device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of images, or pooled features if the model has no head.

        Args:
            images: (batch, channels, height, width), RGB scaled to [-1, 1], of any float type, on
                any device.

        Returns:
            Shape (batch, num_classes), float32, on `device`.

        Raises:
            LayoutError: If `images` has the wrong dimensions or channels.
        """
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise LayoutError(
                f"Images must be (batch, channels, height, width) with {self.in_chans} channels, "
                f"found shape {tuple(images.shape)}. Add the batch dimension or put channels first."
            )
        return self._run(images.detach().to(self.device, torch.float32))


def optimize(
    model: BiT,
    *,
    dtype: str | torch.dtype = "float32",
    backend: str = "eager",
    device: torch.device | str | None = None,
) -> Optimized:
    """Prepare a model for inference; `model` is unchanged, and later changes to it have no effect.

    Args:
        model: A classifier or encoder from `bitzoo.create_model`.
        dtype: Compute dtype: ``float32``, or for speed ``bfloat16`` or ``float16``; the head stays
            in float32. `deviation` measures the loss of accuracy.
        backend: ``eager``; ``compile`` (torch.compile, which takes a minute per image size, for at
            most eight sizes); ``onnxruntime`` (float32, CPU, extra ``onnx``); ``openvino`` (CPU,
            extra ``openvino``).
        device: Where to compute; None means the model's device.

    Returns:
        A function of images, shape (batch, channels, height, width), RGB in [-1, 1], to logits.

    Raises:
        UsageError: If the backend is unknown, or does not compute in `dtype` or on `device`.
        MissingExtraError: If the backend's library is not installed.
    """
    if not isinstance(model, BiT):
        raise UsageError(
            f"Only a classifier or encoder can be optimized, found {type(model).__name__}. Pass a "
            "model that bitzoo.create_model returns without `features_only`."
        )
    kind = BACKENDS.get(backend)
    if kind is None:
        raise UsageError(f"`backend` must be one of {', '.join(BACKENDS)}, found {backend!r}.")
    target = next(model.parameters()).device if device is None else torch.device(device)
    if kind.devices and target.type not in kind.devices:
        raise UsageError(
            f"The backend {backend} runs on {' or '.join(kind.devices)}, found {target.type}. "
            "Choose `backend='eager'` or `backend='compile'`, or another `device`."
        )
    wanted = COMPUTE_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted not in kind.dtypes:
        names = [str(known).removeprefix("torch.") for known in kind.dtypes]
        raise UsageError(
            f"The backend {backend} computes in {' or '.join(names)}, found {dtype}. Choose one of "
            "these as `dtype`, or another `backend`."
        )
    return Optimized(model, backend, target, wanted)


def best_device(backend: str) -> torch.device:
    """Return the GPU if there is one that the backend supports, else the CPU."""
    devices = BACKENDS[backend].devices if backend in BACKENDS else ()
    return torch.device("cuda" if torch.cuda.is_available() and not devices else "cpu")


def deviation(optimized: Optimized, model: BiT) -> float:
    """Measure how far optimizing moves the logits: relative L2 against `model` in float32.

    Args:
        optimized: The result of `optimize` for the model.
        model: The model, unfolded and on any device.

    Returns:
        ``|optimized - model| / |model|`` over all logits of four fixed random images of 224 px;
        0 if all of the model's logits are 0.
    """
    shape = (_PROBES, _PROBE_SIDE, _PROBE_SIDE, optimized.in_chans)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images = torch.from_numpy(noise).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        parameter = next(model.parameters())
        expected = model(images.to(parameter)).float().cpu()
        difference = optimized(images).cpu() - expected
    return float(difference.norm() / expected.norm()) if expected.any() else 0.0
