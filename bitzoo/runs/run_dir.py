"""The files of a run: its options and changes, and one line of metrics per step.

`run.json` has the run's random `run_id`, everything that determines the result, so that resuming
with another data set, recipe or seed is refused, and all other options, so that `resume` needs
none. `metrics.jsonl` has one object per line. Both and every checkpoint name the run by its id, so
that what another run left is never taken for this one's. Training goes on from the checkpoints
alone: where the other two are damaged, it goes on too, and a warning says what was left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bitzoo.converters.formats.timm_config import CONFIG_NAME
from bitzoo.data.run_folders import RUN_LOCK_NAME, RUN_NAME
from bitzoo.data.split_record import SPLIT_NAME
from bitzoo.errors import BitzooError, CheckpointError, UsageError
from bitzoo.files import remove_unfinished, sha256_of, write_json, write_text
from bitzoo.runs.differences import differences
from bitzoo.runs.metrics_csv import CSV_NAME
from bitzoo.runs.report.artifacts import CARD_NAME, EVALUATION_NAME, REPORT_NAME
from bitzoo.runs.trackers import FOLDER_NAME, WANDB
from bitzoo.small_files import read_json, read_json_lines
from bitzoo.training.checkpointing import FILES, Checkpoint, latest_checkpoint, set_aside
from bitzoo.zoo.resolve import WEIGHTS_NAME

METRICS_NAME = "metrics.jsonl"
SESSIONS_NAME = "sessions.json"
CHECKPOINTS_NAME = "checkpoints"
STARTED_WITH = "started_with"
"""Key in a checkpoint's metadata: `digest_of` the run's options."""
RUN_ID = "run_id"
"""Key in `run.json`, in a checkpoint's metadata and in each line of the metrics: the run's id."""

OUTPUTS = (
    f"{CHECKPOINTS_NAME}/{FILES}",
    f"{FOLDER_NAME}/events.out.tfevents.*",
    f"{WANDB}/**/*",
    METRICS_NAME,
    CSV_NAME,
    SESSIONS_NAME,
    SPLIT_NAME,
    WEIGHTS_NAME,
    CONFIG_NAME,
    EVALUATION_NAME,
    REPORT_NAME,
    CARD_NAME,
    RUN_NAME,
)
"""What a run writes, as patterns below its folder; `overwrite` removes this and nothing else.

`run.json` is the last, so that what a killed `overwrite` leaves is still known as a run.
"""

_ABOUT_THE_RUN = (RUN_ID, "started", "options", "changes", "finished", "card")
"""Keys of `run.json` that do not determine the result."""
_EDITED_CARD = "README.edited{}.md"
_NUMBERS = {"train": ("loss", "lr"), "eval": ("top1", "top5", "loss", "count")}
"""What a line of the metrics must have besides its step, by its event."""
_log = logging.getLogger(__name__)


def digest_of(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a run's options, by which a checkpoint knows its run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def now() -> str:
    """Return the local date and time with its offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


