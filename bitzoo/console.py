"""What the commands print: tables, proofs, progress. Data goes to stdout, the rest to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import TaskID

    from bitzoo.converters.parity import Report
    from bitzoo.converters.tensors import Progress


def print_json(data: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headers, columns aligned, numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(header, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    # A pipe has no width: nothing is cut there.
    Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False).print(
        table, soft_wrap=True
    )


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Print names and values, one a line, values aligned; a list takes a line an item."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        for index, item in enumerate(items):
            print(f"{'' if index else name:<{width}}  {item}")


def print_report(report: Report) -> None:
    """Print what was proven, a line a comparison, with the figure and its limit."""
    weights = report.weights
    rows: list[tuple[object, ...]] = [
        (
            "weights",
            f"{weights.tensors} tensors, {weights.params:,} numbers",
            f"{len(weights.differing)} tensors differ" if weights.differing else "every bit equal",
            "equal",
            _verdict(weights.passed),
        )
    ]
    rows += [
        (
            "logits",
            f"{proof.oracle}, {proof.images} x {proof.size} px",
            f"{proof.relative_l2:.1e} relative L2",
            f"{proof.tolerance:.0e}",
            _verdict(proof.passed),
        )
        for proof in report.logits
    ]
    print_table(("proof", "compared with the source", "found", "allowed", ""), rows)


def _verdict(passed: bool) -> str:
    return "ok" if passed else "FAILED"


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Yield a callback that draws bars on stderr, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    tasks: dict[str, TaskID] = {}
    columns: list[Any] = [
        TextColumn("{task.description:<8}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(elapsed_when_finished=True),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done)

        yield show
