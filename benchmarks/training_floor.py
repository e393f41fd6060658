"""Measure how far a training step is from its floor: the convolutions and ReLUs alone.

    python benchmarks/training_floor.py [--size 224] [--dtypes float32] [--profile]

Every contestant makes whole steps in one process, one step each in turn, so that drifts of the
machine affect all equally; a ratio is the median of the ratios per round, to the floor in the
better memory format of the same dtype and round.

- floor: the network's convolutions with plain kernels, and its ReLUs, forward and backward, down to
  every kernel and to every map but the images; no normalization, standardization, addition,
  pooling, head, loss or optimizer. In bfloat16, kernels and maps are bfloat16 from the start.
- plain loop: the released code's modules (mean, variance and division for each kernel; group norm,
  then ReLU), cross entropy, torch's SGD with its defaults, autocast below float32. Its images are
  ready tensors.
- timm: the same with timm's network.
- bitzoo: the whole loop of `bitzoo finetune`, from decoded pixels to updated weights, with MixUp,
  and torch's group normalization.
- bitzoo fused: the same with the compiled group normalization, which is for channels last; long
  runs choose among these by measuring, see `bitzoo.training.memory_layout`.

`--large-pages` asks for pages of 2 MiB, for all contestants: the floor gained by them, bitzoo did
not (two quiet cores of an AMD EPYC).

With `--profile`, one step of bitzoo and one of the floor run under torch's profiler, and the time
above the floor is printed by kind of operation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import aligned_table, machine
from plain_modules import use_plain_modules
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bitzoo.data.image_store import Pixels
from bitzoo.models.architecture import ARCHITECTURES
from bitzoo.models.bit import BiT
from bitzoo.models.layers import Unit
from bitzoo.training.fused_norm import missing
from bitzoo.training.memory_layout import MemoryLayout
from bitzoo.training.recipe import Recipe, Schedule
from bitzoo.training.trainer import Trainer
from bitzoo.training.training_config import TrainingConfig

CLASSES = 10
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's variable, which it reads when it is loaded."""
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
LR, MOMENTUM = 0.003, 0.9
STEPS_AHEAD = 10_000
"""Length of the schedule, of which only the first steps are made."""


@dataclass(frozen=True)
class Setting:
    """The network, input and form of a contestant."""

    arch: str
    size: int
    batch: int
    dtype: torch.dtype
    memory_format: torch.memory_format

    def images(self) -> Tensor:
        """Return random images in [-1, 1], float32."""
        shape = (self.batch, 3, self.size, self.size)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        return images.contiguous(memory_format=self.memory_format)

    def network(self) -> BiT:
        """Return a random network in training mode and in the memory format."""
        network = BiT(ARCHITECTURES[self.arch], CLASSES)
        network.init_weights(torch.Generator().manual_seed(0))
        return network.to(memory_format=self.memory_format).train()


Step = Callable[[], object]


