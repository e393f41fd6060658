"""Starts `bitzoo` without waiting for torch: forks it from a process that has imported it already.

A page has dozens of commands, and each would import torch for seconds. Here one process of the
world imports what every command needs, and nothing that reads the environment when it is imported
(as the Hub's client does). `stand_ins/bitzoo` connects to its socket, and sends what it was called
with: words, folder, environment, and its own three files. A fork of the process becomes the
command. If the caller dies, so does the command; signals that the caller gets are passed on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

LIBRARIES = ("torch", "torch._dynamo", "torchvision", "jinja2")
OURS = (
    "bitzoo.cli.main",
    "bitzoo.runs.finetune",
    "bitzoo.runs.pretrain",
    "bitzoo.runs.report.artifacts",
    "bitzoo.inference.evaluate",
    "bitzoo.inference.predict",
    "bitzoo.converters.parity.verify",
    "bitzoo.exporters.export",
    "bitzoo.hub.publish",
)
NEVER = ("huggingface_hub", "datasets", "tensorflow", "tensorflow_datasets")
"""What reads its environment when it is imported, which differs from page to page."""
MAX_FILES = 8


def main(path: str) -> None:
    """Answer on a socket until whoever started this closes its standard input."""
    _import(LIBRARIES)
    assert not _found(), f"preloading has imported {_found()}"
    if _stays_without(OURS):
        _import(OURS)
    else:  # accelerate 1.8 imports the Hub's client
        print("fork server: every command imports bitzoo itself", file=sys.stderr)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the waiting ones
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(16)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in readable:
                os._exit(0)  # nothing is left to do, and torch would take its time
            caller, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _serve(caller)
            caller.close()


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        __import__(name)


def _found() -> list[str]:
    return [name for name in NEVER if name in sys.modules]


def _stays_without(names: tuple[str, ...]) -> bool:
    """Try in a process of its own whether imports bring along nothing of `NEVER`."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _import(names)
            status = bool(_found())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _serve(caller: socket.socket) -> None:
    """Fork the command, wait for it, and tell the caller how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    content, files, _, _ = socket.recv_fds(caller, 1 << 20, MAX_FILES)
    while not content.endswith(b"\n"):
        content += caller.recv(1 << 20)
    asked = json.loads(content)
    pid = os.fork()
    if pid == 0:
        caller.close()
        _become(asked, files)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(pid)
    both: list[Any] = [caller, ended]
    while True:
        readable, _, _ = select.select(both, [], [])
        if ended in readable:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with contextlib.suppress(OSError):  # the caller is gone
                caller.sendall(f"{status}\n".encode())
            os._exit(0)
        number = caller.recv(1)
        if not number:
            os.killpg(pid, signal.SIGKILL)
            os._exit(0)
        os.kill(pid, number[0])


def _become(asked: dict[str, Any], files: list[int]) -> None:
    """Be the process that was asked for."""
    os.setsid()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"])
    wanted = not os.environ.get("BITZOO_DOCS_TENSORFLOW")
    sys.modules["sitecustomize"].hide_tensorflow(wanted=wanted)
    os.chdir(asked["folder"])
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False, buffering=buffering)  # noqa: SIM115
        for number, mode, buffering in ((0, "r", -1), (1, "w", -1), (2, "w", 1))
    )
    sys.argv[:] = asked["words"]
    status: Any = 0
    try:
        _run(asked["words"], files[3:])
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    _end(status or 0)


def _run(words: list[str], files: list[int]) -> None:
    from bitzoo.cli import main as command

    if words[0] == "bitzoo":
        command.main()
    elif words[0] == "bitzoo-convert":
        command.convert_main()
    else:
        from docs_world.interpreter import interpret

        interpret(*files)


def _end(status: int) -> None:
    """End as a process of its own would: the threads, what was registered, then the files."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
