"""Printing: tables, proofs, progress. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import groupby
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from bitzoo.display import visible

if TYPE_CHECKING:
    from rich.progress import TaskID

    from bitzoo.converters.parity.logits import LogitsProof
    from bitzoo.converters.parity.verify import ParityReport
    from bitzoo.files import Progress


LINE = 80
"""Characters of a line of text that is wrapped: those of a terminal that nobody has resized."""


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

    say(json.dumps(data, indent=2).replace("\x7f", "\\u007f"))  # which JSON allows unescaped


@contextmanager
def prose_to_stderr(json: bool) -> Iterator[None]:
    """With `json`, send what a command says in its body to stderr: stdout is for the document."""
    with redirect_stdout(sys.stderr) if json else nullcontext():
        yield


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
    """Print names and values, values aligned and wrapped; a list begins a line per item."""
    width = max(len(name) for name, _ in facts) + 2
    lines = []
    for name, value in facts:
        label = name
        for item in value if isinstance(value, (list, tuple)) else [value]:
            text = in_line(item)
            for line in [text] if isinstance(item, PurePath) else _wrap(text, LINE - width):
                lines.append(f"{label:<{width}}{line}".rstrip())
                label = ""
    say("\n".join(lines))


def say_wrapped(text: str) -> None:
    """Print a paragraph."""
    say("\n".join(_wrap(text, LINE)))


def _wrap(text: str, width: int) -> list[str]:
    """Break text into lines, the second and later indented; addresses and paths stay whole."""
    return textwrap.wrap(
        text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    ) or [""]


def print_report(report: ParityReport) -> None:
    """Print the proof: what was compared, found and allowed, why so much, and the verdict."""
    groups = report.weights.by_change()
    for group in groups:
        found = f"weights: {group.tensors} tensors, {group.params:,} numbers: {group.found} "
        say_wrapped(f"{found}(allowed: {group.allowed}) {_verdict(not group.differing)}")
    proofs = sorted(report.logits, key=lambda proof: not proof.judged)
    for (basis, judged), same in groupby(proofs, lambda proof: (_basis(proof), proof.judged)):
        say("")
        what = "logits" if judged else "rounding, logits of the unrounded numbers"
        say_wrapped(f"{what}, oracles {basis}:" if basis else f"{what}:")
        print_table(
            ("oracle", "images", "dtype", "relative L2", "allowed", ""),
            [
                (
                    proof.oracle.partition(_ON)[0],
                    f"{proof.images} x {proof.size} px",
                    proof.dtype,
                    f"{proof.relative_l2:.1e}",
                    f"{proof.tolerance:.0e}" if judged else "stated",
                    _verdict(proof.passed) if judged else "",
                )
                for proof in same
            ],
        )
    rules = report.to_dict()
    say("")
    if report.logits:
        say_wrapped(f"Allowed is a {rules['logits_rule']}.")
    if "unrounded_rule" in rules:
        say_wrapped(f"Rounding is the {rules['unrounded_rule']}.")
    tensors = sum(group.tensors for group in groups)
    equal = tensors - sum(group.differing for group in groups)
    judged_proofs = [proof for proof in proofs if proof.judged]
    passed = sum(proof.passed for proof in judged_proofs)
    logits = (
        f"{passed} of {len(judged_proofs)} comparisons of logits"
        if judged_proofs
        else "logits not compared"
    )
    say(f"{_verdict(report.passed)}: {equal} of {tensors} tensors, {logits}")


_ON = " on "
"""In an oracle's name, what comes before the names by which it reads the weights."""


def _basis(proof: LogitsProof) -> str:
    _, on, basis = proof.oracle.partition(_ON)
    return (on + basis).strip()


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
