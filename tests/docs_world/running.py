"""Runs a page's blocks in their order; an error says where in the page it is, and what was said."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs_world.pages import Block, Page
from docs_world.world import HERE, World

PAGE_SECONDS = float(os.environ.get("DOCS_PAGE_SECONDS", "600"))
"""What a page may take; it takes a minute or less, and is there to end a standstill."""
_PROLOGUE = (
    "set -Eeuo pipefail; "
    "[ ! -e {own}/exported ] || . {own}/exported; "
    "trap 'echo \"{page}:$LINENO: $BASH_COMMAND\" >&2' ERR; "
    "trap 'status=$?; export -p >{own}/exported; pwd >{own}/folder; exit $status' EXIT"
)
"""One line, so that the others keep their numbers. What a block exports and where it goes holds for
the next one, as in one terminal."""


class PageError(AssertionError):
    """What a page says is not so."""


@dataclass(frozen=True)
class Ran:
    """One block that was run.

    Attributes:
        block: The block.
        seconds: How long it took.
        output: What it printed.
        error: What was wrong; empty if nothing was.
    """

    block: Block
    seconds: float
    output: str
    error: str = ""


def run_page(
    world: World, page: Page, folder: Path, tell: Callable[[Ran], object] = lambda ran: None
) -> None:
    """Run all of a page in a folder that does not exist yet.

    Args:
        world: The world.
        page: The page.
        folder: Where to work; what is not the reader's lies in ``folder/../own``.
        tell: Told about each block as it ends.

    Raises:
        PageError: At the first thing that is wrong.
    """
    if page.faults:
        raise PageError("\n".join(f"{page.path}:{fault}" for fault in page.faults))
    own = folder.parent / "own"
    folder.mkdir(parents=True)
    environment = world.environment(own) | world.processes(page.given)
    world.clear_hub()
    try:
        world.furnish(folder, own, page.given)
    except KeyError as error:
        raise PageError(f"{page.path}:1: {error.args[0]}") from error
    with _Terminal(world, page, folder, own, environment) as terminal:
        for block in page.blocks:
            if block.kind == "file":
                target = folder / block.title
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.text, encoding="utf-8")
            elif block.kind != "shown":
                ran = terminal.run(block)
                tell(ran)
                if ran.error:
                    raise PageError(f"{page.path}:{block.line}: {ran.error}\n{ran.output}")


def run_for_test(world: World, page: Page, folder: Path) -> None:
    """Run a page in a test's folder, which is emptied if all is well: pages leave gigabytes."""
    run_page(world, page, folder / "work")
    shutil.rmtree(folder)


class _Terminal:
    """Where the blocks of a page are typed: a shell, and an interpreter of Python."""

    def __init__(
        self, world: World, page: Page, folder: Path, own: Path, environment: dict[str, str]
    ) -> None:
        self.world, self.page, self.folder, self.own = world, page, folder, own
        self.environment = environment
        self.end = time.monotonic() + PAGE_SECONDS
        self.python: _Interpreter | None = None
        self.pipes: tuple[Any, Any] | None = None
        self.log = own / "log"

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes or ():
            pipe.close()
        if self.python:
            self.python.end(20)

    def run(self, block: Block) -> Ran:
        start = time.monotonic()
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            error = (self._bash if block.kind == "bash" else self._python)(block, log)
        with self.log.open("rb") as written:
            written.seek(before)
            output = written.read().decode(errors="replace")
        return Ran(block, time.monotonic() - start, output, error)

    def _bash(self, block: Block, log: Any) -> str:
        script = self.own / "block.sh"
        prologue = _PROLOGUE.format(own=self.own, page=self.page.path)
        padding = "\n" * (block.line - 1)
        script.write_text(prologue + padding + self.world.text(block.text), encoding="utf-8")
        where = self.own / "folder"
        folder = where.read_text().rstrip("\n") if where.exists() else self.folder
        process = subprocess.Popen(
            ["bash", str(script)],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            status = process.wait(max(1, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"not done when the page's {PAGE_SECONDS:g} s were over"
        if status != block.status:
            return f"exit status {status}, expected {block.status}"
        return ""

    def _python(self, block: Block, log: Any) -> str:
        if self.python is None:
            self._start_python()
        assert self.pipes
        asking, answering = self.pipes
        text = self.world.text(block.text)
        asked = {"file": str(self.page.path.resolve()), "line": block.line, "text": text}
        print(json.dumps(asked), file=asking, flush=True)
        left = max(1, self.end - time.monotonic())
        if not select.select([answering], [], [], left)[0]:
            assert self.python
            self.python.end(0)
            return f"not done when the page's {PAGE_SECONDS:g} s were over"
        answer = answering.readline()
        return "" if answer and json.loads(answer) else "the snippet failed"

    def _start_python(self) -> None:
        reading, asking = os.pipe()
        answering, writing = os.pipe()
        self.pipes = (os.fdopen(asking, "w"), os.fdopen(answering))
        with self.log.open("ab") as log:
            self.python = _Interpreter(self.environment, self.folder, log, reading, writing)
        os.close(reading)
        os.close(writing)


class _Interpreter:
    """A process of `interpreter.py`, forked from the world's server if there is one."""

    def __init__(
        self, environment: dict[str, str], folder: Path, log: Any, reading: int, writing: int
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._caller: socket.socket | None = None
        if "DOCS_FORK_SERVER" in environment:
            asked = {"words": [""], "folder": str(folder), "environment": environment}
            self._caller = socket.socket(socket.AF_UNIX)
            self._caller.connect(environment["DOCS_FORK_SERVER"])
            with open(os.devnull) as nothing:
                files = [nothing.fileno(), log.fileno(), log.fileno(), reading, writing]
                socket.send_fds(self._caller, [b" "], files)
            self._caller.sendall(json.dumps(asked).encode() + b"\n")
        else:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "interpreter.py"), str(reading), str(writing)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reading, writing),
                start_new_session=True,
            )

    def end(self, seconds: float) -> None:
        """Wait until it ends, or end it."""
        if self._process:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                _kill(self._process)
        if self._caller:
            select.select([self._caller], [], [], seconds)
            self._caller.close()  # which kills it if it has not ended


def _kill(process: subprocess.Popen[Any]) -> None:
    """End a process and what it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)
