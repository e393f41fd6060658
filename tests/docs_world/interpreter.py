"""The interpreter of a page: runs snippets that it reads as lines of JSON, and keeps their names.

Snippets are compiled with the page's name and their place in it, so that a traceback points there.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import types


def main() -> None:
    """Read from a descriptor, and answer on another: whether a snippet ended well."""
    asking, answering = (os.fdopen(int(word), mode) for word, mode in zip(sys.argv[1:], "rw"))
    sys.argv[1:] = []
    sys.path[0] = ""  # the folder in which the page works, not this file's
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    for line in asking:
        asked = json.loads(line)
        try:
            source = "\n" * (asked["line"] - 1) + asked["text"]
            exec(compile(source, asked["file"], "exec"), module.__dict__)
            ok = True
        except BaseException as error:  # a snippet may raise SystemExit
            shown = error.__traceback__ and error.__traceback__.tb_next
            traceback.print_exception(type(error), error, shown)
            ok = False
        sys.stdout.flush()
        sys.stderr.flush()
        print(json.dumps(ok), file=answering, flush=True)


if __name__ == "__main__":
    main()
