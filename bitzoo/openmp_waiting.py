"""How OpenMP's threads wait for each other, chosen by the machine's load before torch is loaded.

torch computes with a team of threads that meet hundreds of times in a forward pass. In GNU's
runtime (libgomp), who arrives early spins for milliseconds before it sleeps. If another program
holds the processor of one of the team, the others spin for all that time on theirs, which the late
one could have had. On a quiet machine, sleeping at once costs the time of waking up instead.

libgomp reads the number of spins, `SPINS`, once, when torch loads it. So the commands choose it at
that moment (`choose_before_torch`); a program that imports torch itself is told of it
(`tell_once`). The result of a computation does not depend on it. docs/how-to/cpu.md has
measurements.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitzoo.portable import cores, processors

SPINS = "GOMP_SPINCOUNT"
"""The variable of libgomp: how often a thread looks before it sleeps."""
SETTINGS = (SPINS, "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables by which a user decides the same, of any OpenMP runtime."""
REASON = "BITZOO_SPINCOUNT_REASON"
"""Why a command chose `SPINS`, for the processes that it starts, which inherit both."""

QUIET_SPINS = 1_000
"""Spins on a machine where nothing else runs. benchmarks/waiting.py compares the numbers."""
CROWDED_SPINS = 0
"""Spins where others need the same processors: a thread that waits leaves its own to them."""

_SPARE = 0.25
"""Processors by which team and others together may exceed the machine: the small things that run
everywhere."""
_MOST_WAITING = 0.1
"""Share of the last ten seconds in which some program had to wait for a processor."""
_SECONDS = 0.1
"""Ten of the kernel's ticks, in which it counts the time of a processor."""
_told: list[bool] = []


@dataclass(frozen=True)
class Load:
    """What else the machine does; None is unknown.

    Attributes:
        cpus: Processors that this process may use.
        busy: How many of them others used in a tenth of a second; 1.5 is one and half of another.
        waiting: In which share of the last ten seconds some program had to wait for a processor.
        quota: To how many processors' time the control group limits this process; infinite if it
            does not.
    """

    cpus: int
    busy: float | None = None
    waiting: float | None = None
    quota: float | None = None


@dataclass(frozen=True)
class Choice:
    """A number of spins, and what it was chosen by.

    Attributes:
        spins: The value of `SPINS`.
        reason: A clause, as "other programs kept 1.0 of the 2 processors busy".
        crowded: Whether others need the same processors.
    """

    spins: int
    reason: str
    crowded: bool


def choose(load: Load, threads: int, processes: int = 1) -> Choice:
    """Choose the number of spins.

    Args:
        load: What else runs.
        threads: Threads of a team.
        processes: How many processes with such a team were started together on this machine.
    """
    found = ""
    if load.quota is not None and threads > load.quota:
        found = f"a control group allowed {load.quota:.1f} processors for {threads} threads"
    elif processes * threads > load.cpus:
        found = f"{processes * threads} threads were to share {load.cpus} processors"
    elif load.busy is not None and threads + load.busy > load.cpus + _SPARE:
        found = f"other programs kept {load.busy:.1f} of the {load.cpus} processors busy"
    elif load.waiting is not None and load.waiting > _MOST_WAITING:
        found = (
            f"programs had to wait for a processor in {load.waiting:.0%} of the last ten seconds"
        )
    if found:
        return Choice(CROWDED_SPINS, found, crowded=True)
    if load.busy is None and load.waiting is None:
        return Choice(QUIET_SPINS, "what else ran was unknown", crowded=False)
    return Choice(QUIET_SPINS, "nothing else needed the processors", crowded=False)


