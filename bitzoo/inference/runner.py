"""Run a classifier on uint8 pixels, split into as few batches as memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitzoo.errors import UsageError
from bitzoo.inference.backends import BACKENDS
from bitzoo.inference.exact_float32 import exact_convolutions
from bitzoo.inference.optimize import COMPUTE_DTYPES, optimize
from bitzoo.models.bit import BiT

if TYPE_CHECKING:
    import os

    from bitzoo.data.folder import Row

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Items = TypeVar("_Items", npt.NDArray[np.int64], "list[str | os.PathLike[str] | Row]")


def compute_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name in `COMPUTE_DTYPES`.

    Raises:
        UsageError: If there is none; the message lists them.
    """
    if name not in COMPUTE_DTYPES:
        raise UsageError(f"`dtype` must be one of {', '.join(COMPUTE_DTYPES)}, found {name!r}.")
    return COMPUTE_DTYPES[name]


class Runner:
    """A classifier that takes uint8 pixels; the model that it is created from is unchanged."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None,
        dtype: torch.dtype,
        backend: str = "eager",
    ) -> None:
        first = next(model.parameters(), torch.empty(0))
        self.device = first.device if device is None else torch.device(device)
        self.dtype = dtype
        self.has_one_shape = BACKENDS[backend].has_one_shape if backend in BACKENDS else False
        self.limit = 1 << 30
        self.forward: Callable[[Tensor], Tensor] = (
            optimize(model, dtype=dtype, backend=backend, device=device)
            if isinstance(model, BiT)
            else self._any(model)
        )

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits of uint8 pixels (n, height, width, 3), in as few passes as possible."""
        parts: list[npt.NDArray[np.float32]] = []
        done = 0
        while done < len(pixels):
            chunk = pixels[done : done + self.limit]
            try:
                parts.append(self._logits(chunk))
                done += len(chunk)
            except torch.cuda.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                self.limit = len(chunk) // 2
        return np.concatenate(parts)

    def _logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        own = np.require(pixels, requirements=["C", "W"])  # torch does not take read-only arrays
        with torch.inference_mode():
            images = torch.from_numpy(own).to(self.device).permute(0, 3, 1, 2)
            if self.device.type != "cpu":
                images = images.contiguous()
            logits = self.forward(images.to(torch.float32).div_(127.5).sub_(1))
            return np.asarray(logits.float().cpu().numpy())

    def _any(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(images: Tensor) -> Tensor:
            training = model.training
            reduced = self.dtype != torch.float32
            try:
                with (
                    exact_convolutions(self.device, self.dtype),
                    torch.autocast(self.device.type, self.dtype, enabled=reduced),
                ):
                    y: Tensor = model.eval()(images)
            finally:
                model.train(training)
            return y

        return forward


def batches_of(items: _Items, size: int) -> list[_Items]:
    """Cut items into batches; the last may be smaller.

    Raises:
        UsageError: If the size is less than 1.
    """
    if size < 1:
        raise UsageError(f"`batch_size` must be at least 1, found {size}.")
    return [items[start : start + size] for start in range(0, len(items), size)]


def one_ahead(
    items: Iterable[_Item], start: Callable[[_Item], _Result]
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with the result of `start`, after starting the next item."""
    begun: deque[tuple[_Item, _Result]] = deque()
    for item in items:
        begun.append((item, start(item)))
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun
