"""`bitzoo.optimize`: turn a model into a fast inference function of images."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from bitzoo.errors import LayoutError, UsageError
from bitzoo.inference.backends import BACKENDS
from bitzoo.inference.devices import checked_device
from bitzoo.inference.exact_float32 import exact_convolutions
from bitzoo.models.bit import BiT
from bitzoo.models.image_input import SCALING, require_images, words_for_channels
from bitzoo.openmp_waiting import tell_once

if TYPE_CHECKING:
    from typing_extensions import Self

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes that a network may compute in, by name; in training its parameters stay float32."""

_PROBES = 4
_PROBE_SIDE = 224
_FARTHEST = 1.5
"""Images resized as floats overshoot [-1, 1] by up to 0.4 (bicubic, at a corner); more is another
scale, such as [0, 255] or a division by ImageNet's standard deviation, which reaches 2.6."""
_log = logging.getLogger(__name__)


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
        self._outputs = model.num_classes or model.num_features
        self._run = BACKENDS[backend].build(model, device, dtype)
        self._has_looked = False

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of images, or pooled features if the model has no head.

        Shape and type are checked at each call, the values only of the first images, for which a
        warning is logged if they are not scaled to [-1, 1]. [0, 1] is within, so that it cannot be
        told from [-1, 1].

        Args:
            images: (batch, channels, height, width), RGB scaled to [-1, 1], of any float type, on
                any device.

        Returns:
            Shape (batch, num_classes), float32, on `device`.

        Raises:
            LayoutError: If `images` has the wrong dimensions or channels, or is no float tensor.
        """
        require_images(images, self.in_chans, None)
        if images.numel() == 0:  # on which every runtime would stop with words of its own
            if len(images):
                raise LayoutError(f"Images must have pixels, found shape {tuple(images.shape)}.")
            return torch.empty(0, self._outputs, device=self.device)
        if not self._has_looked:
            self._look(images)
        return self._compute(images)

    def _compute(self, images: Tensor) -> Tensor:
        with exact_convolutions(self.device, self.dtype):
            return self._run(images.detach().to(self.device, torch.float32))

    def _look(self, images: Tensor) -> None:
        self._has_looked = True
        least, most = (float(bound) for bound in images.detach().aminmax())
        if max(-least, most) > _FARTHEST:
            _log.warning(
                "Images must be %s in [-1, 1], found values from %.4g to %.4g: the network was not "
                "trained for them. Scale pixels (0 to 255): %s.",
                words_for_channels(self.in_chans),
                least,
                most,
                SCALING,
            )

    def __copy__(self) -> Self:
        """Return itself: nothing that a caller can see ever changes."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself, as `__copy__` does."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: it has kernels packed for this machine, and runtimes' sessions.

        Raises:
            UsageError: With what to do instead.
        """
        raise UsageError(
            "An optimized model cannot be pickled or sent to another process: its kernels are "
            "packed for this processor. Pickle the model itself, and call bitzoo.optimize on it "
            "where it is loaded."
        )


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
        dtype: Compute dtype: ``float32``, also on GPUs, whose convolutions torch would let round to
            TF32; or for speed ``bfloat16`` or ``float16``; the head stays in float32. `deviation`
            measures the loss of accuracy.
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
    target = next(model.parameters()).device if device is None else torch.device(device)
    wanted = require_backend(backend, dtype, target)
    if target.type == "cpu":
        tell_once(torch.get_num_threads())
    return Optimized(model, backend, target, wanted)


def require_backend(
    backend: str, dtype: str | torch.dtype, device: torch.device | str
) -> torch.dtype:
    """Check that a backend computes in a dtype and on a device.

    Args:
        backend: As for `optimize`, and so the others.
        dtype: Compute dtype.
        device: Where to compute.

    Returns:
        The dtype.

    Raises:
        UsageError: If the backend is unknown, or does not.
    """
    kind, target = BACKENDS.get(backend), torch.device(device)
    if kind is None:
        raise UsageError(f"`backend` must be one of {', '.join(BACKENDS)}, found {backend!r}.")
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
    return wanted


def chosen_device(device: torch.device | str | None, backend: str) -> torch.device:
    """Return the device that is meant; None is the GPU, if there is one that the backend supports.

    Raises:
        UsageError: If this machine has no such device.
    """
    if isinstance(device, torch.device):
        return device
    if device is not None:
        return checked_device(device)
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
        difference = optimized._compute(images).cpu() - expected
    return float(difference.norm() / expected.norm()) if expected.any() else 0.0
