"""`bitzoo convert` killed, or failed by its disk, at any of its steps, and then run again.

A forked process runs the command. An audit hook counts what it does to the files of the test
(opens, renames, links, removals), and at a step that the generator chose ends it as `kill -9` does,
or lets the system call fail; a limit on the size of files fails the writes between. Whatever
happened: an output that is there is whole and is what its proof speaks of, the same command then
succeeds, and nothing of ours is left beside it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from attacks.engine import READ
from attacks.judges import Judge
from checkpoints import make_checkpoint, write_npz

from bitzoo.cli.main import main

FORMATS = {
    "safetensors": "out.safetensors",
    "npz": "out.npz",
    "h5": "out.h5",
    "transformers": "out",
    "bit_pytorch": "out.pth",
}
EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
STEPS = 60
"""More than a conversion takes; a step that never comes leaves it alone."""
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)
_SIZES = (0, 4_096, 100_000, 4_000_000, 8_000_000, 8_060_000)


@dataclass
class Interrupted:
    """One conversion, and how it is disturbed."""

    path: Path
    label: str
    words: list[str]
    output: Path
    step: int
    error: int = 0
    limit: int = 0
    before: dict[str, str] = field(default_factory=dict)


@dataclass
class InterruptionsTarget:
    """Conversions that are killed or fail."""

    name: str = "interruptions"
    judge: str = ""
    weight: float = 0.003
    cpu_seconds: float = 60.0
    sources: dict[str, bytes] = field(default_factory=dict)

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        """Write two sources, and convert each without disturbance."""
        for name, seed in (("one", 1), ("two", 2)):
            path = write_npz(folder / f"{name}.npz", make_checkpoint(num_classes=3, seed=seed))
            self.sources[name] = path.read_bytes()

    def attack(self, rng: random.Random, place: Path) -> Interrupted:
        to = rng.choice(list(FORMATS))
        check = rng.choice(("weights", "weights", "none"))
        old = rng.choice((False, True))
        kind = rng.choice(("kill", "kill", "error", "size"))
        folder = place / "input-folder"
        folder.mkdir()
        for name, data in self.sources.items():
            (folder / f"{name}.npz").write_bytes(data)
        output = folder / FORMATS[to]
        words = ["convert", "--dst", str(output), "--to", to, "--check"]
        if old:
            _command([*words, "weights", "--src", str(folder / "two.npz")], folder)
        words += [check, "--src", str(folder / "one.npz"), *(["--force"] if old else [])]
        label = f"{kind} {to} {check}{' over another' if old else ''}"
        case = Interrupted(folder, label, words, output, rng.randrange(STEPS))
        if kind == "error":
            case.error = rng.choice(_ERRORS)
        elif kind == "size":
            case.step, case.limit = -1, rng.choice(_SIZES) or rng.randrange(8_100_000)
        case.before = _contents(output)
        return case

    def read(self, case: Interrupted) -> dict[str, Any]:
        """Run it with the disturbance, look, and run it again."""
        first = _command(case.words, case.path, case.step, case.error, case.limit)
        between = _contents(case.output)
        truth = _untrue(case.output, settled=False)
        proven = not _untrue(case.output) and case.output.with_name("parity.json").exists()
        again = case.words if "--force" in case.words else [*case.words, "--force"]
        second = _command(again, case.path)
        return {
            "first": first,
            "between": between,
            "untrue": truth,
            "second": second,
            "proven": proven,
        }

    def differs(
        self, case: Interrupted, ours: dict[str, Any], judge: Judge | None
    ) -> tuple[str, str]:
        code, said = ours["first"]
        disturbed = f"step {case.step}, exit {code}"
        if code not in (0, 2, -signal.SIGKILL) or "Traceback" in said:
            return "crashed", f"{disturbed}: {said[-300:]}"
        if ours["untrue"]:
            return "different", f"{disturbed}: {ours['untrue']}"
        if code == 2 and ours["between"] != case.before:
            if ours["between"] != _contents(case.output):
                return "different", f"{disturbed}: the failed command changed the output"
            if "weights" in case.words[-4:] and not ours["proven"]:
                return "different", f"{disturbed}: the failed command left an output without proof"
        code, said = ours["second"]
        if code:
            return "different", f"{disturbed}: the second time exit {code}: {said[-300:]}"
        if fault := _untrue(case.output) or _left(case.path, case.output):
            return "different", f"{disturbed}: {fault}"
        return READ, ""


def _command(
    words: list[str], folder: Path, step: int = -1, error: int = 0, limit: int = 0
) -> tuple[int, str]:
    """Run `bitzoo` in a process of its own: exit code, or minus a signal's number; its words."""
    with tempfile.TemporaryFile() as out:
        pid = os.fork()
        if not pid:
            try:
                os._exit(_run(words, folder, out.fileno(), step, error, limit))
            finally:
                os._exit(99)
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        said = out.read().decode(errors="replace")
    return (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), said


