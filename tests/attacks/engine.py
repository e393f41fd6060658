"""Run a reader on inputs that may kill it: in forked workers, watched, one input at a time.

A worker is forked from a process that has imported everything, reads a few dozen inputs and ends.
If it dies of one, that input is a finding, and the next worker goes on with the input after it.
Every input is made from its target's name and its number alone, so that a number is all that it
takes to meet it again.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import resource
import select
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from attacks.judges import Judge
from attacks.quick_processes import fork_limited_processes

from bitzoo.errors import BitzooError, TensorMismatchError

CPU_SECONDS = 2.0
"""Of processor time; an input that takes more has hung its reader."""
WALL_SECONDS = 60.0
"""Far more than any input needs on a busy machine; what takes longer waits for something."""
MOST_GROWTH = 300 << 20
"""Resident bytes that an input may add at its worst moment."""
MOST_ADDED = 6 << 30
"""Bytes of address space that an input may add: spares the machine."""
MOST_WORDS = 2_000
"""Characters of an error's message."""
MOST_DIFF = 20_000
"""The same for the list of all tensors that do not fit."""
BATCH = 50
_FAILED = 70
"""Exit status of a worker that could not do its work."""
READ, REFUSED = "equal", "refused"
FINE = (READ, REFUSED)
FINDINGS = ("crashed", "hung", "grew", "different", "unread", "message", "suite")
"""What may not happen. `unread`: the independent reader refuses what bitzoo reads; `message`: an
error's words are too long, unprintable, or do not name the file; `suite`: it is at fault itself."""
OUTCOMES = (*FINE, *FINDINGS)


class Case(Protocol):
    """One input."""

    path: Path
    label: str


class Target(Protocol):
    """A reader under attack."""

    name: str
    judge: str
    """Name of the independent reader that has to be apart, because it can crash; else empty.

    A target may also have `weight`, its share of all inputs (1 unless said), and `cpu_seconds`.
    """

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        """Make the undamaged files, and learn what is in them."""

    def attack(self, rng: random.Random, place: Path) -> Any:
        """Write one damaged input below `place`; returns its `Case`."""

    def read(self, case: Any) -> Any:
        """Read it as bitzoo does."""

    def differs(self, case: Any, ours: Any, judge: Judge | None) -> tuple[str, str]:
        """Return the outcome and its reason by comparison with the independent reader."""


@dataclass(frozen=True)
class Result:
    """What became of one input."""

    target: str
    number: int
    outcome: str
    detail: str = ""
    label: str = ""
    cpu: float = 0.0
    grown: int = 0

    def __str__(self) -> str:
        words = f"{self.target}:{self.number} {self.outcome} [{self.label}] {self.detail}"
        line = f"{words} ({self.cpu:.2f} s, {self.grown >> 20} MiB)"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


