"""Readers that start a process for each file, at a price at which ten thousand can be read.

The process of `bitzoo.limited_process` spends most of its time on imports. Here it is
forked, with everything imported, and then runs the same code under the same bounds. The first of
every worker is started as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

_MODULE = "bitzoo.limited_process"
_started: Counter[int] = Counter()


def fork_limited_processes() -> None:
    """Let readers fork, in this process and in those forked from it."""
    if importlib.util.find_spec(_MODULE) is not None:
        module: Any = importlib.import_module(_MODULE)
        names = {name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "TimeoutExpired")}
        module.subprocess = SimpleNamespace(run=_run, **names)


def _run(command: Sequence[str], **options: Any) -> Any:
    """Stand for `subprocess.run` of `python -c CODE` with bytes as input."""
    _started[os.getpid()] += 1
    if _started[os.getpid()] == 1:
        return subprocess.run(command, **options)
    asked, ask = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(asked, 0)
            os.dup2(tell, 1)
            for end in (asked, ask, told, tell):
                os.close(end)
            os.environ.update(options.get("env") or {})
            kept = sys.stdin, sys.stdout  # which would close their descriptors  # noqa: F841
            sys.stdin, sys.stdout = io.TextIOWrapper(open(0, "rb")), open(1, "w")  # noqa: SIM115
            exec(command[-1], {})
        finally:
            os._exit(1)
    os.close(asked)
    os.close(tell)
    with open(ask, "wb") as file:
        file.write(options["input"])
    with open(told, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return SimpleNamespace(stdout=said, returncode=code)
