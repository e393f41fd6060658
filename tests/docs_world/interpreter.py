"""The interpreter of a page: runs snippets that it reads as lines of JSON, and keeps their names.

Snippets are compiled with the page's name and their place in it, so that a traceback points there.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import types


def interpret(reading: int, writing: int) -> None:
    """Read from one descriptor, and answer on another: whether a snippet ended well."""
    sys.argv[:] = [""]
    sys.path[0] = ""  # the folder in which the page works, not this file's
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    with os.fdopen(reading) as asking, os.fdopen(writing, "w") as answering:
        for line in asking:
            asked = json.loads(line)
            ok = _run(asked["text"], asked["file"], asked["line"], module)
            print(json.dumps(ok), file=answering, flush=True)


def _run(text: str, file: str, line: int, module: types.ModuleType) -> bool:
    try:
        exec(compile("\n" * (line - 1) + text, file, "exec"), module.__dict__)
    except BaseException as error:  # a snippet may raise SystemExit
        shown = error.__traceback__ and error.__traceback__.tb_next
        traceback.print_exception(type(error), error, shown)
        return False
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return True


if __name__ == "__main__":
    interpret(*map(int, sys.argv[1:]))
