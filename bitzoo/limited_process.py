"""Run code on a file in a process of its own, with bounds on its time and memory.

Some libraries loop for ever, allocate gigabytes or crash on a damaged file, and nothing inside the
process can stop them: a signal is handled only after the library returns. The bounds are the
operating system's; they hold in the middle of a loop, and also if the parent has died.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

_WALL_SECONDS = 120
"""A process that neither computes nor ends waits for something, as a pipe."""
_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from bitzoo.limited_process import answer; answer({module!r}, {name!r})"
)
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_IN_WORDS = {
    "SIGPROF": "its structure is not read within {cpu_seconds:g} seconds of computing",
    "SIGALRM": f"it is not read within {_WALL_SECONDS} seconds",
    "SIGKILL": "the process that reads it was killed, as if memory ran out",
}


class LimitedProcessError(Exception):
    """What the process ran into, as a phrase for a message.

    Attributes:
        refused: Whether the code itself refused the file, by raising `RefusedError`.
        errno: The operating system's error number, if that was the reason.
    """

    def __init__(self, reason: str, *, refused: bool = False, errno: int | None = None) -> None:
        super().__init__(reason)
        self.refused, self.errno = refused, errno


class RefusedError(Exception):
    """Raised in the process to refuse a file; the message is what the parent gets."""


def can_limit() -> bool:
    """Whether a process can be bounded here; Windows cannot."""
    return hasattr(signal, "setitimer")


def run_limited(
    function: Callable[..., Any],
    *arguments: Any,
    cpu_seconds: float,
    memory: int,
    descriptors: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call a function in a new process and return its result.

    Args:
        function: A function at the top level of a module whose import is cheap.
        *arguments: JSON-ready arguments.
        cpu_seconds: Bound on the processor time of the call.
        memory: Bound in bytes on what the call allocates.
        descriptors: Descriptors of open files that the process may use, under the same numbers.
        environment: Environment variables to add.

    Returns:
        The function's result, which must be JSON-ready.

    Raises:
        LimitedProcessError: If the function raised, ran past a bound or crashed.
        OSError: If no process can be started.
    """
    if not can_limit():
        raise LimitedProcessError(
            "it is read only where a process can be bounded, which Windows cannot do. Convert it "
            "on Linux or macOS, to .npz or .safetensors.",
            refused=True,
        )
    code = _CODE.format(path=sys.path, module=function.__module__, name=function.__name__)
    request = {"arguments": arguments, "cpu_seconds": cpu_seconds, "memory": memory}
    ended = subprocess.run(
        # -I: neither the current folder nor PYTHON* variables take precedence over this path
        [sys.executable, "-I", "-c", code],
        input=json.dumps(request | {"parent": os.getpid()}).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=tuple(descriptors),
        # Threads of a numerical library would count as memory, one per core.
        env={**os.environ, **_ONE_THREAD, **(environment or {})},
        timeout=2 * _WALL_SECONDS,
        check=False,
    )
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        number = -ended.returncode
        names = {getattr(signal, name, 0): words for name, words in _IN_WORDS.items()}
        words = names.get(number, "")
        if not words:
            words = f"the process that reads it ended with status {ended.returncode}"
        raise LimitedProcessError(words.format(cpu_seconds=cpu_seconds)) from None
    if "error" in answer:
        raise LimitedProcessError(answer["error"], refused=answer["refused"], errno=answer["errno"])
    return answer["result"]


def answer(module: str, name: str) -> None:
    """Be the process: read a request, call the function within its bounds, print the answer."""
    import importlib

    # First, so that importing is bounded by neither time nor memory of the call.
    function = getattr(importlib.import_module(module), name)
    request = json.load(sys.stdin)
    _end_with(request["parent"])
    _bound(request["cpu_seconds"], request["memory"])
    try:
        reply = {"result": function(*request["arguments"])}
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            reason = f"it takes more than {request['memory'] >> 20} MiB of memory"
        number = error.errno if isinstance(error, OSError) else None
        reply = {"error": reason, "refused": isinstance(error, RefusedError), "errno": number}
    sys.stdout.write(json.dumps(reply))
    sys.stdout.flush()
    os._exit(0)  # a library's clean-up may hang, too


def _bound(cpu_seconds: float, memory: int) -> None:
    import resource

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # exact, where RLIMIT_CPU counts seconds
    _lower(resource.RLIMIT_AS, _address_space() + memory)
    _lower(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_WALL_SECONDS + int(cpu_seconds))


def _lower(kind: int, limit: int) -> None:
    """Lower a limit, but never raise one that the user has set."""
    import resource

    soft, hard = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY or limit < soft:
        with suppress(OSError, ValueError):  # macOS bounds no address space
            resource.setrlimit(kind, (limit, hard))


def _address_space() -> int:
    """Return the bytes of address space in use; a gigabyte where that cannot be found out."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 1 << 30


def _end_with(parent: int) -> None:
    """Have the process killed when its parent dies, where the system can (Linux)."""
    set_parent_death_signal = 1
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)
