"""Time the conversion of an npz checkpoint, as a whole process: bitzoo, timm, and `cp` as baseline.

    python benchmarks/convert.py [--archs R50x3,R152x4] [--rounds 3] [--folder DIR]

Creates random checkpoints in Google's layout with 21,843 classes, checks once that the outputs of
bitzoo and timm are equal bit for bit, and prints a table. R152x4 needs up to 15 GB of disk; timm is
skipped for it unless --timm-everywhere is given, because it needs 9 GB of memory and a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from measure import Sample, in_subprocess, interleave, machine, make_checkpoint, run, table
from safetensors import safe_open

NUM_CLASSES = 21_843
TIMM = """
import sys, timm, safetensors.torch
model = timm.create_model(sys.argv[3], num_classes=int(sys.argv[4]))
model.load_pretrained(sys.argv[1])
safetensors.torch.save_file(model.state_dict(), sys.argv[2])
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="R50x3,R152x4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--timm-everywhere", action="store_true")
    options = parser.parse_args()
    print(machine())
    for name in options.archs.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(compare(name, Path(folder), options.rounds, options.timm_everywhere))


def compare(name: str, folder: Path, rounds: int, timm_everywhere: bool) -> str:
    """Measure one architecture and return its table."""
    source = folder / f"{name}.npz"
    print(f"{name}: creating a random checkpoint", file=sys.stderr)
    make_checkpoint(source, name, NUM_CLASSES)
    ours, theirs, copy = (folder / f"{who}.safetensors" for who in ("bitzoo", "timm", "cp"))

    def bitzoo(check: str) -> Sample:
        for old in (ours, folder / "parity.json"):  # so that removing it is not timed
            old.unlink(missing_ok=True)
        convert = [Path(sys.executable).with_name("bitzoo-convert"), "--src", source]
        return run([*map(str, convert), "--dst", ours, "--check", check])

    def timm() -> Sample:
        theirs.unlink(missing_ok=True)
        model = f"resnetv2_{name[1:]}_bit"
        return run([sys.executable, "-c", TIMM, source, theirs, model, str(NUM_CLASSES)])

    def cp() -> Sample:
        copy.unlink(missing_ok=True)
        return run(["cp", source, copy])

    contestants = {
        "cp": cp,
        "bitzoo --check weights": lambda: bitzoo("weights"),
        "bitzoo --check none": lambda: bitzoo("none"),
    }
    if timm_everywhere or name != "R152x4":
        contestants["timm"] = timm
    samples = interleave(contestants, rounds)
    if theirs.exists():
        in_subprocess(require_equal, ours, theirs)  # keeps its memory out of the measurements
    return table(f"{name}, {source.stat().st_size / 1e9:.2f} GB", samples, "cp", rival="timm")


def require_equal(ours: Path, theirs: Path) -> None:
    """Exit with an error unless two safetensors files hold the same tensors, bit for bit."""
    with safe_open(ours, "np") as one, safe_open(theirs, "np") as two:
        if set(one.keys()) != set(two.keys()):
            raise SystemExit("the outputs of bitzoo and timm have different tensor names")
        for name in one.keys():  # noqa: SIM118 - safe_open is not a mapping
            if one.get_tensor(name).tobytes() != two.get_tensor(name).tobytes():
                raise SystemExit(f"the outputs of bitzoo and timm differ in {name}")


if __name__ == "__main__":
    main()
