"""The command `bitzoo` in a process of its own that has imported torch already.

running = start("evaluate", "run", "--data", "photos", folder=tmp_path)
code, out, err = running.result()
"""

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from training import InProcess


def start(
    *words: object, folder: Path, environment: Mapping[str, object] | None = None
) -> InProcess:
    """Begin `bitzoo WORDS` in `folder`, on one thread; caches go to `folder/cache`."""
    given = {name: str(value) for name, value in (environment or {}).items()}
    environment = {"BITZOO_CACHE": str(folder / "cache"), **given}
    return InProcess(_run, list(map(str, words)), str(folder), environment=environment)


def _run(report: object, words: list[str], folder: str) -> tuple[str | int | None, str, str]:
    from bitzoo.cli.main import main

    os.chdir(folder)
    sys.argv[1:] = words
    code: str | int | None = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()
