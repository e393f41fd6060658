"""Measure the memory that training stores for backward, and the cost of storing less.

Part of `finetune.py`. Bytes are those of the unique storages that
`torch.autograd.graph.saved_tensors_hooks` sees during a forward pass, with and without parameters.
Peak is the growth of a process during its first step, including gradients, with one process per
contestant. Contestants are timed in turn, and a time ratio is the median of the ratios per round,
because the steps of one round ran under the same conditions. Losses and gradients are compared with
those of the plain modules on a few images in float64 (in float32, different rounding flips some
ReLUs, and gradients differ by 1e-3 for any code): the norm of the difference relative to the norm,
for the worst parameter.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch
from measure import aligned_table, in_subprocess, peak_bytes
from plain_modules import use_plain_modules
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bitzoo.models.architecture import ARCHITECTURES
from bitzoo.models.bit import BiT
from bitzoo.training.activation_checkpointing import checkpoint_blocks, recompute_norms
from bitzoo.training.gradient_accumulation import standardize_once

CLASSES = 10
COMPARED = 8
"""Images on which losses and gradients are compared; also the number of micro-batches."""


def recompute_everything(model: nn.Module) -> None:
    recompute_norms(model)
    checkpoint_blocks(model)


@dataclass
class Contestant:
    """A network, its context manager for a step, and the number of micro-batches."""

    network: nn.Module
    parts: int
    one_step: AbstractContextManager[object]

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Return the batch's loss; the gradients stay in the network."""
        self.network.zero_grad()
        total = 0.0
        with self.one_step:
            for part in torch.arange(len(images)).chunk(self.parts):
                loss = F.cross_entropy(self.network(images[part]), labels[part]) / self.parts
                loss.backward()
                total += loss.item()
        return total

    def saved_bytes(self, images: Tensor, labels: Tensor) -> tuple[int, int]:
        """Return the bytes that a micro-batch's forward pass saves: all, and without parameters."""
        held, sizes = [], {}

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor)  # so that no other storage reuses its address
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        rows = len(images) // self.parts
        with self.one_step, saved_tensors_hooks(pack, lambda tensor: tensor):
            F.cross_entropy(self.network(images[:rows]), labels[:rows])
        everything = sum(sizes.values())
        for parameter in self.network.parameters():
            sizes.pop(parameter.untyped_storage().data_ptr(), None)
        return everything, sum(sizes.values())


PLAIN, TIMM = "plain modules", "timm"
VARIANTS: dict[str, tuple[Callable[[Any], object], int]] = {
    PLAIN: (use_plain_modules, 1),
    TIMM: (lambda model: None, 1),
    "bitzoo": (lambda model: None, 1),
    "GN+ReLU recomputed": (recompute_norms, 1),
    "each unit checkpointed": (lambda model: model.set_grad_checkpointing(), 1),
    "whole blocks checkpointed": (checkpoint_blocks, 1),
    "both": (recompute_everything, 1),
    f"bitzoo, {COMPARED} micro-batches": (lambda model: None, COMPARED),
    f"WS once, {COMPARED} micro-batches": (standardize_once, COMPARED),
}
"""Contestant -> function that sets up its network, and the number of micro-batches."""

QUICK = (PLAIN, "GN+ReLU recomputed", "whole blocks checkpointed")
"""The contestants of a quick run."""


