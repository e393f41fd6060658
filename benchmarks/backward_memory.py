"""What a training step stores for backward, and what storing less costs: for `finetune.py`.

Bytes are those of the unique storages that `torch.autograd.graph.saved_tensors_hooks` sees during a
forward pass, with and without the parameters among them. Peak is what a process grows by during its
first step, gradients included; each contestant has a process of its own. Contestants take turns to
be timed, and a time ratio is the median of the rounds' ratios: a round's steps saw one machine.
Loss and gradients are compared with the plain modules' on a few images in float64 (in float32, a
change of rounding flips some ReLUs, and gradients differ by 1e-3 whatever the code): the norm of
the difference relative to the norm, for the worst parameter.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import timm
import torch
from measure import aligned, apart, peak_bytes
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bitzoo.models.architecture import ARCHITECTURES
from bitzoo.models.bit import BiT
from bitzoo.models.layers import GroupNormReLU, StdConv2d
from bitzoo.training.activation_checkpointing import checkpoint_blocks, recompute_norms
from bitzoo.training.gradient_accumulation import standardize_once

CLASSES = 10
COMPARED = 8
"""Images on which loss and gradients are compared; as many as there are micro-batches."""


class PlainStdConv2d(StdConv2d):
    """Standardization as the release writes it: mean, variance, division."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the standardized kernel."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        kernel = (self.weight - mean) / torch.sqrt(variance + 1e-10)
        return F.conv2d(x, kernel, None, self.stride, self.padding, self.dilation)


class PlainNorm(GroupNormReLU):
    """nn.GroupNorm, then a ReLU that does not work in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and rectify."""
        return F.relu(nn.GroupNorm.forward(self, x))


def use_plain_modules(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, StdConv2d):
            module.__class__ = PlainStdConv2d
        elif isinstance(module, GroupNormReLU):
            module.__class__ = PlainNorm


def recompute_everything(model: nn.Module) -> None:
    recompute_norms(model)
    checkpoint_blocks(model)


@dataclass
class Contestant:
    """A network, how it is to train, and in how many micro-batches."""

    network: nn.Module
    parts: int
    one_step: AbstractContextManager[object]

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Loss of the batch; gradients are left in the network."""
        self.network.zero_grad()
        total = 0.0
        with self.one_step:
            for part in torch.arange(len(images)).chunk(self.parts):
                loss = F.cross_entropy(self.network(images[part]), labels[part]) / self.parts
                loss.backward()
                total += loss.item()
        return total

    def saved_bytes(self, images: Tensor, labels: Tensor) -> tuple[int, int]:
        """What the forward pass of a micro-batch saves: all, and all but parameters."""
        held, sizes = [], {}

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor)  # so that no other storage takes its place
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
SWITCHES: dict[str, tuple[Callable[[nn.Module], object], int]] = {
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


FEW = (PLAIN, "GN+ReLU recomputed", "whole blocks checkpointed")
"""Those that a quick look has time for."""


@dataclass(frozen=True)
class Load:
    """What a step computes, and where."""

    arch: str
    size: int
    batch: int
    device: str

    def images(self) -> tuple[Tensor, Tensor]:
        """Random images and their labels; the same each time."""
        generator = torch.Generator().manual_seed(1)
        images = torch.rand((self.batch, 3, self.size, self.size), generator=generator) * 2 - 1
        labels = torch.arange(self.batch) % CLASSES
        return images.to(self.device), labels.to(self.device)

    def contestant(self, name: str, dtype: torch.dtype = torch.float32) -> Contestant:
        """Make a contestant; all have the same weights."""
        switch, parts = SWITCHES[name]
        generator = torch.Generator().manual_seed(0)
        network: nn.Module = BiT(ARCHITECTURES[self.arch], CLASSES)
        network.init_weights(generator)
        nn.init.normal_(network.head.fc.weight, std=0.01, generator=generator)
        if name == TIMM:
            state = network.state_dict()
            network = timm.create_model(f"resnetv2_{self.arch[1:]}_bit", num_classes=CLASSES)
            network.load_state_dict(state)
            for module in network.modules():
                if isinstance(module, timm.layers.StdConv2d):
                    module.eps = 1e-10  # the release's, for gradients to compare
        handle = switch(network.to(self.device, dtype).train())
        one_step = handle if isinstance(handle, AbstractContextManager) else nullcontext()
        return Contestant(network, parts, one_step)


def report(load: Load, rounds: int, names: Sequence[str] = tuple(SWITCHES)) -> str:
    """Measure contestants, the plain modules first among them, and return their table."""
    peaks = {}
    for name in names:
        print(f"  peak: {name}", file=sys.stderr)
        peaks[name] = apart(peak_of_first_step, name, load)
    agreement = compare_gradients(load, names)
    contestants = {name: load.contestant(name) for name in names}
    saved = {name: one.saved_bytes(*load.images()) for name, one in contestants.items()}
    seconds = interleave_steps(contestants, load, rounds)
    others = [name for name in (PLAIN, TIMM) if name in names]
    rows = [
        (
            *("", "saved MB", f"/ {PLAIN}", "but parameters MB", f"/ {PLAIN}", "peak MB"),
            *("s per step", *(f"time / {other}" for other in others)),
            *("loss differs by", "gradients by"),
        )
    ]
    for name in names:
        cells = [name]
        for ours, plain in zip(saved[name], saved[PLAIN], strict=True):
            cells += [f"{ours / 1e6:.0f}", f"{ours / plain:.3f}"]
        cells += [f"{peaks[name] / 1e6:.0f}", f"{statistics.median(seconds[name]):.3f}"]
        cells += [f"{ratio(seconds[name], seconds[other]):.2f}" for other in others]
        rows.append((*cells, *(f"{difference:.0e}" for difference in agreement[name])))
    title = f"Stored for backward: {load.arch}, {load.size} px, batch {load.batch}, {load.device}"
    return aligned(title, rows)


def interleave_steps(
    contestants: Mapping[str, Contestant], load: Load, rounds: int
) -> dict[str, list[float]]:
    batch = load.images()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):  # the first is not counted
        for name, contestant in contestants.items():
            print(f"  round {turn} of {rounds}: {name}", file=sys.stderr)
            started = time.perf_counter()
            contestant.step(*batch)
            if load.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
            contestant.network.zero_grad()
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def compare_gradients(load: Load, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Relative differences from the plain modules of the loss and of the worst gradient."""
    images, labels = (tensor[:COMPARED] for tensor in load.images())
    found = {}
    expected: tuple[float, dict[str, Tensor]] | None = None
    for name in names:
        print(f"  loss and gradients: {name}", file=sys.stderr)
        contestant = load.contestant(name, torch.float64)
        loss = contestant.step(images.double(), labels)
        gradients = {key: p.grad for key, p in contestant.network.named_parameters()}
        expected = expected or (loss, gradients)
        worst = max(
            ((gradients[key] - gradient).norm() / gradient.norm()).item()
            for key, gradient in expected[1].items()
        )
        found[name] = abs(loss / expected[0] - 1), worst
    return found


def peak_of_first_step(name: str, load: Load) -> int:
    contestant, batch = load.contestant(name), load.images()
    if load.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestant.step(*batch)
        return torch.cuda.max_memory_allocated() - before
    before = peak_bytes()
    contestant.step(*batch)
    return peak_bytes() - before
