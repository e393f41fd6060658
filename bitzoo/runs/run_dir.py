"""The files of a run in progress: its options, and one line of metrics per step.

`run.json` has everything that determines the result, so that resuming with another data set, recipe
or seed is refused. `metrics.jsonl` has one object per line. Training goes on from the checkpoints
alone: where the other two are damaged, it goes on too, and a warning says what was left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitzoo.display import shortened
from bitzoo.errors import BitzooError, CheckpointError, UsageError
from bitzoo.files import remove_unfinished, write_json, write_text
from bitzoo.small_files import read_json, read_json_lines
from bitzoo.training.checkpointing import Checkpoint, latest_checkpoint

RUN_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_NAME = "checkpoints"
STARTED_WITH = "started_with"
"""Key in a checkpoint's metadata: `digest_of` the run's options."""

_NUMBERS = {"train": ("loss", "lr"), "eval": ("top1", "top5", "loss", "count")}
"""What a line of the metrics must have besides its step, by its event."""
_log = logging.getLogger(__name__)


def digest_of(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a run's options, by which a checkpoint knows its run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class RunDir:
    """The records in one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._record = folder / RUN_NAME
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
            UsageError: If there is a run and neither is requested, or if it is another run, or
                damaged beyond what can be continued.
        """
        if resume and overwrite:
            raise UsageError("`resume` and `overwrite` contradict each other. Choose one.")
        with self.writing("Choose another `out`."):
            remove_unfinished(self.folder)
            if self.folder.exists() and any(self.folder.iterdir()):
                self._enter(identity, resume, overwrite)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._record, dict(identity))

    @contextlib.contextmanager
    def writing(
        self, advice: str = "Free some space or repair the disk, then continue with `resume=True`."
    ) -> Iterator[None]:
        """Report what the system refuses in the body as an error of this folder.

        Raises:
            UsageError: With the path, the reason and `advice`.
        """
        try:
            yield
        except OSError as error:
            if isinstance(error, BitzooError):
                raise
            place, reason = error.filename or self.folder, error.strerror or error
            raise UsageError(
                f"{self.folder}: cannot be used for a run ({place}: {reason}). {advice}"
            ) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to the metrics.

        Raises:
            UsageError: If it cannot be written, as on a full disk.
        """
        with self.writing(), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, step: int, steps: int) -> None:
        """Drop what was recorded after `step` of `steps` updates, which happens again.

        That includes the evaluation after the last update, because every run ends with it. Of
        several records of the same event and step, the last stays.

        Raises:
            UsageError: If the metrics cannot be written.
        """
        kept = {
            (record["event"], record["step"]): record
            for record in self.history()
            if record["step"] <= step and (record["event"] != "eval" or record["step"] < steps)
        }
        text = "".join(json.dumps(record) + "\n" for record in kept.values())
        with self.writing():
            write_text(self._metrics, text)

    def history(self) -> list[dict[str, Any]]:
        """Return the metrics so far; lines that cannot be used are left out with a warning.

        A last line that a killed process left incomplete is left out in silence: its step is made
        again.
        """
        if not self._metrics.is_file():
            return []
        try:
            with self.writing():
                lines = read_json_lines(self._metrics)
        except CheckpointError as error:
            _log.warning("%s It is left out; the weights do not depend on it.", error)
            return []
        found = [line for line in lines if line is not None and _is_usable(line)]
        if len(lines) > len(found):
            _log.warning(
                "%s: %d of %d lines are damaged and left out; the weights do not depend on them.",
                self._metrics,
                len(lines) - len(found),
                len(lines),
            )
        return found

    def _enter(self, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        """Check that the existing run may be continued, or remove it."""
        has_record = self._record.is_file()
        newest = latest_checkpoint(self.checkpoints) if resume and not has_record else None
        if not has_record and newest is None:
            raise UsageError(
                f"{self.folder} has files but no run in it. Choose another `out`, so that none of "
                "your files is lost."
            )
        if overwrite:
            self._clear()
        elif not resume:
            raise UsageError(
                f"{self.folder} already has a run. Continue it with `resume=True`, or delete it "
                "and start again with `overwrite=True`."
            )
        elif (before := self._started_with()) is not None:
            _require_equal(before, identity, self.folder)
        else:
            self._require_same_run(newest or latest_checkpoint(self.checkpoints), identity)

    def _clear(self) -> None:
        """Remove everything but `run.json`, by which a killed `overwrite` is known as a run."""
        entries = sorted(self.folder.iterdir(), key=lambda entry: entry.name != CHECKPOINTS_NAME)
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != RUN_NAME:
                entry.unlink()

    def _started_with(self) -> dict[str, Any] | None:
        """Return the options in `run.json`; None if it is missing or damaged."""
        if not self._record.is_file():  # reading a pipe would wait
            return None
        try:
            return read_json(self._record)
        except CheckpointError:
            return None

    def _require_same_run(self, newest: Checkpoint | None, identity: Mapping[str, Any]) -> None:
        """Check by the newest checkpoint that a run without its options may be continued."""
        if newest is None:
            raise UsageError(
                f"{self._record}: expected the options of the run as JSON, found something else, "
                "and there is no undamaged checkpoint to continue from. Start again with "
                "`overwrite=True`, or choose another `out`."
            )
        digest = newest.meta.get(STARTED_WITH)
        if digest and digest != digest_of(identity):
            raise UsageError(
                f"{self.folder} was started with other options than these, so it cannot continue. "
                f"{RUN_NAME}, which would say which, is missing or damaged. Use the same options, "
                "or start again in another `out`."
            )
        _log.warning(
            "%s is missing or damaged, and is written anew: %s",
            self._record,
            "the checkpoint shows that the options are those of the run."
            if digest
            else "whether the run was started with the same options cannot be checked.",
        )


def _is_usable(record: Mapping[str, Any]) -> bool:
    step, needed = record.get("step"), _NUMBERS.get(str(record.get("event")))
    if needed is None or type(step) is not int or step < 0:
        return False
    return all(type(record.get(key)) in (int, float) for key in needed)


def _require_equal(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    now = json.loads(json.dumps(now))
    lines = [
        f"  {sign} {shortened(key, 100)}: {shortened(json.dumps(values.get(key)), 100)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        for sign, values in (("-", before), ("+", now))
    ]
    if lines:
        raise UsageError(
            f"{folder} was started with other options (-) than these (+), so it cannot continue:\n"
            + shortened("\n".join(lines), 1_500)
            + "\nUse the same options, or start again in another `out`."
        )