def floor(setting: Setting) -> Step:
    """Convolutions and ReLUs, forward and backward."""
    network = setting.network()

    def plain(conv: nn.Module) -> tuple[Tensor, dict[str, Any]]:
        assert isinstance(conv, nn.Conv2d)
        kernel = conv.weight.detach().to(setting.dtype).requires_grad_()
        window = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        return kernel, window

    stem, chains = plain(network.stem.conv), []
    for module in network.modules():
        if isinstance(module, Unit):
            shortcut = plain(module.downsample[0]) if module.downsample is not None else None
            convs = [plain(conv) for conv in (module.conv1, module.conv2, module.conv3)]
            chains.append((convs, shortcut))
    kernels = [stem[0], *(kernel for convs, _ in chains for kernel, _ in convs)]
    kernels += [shortcut[0] for _, shortcut in chains if shortcut is not None]
    images = setting.images().to(setting.dtype)

    def forward(x: Tensor) -> list[Tensor]:
        outputs = [F.conv2d(images, stem[0], **stem[1])]
        for convs, shortcut in chains:
            x = F.relu(x)
            if shortcut is not None:  # on a copy of its own, whose gradient is added to nothing
                own = x.detach().requires_grad_()
                outputs.append(F.conv2d(own, shortcut[0], **shortcut[1]))
            x = F.conv2d(x, convs[0][0], **convs[0][1])
            for kernel, window in convs[1:]:
                x = F.conv2d(F.relu_(x), kernel, **window)
        return [*outputs, x]

    edge = -(-setting.size // 4)
    shape = (setting.batch, stem[0].shape[0], edge, edge)
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(setting.dtype)
    maps = maps.contiguous(memory_format=setting.memory_format).requires_grad_()
    with torch.no_grad():
        grads = [torch.randn_like(output) * 1e-3 for output in forward(maps)]

    def step() -> None:
        torch.autograd.backward(forward(maps), grads)
        for kernel in kernels:
            kernel.grad = None
        maps.grad = None

    return step


def loop(setting: Setting, network: nn.Module) -> Step:
    """A loop as anyone writes it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    images, labels = setting.images(), torch.arange(setting.batch) % CLASSES
    reduced = setting.dtype != torch.float32

    def step() -> float:
        with torch.autocast("cpu", setting.dtype, enabled=reduced):
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.item()

    return step


def plain_loop(setting: Setting) -> Step:
    """The released code's modules."""
    network = setting.network()
    use_plain_modules(network)
    return loop(setting, network)


def timm_loop(setting: Setting) -> Step:
    """The same with timm's network."""
    import timm

    network = timm.create_model(f"resnetv2_{setting.arch[1:]}_bit", num_classes=CLASSES)
    return loop(setting, network.to(memory_format=setting.memory_format).train())


class RandomImages(Pixels):
    """Decoded images in memory."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self._images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def rows(self, indices: npt.ArrayLike) -> list[npt.NDArray[np.uint8]]:
        """Return images."""
        return [self._images[index] for index in np.ravel(indices)]

    def close(self) -> None:
        """Nothing to free."""


def ours(setting: Setting, fused: bool = False) -> Step:
    """The trainer, from decoded pixels on."""
    resize, count = setting.size * 5 // 4, 2 * setting.batch
    schedule = Schedule(LR, STEPS_AHEAD, 0, ())
    recipe = Recipe("floor", resize, setting.size, setting.batch, schedule, mixup_alpha=0.1)
    options = TrainingConfig(
        dtype=str(setting.dtype).removeprefix("torch."),
        device="cpu",
        micro_batch=setting.batch,
    )
    labels = np.arange(count) % CLASSES
    trainer = Trainer(setting.network(), recipe, RandomImages(count, resize), labels, options)
    is_last = setting.memory_format == torch.channels_last
    trainer.begin(None, MemoryLayout(is_last, fused=fused))
    if trainer.layout.fused != fused:
        raise SystemExit(f"The compiled operator cannot be had: {missing()}.")
    return partial(next, trainer.updates())


CONTESTANTS: dict[str, Callable[[Setting], Step]] = {
    "floor": floor,
    "plain loop": plain_loop,
    "timm": timm_loop,
    "bitzoo": ours,
    "bitzoo fused": partial(ours, fused=True),
}


def report(
    arch: str,
    size: int,
    batch: int,
    dtype: str,
    names: list[str],
    rounds: int,
    formats: list[str],
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """Measure and return the table of one dtype."""
    steps: dict[tuple[str, str], Step] = {}
    for name in names:
        for form in formats:
            if name == "bitzoo fused" and form != "channels last":
                continue
            setting = Setting(arch, size, batch, getattr(torch, dtype), FORMATS[form])
            steps[name, form] = CONTESTANTS[name](setting)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for turn in range(rounds + 1):  # the first one is a warm-up
        for key, step in steps.items():
            print(f"  round {turn} of {rounds}: {', '.join(key)}", file=sys.stderr)
            began = clock()
            step()
            if turn:
                seconds[key].append(clock() - began)
    medians = {key: statistics.median(found) for key, found in seconds.items()}
    base = min((key for key in steps if key[0] == "floor"), key=lambda key: medians[key])
    rows: list[tuple[str, ...]] = [("", "memory format", "median s", "min", "max", "time / floor")]
    for key, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found, seconds[base], strict=True))
        cells = [f"{value:.3f}" for value in (medians[key], min(found), max(found))]
        rows.append((key[0], key[1], *cells, f"{ratio:.2f}"))
    threads = torch.get_num_threads()
    title = f"Training step: {arch}, {size} px, batch {batch}, {dtype}, {threads} threads"
    return aligned_table(title, rows)


KINDS = {
    "convolutions": ("convolution", "mkldnn_conv", "conv2d", "thnn_conv"),
    "group norm": ("group_norm", "norm_relu"),
    "ReLU": ("relu", "threshold"),
    "standardization": ("layer_norm",),
    "sums": ("aten::add", "aten::sum", "aten::mean"),
    "optimizer": ("foreach", "fused", "optimizer", "sgd"),
    "copies and casts": ("copy", "contiguous", "clone", "_to_copy"),
    "pooling and padding": ("pool", "pad", "slice_backward"),
    "allocation and zeros": ("empty", "zero", "fill"),
}
"""Kind -> parts of the operators' names, first match first."""


def kind_of(operator: str) -> str:
    """Return the kind of an operator of torch."""
    name = operator.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), "other")


