"""Attack the readers for as long as asked, and say what was found.

PYTHONPATH=tests python -m attacks 100000          # inputs, over all readers
PYTHONPATH=tests python -m attacks 10m npz torch   # for ten minutes, two of them
PYTHONPATH=tests python -m attacks --replay npz:17 --keep folder
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from attacks import engine
from attacks.engine import FINDINGS, Result
from attacks.figures import table, write_figures
from attacks.readers import TARGETS

_UNITS = {"s": 1, "m": 60, "h": 3600}


def main() -> int:
    """Run from the command line; 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="attacks", description=__doc__.split("\n")[0])
    parser.add_argument("budget", nargs="?", default="10000", help="inputs, or 90s, 10m, 2h")
    parser.add_argument("readers", nargs="*", help=f"some of {', '.join(TARGETS)}")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each")
    parser.add_argument("--workers", type=int, help="processes; by default one per processor")
    parser.add_argument("--replay", action="append", default=[], metavar="READER:NUMBER")
    parser.add_argument("--keep", type=Path, help="folder to write the inputs of --replay to")
    parser.add_argument("--log", type=Path, help="file for all findings, one a line")
    parser.add_argument("--results", type=Path, help="file for all results, as JSON lines")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/")
    options = parser.parse_args()
    if options.replay:
        return _replay(options)
    targets = [TARGETS[name] for name in options.readers or TARGETS]
    seconds = _seconds(options.budget)
    started = time.monotonic()
    log = options.log.open("a") if options.log else None

    def report(result: Result) -> None:
        if result.outcome in FINDINGS:
            print(result, flush=True)
            if log:
                print(result, file=log, flush=True)

    inputs = 0 if seconds else int(options.budget.replace(",", "").replace("_", ""))
    tally = engine.run(
        targets,
        inputs,
        first=options.first,
        seconds=seconds,
        workers=options.workers,
        report=report,
    )
    took = time.monotonic() - started
    if options.results:
        lines = (json.dumps(vars(result)) + "\n" for result in tally.all)
        options.results.write_text("".join(lines))
    print(table(tally))
    kinds = Counter((f.target, f.outcome, _kind(f)) for f in tally.findings)
    for (target, outcome, kind), count in kinds.most_common(60):
        print(f"{count:6,} {target} {outcome}: {kind}")
    print(f"{tally.total:,} inputs in {took:,.0f} s, {len(tally.findings):,} findings")
    print(f"of what was fine, at most {tally.slowest:.2f} s and {tally.largest / 2**20:.0f} MiB")
    if options.write:
        write_figures(tally, took)
    return bool(tally.findings)


def _seconds(budget: str) -> float | None:
    match = re.fullmatch(r"(\d+)([smh])", budget)
    return int(match[1]) * _UNITS[match[2]] if match else None


def _kind(finding: Result) -> str:
    """Words that findings of one cause have in common."""
    return re.sub(r"\d[\d,.]*", "#", finding.detail)[:110]


def _replay(options: argparse.Namespace) -> int:
    found = False
    for one in options.replay:
        name, _, number = one.rpartition(":")
        tally = engine.run(
            [TARGETS[name]], 1, first=int(number), workers=1, report=print, keep=options.keep
        )
        found = found or bool(tally.findings)
    return found


if __name__ == "__main__":
    sys.exit(main())
