"""Readers with a fault each, by which the suite itself is judged; not run with the others."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.checkpoints_under_attack import Attacked, Base
from attacks.engine import READ, run
from attacks.judges import Judge, RefusedError

from bitzoo.errors import CheckpointError


def _abort(path: Path) -> None:
    os.abort()


def _loop(path: Path) -> None:
    while True:  # in the interpreter; a loop in a library ends in the same way
        pass


def _loop_in_a_library(path: Path) -> None:
    re.fullmatch("(a+)+", "a" * 60 + "b")  # no signal's handler would run before its end


def _grow(path: Path) -> None:
    del (block := bytearray(400 << 20))[:1], block


def _fail(path: Path) -> None:
    raise KeyError("a")


def _talk(path: Path) -> None:
    raise CheckpointError(f"{path}: " + "x" * 5_000)


def _paint(path: Path) -> None:
    error = CheckpointError("")
    error.args = (f"{path}: \x1b[31m",)  # which its constructor would have made visible
    raise error


def _mumble(path: Path) -> None:
    raise CheckpointError("something is wrong")


def _refuse(path: Path) -> None:
    raise CheckpointError(f"{path}: no.")


def _read(path: Path) -> None:
    """Nothing is wrong here."""


EXPECTED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "abort": (_abort, "crashed", signal.SIGABRT.name),
    "loop": (_loop, "hung", signal.SIGPROF.name),
    "library": (_loop_in_a_library, "hung", signal.SIGPROF.name),
    "grow": (_grow, "grew", ""),
    "fail": (_fail, "crashed", "KeyError"),
    "talk": (_talk, "message", "characters"),
    "paint": (_paint, "message", "unprintable"),
    "mumble": (_mumble, "message", "not named"),
    "refuse": (_refuse, "refused", "no."),
    "read": (_read, "equal", ""),
    "other": (_read, "different", "other numbers"),
    "alone": (_read, "unread", "refuses"),
}
"""Name -> a reader, and what the suite must say of it."""


@dataclass
class FaultyTarget:
    """A reader that does one thing."""

    name: str
    judge: str = ""

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        """Nothing."""

    def attack(self, rng: random.Random, place: Path) -> Attacked:
        path = place / "input-folder" / "file"
        path.parent.mkdir()
        path.write_bytes(rng.randbytes(8))
        return Attacked(path, "random", Base("none", {}), place)

    def read(self, case: Attacked) -> None:
        EXPECTED[self.name][0](case.path)

    def differs(self, case: Attacked, ours: Any, judge: Judge | None) -> tuple[str, str]:
        if self.name == "other":
            return "different", "other numbers"
        if self.name == "alone":
            return "unread", str(RefusedError("the judge refuses it"))
        return READ, ""


if __name__ == "__main__":
    for result in run([FaultyTarget(name) for name in EXPECTED], 2 * len(EXPECTED)).all:
        print(result.target, result.outcome, result.detail, sep="\t")