def _run(words: list[str], folder: Path, out: int, step: int, error: int, limit: int) -> int:
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), write_through=True)
    os.environ["BITZOO_CACHE"] = str(folder.parent / "cache")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder.parent)
    sys.argv = ["bitzoo", *words]
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if step >= 0:
        _disturb(str(folder), step, error)
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 98
    return 0


def _disturb(folder: str, step: int, error: int) -> None:
    """End this process at its `step`-th change of a file, or let that fail."""
    seen = [0]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not any(_below(one, folder) for one in arguments):
            return
        if event == "open" and error and not _writes(arguments):
            return
        seen[0] += 1
        if seen[0] == step + 1:
            if error:
                raise OSError(error, os.strerror(error))
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _below(argument: object, folder: str) -> bool:
    if isinstance(argument, bytes):
        argument = os.fsdecode(argument)
    return isinstance(argument, (str, os.PathLike)) and str(argument).startswith(folder)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2] if len(arguments) > 2 else 0
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# --- what is there ------------------------------------------------------------------------------


def _contents(output: Path) -> dict[str, str]:
    """SHA-256 of an output's files by name."""
    files = output.rglob("*") if output.is_dir() else [output]
    return {
        str(file.relative_to(output.parent)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def _untrue(output: Path, *, settled: bool = True) -> str:
    """What is wrong with an output and the proof beside it.

    Each must be whole. If nothing was killed, they belong together; else the proof must at least
    say of which bytes it speaks, so that nobody takes it for one of others.
    """
    weights = output / "model.safetensors" if output.suffix == "" else output
    if output.exists() and (fault := _not_whole(weights)):
        return fault
    report = output.with_name("parity.json")
    if not report.exists():
        return ""
    try:
        proof = json.loads(report.read_bytes())[output.name]
    except KeyError:
        return ""
    except ValueError as error:
        return f"parity.json is not whole: {error}"
    if not weights.exists():
        return ""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    stated = proof["output"].get("sha256")
    told = stated == digest or (stated and not settled)
    return "" if told else f"the proof is of {stated}, the file is {digest[:8]}"


def _not_whole(weights: Path) -> str:
    """Read the weights with the library of their format."""
    try:
        if weights.suffix == ".npz":
            with np.load(weights) as file:
                count = len([file[name] for name in file.files])
        elif weights.suffix == ".h5":
            import h5py

            with h5py.File(weights) as file:
                count = len(file.attrs["layer_names"]) * 5
        elif weights.suffix == ".pth":
            import torch

            count = len(torch.load(weights, weights_only=True))
        else:
            data = weights.read_bytes()
            (size,) = struct.unpack("<Q", data[:8])
            header = json.loads(data[8 : 8 + size])
            header.pop("__metadata__", None)
            end = max(entry["data_offsets"][1] for entry in header.values())
            count = len(header) if 8 + size + end == len(data) else 0
    except Exception as error:
        return f"the output is not whole: {type(error).__name__}: {error}"
    return "" if count >= 45 else f"the output has {count} tensors"


def _left(folder: Path, output: Path) -> str:
    """Files beside the sources, the output and its proof."""
    known = {"one.npz", "two.npz", output.name, "parity.json"}
    more = sorted(entry.name for entry in folder.iterdir() if entry.name not in known)
    return f"left behind: {more[:5]}" if more else ""


INTERRUPTIONS = InterruptionsTarget()
