"""`bitzoo publish` as a user types it, against the stand-in Hub, in a process that stays.

The client reads HF_ENDPOINT when it is imported, so that each Hub needs a process of its own; it
imports torch once. R50x1 is a tiny network there, so that released names are small files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hub_server import TOKEN, HubServer

SMALL_NAMES = """
import sys
sys.modules["tensorflow"] = None  # a second oracle, seconds to import, has tests of its own
from bitzoo.models.architecture import ARCHITECTURES, Architecture
ARCHITECTURES["R50x1"] = Architecture((1, 1, 1, 1), 0.5)
"""
_WORKER = (
    SMALL_NAMES
    + """
import contextlib, io, json, os, sys
import bitzoo.cli.main, torch
torch.set_num_threads(1)
answers, before = sys.stdout, dict(os.environ)
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.clear()
    os.environ.update(before | asked["environment"])
    sys.argv[1:] = asked["words"]
    code, sys.stdin_kept, sys.stdin = 0, sys.stdin, io.StringIO(asked["typed"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            bitzoo.cli.main.main()
        except SystemExit as end:
            code = end.code or 0
    sys.stdin = sys.stdin_kept
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""
)
"""Runs a command line for each line of JSON that it reads."""

COMMAND = SMALL_NAMES + "from bitzoo.cli.main import main\nmain()"
"""The command `bitzoo` with small names, for `python -c`."""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Workspace:
    """A folder, a Hub, and a process in which commands run."""

    def __init__(self, folder: Path, hub: HubServer, **environment: str) -> None:
        self.folder, self.hub = folder, hub
        self.cache = folder / "cache"
        self.environment = {
            **os.environ,
            **hub.environment(),
            "BITZOO_CACHE": str(self.cache),
            "HF_HOME": str(folder / "hf"),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait(30)
            assert self._process.stdout
            self._process.stdout.close()

    def start(self, script: str, *words: str) -> subprocess.Popen[str]:
        """Start Python with a script, in the folder, facing the Hub."""
        return subprocess.Popen(
            [sys.executable, "-c", script, *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if script == _WORKER else subprocess.PIPE,
            text=True,
        )

    def worker(self) -> subprocess.Popen[str]:
        """The process in which commands run."""
        self._process = self._process or self.start(_WORKER)
        return self._process

    def run(self, *words: object, typed: str = "", code: int = 0, **environment: str) -> Done:
        """Run `bitzoo WORDS` and require its exit code; no token may ever be seen."""
        process = self.worker()
        asked = {"words": list(map(str, words)), "typed": typed, "environment": environment}
        assert process.stdin
        assert process.stdout
        print(json.dumps(asked), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise EOFError(f"the process died: {process.wait(30)}")
        done = Done(*json.loads(answer))
        assert done.code == code, done.out + done.err
        assert ("Traceback" in done.err) == ("--debug" in words)
        for secret in (TOKEN, environment.get("HF_TOKEN")):
            assert not secret or secret not in done.out + done.err
        return done
