"""What all kinds of records under attack share: how a kind is described, and lists in CSV."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.mutations import TEXTS, damage, damaged_json

HASH = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, its content, how to damage it and how to read it."""

    name: str
    content: bytes
    change: Callable[[bytes, random.Random], tuple[bytes, str]]
    read: Callable[[Path], Any]
    agrees: Callable[[bytes, Any], bool]


def changed_csv(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.4:
        return damage(data, rng)
    rows = [line.split(b",") for line in data.split(b"\r\n")]
    row = rng.choice(rows)
    odd = rng.choice(
        (*TEXTS, '"', '""', 'a"b', "a,b", "\r", "\n", "path", "", "\ufeff", "x" * 140_000)
    )
    row[rng.randrange(len(row))] = odd.encode(errors="surrogatepass")
    return b"\r\n".join(b",".join(row) for row in rows), f"cell {odd[:20]!r}"


def changed_lines(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damage one line of JSON among others, or the lines."""
    if rng.random() < 0.3:
        return damage(data, rng)
    lines = data.split(b"\n")
    at = rng.randrange(len(lines) - 1)
    lines[at], what = damaged_json(lines[at], rng)
    return rng.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines), what


def rfc4180(text: str) -> list[list[str]]:
    """Rows of cells; blanks before a cell are skipped, as is usual."""
    rows: list[list[str]] = [[""]]
    quoted, at = False, 0
    while at < len(text):
        c, cell = text[at], rows[-1][-1]
        if quoted:
            if c == '"' and text[at + 1 : at + 2] == '"':
                rows[-1][-1] += '"'
                at += 1
            elif c == '"':
                quoted = False
            else:
                rows[-1][-1] += c
        elif c == '"' and not cell:
            quoted = True
        elif c == ",":
            rows[-1].append("")
        elif c in "\r\n":
            rows.append([""])
        elif c != " " or cell:
            rows[-1][-1] += c
        at += 1
    return rows
