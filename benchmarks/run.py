"""Run the benchmarks one after the other, and write their output to `RESULTS.md`.

    python benchmarks/run.py [--quick] [--out benchmarks/RESULTS.md] [NAME ...]

Without names, all of `SCRIPTS` run. `--quick` takes less than five minutes, and writes nothing
unless `--out` is given. Sections of scripts that do not run stay unchanged in the file.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"

SCRIPTS = {
    "startup": "Start-up",
    "inference": "Inference",
    "speed": "Speed of the released classifiers",
    "waiting": "Beside a busy process",
    "load": "Loading",
    "convert": "Conversion",
    "finetune": "Fine-tuning",
    "training_floor": "Training beside its floor",
    "linear_probe": "Linear probe",
    "probe": "Probe",
    "one_pass": "One pass over the files",
    "estimate": "Estimates",
    "peers": "Distance from Google's function",
    "gradient_sum": "Gradients of two processes",
    "distillation": "Distillation",
}
"""Script -> heading of its section."""

QUICK = {
    "speed": ["--rounds", "1", "--cheapest", "4"],
    "load": ["--arch", "R50x1", "--rounds", "1"],
    "convert": ["--archs", "R50x1", "--rounds", "1"],
    "peers": [],
    "training_floor": ["--size", "64", "--batch", "4", "--rounds", "1"],
    "linear_probe": ["--images", "100", "--size", "64", "--forms", "float32"],
    "one_pass": ["--images", "200", "--rounds", "1", "--files", "1000"],
    "estimate": ["--stretch", "20", "--resolution", "36,32", "--batch-size", "16"],
}
"""Arguments for a quick run of the scripts that have no ``--quick``."""

INTRODUCTION = """# Results

The contestants of a table ran in turn on one machine: compare ratios within a table, and the
minimum as well as the median. Weights are random, in Google's layout.
"""


def main() -> None:
    """Run the requested benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"benchmarks: {', '.join(SCRIPTS)}")
    parser.add_argument("--quick", action="store_true", help="finish within five minutes")
    parser.add_argument("--out", type=Path, help="file to write the results to")
    options = parser.parse_args()
    unknown = set(options.names) - set(SCRIPTS)
    if unknown:
        parser.error(
            f"expected benchmarks of {', '.join(SCRIPTS)}, found {', '.join(sorted(unknown))}"
        )
    out = options.out or (None if options.quick else RESULTS)
    sections = read_sections(out) if out else {}
    for name in options.names or SCRIPTS:
        words = QUICK.get(name, ["--quick"]) if options.quick else []
        sections[SCRIPTS[name]] = section(name, words)
        if out:  # after each, so that an interruption loses nothing
            out.write_text(render(sections), encoding="utf-8")


def section(name: str, words: list[str]) -> str:
    """Run one script, echo its output, and return its section."""
    command = f"python benchmarks/{name}.py {' '.join(words)}".strip()
    print(f"== {command}", flush=True)
    lines = [f"`{command}`", ""]
    script = [sys.executable, str(HERE / f"{name}.py"), *words]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    if process.returncode:
        raise SystemExit(f"{name} exited with {process.returncode}")
    return "\n".join(lines).strip()


def read_sections(path: Path) -> dict[str, str]:
    """Return heading -> text of the sections of a results file."""
    if not path.is_file():
        return {}
    pieces = re.split(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        heading.strip(): text.strip()
        for heading, text in zip(pieces[::2], pieces[1::2], strict=True)
    }


def render(sections: dict[str, str]) -> str:
    """Return the file's text: known sections in the order of `SCRIPTS`, then any others."""
    order = [heading for heading in SCRIPTS.values() if heading in sections]
    order += [heading for heading in sections if heading not in order]
    return INTRODUCTION + "".join(f"\n## {name}\n\n{sections[name]}\n" for name in order)


if __name__ == "__main__":
    main()
