"""What a training step stores for backward, and what storing less costs.

    python benchmarks/backward_memory.py [--arch R50x1] [--size 128] [--batch 32] [--rounds 5]

Bytes are those of the unique storages that `torch.autograd.graph.saved_tensors_hooks` sees during a
forward pass, with and without the parameters among them. Peak is what a process grows by during its
first step, gradients included; each contestant has a process of its own. Contestants take turns to
be timed, and a time ratio is the median of the rounds' ratios: a round's steps saw one machine.
Loss and gradients are compared with the plain modules' on a few images in float64 (in float32, a
change of rounding flips some ReLUs, and gradients differ by 1e-3 whatever the code): the norm of
the difference relative to the norm, for the worst parameter.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import timm
import torch
from measure import machine, run
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bitzoo.arch import ARCHITECTURES
from bitzoo.finetune.memory import checkpoint_blocks, recompute_norms, standardize_once
from bitzoo.layers import GroupNormReLU, StdConv2d
from bitzoo.model import BiT

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


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="R50x1", choices=list(ARCHITECTURES))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=list(SWITCHES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_of_first_step(options))
    else:
        print(machine())
        print(compare(options))


def make(name: str, arch: str, dtype: torch.dtype = torch.float32) -> Contestant:
    """Make a contestant; all have the same weights."""
    switch, parts = SWITCHES[name]
    generator = torch.Generator().manual_seed(0)
    network: nn.Module = BiT(ARCHITECTURES[arch], CLASSES)
    network.init_weights(generator)
    nn.init.normal_(network.head.fc.weight, std=0.01, generator=generator)
    if name == TIMM:
        state = network.state_dict()
        network = timm.create_model(f"resnetv2_{arch[1:]}_bit", num_classes=CLASSES)
        network.load_state_dict(state)
        for module in network.modules():
            if isinstance(module, timm.layers.StdConv2d):
                module.eps = 1e-10  # the release's, for gradients to compare
    handle = switch(network.to(dtype).train())
    one_step = handle if isinstance(handle, AbstractContextManager) else nullcontext()
    return Contestant(network, parts, one_step)


def make_batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (options.batch, 3, options.size, options.size)
    images = torch.rand(shape, generator=generator) * 2 - 1
    return images, torch.arange(options.batch) % CLASSES


def compare(options: argparse.Namespace) -> str:
    """Measure all contestants and return their table."""
    # First, because a process starts with the peak of the one that started it.
    peaks = {name: measure_peak(name, options) for name in SWITCHES}
    agreement = compare_gradients(options)
    contestants = {name: make(name, options.arch) for name in SWITCHES}
    batch = make_batch(options)
    saved = {name: contestant.saved_bytes(*batch) for name, contestant in contestants.items()}
    seconds = interleave_steps(contestants, batch, options.rounds)
    lines = [
        f"### {options.arch}, {options.size} px, batch {options.batch}",
        "",
        f"| | saved MB | / {PLAIN} | but parameters MB | / {PLAIN} | peak MB "
        f"| s a step | time / {PLAIN} | time / {TIMM} | loss differs by | gradients by |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in contestants:
        cells = [name]
        for ours, plain in zip(saved[name], saved[PLAIN], strict=True):
            cells += [f"{ours / 1e6:.0f}", f"{ours / plain:.3f}"]
        cells += [f"{peaks[name] / 1e6:.0f}", f"{statistics.median(seconds[name]):.2f}"]
        cells += [f"{ratio(seconds[name], seconds[other]):.2f}" for other in (PLAIN, TIMM)]
        cells += [f"{difference:.0e}" for difference in agreement[name]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interleave_steps(
    contestants: dict[str, Contestant], batch: tuple[Tensor, Tensor], rounds: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, contestant in contestants.items():
            print(f"  round {turn + 1} of {rounds}: {name}", file=sys.stderr)
            started = time.perf_counter()
            contestant.step(*batch)
            seconds[name].append(time.perf_counter() - started)
            contestant.network.zero_grad()
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def compare_gradients(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Relative differences from the plain modules of the loss and of the worst gradient."""
    images, labels = (tensor[:COMPARED] for tensor in make_batch(options))
    found = {}
    expected: tuple[float, dict[str, Tensor]] | None = None
    for name in SWITCHES:  # the plain modules are the first
        print(f"  loss and gradients: {name}", file=sys.stderr)
        contestant = make(name, options.arch, torch.float64)
        loss = contestant.step(images.double(), labels)
        gradients = {key: p.grad for key, p in contestant.network.named_parameters()}
        expected = expected or (loss, gradients)
        worst = max(
            ((gradients[key] - gradient).norm() / gradient.norm()).item()
            for key, gradient in expected[1].items()
        )
        found[name] = abs(loss / expected[0] - 1), worst
    return found


def measure_peak(name: str, options: argparse.Namespace) -> int:
    print(f"  peak: {name}", file=sys.stderr)
    command = [sys.executable, __file__, "--peak-of", name, "--arch", options.arch]
    size = ["--size", str(options.size), "--batch", str(options.batch)]
    return int(run([*command, *size]).output)


def peak_of_first_step(options: argparse.Namespace) -> int:
    contestant, batch = make(options.peak_of, options.arch), make_batch(options)
    before = peak_bytes()
    contestant.step(*batch)
    return peak_bytes() - before


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
