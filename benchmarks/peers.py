"""Measure how far bitzoo, timm and transformers are from Google's function, by kernel scale.

There is one random R50x1 in Google's layout per scale; each library reads the file that the
converter wrote for it. The reference is bitzoo's NumPy forward pass of the npz, in float64. timm
and transformers add 1e-8 to a kernel's variance and the release 1e-10, which matters for small
kernels; `--eps-exact` files compensate for it.

    python benchmarks/peers.py
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from measure import aligned_table, machine
from safetensors.torch import load_file
from transformers import BitForImageClassification

from bitzoo import create_model
from bitzoo.converters.convert import convert
from bitzoo.converters.formats.checkpoint_formats import Target
from bitzoo.converters.formats.npz import write_npz
from bitzoo.converters.key_mapping import layout_of, name_of
from bitzoo.converters.layouts import stored_shape
from bitzoo.converters.parity.reference_numpy import forward
from bitzoo.models.architecture import ARCHITECTURES

ARCH, CLASSES, SIZE, IMAGES = "R50x1", 1000, 224, 2
SCALES = ("He", 0.01, 0.003, 0.001)


def main() -> None:
    rows = [("kernel std", *CONTESTANTS)]
    for scale in SCALES:
        with tempfile.TemporaryDirectory() as folder:
            distances = measure(Path(folder), scale)
        for dtype in ("float32", "float64"):
            cells = [f"{distances[name, dtype]:.1e}" for name in CONTESTANTS]
            rows.append((f"{scale}, {dtype}", *cells))
    print(machine())
    title = f"{ARCH}, {IMAGES} images of {SIZE} px: relative L2 distance of logits to the reference"
    print(aligned_table(title, rows))


def measure(folder: Path, scale: float | str) -> dict[tuple[str, str], float]:
    """Return the distance of each contestant in each dtype."""
    source = folder / "a.npz"
    tensors = dict(random_tensors(scale))
    write_npz(source, iter(tensors.items()))
    shape = (IMAGES, SIZE, SIZE, 3)
    images = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    expected = forward(tensors, images)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    distances = {}
    for name, load in CONTESTANTS.items():
        network = load(source)
        for dtype in (torch.float32, torch.float64):
            with torch.inference_mode():
                found = network.to(dtype)(batch.to(dtype))
            logits = getattr(found, "logits", found).double().numpy()
            distance = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
            distances[name, str(dtype).removeprefix("torch.")] = float(distance)
    return distances


def random_tensors(scale: float | str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield npz names and arrays: kernels of that standard deviation, norms near 1 and 0."""
    rng = np.random.default_rng(0)
    for slot, shape in ARCHITECTURES[ARCH].shapes(CLASSES).items():
        stored = stored_shape(shape, layout_of(slot.role, "npz"))
        values = rng.standard_normal(stored, dtype=np.float32)
        fan_in = math.prod(shape[1:])
        if slot.role.is_standardized:
            values *= np.float32(math.sqrt(2 / fan_in) if scale == "He" else scale)
        elif slot.role.is_kernel:
            values /= np.float32(math.sqrt(fan_in))
        else:
            values = 0.1 * values + np.float32("SCALE" in slot.role.name)
        yield name_of(slot, "npz"), values


def load_bitzoo(source: Path) -> torch.nn.Module:
    return create_model(convert(source, force=True).output, pretrained=True)


def load_timm(source: Path, *, eps_exact: bool = False) -> torch.nn.Module:
    output = convert(source, target=Target("timm", eps_exact=eps_exact), force=True).output
    network = timm.create_model("resnetv2_50x1_bit", num_classes=CLASSES)
    network.load_state_dict(load_file(output), strict=True)
    return network.eval()


def load_transformers(source: Path, *, eps_exact: bool = False) -> torch.nn.Module:
    output = source.with_name(f"transformers-{eps_exact}")
    convert(source, output, target=Target("transformers", eps_exact=eps_exact), force=True)
    return BitForImageClassification.from_pretrained(output).eval()


CONTESTANTS: dict[str, Callable[[Path], torch.nn.Module]] = {
    "bitzoo": load_bitzoo,
    "timm": load_timm,
    "transformers": load_transformers,
    "timm, --eps-exact": lambda source: load_timm(source, eps_exact=True),
    "transformers, --eps-exact": lambda source: load_transformers(source, eps_exact=True),
}

if __name__ == "__main__":
    main()
