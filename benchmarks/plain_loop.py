"""Train without bitzoo, as a baseline: torchvision, a DataLoader, timm's network, torch's SGD."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def make_loader(
    folder: Path, resize: int, crop: int, batch: int, *, pin: bool, whole: bool = False
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader with BiT-HyperRule's augmentation and one worker process per core.

    With `whole`, incomplete batches are dropped.
    """
    steps = [
        transforms.Resize((resize, resize)),
        transforms.RandomCrop(crop),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
    return DataLoader(
        ImageFolder(folder, transforms.Compose(steps)),
        batch,
        shuffle=True,
        num_workers=len(os.sched_getaffinity(0)),
        pin_memory=pin,
        drop_last=whole,
        persistent_workers=True,
    )


def train_steps(
    loader: DataLoader[tuple[Tensor, Tensor]],
    arch: str,
    num_classes: int,
    device: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Iterator[float]:
    """Train without end; yield the loss of each step."""
    network: nn.Module = timm.create_model(f"resnetv2_{arch[1:]}_bit", num_classes=num_classes)
    network = network.to(device, memory_format=memory_format).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.003, momentum=0.9)
    autocast: Callable[[], torch.autocast] = lambda: torch.autocast(  # noqa: E731
        device, dtype, enabled=dtype != torch.float32
    )
    while True:
        for batch in loader:
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            images = images.contiguous(memory_format=memory_format)
            with autocast():
                loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()