@dataclass(frozen=True)
class StepConfig:
    """The network, input and device of a step."""

    arch: str
    size: int
    batch: int
    device: str

    def images(self) -> tuple[Tensor, Tensor]:
        """Return random images and labels, the same each time."""
        generator = torch.Generator().manual_seed(1)
        images = torch.rand((self.batch, 3, self.size, self.size), generator=generator) * 2 - 1
        labels = torch.arange(self.batch) % CLASSES
        return images.to(self.device), labels.to(self.device)

    def contestant(self, name: str, dtype: torch.dtype = torch.float32) -> Contestant:
        """Create a contestant; all have the same weights."""
        set_up, parts = VARIANTS[name]
        generator = torch.Generator().manual_seed(0)
        network: Any = BiT(ARCHITECTURES[self.arch], CLASSES)
        network.init_weights(generator)
        nn.init.normal_(network.head.fc.weight, std=0.01, generator=generator)
        if name == TIMM:
            state = network.state_dict()
            network = timm.create_model(f"resnetv2_{self.arch[1:]}_bit", num_classes=CLASSES)
            network.load_state_dict(state)
            for module in network.modules():
                if isinstance(module, timm.layers.StdConv2d):
                    module.eps = 1e-10  # the release's, so that gradients are comparable
        handle = set_up(network.to(self.device, dtype).train())
        one_step = handle if isinstance(handle, AbstractContextManager) else nullcontext()
        return Contestant(network, parts, one_step)


def report(config: StepConfig, rounds: int, names: Sequence[str] = tuple(VARIANTS)) -> str:
    """Measure contestants, which must start with the plain modules, and return their table."""
    peaks = {}
    for name in names:
        print(f"  peak: {name}", file=sys.stderr)
        peaks[name] = in_subprocess(peak_of_first_step, name, config)
    agreement = compare_gradients(config, names)
    contestants = {name: config.contestant(name) for name in names}
    saved = {name: one.saved_bytes(*config.images()) for name, one in contestants.items()}
    seconds = interleave_steps(contestants, config, rounds)
    others = [name for name in (PLAIN, TIMM) if name in names]
    rows = [
        (
            *("", "saved MB", f"/ {PLAIN}", "without parameters MB", f"/ {PLAIN}", "peak MB"),
            *("s/step", *(f"time / {other}" for other in others)),
            *("loss difference", "gradient difference"),
        )
    ]
    for name in names:
        cells = [name]
        for ours, plain in zip(saved[name], saved[PLAIN], strict=True):
            cells += [f"{ours / 1e6:.0f}", f"{ours / plain:.3f}"]
        cells += [f"{peaks[name] / 1e6:.0f}", f"{statistics.median(seconds[name]):.3f}"]
        cells += [f"{ratio(seconds[name], seconds[other]):.2f}" for other in others]
        rows.append((*cells, *(f"{difference:.0e}" for difference in agreement[name])))
    title = (
        f"Stored for backward: {config.arch}, {config.size} px, batch {config.batch}, "
        f"{config.device}"
    )
    return aligned_table(title, rows)


def interleave_steps(
    contestants: Mapping[str, Contestant], config: StepConfig, rounds: int
) -> dict[str, list[float]]:
    batch = config.images()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):  # the first one is a warm-up
        for name, contestant in contestants.items():
            print(f"  round {turn} of {rounds}: {name}", file=sys.stderr)
            started = time.perf_counter()
            contestant.step(*batch)
            if config.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
            contestant.network.zero_grad()
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def compare_gradients(config: StepConfig, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return each contestant's relative differences of the loss and of the worst gradient."""
    images, labels = (tensor[:COMPARED] for tensor in config.images())
    found = {}
    expected: tuple[float, dict[str, Tensor]] | None = None
    for name in names:
        print(f"  loss and gradients: {name}", file=sys.stderr)
        contestant = config.contestant(name, torch.float64)
        loss = contestant.step(images.double(), labels)
        gradients = {key: p.grad for key, p in contestant.network.named_parameters()}
        expected = expected or (loss, gradients)
        worst = max(
            ((gradients[key] - gradient).norm() / gradient.norm()).item()
            for key, gradient in expected[1].items()
        )
        found[name] = abs(loss / expected[0] - 1), worst
    return found


def peak_of_first_step(name: str, config: StepConfig) -> int:
    contestant, batch = config.contestant(name), config.images()
    if config.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestant.step(*batch)
        return torch.cuda.max_memory_allocated() - before
    before = peak_bytes()
    contestant.step(*batch)
    return peak_bytes() - before
