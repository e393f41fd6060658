"""Compare `bitzoo.probe` over six architectures with the passes of features alone.

    python benchmarks/probe.py [--images 200] [--size 128] [--rounds 3] [--quick]

"features alone" loads each network, decodes the images once into a cache, and computes the features
of all images by each network. The probe reads, checks and splits the data set too, solves 31
strengths and the ridge of `fewshot_lsr` for each network, and writes its report. Each turn is in a
process of its own that has imported what it needs, with caches that are empty. Weights are random.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from measure import Sample, in_subprocess, interleave, machine, peak_bytes, rate_table
from photographs import write_photographs

from bitzoo.converters.formats.safetensors import write_safetensors
from bitzoo.data.dataset import Split, read_dataset
from bitzoo.data.image_store import open_pixels
from bitzoo.inference.features import compute_features
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.runs.probing import probe
from bitzoo.zoo.classifier import load_classifier

ARCHS = (
    "R(1,1,1,1)x1",
    "R(2,2,2,2)x1",
    "R(1,1,1,1)x2",
    "R(3,4,6,3)x0.5",
    "R(2,2,2,2)x2",
    "R(3,4,6,3)x1",
)
"""From the smallest to R50x1, as a time limit would have them."""
QUICK = {"images": 40, "rounds": 1, "size": 64}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="finish within a minute")
    options = parser.parse_args()
    for name, value in QUICK.items() if options.quick else ():
        setattr(options, name, value)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "photographs", options.images)
        models = [write_random(folder, arch) for arch in ARCHS]
        contestants = {
            title: partial(in_subprocess, function, folder, models, options.size)
            for title, function in (("features alone", features_alone), ("probe", whole_probe))
        }
        samples = interleave(contestants, options.rounds)
    print(machine())
    count = len(ARCHS) * (options.images + 20)
    title = f"Six architectures, {count} features at {options.size} px, cpu"
    print(rate_table(title, samples, count, "features alone"))
    pairs = zip(samples["probe"], samples["features alone"], strict=True)
    ratios = [ours.seconds / alone.seconds for ours, alone in pairs]
    found = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"Time of the probe / features alone: {statistics.median(ratios):.3f} (of {found})")


def write_random(folder: Path, arch: str) -> Path:
    """Write a checkpoint with random weights."""
    network = BiT(Architecture.parse(arch), 10)
    network.init_weights(torch.Generator().manual_seed(0))
    path = folder / f"{arch}.safetensors"
    state = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    write_safetensors(path, state, {"format": "pt"})
    return path


def features_alone(folder: Path, models: list[Path], size: int) -> Sample:
    """Compute the features of all images by each network, and nothing else."""
    images = read_dataset(folder / "photographs")
    examples = tuple(example for split in images.splits for example in split.examples)
    transform = EvalTransform(size, size)
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        split = Split("all", examples)
        with open_pixels(split, transform, cache=Path(cache), budget_bytes=10**10) as pixels:
            for model in models:
                compute_features(load_classifier(model), pixels, budget_bytes=0)
        return Sample(time.perf_counter() - began, peak_bytes(), "")


def whole_probe(folder: Path, models: list[Path], size: int) -> Sample:
    """Probe all networks, from reading the data set to the report."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["BITZOO_CACHE"] = cache
        began = time.perf_counter()
        result = probe(
            folder / "photographs",
            models,
            out=Path(cache, "probe"),
            resolution=(size, size),
            progress=False,
        )
        seconds = time.perf_counter() - began
    assert len(result.done) == len(models), result
    assert all(row.computed == row.count + result.settings["train"] for row in result.done)
    return Sample(seconds, peak_bytes(), "")


if __name__ == "__main__":
    main()
