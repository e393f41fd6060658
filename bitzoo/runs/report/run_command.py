"""The command line that makes a run again, also of a run that was made from Python."""

from __future__ import annotations

import os
import shlex
from dataclasses import fields
from pathlib import Path

from bitzoo.runs.config import RunConfig

_NO_FLAG = {"keep_checkpoints", "teacher_places"}
"""Options of Python alone; they do not change the result."""


def command_of(model: str, data: object, out: Path, config: RunConfig) -> str | None:
    """Return the command that makes a run; None if its data have no name, as arrays have none.

    Args:
        model: What training starts from; the command's first argument.
        data: The data set.
        out: The run folder.
        config: The other options; those that are not the defaults are named.
    """
    if not isinstance(data, (str, os.PathLike)):
        return None
    words = ["bitzoo", config.kind, model, "--data", str(data), "--out", str(out)]
    for option in fields(config):
        value = getattr(config, option.name)
        if value != option.default and option.name not in _NO_FLAG:
            words += _flag(option.name, value)
    return shlex.join(words)


def _flag(name: str, value: object) -> list[str]:
    words = name.replace("_", "-")
    if name == "pretrained":
        return ["--random"]
    if value is True:
        return [f"--{words}"]
    if value is False:
        return [f"--no-{words}"]
    if name in ("log", "teacher") and isinstance(value, (tuple, list)):
        return [word for each in value for word in (f"--{words}", str(each))]
    if isinstance(value, (tuple, list)):
        value = ",".join(str(part) for part in value if part is not None)
    return [f"--{words}", str(value)]