class RunDir:
    """The records in one run folder.

    Attributes:
        folder: The folder.
        run_id: The run's random id; None before `open`.
        changes: What was changed since the run started, in order: objects with `step` (updates made
            before), `key`, `old`, `new` and `date`.
        kept: What `open` with `overwrite` left in the folder, because no run wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_id: str | None = None
        self.changes: list[dict[str, Any]] = []
        self.kept: list[str] = []
        self._record = folder / RUN_NAME
        self._metrics = folder / METRICS_NAME
        self._content: dict[str, Any] = {}

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS_NAME

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the result, as it was when the run started."""
        return {k: v for k, v in self._content.items() if k not in _ABOUT_THE_RUN}

    @property
    def mark(self) -> dict[str, Any]:
        """What the metadata of each checkpoint say about the run."""
        mark = {STARTED_WITH: digest_of(self.identity), RUN_ID: self.run_id}
        return mark | ({"changes": self.changes} if self.changes else {})

    def require_possible(self, *, resume: bool, overwrite: bool) -> None:
        """Check what needs no knowledge of the data: whether there is a run, and what to do.

        Raises:
            UsageError: If there is a run and neither is requested, or if there are other files.
        """
        if resume and overwrite:
            raise UsageError("`resume` and `overwrite` contradict each other. Choose one.")
        if not self._has_files():
            return
        has_record = self._record.is_file()
        if not has_record and (not resume or latest_checkpoint(self.checkpoints) is None):
            raise UsageError(
                f"{self.folder} has files but no run in it. Choose another `out`, so that none of "
                "your files is lost."
            )
        if not resume and not overwrite:
            raise UsageError(
                f"{self.folder} already has a run. Continue it with `resume=True`, or delete it "
                "and start again with `overwrite=True`."
            )

    def open(
        self,
        identity: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a run in this folder, or continue the one that is in it.

        The caller sees to it that no other process does the same; see `bitzoo.runs.run_lock`.

        Args:
            identity: Everything that determines the result, as JSON-ready data.
            resume: Whether to continue an existing run.
            overwrite: Whether to delete an existing run. Files that no run wrote stay.
            options: All that `bitzoo resume` needs to do the same again, as JSON-ready data.

        Raises:
            UsageError: If there is a run and neither is requested, or if it is another run, or
                damaged beyond what can be continued.
        """
        with self.writing("Choose another `out`."):
            # Saving a checkpoint clears its folder, too, but a run at its end saves none.
            for folder in (self.folder, self.checkpoints):
                remove_unfinished(folder)
            self.require_possible(resume=resume, overwrite=overwrite)
            content = {**identity, RUN_ID: secrets.token_hex(8), "started": now()}
            if self._has_files():
                if overwrite:
                    self._clear()
                else:
                    content |= self._continued(identity)
            self.folder.mkdir(parents=True, exist_ok=True)
            content["options"] = dict(options or {})
            content.pop("finished", None)  # until it is again
            self._content = content
            self.run_id, self.changes = content[RUN_ID], content.get("changes", [])
            self._write()
            for path in set_aside(self.checkpoints, self._is_ours):
                _log.warning(
                    "%s: the folder had this checkpoint of another run. It is not used, and was "
                    "renamed.",
                    path,
                )

    def change(self, step: int, key: str, old: object, new: object) -> None:
        """Record that an option has another value from `step` updates on."""
        entry = {"step": step, "key": key, "old": old, "new": new, "date": now()}
        self.changes = [*self.changes, entry]
        self._content["changes"] = self.changes
        with self.writing():
            self._write()

    def finish(self, step: int) -> None:
        """Record that the run has ended after `step` updates and all its files are written."""
        card = self.folder / CARD_NAME
        with self.writing():
            self._content["finished"] = {"step": step, "date": now()}
            self._content["card"] = sha256_of(card) if card.is_file() else None
            self._write()

    def keep_edited_card(self) -> Path | None:
        """Rename a card that is not the one that the run wrote, before it is written again.

        Returns:
            Its new path; None if there was nothing to rename.

        Raises:
            UsageError: If it cannot be renamed.
        """
        with self.writing():
            return self._keep_edited_card(self._content.get("card"))

    def _keep_edited_card(self, written: object) -> Path | None:
        card = self.folder / CARD_NAME
        if not isinstance(written, str) or not card.is_file() or sha256_of(card) == written:
            return None
        names = (_EDITED_CARD.format(f"-{n}" if n else "") for n in itertools.count())
        kept = next(p for p in (self.folder / name for name in names) if not p.exists())
        card.rename(kept)
        return kept

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
            file.write(self._line(record))

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
        text = "".join(map(self._line, kept.values()))
        with self.writing():
            write_text(self._metrics, text)

    def history(self) -> list[dict[str, Any]]:
        """Return the metrics so far; lines that cannot be used are left out with a warning.

        A last line that a killed process left incomplete is left out in silence: its step is made
        again. Lines of another run are left out too.
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
        ours = [line for line in found if self.run_id is None or self._is_ours(line)]
        if len(found) > len(ours):
            _log.warning(
                "%s: %d of %d lines are of another run and left out.",
                self._metrics,
                len(found) - len(ours),
                len(found),
            )
        return [{key: value for key, value in line.items() if key != RUN_ID} for line in ours]

    def _line(self, record: Mapping[str, Any]) -> str:
        own = {RUN_ID: self.run_id} if self.run_id else {}
        return json.dumps({**record, **own}) + "\n"

    def _is_ours(self, content: Mapping[str, Any]) -> bool:
        """Whether a line or a checkpoint's metadata are this run's; early versions had no id."""
        return content.get(RUN_ID) in (None, self.run_id)

    def _write(self) -> None:
        write_json(self._record, self._content)

    def _has_files(self) -> bool:
        try:
            return any(path.name != RUN_LOCK_NAME for path in self.folder.iterdir())
        except FileNotFoundError:
            return False

    def _continued(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `run.json` says, after checking that the run may be continued."""
        before = read_record(self.folder)
        if before is None:
            return self._known_to_the_newest(latest_checkpoint(self.checkpoints), identity)
        changes = before.get("changes", [])
        if not is_list_of_changes(changes):
            raise UsageError(
                f"{self._record}: expected `changes` to be a list of what was changed during the "
                "run, found something else. Start again with `overwrite=True`, or choose another "
                "`out`."
            )
        started = {k: v for k, v in before.items() if k not in _ABOUT_THE_RUN}
        if lines := differences(started, identity, changes):
            raise UsageError(
                f"{self.folder} was started with other options, so it cannot continue (before -> "
                "now):\n" + "\n".join(f"  {line}" for line in lines) + "\nUse the same options "
                "(`bitzoo resume RUN` needs none), or start again in another `out`."
            )
        own: dict[str, Any] = {
            key: before[key] for key in ("started", "changes", "card") if key in before
        }
        if isinstance(before.get(RUN_ID), str):
            own[RUN_ID] = before[RUN_ID]
        return started | own

    def _known_to_the_newest(
        self, newest: Checkpoint | None, identity: Mapping[str, Any]
    ) -> dict[str, Any]:
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
        known = {key: newest.meta[key] for key in (RUN_ID, "changes") if newest.meta.get(key)}
        return {**identity, **known}

    def _clear(self) -> None:
        """Remove what the run wrote; see `OUTPUTS`."""
        before = read_record(self.folder) or {}
        self._keep_edited_card(before.get("card"))
        folders: set[Path] = set()
        for path in outputs_in(self.folder):
            if path.name != RUN_NAME:
                path.unlink()
            folders.update(path.relative_to(self.folder).parents)
        for folder in sorted(folders - {Path()}, key=lambda folder: -len(folder.parts)):
            with contextlib.suppress(OSError):  # the user's files are in it
                (self.folder / folder).rmdir()
        ours = (RUN_NAME, RUN_LOCK_NAME)
        self.kept = sorted(
            path.name + ("/" if path.is_dir() else "")
            for path in self.folder.iterdir()
            if path.name not in ours
        )


def outputs_in(folder: Path) -> list[Path]:
    """Return what a run has written to a folder; a folder in the place of a file is no output."""
    paths = [
        path
        for pattern in OUTPUTS
        for path in (folder.glob(pattern) if "*" in pattern else [folder / pattern])
    ]
    return [path for path in paths if path.is_symlink() or path.is_file() or path.is_fifo()]


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's `run.json`; None if it is missing or damaged."""
    if not (folder / RUN_NAME).is_file():  # reading a pipe would wait
        return None
    try:
        return read_json(folder / RUN_NAME)
    except CheckpointError:
        return None


def is_list_of_changes(found: object) -> bool:
    """Whether something from a file has the form of `RunDir.changes`."""
    return isinstance(found, list) and all(
        isinstance(change, dict)
        and type(change.get("step")) is int
        and change["step"] >= 0
        and isinstance(change.get("key"), str)
        and {"old", "new"} <= change.keys()
        for change in found
    )


def _is_usable(record: Mapping[str, Any]) -> bool:
    step, needed = record.get("step"), _NUMBERS.get(str(record.get("event")))
    if needed is None or type(step) is not int or step < 0:
        return False
    return all(type(record.get(key)) in (int, float) for key in needed)
