"""The files of a run in progress: its options, and one line of metrics per step.

`run.json` has everything that determines the result, so that resuming with another data set, recipe
or seed is refused. `metrics.jsonl` has one object per line.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitzoo.errors import UsageError
from bitzoo.files import read_json_lines, write_json, write_text

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_NAME = "checkpoints"


class RunDir:
    """The records in one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics = folder / METRICS_NAME

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS_NAME

    def open(self, identity: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Start a run in this folder, or continue the one that is in it.

        Args:
            identity: Everything that determines the result, as JSON-ready data.
            resume: Whether to continue an existing run.
            overwrite: Whether to delete an existing run.

        Raises:
            UsageError: If there is a run and neither is requested, or if it is another run.
        """
        if resume and overwrite:
            raise UsageError("`resume` and `overwrite` contradict each other. Choose one.")
        record = self.folder / RUN_NAME
        try:
            if self.folder.exists() and any(self.folder.iterdir()):
                self._enter(record, identity, resume, overwrite)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(record, dict(identity))
        except OSError as error:
            raise UsageError(
                f"{self.folder}: cannot be used for a run ({error.strerror or error}). Choose "
                "another `out`."
            ) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to the metrics."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what was recorded after `step` updates; those steps are trained again."""
        kept = [record for record in self.history() if record.get("step", 0) <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_text(self._metrics, text)

    def history(self) -> list[dict[str, Any]]:
        """Return the metrics so far, without a line that a killed process left incomplete."""
        return read_json_lines(self._metrics)

    def _enter(
        self, record: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool
    ) -> None:
        """Check that the existing run may be continued, or remove it."""
        if not record.is_file():
            raise UsageError(
                f"{self.folder} has files but no run in it. Choose another `out`, so that none of "
                "your files is lost."
            )
        if overwrite:
            shutil.rmtree(self.folder)
        elif not resume:
            raise UsageError(
                f"{self.folder} already has a run. Continue it with `resume=True`, or delete it "
                "and start again with `overwrite=True`."
            )
        else:
            _require_equal(json.loads(record.read_text(encoding="utf-8")), identity, self.folder)


def _require_equal(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    now = json.loads(json.dumps(now))
    lines = [
        f"  - {key}: {json.dumps(before.get(key))}\n  + {key}: {json.dumps(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if lines:
        raise UsageError(
            f"{folder} was started with other options (-) than these (+), so it cannot continue:\n"
            + "\n".join(lines)
            + "\nUse the same options, or start again in another `out`."
        )
