"""Several processes on one piece of work: join their group, choose a device, exchange results.

The processes are those that ``torchrun`` or ``accelerate launch`` started. One that was started
alone is its own group, and nothing here waits for anyone then.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from bitzoo.errors import UsageError
from bitzoo.inference.devices import checked_device

_Part = TypeVar("_Part")
_LAST_SECONDS = 5
"""Time that a process which has abandoned its group has to end by itself."""


def join_processes(device: str | None = None) -> PartialState:
    """Return this process's state in the group started by ``accelerate launch`` or ``torchrun``.

    The first call joins the process group: NCCL on CUDA, gloo on the CPU. A process that was
    started alone is its only member.

    Args:
        device: ``cpu`` makes the group one of CPU processes; see `process_device`.
    """
    launched = "LOCAL_RANK" in os.environ
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    on_cpu = asked_for_cpu or (launched and (device == "cpu" or not torch.cuda.is_available()))
    state = PartialState(cpu=on_cpu)
    if dist.is_initialized():
        _leave_at_exit()
    return state


@cache
def _leave_at_exit() -> None:
    """Have this process leave a group on the CPU before the interpreter is torn down.

    The threads of gloo may still hold the tensors of the last exchange, which need the interpreter
    when they are freed; now and then the process then aborts, with its work done. NCCL's groups
    are left alone: leaving one waits for the others, which may have failed. So would leaving one of
    gloo while an exchange is under way, see `abandon_group`.
    """

    def leave() -> None:
        if _abandoned:
            # torch 2.13 waits for the others all the same, in a destructor that nothing interrupts.
            if hasattr(signal, "alarm"):
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(_LAST_SECONDS)
        elif dist.is_initialized() and dist.get_backend() == dist.Backend.GLOO:
            dist.destroy_process_group()

    atexit.register(leave)


def abandon_group() -> None:
    """Do not leave the group at exit, because this process failed within an exchange.

    Leaving would wait until the others have taken part in it, for up to half an hour; they wait for
    this one, and whoever started the processes ends them once it is gone.
    """
    _abandoned.append(True)


_abandoned: list[bool] = []


def process_device(name: str | None = None) -> torch.device:
    """Return the device on which this process computes.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None is a GPU if there is one. With several
            processes each has its own GPU, so no number may be given.

    Raises:
        UsageError: If this machine has no such device, or the processes were started for another.
    """
    device = None if name is None else checked_device(name)
    processes = join_processes(name)
    own: torch.device = processes.device
    if device is None:
        return own
    if processes.num_processes == 1:
        return device
    if name != own.type:
        raise UsageError(
            f"With {processes.num_processes} processes, each computes on its own {own.type} "
            f"device: expected `device={own.type!r}`, found {name!r}. Leave `device` out, or start "
            "the processes for another device."
        )
    return own


def local_processes() -> int:
    """Return how many processes of the group share this machine, and so its cores."""
    stated = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(stated)) if stated.isdecimal() else 1


def gather(part: _Part) -> list[_Part]:
    """Return the objects of all processes, by rank, in each of them; all of them must call this."""
    parts: list[_Part] = gather_object([part])
    return parts


def in_all_processes(action: Callable[[], _Part]) -> list[_Part]:
    """Do something in every process, and return the results of all, by rank, in each of them.

    Raises:
        Exception: What the first of them raised, in all of them: none waits for one that failed.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as raised:
        if join_processes().num_processes == 1:
            raise
        error = raised
    outcomes = gather((result, error))
    for _, raised_there in outcomes:
        if raised_there is not None:
            raise raised_there
    return [found for found, _ in outcomes]


def in_main_process(action: Callable[[], _Part]) -> _Part:
    """Do something in the main process, and broadcast its result, or its error, to the others."""
    processes = join_processes()
    outcome: list[Any] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:  # broadcast too, or the others would wait for ever
            outcome[1] = error
    if processes.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: _Part = outcome[0]
    return result
