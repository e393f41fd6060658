"""A network readied to infer: uint8 pixels in, logits out."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitzoo.model import BiT, fold

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Network:
    """A classifier readied to infer: pixels in, logits out, nothing of the original changed."""

    def __init__(
        self, model: nn.Module, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        first = next(model.parameters(), torch.empty(0))
        self.device = first.device if device is None else torch.device(device)
        self.dtype = dtype
        self.limit = 1 << 30
        self.forward = self._bit(model) if isinstance(model, BiT) else self._any(model)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits of uint8 pixels (n, height, width, 3), in as few passes as memory allows."""
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
        own = np.require(pixels, requirements=["C", "W"])  # torch takes no read-only array
        with torch.inference_mode():
            images = torch.from_numpy(own).to(self.device).permute(0, 3, 1, 2)
            if self.device.type != "cpu":
                images = images.contiguous()
            logits = self.forward(images.to(torch.float32).div_(127.5).sub_(1))
            return np.asarray(logits.float().cpu().numpy())

    def _bit(self, model: BiT) -> Callable[[Tensor], Tensor]:
        network = fold(model) if not model.folded else copy.deepcopy(model)
        # Channels last took 0.4 to 0.75 of the time on CPUs. CUDA's group normalization has no
        # kernel for it.
        layout = torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        network.to(self.device, torch.float32, memory_format=layout)  # type: ignore[call-overload]
        for part in (network.stem, network.stages, network.norm):
            part.to(self.dtype)

        def forward(images: Tensor) -> Tensor:
            return network.forward_head(network.forward_features(images.to(self.dtype)).float())

        return forward

    def _any(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(images: Tensor) -> Tensor:
            training = model.training
            reduced = self.dtype != torch.float32
            try:
                with torch.autocast(self.device.type, self.dtype, enabled=reduced):
                    y: Tensor = model.eval()(images)
            finally:
                model.train(training)
            return y

        return forward


def one_ahead(
    items: Iterable[_Item], start: Callable[[_Item], _Result]
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with what `start` made of it; the next item is started before that."""
    begun: deque[tuple[_Item, _Result]] = deque()
    for item in items:
        begun.append((item, start(item)))
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun
