"""Measure `bitzoo finetune --freeze` beside one pass of optimized inference over the same files.

    python benchmarks/linear_probe.py [--size 224] [--images 400] [--forms float32]

Either contestant starts from files and random weights, in a process of its own, with an empty
cache; Python's start and imports, which both have, are not timed. "inference once" decodes every
image and runs `bitzoo.optimize`'s network on it, in the same dtype and backend, the next batch
being decoded meanwhile, as `bitzoo predict` does. "finetune --freeze" is the whole run: checking
and hashing the files, features, the head's steps by BiT-HyperRule, evaluations, model, report and
card. A ratio is the median of the ratios per round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measure import Sample, aligned_table, in_subprocess, interleave, machine, peak_bytes
from photographs import write_photographs

import bitzoo
from bitzoo.inference.predict import predict_images
from bitzoo.models.preprocessing import EvalTransform

FORMS = {
    "float32": ("float32", "eager"),
    "bfloat16": ("bfloat16", "eager"),
    "openvino": ("float32", "openvino"),
    "openvino-bfloat16": ("bfloat16", "openvino"),
}


@dataclass(frozen=True)
class Setting:
    """The data, network and form of a pass."""

    photographs: Path
    arch: str
    size: int
    dtype: str
    backend: str


def inference(setting: Setting) -> Sample:
    """Decode and classify every image once."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BITZOO_CACHE"] = folder
        began = time.perf_counter()
        network = bitzoo.create_model(f"BiT-M-{setting.arch}", pretrained=False, num_classes=10)
        files = sorted(setting.photographs.rglob("*.jpg"))
        found = predict_images(
            network,
            files,
            EvalTransform.to_square(setting.size),
            dtype=getattr(torch, setting.dtype),
            backend=setting.backend,
            batch_size=64,
        )
        assert len(found) == len(files)
        return Sample(time.perf_counter() - began, peak_bytes(), "")


def probe(setting: Setting) -> Sample:
    """Train a head."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BITZOO_CACHE"] = f"{folder}/cache"
        began = time.perf_counter()
        bitzoo.finetune(
            f"BiT-M-{setting.arch}",
            setting.photographs,
            Path(folder, "run"),
            pretrained=False,
            freeze=True,
            resolution=(setting.size * 5 // 4, setting.size),
            dtype=setting.dtype,
            backend=setting.backend,
            progress=False,
        )
        return Sample(time.perf_counter() - began, peak_bytes(), "")


def report(setting: Setting, form: str, rounds: int) -> str:
    """Run both in turn and return their table."""
    contestants = {
        "inference once": partial(in_subprocess, inference, setting),
        "finetune --freeze": partial(in_subprocess, probe, setting),
    }
    samples = interleave(contestants, rounds)
    base = samples["inference once"]
    rows: list[tuple[str, ...]] = [("", "median s", "min", "max", "peak MB", "time / inference")]
    for name, found in samples.items():
        seconds = [sample.seconds for sample in found]
        ratio = statistics.median(
            own.seconds / other.seconds for own, other in zip(found, base, strict=True)
        )
        cells = [
            f"{value:.1f}" for value in (statistics.median(seconds), min(seconds), max(seconds))
        ]
        peak = max(sample.peak_bytes for sample in found) / 1e6
        rows.append((name, *cells, f"{peak:.0f}", f"{ratio:.2f}"))
    return aligned_table(f"Linear probe: {setting.arch}, {setting.size} px, {form}", rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="R50x1")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--forms", default="float32,openvino", help=f"of {', '.join(FORMS)}")
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        photographs = write_photographs(Path(folder, "photographs"), options.images)
        for form in options.forms.split(","):
            setting = Setting(photographs, options.arch, options.size, *FORMS[form])
            print(report(setting, form, options.rounds), flush=True)


if __name__ == "__main__":
    main()
