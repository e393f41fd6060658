"""Measure inference: bitzoo's backends, its peers, and the convolutions alone.

    python benchmarks/inference.py [--archs R50x1,R101x3] [--batches 1,8] [--quick]

All contestants have the same random weights and images, and run in turn in one process. Each one's
speed is listed with the distance of its logits from the same network in float64 (relative L2); if
that exceeds 1e-3 in float32 (1e-2 where TF32 is allowed), the contestant computes a different
function and the benchmark stops.
The floor is the folded network without its norms: convolutions, pool, additions. Contestants that
are not installed are skipped with a message. The last columns are the same once more beside a busy
process of another session.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from measure import BESIDE, aligned_table, machine, wait_as_commands_do
from neighbour import busy_neighbour
from torch import Tensor, nn

import bitzoo
from bitzoo.cli.quickstart import write_random_checkpoint
from bitzoo.errors import MissingExtraError
from bitzoo.exporters.export_formats import FORMATS
from bitzoo.exporters.quantize import QUANTIZERS
from bitzoo.models import layers
from bitzoo.models.architecture import ARCHITECTURES
from bitzoo.models.bit import BiT

Run = Callable[[Tensor], Tensor]
NUM_CLASSES = 1000
SIDE = 224
FLOOR = "convolutions alone"
LARGE = 200_000_000
"""Networks with more parameters have fewer contestants, because each holds its own copy."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="R50x1,R101x3")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds at batch 1; a third of it for larger batches"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--tf32",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether a GPU's convolutions may round to TF32, as is torch's default",
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="R50x1 at batch 1, fewer contestants")
    options = parser.parse_args()
    if options.quick:
        options.archs, options.batches, options.rounds = "R50x1", "1", 5
    wait_as_commands_do()
    torch.backends.cudnn.allow_tf32 = options.tf32
    print(machine())
    for name in options.archs.split(","):
        model = random_model(name)
        for batch in map(int, options.batches.split(",")):
            if batch == 1 or sum(p.numel() for p in model.parameters()) < LARGE:
                print(compare(name, model, batch, options), flush=True)
    if not torch.cuda.is_available():
        print("GPU: not measured")


def random_model(name: str) -> BiT:
    """Return a network with random He-scaled kernels and a nonzero head."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "random.npz")
        write_random_checkpoint(path, ARCHITECTURES[name], NUM_CLASSES)
        return copy.deepcopy(bitzoo.create_model(path, pretrained=True))


def compare(name: str, model: BiT, batch: int, options: argparse.Namespace) -> str:
    """Measure all contestants at one batch size and return their table."""
    shape = (batch, 3, SIDE, SIDE)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = exact_logits(model, images)
    images = images.to(options.device)
    runs, distances = {}, {}
    for who, run in contestants(name, model, options):
        print(f"  ready: {who}", file=sys.stderr)
        runs[who], distances[who] = run, distance(run(images), expected)
        allowed = 1e-2 if images.is_cuda and options.tf32 else 1e-3
        if distances[who] > allowed and "float32" in who:
            raise SystemExit(
                f"{who}: expected logits within {allowed} of the reference, found a distance of "
                f"{distances[who]:.1e}: it computes a different function"
            )
    rounds = options.rounds if batch == 1 else max(3, options.rounds // 3)
    seconds = interleaved(runs, images, rounds)
    medians = {who: statistics.median(times) for who, times in seconds.items()}
    beside = {}
    if images.device.type == "cpu":
        with busy_neighbour():
            found = interleaved(runs, images, max(3, rounds // 3))
        beside = {who: statistics.median(times) for who, times in found.items()}
    rows: list[tuple[str, ...]] = [
        ("", "median ms", "min", "max", "timm / this", "this / floor", "distance")
    ]
    if beside:
        rows[0] += BESIDE
    for who, times in seconds.items():
        figures = [f"{1e3 * value:.1f}" for value in (medians[who], min(times), max(times))]
        ratios = [
            f"{medians['timm, float32'] / medians[who]:.2f}",
            f"{medians[who] / medians[FLOOR]:.2f}",
        ]
        cells = [*figures, *ratios, "" if who == FLOOR else f"{distances[who]:.1e}"]
        if beside:
            cells += [f"{1e3 * beside[who]:.1f}", f"{beside[who] / medians[who]:.2f}"]
        rows.append((who, *cells))
    where = options.device + (", TF32 allowed" if images.is_cuda and options.tf32 else "")
    return aligned_table(f"{name}, batch {batch}, {SIDE} px, {where}", rows)


def exact_logits(model: BiT, images: Tensor) -> Tensor:
    """Return the logits of the same network in float64."""
    with torch.inference_mode():
        return copy.deepcopy(model).double()(images.double())


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the relative L2 distance of two batches of logits."""
    return float((found.double().cpu() - expected).norm() / expected.norm())