@dataclass
class Tally:
    """Counts by target and outcome, and the findings themselves."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[Result] = field(default_factory=list)
    all: list[Result] = field(default_factory=list)
    slowest: float = 0.0
    largest: int = 0

    def add(self, result: Result) -> None:
        self.counts.setdefault(result.target, Counter())[result.outcome] += 1
        self.all.append(result)
        if result.outcome in FINDINGS:
            self.findings.append(result)
        else:
            self.slowest = max(self.slowest, result.cpu)
            self.largest = max(self.largest, result.grown)

    @property
    def total(self) -> int:
        return sum(sum(count.values()) for count in self.counts.values())


# --- one input ----------------------------------------------------------------------------------


def examine(
    target: Target,
    number: int,
    place: Path,
    judge: Judge | None,
    keep: Path | None = None,
    note: Callable[[str], object] = str,
) -> Result:
    """Make input `number`, read it, and compare; in a process that may die of it."""
    rng = random.Random(f"{target.name}:{number}")
    case = target.attack(rng, place)
    note(case.label)
    if keep:
        shutil.copytree(place, keep / f"{target.name}-{number}", symlinks=True)
    before, cpu = _reset_peak(), _cpu()
    most = getattr(target, "cpu_seconds", CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, most)
    outcome, detail, ours = _try(lambda: target.read(case), case.path)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)  # the judge has limits of its own
    cpu, grown = _cpu() - cpu, max(0, _status("VmHWM") - before)
    if cpu > most:
        outcome, detail = "hung", f"{cpu:.1f} s"
    elif grown > MOST_GROWTH:
        outcome, detail = "grew", f"{outcome}: {detail}"
    elif outcome == READ:
        limit, free = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (free, free))  # so has its memory
        outcome, detail = target.differs(case, ours, judge)
        resource.setrlimit(resource.RLIMIT_AS, (limit, free))
    return Result(target.name, number, outcome, detail, case.label, round(cpu, 3), grown)


def _try(read: Callable[[], Any], path: Path) -> tuple[str, str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return READ, "", read()
    except BitzooError as error:
        fault = wrong_words(error, path)
        return ("message" if fault else REFUSED), fault or str(error)[:300], None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if f"{os.sep}bitzoo{os.sep}" in frame.filename]
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return "crashed", f"{type(error).__name__} at {at}: {str(error)[:160]!r}", None


def wrong_words(error: BitzooError, path: Path) -> str:
    """What is wrong with an error's message, if anything."""
    words = str(error)
    most = MOST_DIFF if isinstance(error, TensorMismatchError) else MOST_WORDS
    if len(words) > most:
        return f"{len(words):,} characters: {words[:100]!r}"
    if strange := {c for c in words if not (c.isprintable() or c == "\n")}:
        return f"unprintable {sorted(strange)[:5]!r} in {words[:200]!r}"
    if path.name not in words and path.parent.name not in words:
        return f"the file is not named: {words[:200]!r}"
    return "a traceback" if "Traceback (most recent" in words else ""


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _reset_peak() -> int:
    """Let the peak begin anew at the resident size, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    raise KeyError(key)


# --- a worker -----------------------------------------------------------------------------------


@dataclass
class _Batch:
    target: Target
    start: int
    stop: int


class _Slot:
    """A place for one worker after the other, with a judge of each kind that outlives them."""

    def __init__(self, folder: Path, keep: Path | None) -> None:
        self.folder, self.keep = folder, keep
        self.place = folder / "place"
        self.errors = folder / "errors"
        self.judges: dict[str, Judge] = {}
        self.shared = mmap.mmap(-1, 256)
        self.batch: _Batch | None = None
        self.pid = self.pipe = -1
        self.rest = b""
        folder.mkdir(parents=True)

    def judge(self, target: Target) -> Judge | None:
        if target.judge and target.judge not in self.judges:
            self.judges[target.judge] = Judge(target.judge)
        return self.judges.get(target.judge)

    def start(self, batch: _Batch) -> None:
        judge = self.judge(batch.target)
        self.batch, self.rest = batch, b""
        self.note(batch.start)
        self.note_label("")
        self.pipe, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = _FAILED
            try:
                os.close(self.pipe)
                self._work(batch, judge, write)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(write)

    def note(self, number: int) -> None:
        """Leave the number of the input in memory that survives the worker."""
        self.shared[:8] = struct.pack("<q", number)

    def note_label(self, label: str) -> None:
        """The same with what was done to it."""
        self.shared[8:] = label.encode(errors="replace")[:248].ljust(248, b"\0")

    @property
    def label(self) -> str:
        return self.shared[8:].rstrip(b"\0").decode(errors="replace")

    @property
    def number(self) -> int:
        (number,) = struct.unpack("<q", self.shared[:8])
        return int(number)

    def _work(self, batch: _Batch, judge: Judge | None, write: int) -> None:
        errors = os.open(self.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(errors, 2)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not to outlive the engine
        for kind in (signal.SIGPROF, signal.SIGALRM, signal.SIGXFSZ):
            signal.signal(kind, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit, (_, most) = _status("VmSize") + MOST_ADDED, resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
        for number in range(batch.start, batch.stop):
            self.note(number)
            self.place.mkdir()
            result = examine(batch.target, number, self.place, judge, self.keep, self.note_label)
            os.write(write, json.dumps(vars(result)).encode() + b"\n")
            shutil.rmtree(self.place)

    def results(self) -> Iterator[Result]:
        """Yield what the worker has reported; call when its pipe is readable."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            yield Result(**json.loads(line))
        if not data:
            yield from self._ended()

    def _ended(self) -> Iterator[Result]:
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        batch, self.pid = self.batch, -1
        assert batch is not None
        self.batch = None
        shutil.rmtree(self.place, ignore_errors=True)
        for left in self.folder.glob("*bitzoo-*"):
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True)
        if status == 0:
            return
        said = self.errors.read_text(errors="replace")
        code = int(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
        name = signal.Signals(code).name if code > 0 else f"exit {-code}"
        words = " ".join(said.split())[-200:]
        outcome = "hung" if code in (signal.SIGPROF, signal.SIGALRM) else "crashed"
        outcome = "suite" if code == -_FAILED else outcome
        yield Result(batch.target.name, self.number, outcome, f"{name} {words}", self.label)
        if self.number + 1 < batch.stop:
            self.start(_Batch(batch.target, self.number + 1, batch.stop))

    def close(self) -> None:
        if self.pid > 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)
        for judge in self.judges.values():
            judge.close()


