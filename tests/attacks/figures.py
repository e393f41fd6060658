"""The figures of a run as a table, and their place in the documentation."""

from __future__ import annotations

import platform
from pathlib import Path

from attacks.engine import OUTCOMES, READ, Tally

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "attacks.md"
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->\n"


def table(tally: Tally) -> str:
    """One row per reader, and their sum."""
    columns = ("inputs", *("read, equal" if name == READ else name for name in OUTCOMES))
    rows = []
    for name, counts in tally.counts.items():
        rows.append((name, [sum(counts.values()), *(counts[outcome] for outcome in OUTCOMES)]))
    rows.append(("all", [sum(column) for column in zip(*(r[1] for r in rows), strict=True)]))
    lines = [f"| reader | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    lines += [f"| {name} | {' | '.join(f'{n:,}' for n in figures)} |" for name, figures in rows]
    return "\n".join(lines)


def write_figures(tally: Tally, seconds: float) -> None:
    """Replace the figures in the documentation."""
    import bitzoo

    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    words = (
        f"bitzoo {bitzoo.__version__}, Python {platform.python_version()}, "
        f"{tally.total:,} inputs in {seconds / 60:.0f} minutes. Of the inputs without a finding, "
        f"the slowest took {tally.slowest:.1f} s of processor time, the largest added "
        f"{tally.largest / 2**20:.0f} MiB."
    )
    PAGE.write_text(f"{before}{BEGIN}\n{words}\n\n{table(tally)}\n\n{END}{after}", encoding="utf-8")