def milliseconds(step: Step) -> dict[str, float]:
    """Return the time of one step by kind; that of no operator is `between operators`."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        step()
        wall = (time.perf_counter() - began) * 1e3
    spent: defaultdict[str, float] = defaultdict(float)
    for event in found.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e3
    spent["whole step"] = wall
    return spent


def profiled(arch: str, size: int, batch: int, dtype: str, form: str) -> str:
    """Return the table of the time above the floor."""
    setting = Setting(arch, size, batch, getattr(torch, dtype), FORMATS[form])
    own = milliseconds(ours(setting, fused=form == "channels last" and not missing()))
    least = milliseconds(floor(setting))
    whole = least["whole step"]
    rows: list[tuple[str, ...]] = [("", "bitzoo ms", "floor ms", "above ms", "above / floor step")]
    for kind in sorted(own | least, key=lambda kind: least[kind] - own[kind]):
        above = own[kind] - least[kind]
        cells = [f"{value:.0f}" for value in (own[kind], least[kind], above)]
        rows.append((kind, *cells, f"{above / whole:.1%}"))
    title = f"Above the floor: {arch}, {size} px, batch {batch}, {dtype}, {form}"
    return aligned_table(title, rows)


def tables(options: argparse.Namespace) -> Iterator[str]:
    """Measure what is asked for."""
    sizes = options.arch, options.size, options.batch
    names, formats = options.contestants.split(","), options.formats.split(",")
    clock = time.process_time if options.cpu_time else time.perf_counter
    for dtype in options.dtypes.split(","):
        if options.profile:
            for form in formats:
                yield profiled(*sizes, dtype, form)
        else:
            yield report(*sizes, dtype, names, options.rounds, formats, clock)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="R50x1", choices=list(ARCHITECTURES))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", default="float32", help="comma-separated")
    parser.add_argument("--formats", default=",".join(FORMATS), help="comma-separated")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="comma-separated")
    parser.add_argument("--profile", action="store_true", help="print what is above the floor")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the process's CPU time, for a busy machine; with OMP_NUM_THREADS=1",
    )
    parser.add_argument("--large-pages", action="store_true", help="ask for pages of 2 MiB")
    options = parser.parse_args()
    wanted = "1" if options.large_pages else "0"
    if os.environ.get(LARGE_PAGES) != wanted:  # which torch reads when it is loaded
        os.environ[LARGE_PAGES] = wanted
        os.execv(sys.executable, [sys.executable, *sys.argv])
    print(machine(), flush=True)
    for table in tables(options):
        print(table, flush=True)


if __name__ == "__main__":
    main()