def measure_load(
    root: Path = Path("/"),
    cpus: frozenset[int] | None = None,
    pause: Callable[[], object] = lambda: time.sleep(_SECONDS),
) -> Load:
    """Measure what other programs do while this one waits.

    Args:
        root: Where `proc` and `sys` are.
        cpus: The numbers of the processors; None are those that this process may use.
        pause: Waits between two readings.
    """
    if cpus is None:
        cpus = processors()
    before = _times(root, cpus)
    pause()
    after = _times(root, cpus)
    return Load(len(cpus), _busy(before, after, root), _waiting(root), _quota(root))


def team_size(environment: Mapping[str, str], cpus: int) -> int:
    """Return how many threads torch will compute with: `OMP_NUM_THREADS`, or one a processor."""
    first = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else cpus


def bundled_runtime() -> str | None:
    """Return the file name of the OpenMP runtime that the installed torch brings along.

    torch itself is not loaded. None if it brings none, as where the system or conda has one for
    all, or if there is no torch.
    """
    from importlib.util import find_spec

    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):
        return None
    for place in (spec and spec.submodule_search_locations) or ():
        for folder in (Path(place, "lib"), Path(place).with_name("torch.libs")):
            for pattern in ("libgomp*", "libiomp5*", "libomp*"):
                for path in sorted(folder.glob(pattern)):
                    return path.name
    return None


def choose_before_torch() -> None:
    """Let the number of spins be chosen when torch is imported, if that is for us to do.

    It is not if the user has set one of `SETTINGS`, where a parent process chose, on another system
    than Linux, with another runtime than libgomp, or for teams of one thread.
    """
    if sys.platform == "linux" and "torch" not in sys.modules and not user_settings(os.environ):
        sys.meta_path.insert(0, _BeforeTorch())


def user_settings(environment: Mapping[str, str]) -> list[str]:
    """Return which of `SETTINGS` are set, as `NAME=value`."""
    return [f"{name}={environment[name]}" for name in SETTINGS if environment.get(name)]


def sleeps_at_once(environment: Mapping[str, str]) -> bool:
    """Whether threads are to sleep whenever they wait, by our choice or the user's.

    For other runtimes than OpenMP, which have settings of their own.
    """
    policy = environment.get("OMP_WAIT_POLICY", "").strip().lower()
    return environment.get(SPINS, "").strip() == "0" or (
        not environment.get(SPINS) and policy == "passive"
    )


def description(environment: Mapping[str, str]) -> str:
    """Return how the threads wait, for a record: what is set, and by whom.

    Args:
        environment: That of the process.
    """
    found = ", ".join(user_settings(environment))
    if not found:
        return "as the OpenMP runtime does by default"
    reason = environment.get(REASON)
    return f"{found}, because {reason}" if reason else f"{found}, as the environment says"


def tell_once(threads: int) -> None:
    """Say in the log, once a process, what makes a computation on the CPU slow.

    A warning says how threads wait for each other where other programs need the same processors
    (otherwise that is for information), and that several processes leave most processors alone.

    Args:
        threads: Threads of a team.
    """
    if _told or sys.platform != "linux":
        return
    _told.append(True)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    import logging

    log, processes = logging.getLogger(__name__), _processes(os.environ)
    share = cores() // processes
    if processes > 1 and 2 * threads <= share:
        log.warning(
            "%d processes with %d thread%s each leave most of the %d processors alone. torchrun "
            "decides so unless OMP_NUM_THREADS is set: OMP_NUM_THREADS=%d would use them all.",
            *(processes, threads, "" if threads == 1 else "s", cores(), share),
        )
    chosen = os.environ.get(REASON)
    if threads < 2 or (user_settings(os.environ) and not chosen):
        return
    if chosen:
        spins = os.environ.get(SPINS, "")
        crowded = spins == str(CROWDED_SPINS)
        log.log(
            logging.WARNING if crowded else logging.INFO,
            "%s%s. So threads %s while they wait for each other: %s=%s. Set it yourself to decide "
            "otherwise.",
            *(chosen[0].upper(), chosen[1:], "sleep" if crowded else "spin briefly", SPINS, spins),
        )
    elif _is_gnu(bundled_runtime()):
        choice = choose(measure_load(), threads, processes)
        log.log(
            logging.WARNING if choice.crowded else logging.INFO,
            "%s%s. torch's threads spin while they wait for each other, which takes up to twenty "
            "times as long beside a busy program. Before torch is imported, set "
            'os.environ["%s"] = "%d", or in a shell: export %s=%d',
            *(choice.reason[0].upper(), choice.reason[1:]),
            *(SPINS, choice.spins, SPINS, choice.spins),
        )


