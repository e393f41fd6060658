"""Printing: tables, proofs, progress. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bitzoo.display import visible

if TYPE_CHECKING:
    from rich.progress import TaskID

    from bitzoo.converters.parity.verify import ParityReport
    from bitzoo.files import Progress


def say(text: str, *, error: bool = False) -> None:
    """Print one or several lines at once; raises here if the pipe is broken.

    Everything that a command prints goes through here, so that nothing from a file acts on the
    terminal; see `visible`.

    Args:
        text: The lines.
        error: Whether to print to stderr, as everything but data.
    """
    print(visible(text), file=sys.stderr if error else sys.stdout, flush=True)


def print_json(data: object) -> None:
    """Print one JSON document, in ASCII; JSON's own escapes are left to who reads it."""
    import json

    say(json.dumps(data, indent=2))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headers in aligned columns, numbers to the right; nothing is truncated."""
    columns = list(zip(headers, *([_cell(cell) for cell in row] for row in rows), strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [
        bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        for index in range(len(headers))
    ]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in zip(*columns, strict=True)
    )
    say("\n".join(lines))


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else in_line(value)


def in_line(value: object) -> str:
    """Return a value as visible text in one line: a name with a line break fakes no other line."""
    return visible(str(value)).replace("\n", "\\n")


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Print names and values, one per line, values aligned; a list takes a line per item."""
    width = max(len(name) for name, _ in facts)
    lines = []
    for name, value in facts:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        lines += [
            f"{'' if index else name:<{width}}  {in_line(item)}".rstrip()
            for index, item in enumerate(items)
        ]
    say("\n".join(lines))


def print_report(report: ParityReport) -> None:
    """Print the proof: a line per comparison, with figure and limit, then the limit's reason."""
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
            f"{proof.oracle}, {proof.images} x {proof.size} px, {proof.dtype}",
            f"{proof.relative_l2:.1e} relative L2",
            f"{proof.tolerance:.0e}",
            _verdict(proof.passed),
        )
        for proof in report.logits
    ]
    print_table(("proof", "compared with the source", "found", "allowed", ""), rows)
    if report.logits:
        say("\n" + textwrap.fill(f"Allowed is a {report.to_dict()['logits_rule']}.", 100))


def _verdict(passed: bool) -> str:
    return "ok" if passed else "FAILED"


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Yield a callback that draws bars on stderr, or None if stderr is not a terminal."""
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