# --- all of them --------------------------------------------------------------------------------


def run(
    targets: Iterable[Target],
    inputs: int,
    *,
    first: int = 0,
    seconds: float | None = None,
    workers: int | None = None,
    report: Callable[[Result], None] | None = None,
    keep: Path | None = None,
) -> Tally:
    """Attack every target with its share of `inputs`, or for so many `seconds`.

    Args:
        targets: The readers.
        inputs: Inputs over all of them; ignored if `seconds` is given.
        first: Number of the first input of each target.
        seconds: How long.
        workers: Processes at once; None is the number of processors.
        report: Called with every result.
        keep: Folder to copy the inputs to.
    """
    targets = list(targets)
    root = Path(tempfile.mkdtemp(prefix="attack-", dir=_memory()))
    slots = [_Slot(root / str(i), keep) for i in range(workers or len(os.sched_getaffinity(0)))]
    end = None if seconds is None else time.monotonic() + seconds
    fork_limited_processes()
    try:
        for target in targets:
            (root / target.name).mkdir()
            target.prepare(root / target.name, slots[0].judge(target))
        batches = _plan(targets, inputs if end is None else None, first)
        due = takewhile(lambda _: end is None or time.monotonic() < end, batches)
        tally = Tally()
        for result in _work(slots, due):
            tally.add(result)
            if report:
                report(result)
        return tally
    finally:
        for slot in slots:
            slot.close()
        shutil.rmtree(root, ignore_errors=True)


def _work(slots: list[_Slot], batches: Iterator[_Batch]) -> Iterator[Result]:
    """Give every slot one batch after the other, and yield what they report."""
    while True:
        for slot in slots:
            if slot.batch is None and (batch := next(batches, None)):
                slot.start(batch)
        busy = {slot.pipe: slot for slot in slots if slot.batch}
        if not busy:
            return
        for pipe in select.select(list(busy), [], [])[0]:
            yield from busy[pipe].results()


def _plan(targets: list[Target], inputs: int | None, first: int) -> Iterator[_Batch]:
    """Yield batches in turn, so that time that runs out is missing everywhere alike."""
    weights = {target.name: float(getattr(target, "weight", 1)) for target in targets}
    share = {
        name: None if inputs is None else max(1, round(inputs * weight / sum(weights.values())))
        for name, weight in weights.items()
    }
    done = dict.fromkeys(share, 0)
    while todo := [t for t in targets if (most := share[t.name]) is None or done[t.name] < most]:
        for target in todo:
            start, most = done[target.name], share[target.name]
            stop = start + max(1, round(BATCH * weights[target.name]))
            stop = stop if most is None else min(stop, most)
            done[target.name] = stop
            yield _Batch(target, first + start, first + stop)


def _memory() -> str | None:
    """A folder in memory if there is one: the files are many and short-lived."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
