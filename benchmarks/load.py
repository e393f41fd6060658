"""Time loading a converted checkpoint into a model, without imports: bitzoo and timm.

    python benchmarks/load.py [--arch R152x4] [--rounds 3] [--folder DIR]

Each run is a separate process that times `create_model` and then one forward pass at 64 px, which
reads the memory-mapped weights. The logits of both are compared once (timm's eps differs, which
hardly matters for He-scaled kernels).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import interleave, machine, make_checkpoint, run

from bitzoo.converters.convert import convert

NUM_CLASSES = 21_843
TIMED = """
import json, sys, time, torch
images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
path, name = sys.argv[1:]
{imports}
started = time.perf_counter()
model = {create}
loaded = time.perf_counter()
with torch.inference_mode():
    logits = model.eval()(images)
done = time.perf_counter()
print(json.dumps([loaded - started, done - loaded, logits[0, :8].tolist()]))
"""
CONTESTANTS = {
    "bitzoo": (
        "import bitzoo, bitzoo.zoo.create",
        "bitzoo.create_model('BiT-M-' + name, pretrained=path)",
    ),
    "timm": (
        "import timm",
        "timm.create_model('resnetv2_' + name[1:] + '_bit', num_classes=21843, "
        "checkpoint_path=path)",
    ),
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="R152x4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "random.npz"
        print(f"{options.arch}: creating a random checkpoint", file=sys.stderr)
        make_checkpoint(source, options.arch, NUM_CLASSES)
        path = convert(source).output
        source.unlink()
        print(compare(path, options.arch, options.rounds))


def compare(path: Path, name: str, rounds: int) -> str:
    """Measure both and return a table."""

    def contestant(who: str):
        imports, create = CONTESTANTS[who]
        code = TIMED.format(imports=imports, create=create)
        return lambda: run([sys.executable, "-c", code, path, name])

    samples = interleave({who: contestant(who) for who in CONTESTANTS}, rounds)
    rows, logits = {}, {}
    for who, runs in samples.items():
        figures = [json.loads(sample.output) for sample in runs]
        logits[who] = figures[0][2]
        peak = max(sample.peak_bytes for sample in runs) / 2**20
        rows[who] = [statistics.median(f[k] for f in figures) for k in (0, 1)] + [peak]
    worst = max(abs(a - b) for a, b in zip(*logits.values(), strict=True))
    if worst > 1e-3 * max(map(abs, logits["timm"])):
        raise SystemExit(f"the logits of bitzoo and timm differ by {worst}")
    lines = [
        f"### {name}, {path.stat().st_size / 1e9:.2f} GB",
        "",
        "| | create_model s | first forward s | peak MiB | timm / this |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {who} | {load:.2f} | {first:.2f} | {peak:.0f} | {rows['timm'][0] / load:.1f} |"
        for who, (load, first, peak) in rows.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
