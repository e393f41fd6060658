"""`metrics.csv`: the metrics of a run as a table, one line per step.

It says what `metrics.jsonl` says, for spreadsheets and `pandas.read_csv`. An evaluation stands in
the line of the step that it followed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bitzoo.files import write_text

CSV_NAME = "metrics.csv"
COLUMNS: Mapping[str, tuple[str, str]] = {
    "loss": ("train", "loss"),
    "lr": ("train", "lr"),
    "images_per_s": ("train", "images_per_s"),
    "top1": ("eval", "top1"),
    "top5": ("eval", "top5"),
    "eval_loss": ("eval", "loss"),
    "eval_count": ("eval", "count"),
}
"""Column besides `step` -> the event and the name under which `metrics.jsonl` has it."""


class MetricsTable:
    """The table of one run."""

    def __init__(self, path: Path) -> None:
        """Begin; nothing is written yet.

        Args:
            path: The file.
        """
        self._path = path
        self._step: int | None = None
        self._row: dict[str, Any] = {}
        self._start = 0

    def rewrite(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Write the table anew, atomically, from the lines of `metrics.jsonl`."""
        rows: dict[int, dict[str, Any]] = {}
        for record in history:
            row = rows.setdefault(int(record["step"]), {"step": record["step"]})
            row.update(_cells(record))
        write_text(self._path, _lines(None, *(rows[step] for step in sorted(rows))))
        self._step = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line of `metrics.jsonl`: a row, or more cells of the last row."""
        step = int(record["step"])
        with self._path.open("r+b") as file:
            if step == self._step:  # the last row is replaced
                file.truncate(self._start)
            else:
                self._step, self._row = step, {"step": step}
            self._start = file.seek(0, io.SEEK_END)
            self._row.update(_cells(record))
            file.write(_lines(self._row).encode())


def _cells(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        column: record[name]
        for column, (event, name) in COLUMNS.items()
        if record["event"] == event and name in record
    }


def _lines(*rows: Mapping[str, Any] | None) -> str:
    """Return rows as CSV (RFC 4180, but with plain line ends); None is the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *COLUMNS], lineterminator="\n")
    for row in rows:
        if row is None:
            writer.writeheader()
        else:
            writer.writerow(row)
    return text.getvalue()