def interleaved(runs: dict[str, Run], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Run the contestants in turn in each round, and return the seconds of every run."""
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(rounds):
        for who, run in runs.items():
            run(images)  # warms up its memory and caches again after the others
            if images.is_cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            run(images)
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds[who].append(time.perf_counter() - began)
    return seconds


def contestants(name: str, model: BiT, options: argparse.Namespace) -> Iterator[tuple[str, Run]]:
    """Yield the name and function of each contestant, the peers first."""
    device = torch.device(options.device)
    yield "timm, float32", inference_only(timm_network(name, model).to(device))
    is_large = sum(p.numel() for p in model.parameters()) > LARGE
    if not is_large:
        yield "transformers, float32", transformers_run(model, device)
        yield "bit_pytorch style, float32", standardizing_each_time(model, device)
    yield "bitzoo eager, float32", bitzoo.optimize(model, device=device)
    yield "bitzoo eager, bfloat16", bitzoo.optimize(model, device=device, dtype="bfloat16")
    backends = [("compile", "float32"), ("compile", "bfloat16")] if options.compile else []
    if device.type == "cpu":
        backends += [("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")]
    if is_large:
        backends = [backend for backend in backends if backend == ("compile", "bfloat16")]
    elif options.quick:  # building the others takes longer than running them
        backends = backends[-1:]
    for backend, dtype in backends:
        try:
            run = bitzoo.optimize(model, backend=backend, dtype=dtype, device=device)
        except MissingExtraError as error:
            print(f"skipped: {error}", file=sys.stderr)
        else:
            yield f"bitzoo {backend}, {dtype}", run
    yield from int8_files(model, QUANTIZERS if device.type == "cpu" and not is_large else {})
    yield FLOOR, inference_only(without_norms(model).to(device), channels_last=device.type == "cpu")


def int8_files(model: BiT, formats: Iterable[str]) -> Iterator[tuple[str, Run]]:
    """Yield the name and function of an exported int8 file of each format."""
    for to in formats:
        try:
            yield f"bitzoo {to} file, int8", int8_run(model, to)
        except MissingExtraError as error:
            print(f"skipped: {error}", file=sys.stderr)


def int8_run(model: BiT, to: str) -> Run:
    """Return an exported int8 file, calibrated on a few random images: only its speed is real."""
    form = FORMATS[to]
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((8, 3, SIDE, SIDE), generator=generator).numpy() * 2 - 1
    with TemporaryDirectory() as folder:
        plain, path = (Path(folder, f"{name}{form.suffix}") for name in ("float32", "int8"))
        form.writer()(model, plain)
        QUANTIZERS[to](model, plain, path, [images], len(images), {})
        opened = form.loader()(path, {})
    return lambda batch: torch.from_numpy(opened.run(batch.numpy()))


def inference_only(network: nn.Module, channels_last: bool = False) -> Run:
    """Return the network as a function without gradients."""

    def run(images: Tensor) -> Tensor:
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            logits: Tensor = network(images)
            return logits

    return run


def timm_network(name: str, model: BiT) -> nn.Module:
    """Return timm's network with the same weights."""
    import timm

    network = timm.create_model(f"resnetv2_{name[1:]}_bit", num_classes=NUM_CLASSES)
    network.load_state_dict(model.state_dict())
    return network.eval()


def transformers_run(model: BiT, device: torch.device) -> Run:
    """Return a function that runs transformers' network with the same weights."""
    from transformers import BitConfig, BitForImageClassification

    from bitzoo.converters.key_mapping import name_of, slot_of

    architecture = model.architecture
    config = BitConfig(
        depths=list(architecture.depths),
        hidden_sizes=[architecture.block_channels(block) for block in range(1, 5)],
        embedding_size=architecture.stem_channels,
        num_labels=NUM_CLASSES,  # type: ignore[call-arg]
        global_padding=None,
    )
    network = BitForImageClassification(config).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        slot = slot_of(name, "timm")
        assert slot is not None
        theirs = name_of(slot, "transformers")
        state[theirs] = tensor.reshape(network.state_dict()[theirs].shape)
    network.load_state_dict(state)
    inner = inference_only(network.to(device))
    return lambda images: inner(images).logits  # type: ignore[attr-defined]


def standardizing_each_time(model: BiT, device: torch.device) -> Run:
    """Return the network as run by the released PyTorch code: kernels standardized at each use."""

    def released(weight: Tensor, eps: float = layers.REFERENCE_EPS) -> Tensor:
        variance, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return (weight - mean) / torch.sqrt(variance + eps)

    inner = inference_only(copy.deepcopy(model).to(device))

    def run(images: Tensor) -> Tensor:
        with mock.patch.object(layers, "standardize_kernel", released):
            return inner(images)

    return run


def without_norms(model: BiT) -> nn.Module:
    """Return the folded network's convolutions, pool and additions."""
    network = copy.deepcopy(bitzoo.fold(model)).to(memory_format=torch.channels_last)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, nn.Identity())
    return network


if __name__ == "__main__":
    main()
