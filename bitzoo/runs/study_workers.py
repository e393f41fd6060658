"""Processes that work on the cells of a study: one process a cell, one cell at a time.

A cell is taken from the list under a lock, which the system drops with the process that holds it:
this process. So several studies can work on one list, on one machine or on several that share a
folder. A worker is told to stop by SIGTERM or by the end of its standard input, which comes too
when this process is killed; it then writes a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitzoo.display import shortened
from bitzoo.errors import BitzooError
from bitzoo.locks import taken
from bitzoo.portable import cores
from bitzoo.runs.run_dir import METRICS_NAME, read_record
from bitzoo.runs.study_cell import CELLS, PRETRAIN, read_cell
from bitzoo.runs.study_grid import Cell
from bitzoo.training.graceful_stop import Pace, graceful_stop

WATCHED = "BITZOO_STUDY_STDIN"
"""Set for a worker whose standard input ends when the study does."""
LOG_NAME = "log.txt"
_POLL_SECONDS = 0.25
_TRIES = 3
"""How often a cell is begun again whose worker was killed."""
_HOPELESS = 3
"""So many failures, and nothing done, end the study."""
_TAIL = 16_384
_SAID = 400
"""Characters of a worker's error that are said; its log has all."""
_PATIENCE = 10.0
"""Seconds to stop after the user has asked for it twice."""


@dataclass
class Outcome:
    """What became of the cells.

    Attributes:
        failed: Name of a cell -> why it cannot be done.
        stopped: Whether the user asked to stop.
        killed: Number of workers that were killed by something else.
    """

    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    killed: int = 0


class _Pace(Pace):
    """What a stop waits for."""

    def in_words(self) -> str:
        return "a checkpoint of every cell that is being worked on"


