"""The command `bitzoo` in a fresh process, with its peak memory and its time.

code, out, err, memory, seconds = watch("convert", "--src", path)
"""

import json
import subprocess
import sys
import time

# A process between, because a child's peak counts what its parent had before.
_BETWEEN = """
import json, resource, subprocess, sys
limit = 6 << 30  # spares the machine if a bomb goes off
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
done = subprocess.run([sys.executable, "-m", "bitzoo", *sys.argv[1:]], capture_output=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
json.dump([done.returncode, done.stdout.decode(), done.stderr.decode(), peak], sys.stdout)
"""


def watch(*words):
    """Run `bitzoo WORDS`: exit code, stdout, stderr, peak resident bytes and seconds."""
    command = [sys.executable, "-c", _BETWEEN, *map(str, words)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    code, out, err, peak = json.loads(done.stdout)
    unit = 1 if sys.platform == "darwin" else 1024
    return code, out, err, peak * unit, time.monotonic() - began
