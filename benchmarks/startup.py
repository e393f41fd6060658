"""Measure start-up times, as whole processes from start to end.

    python benchmarks/startup.py [--rounds 9] [--quick]

The baseline is Python itself, doing nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measure import interleave, machine, run, table

BIN = Path(sys.executable).parent
CONTESTANTS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import bitzoo": [sys.executable, "-c", "import bitzoo"],
    "bitzoo --help": [BIN / "bitzoo", "--help"],
    "bitzoo list": [BIN / "bitzoo", "list"],
    "bitzoo info BiT-M-R50x1": [BIN / "bitzoo", "info", "BiT-M-R50x1"],
    "bitzoo hyperrule": [BIN / "bitzoo", "hyperrule", "--examples", "3000", "--size", "480x640"],
    "import numpy": [sys.executable, "-c", "import numpy"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import timm": [sys.executable, "-c", "import timm"],
    "import transformers": [sys.executable, "-c", "import transformers"],
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    print(machine())
    runs = {who: (lambda words=words: run(words)) for who, words in CONTESTANTS.items()}
    samples = interleave(runs, 3 if options.quick else options.rounds)
    print(table("Whole processes", samples, baseline="python -c pass"))


if __name__ == "__main__":
    main()
