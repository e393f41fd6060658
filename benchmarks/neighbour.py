"""A busy process of another login session, as a neighbour on the same processors.

Linux schedules sessions as equals (`kernel.sched_autogroup_enabled`), so it gets as much of a
processor as all that run in this session together, whatever their niceness.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

_CODE = """
import os, sys, threading
def end():  # with whoever started it, also if that was killed
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end, daemon=True).start()
print(flush=True)
while True:
    pass
"""


@contextlib.contextmanager
def busy_neighbour() -> Iterator[int]:
    """Keep one processor busy during the body; yields the process's id."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()  # it is running
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