class Workers:
    """Work on cells with a number of processes."""

    def __init__(
        self,
        out: Path,
        command: Sequence[str],
        processes: int,
        devices: Sequence[str],
        *,
        say: Callable[[str], None],
        advanced: Callable[[float, Sequence[str]], None],
        ended: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            out: The folder of the study.
            command: The words of a command that works on a cell whose name comes last.
            processes: How many at once, at most.
            devices: What they compute on, in turn; empty for what each finds.
            say: Called with a sentence for the user.
            advanced: Called now and then with the number of cells that are done, a fraction for
                those in work, and the names of these.
            ended: Called after each cell.
        """
        self._out, self._command, self._processes = out, list(command), processes
        self._devices = list(devices) or [""]
        self._say, self._advanced, self._ended = say, advanced, ended
        self._running: list[_Worker] = []
        self._done: set[str] = set()

    def work(self, cells: Sequence[Cell], done: int) -> Outcome:
        """Work until all cells are done, or have failed, or the user wants to stop.

        Args:
            cells: Those that are not done.
            done: How many others are.
        """
        outcome, waiting, tries = Outcome(), list(cells), dict[str, int]()
        said_waiting = False
        with graceful_stop(_Pace()) as stops, contextlib.ExitStack() as stack:
            stack.callback(self._end_all)
            while waiting or self._running:
                if stops() and not outcome.stopped:
                    outcome.stopped = True
                    for worker in self._running:
                        worker.stop()
                for worker in [w for w in self._running if w.process.poll() is not None]:
                    self._running.remove(worker)
                    if self._settle(worker, outcome, tries):
                        waiting.insert(0, worker.cell)
                    self._ended()
                if outcome.stopped or (len(outcome.failed) >= _HOPELESS and not self._done):
                    waiting.clear()
                self._begin(waiting)
                if waiting and not self._running and not said_waiting:
                    said_waiting = True
                    self._say(f"Waiting for {len(waiting)} cells that another process works on.")
                self._tell(done)
                if waiting or self._running:
                    time.sleep(_POLL_SECONDS)
        return outcome

    def _begin(self, waiting: list[Cell]) -> None:
        """Give free processes a cell; forget those that others have done since."""
        for cell in list(waiting):
            if len(self._running) >= self._processes:
                break
            if self._is_done(cell):  # by another study
                waiting.remove(cell)
                continue
            worker = _Worker.start(self._out, cell, self._command, self._free_device(), self._share)
            if worker is not None:
                waiting.remove(cell)
                self._running.append(worker)

    def _free_device(self) -> str:
        used = [worker.device for worker in self._running]
        return min(self._devices, key=used.count)

    @property
    def _share(self) -> int:
        """Threads for each process."""
        return max(1, cores() // self._processes)

    def _is_done(self, cell: Cell) -> bool:
        if cell.name not in self._done:
            with contextlib.suppress(BitzooError, OSError):
                record = read_cell(self._out / CELLS / cell.name)
                if record is not None and record.finished:
                    self._done.add(cell.name)
        return cell.name in self._done

    def _settle(self, worker: _Worker, outcome: Outcome, tries: dict[str, int]) -> bool:
        """Take note of how a worker ended; returns whether its cell is to be begun again."""
        name, code = worker.cell.name, worker.process.returncode
        worker.close()
        if self._is_done(worker.cell) or outcome.stopped:
            return False
        if code < 0:  # by a signal that no program can answer, as for lack of memory
            outcome.killed += 1
            tries[name] = tries.get(name, 0) + 1
            if tries[name] < _TRIES:
                self._say(f"{name}: its process was killed (signal {-code}). It goes on.")
                return True
        if code == 0 or code > 128:  # asked to stop by somebody else: not by this process
            outcome.failed[name] = "it was stopped from outside"
        elif code < 0:
            outcome.failed[name] = f"its process was killed {_TRIES} times (signal {-code})"
        else:
            outcome.failed[name] = worker.last_words()
        self._say(f"{name} failed: {outcome.failed[name]}")
        return False

    def _tell(self, done: int) -> None:
        running = sorted(worker.cell.name for worker in self._running)
        part = sum(_part_done(self._out, worker.cell) for worker in self._running)
        self._advanced(done + len(self._done) + part, running)

    def _end_all(self) -> None:
        """Leave no process behind: after an error, or when the user has asked twice."""
        for worker in self._running:
            worker.stop()
        end = time.monotonic() + _PATIENCE
        for worker in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()
            worker.close()


class _Worker:
    """A process, and the lock of its cell."""

    def __init__(
        self, cell: Cell, process: subprocess.Popen[bytes], log: Path, device: str,
        stack: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        self.cell, self.process, self.device = cell, process, device
        self._log, self._stack = log, stack

    @classmethod
    def start(
        cls, out: Path, cell: Cell, command: Sequence[str], device: str, threads: int
    ) -> _Worker | None:
        """Begin to work on a cell; None if another study does."""
        folder = out / CELLS / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if stack.enter_context(claimed_cell(folder)) is None:
                return None
            log = folder / LOG_NAME
            words = [*command, *(["--device", device] if device else []), "--cell", cell.name]
            own = {WATCHED: "1"}
            if not os.environ.get("OMP_NUM_THREADS"):
                own["OMP_NUM_THREADS"] = str(threads)
            with log.open("ab") as written:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,
                    stdout=written,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **own},
                    start_new_session=True,  # Ctrl-C is for the study, which passes it on
                )
            return cls(cell, process, log, device, stack.pop_all())
        return None

    def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        with contextlib.suppress(OSError):
            self.process.terminate()

    def close(self) -> None:
        """Give the cell back."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self._stack.close()

    def last_words(self) -> str:
        """Return the error that the process printed, or what it printed last."""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if line.startswith("error: "):
                said = " ".join([line.removeprefix("error: "), *lines[number + 1 :]])
                return f"{shortened(said, _SAID)} (all of it: {self._log})"
        last = lines[-1] if lines else "it said nothing"
        return f"exit code {self.process.returncode}: {last} ({self._log})"


@contextlib.contextmanager
def claimed_cell(folder: Path) -> Iterator[str | None]:
    """Take a cell from the list for the body; yields None if another study has it.

    Args:
        folder: The cell's, whose parent folder exists.
    """
    with taken(folder.with_name(f".{folder.name}.lock")) as kind:
        yield kind


def _part_done(out: Path, cell: Cell) -> float:
    """Return about which fraction of a cell is done, by what its pre-training has written."""
    return steps_done(out / CELLS / cell.name / PRETRAIN) / (1 + bool(cell.transfers))


def steps_done(run: Path) -> float:
    """Return which fraction of its steps a run has made, by what it has written; 0 if unknown."""
    record = read_record(run)
    try:
        steps = record["recipe"]["schedule"]["steps"] if record else 0
        with (run / METRICS_NAME).open("rb") as file:
            file.seek(max(0, (run / METRICS_NAME).stat().st_size - _TAIL))
            lines = file.read().splitlines()
        last = max(
            (
                json.loads(line)["step"]
                for line in lines
                if line.endswith(b"}") and line[:1] == b"{"
            ),
            default=0,
        )
        return min(1.0, last / steps) if steps else 0.0
    except (KeyError, TypeError, ValueError, OSError):
        return 0.0


def stop_with_parent() -> bool:
    """In a worker: stop as by SIGTERM when standard input ends, which the study holds open.

    Returns:
        Whether this process is a worker of a study.
    """
    if not os.environ.pop(WATCHED, None):
        return False

    def watch() -> None:
        # Not by `sys.stdin`, whose lock the thread would hold while the interpreter ends.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="study", daemon=True).start()
    return True