class _BeforeTorch:
    """The first of Python's finders of modules, until torch is asked for. It finds nothing."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torch" or self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        if not _is_gnu(bundled_runtime()):
            return
        threads = team_size(os.environ, cores())
        if threads > 1:
            choice = choose(measure_load(), threads, _processes(os.environ))
            os.environ[SPINS] = str(choice.spins)
            os.environ[REASON] = choice.reason


def _is_gnu(runtime: str | None) -> bool:
    return runtime is not None and runtime.startswith("libgomp")


def _processes(environment: Mapping[str, str]) -> int:
    stated = environment.get("LOCAL_WORLD_SIZE", "")  # by torchrun and `accelerate launch`
    return max(1, int(stated)) if stated.isdecimal() else 1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _times(root: Path, cpus: frozenset[int]) -> dict[str, tuple[int, int]]:
    """Return the ticks of each processor: in use, and in all.

    See proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; the times of guests
    after these are part of the first two. Steal is what the host gave to others.
    """
    wanted, found = {f"cpu{number}" for number in cpus}, {}
    for line in _text(root / "proc/stat").splitlines():
        name, *figures = line.split() or [""]
        if name in wanted and len(figures) >= 4 and all(each.isdecimal() for each in figures):
            ticks = [int(each) for each in figures[:8]]
            found[name] = (sum(ticks) - sum(ticks[3:5]), sum(ticks))
    return found


def _busy(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]], root: Path
) -> float | None:
    """Return how many processors others used; without ticks, how many programs want to run."""
    shares = []
    for name in before.keys() & after.keys():
        used, passed = (now - then for now, then in zip(after[name], before[name], strict=True))
        if passed > 0:
            shares.append(min(1.0, max(0.0, used / passed)))
    if shares:
        return sum(shares)
    figures = _text(root / "proc/loadavg").split()  # proc_loadavg(5): "0.20 0.18 0.12 1/80 11206"
    running = figures[3].split("/")[0] if len(figures) > 3 else ""
    return max(0.0, float(running) - 1) if running.isdecimal() else None  # one is this process


def _waiting(root: Path) -> float | None:
    """Return the pressure of the last ten seconds, as a share.

    A line is ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``, in percent; see
    Documentation/accounting/psi.rst of the kernel.
    """
    for line in _text(root / "proc/pressure/cpu").splitlines():
        kind, *figures = line.split() or [""]
        for figure in figures:
            name, _, value = figure.partition("=")
            if (kind, name) == ("some", "avg10"):
                return _number(value, 100)
    return None


def _quota(root: Path) -> float | None:
    """Return the lowest limit of the control groups of this process, in processors.

    A file ``cpu.max`` is ``max 100000`` or ``150000 100000``, in microseconds of a period; in
    version 1 these are two files, the first of which has -1 for no limit.
    """
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            base, names = root / "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            base, names = (
                root / "sys/fs/cgroup/cpu",
                ["cpu.cfs_quota_us", "cpu.cfs_period_us"],
            )
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            folder = base.joinpath(*parts[:depth])
            figures = " ".join(_text(folder / name) for name in names).split()
            if len(figures) == 2 and (period := _number(figures[1])):
                allowed = _number(figures[0])
                limits.append(allowed / period if allowed and allowed > 0 else float("inf"))
    return min(limits, default=None)


def _number(text: str, divisor: float = 1) -> float | None:
    try:
        return float(text) / divisor
    except ValueError:
        return None
