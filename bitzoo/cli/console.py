"""Printing: tables, proofs, progress. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import groupby, zip_longest
from pathlib import PurePath
from typing import TYPE_CHECKING

from bitzoo.display import visible
from bitzoo.progress_line import columns_of, cut

if TYPE_CHECKING:
    from bitzoo.converters.parity.logits import LogitsProof
    from bitzoo.converters.parity.verify import ParityReport
    from bitzoo.progress import Live

_NARROWEST = 12
"""Columns to which a column of text is narrowed, at most."""


LINE = 80
"""Characters of a line of text where there is no terminal to fit."""
_LONGEST = 100
"""Most characters of a line of text on a wide terminal."""


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
    """Print rows under headers in aligned columns, numbers to the right; nothing is truncated.

    On a terminal that is too narrow, the cells of the widest columns of text take several lines.
    """
    table = [tuple(headers), *(tuple(_cell(cell) for cell in row) for row in rows)]
    numeric = [
        bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        for index in range(len(headers))
    ]
    widths = [max(map(columns_of, column)) for column in zip(*table, strict=True)]
    if room := terminal_width():
        widths = _narrowed(widths, numeric, room - 2 * (len(widths) - 1))
    lines = []
    for row in table:
        cells = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
        for pieces in zip_longest(*cells, fillvalue=""):
            padded = [
                _padding(piece, width) + piece if right else piece + _padding(piece, width)
                for piece, width, right in zip(pieces, widths, numeric, strict=True)
            ]
            lines.append("  ".join(padded).rstrip())
    say("\n".join(lines))


def _narrowed(widths: Sequence[int], numeric: Sequence[bool], room: int) -> list[int]:
    """Return widths whose sum is at most `room`, if texts may be cut down to `_NARROWEST`."""
    narrowed = list(widths)
    while sum(narrowed) > room:
        text = [index for index, is_number in enumerate(numeric) if not is_number]
        widest = max(text, key=lambda index: narrowed[index], default=None)
        if widest is None or narrowed[widest] <= _NARROWEST:
            break
        narrowed[widest] -= 1
    return narrowed


def _broken(text: str, width: int) -> list[str]:
    """Return a text in lines of at most `width` columns, broken at spaces and behind slashes."""
    if columns_of(text) <= width:
        return [text]
    lines = [""]
    for word in re.findall(r"\S+?/|\S+|\s+", text):
        if columns_of(lines[-1] + word.rstrip()) <= width:
            lines[-1] += word
            continue
        word = word.lstrip()
        while columns_of(word) > width:
            piece = cut(word, width)
            lines.append(piece)
            word = word[len(piece) :]
        if word:
            lines.append(word)
    return [line.rstrip() for line in lines if line.strip()]


def _padding(text: str, width: int) -> str:
    return " " * (width - columns_of(text))


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is; None if it is none, as a file or a pipe.

    A table in a file has lines of any length: they are for programs, which would have to join them.
    """
    if not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns, 2 * _NARROWEST)


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
            for line in [text] if isinstance(item, PurePath) else _wrap(text, _line() - width):
                lines.append(f"{label:<{width}}{line}".rstrip())
                label = ""
    say("\n".join(lines))


def say_wrapped(text: str, indent: str = "") -> None:
    """Print a paragraph, all lines indented."""
    say(textwrap.indent("\n".join(_wrap(text, _line() - len(indent))), indent))


def _line() -> int:
    return min(terminal_width() or LINE, _LONGEST)


def _wrap(text: str, width: int) -> list[str]:
    """Break text into lines, the second and later indented; addresses and paths stay whole."""
    return textwrap.wrap(
        text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    ) or [""]


def is_answered() -> bool:
    """Whether there is a terminal on which a question can be asked and answered."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask on stderr; returns whether the answer is yes. No answer is no."""
    import click

    try:
        return click.confirm(question, err=True)
    except click.Abort:  # no terminal and no answer
        return False


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
def progress_bar() -> Iterator[Live]:
    """Yield a callback that shows progress on stderr: one live line, or a plain line now and then.

    It is a `bitzoo.files.Progress` that can do more; see `bitzoo.progress`. While nothing is
    reported, it shows the command's name and the time.
    """
    import click

    from bitzoo.progress import live

    context = click.get_current_context(silent=True)
    with live(label=(context.info_name or "") if context else "") as progress:
        yield progress
