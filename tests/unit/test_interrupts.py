"""A signal ends the process, wherever in threads' bookkeeping it comes."""

import signal
import subprocess
import sys
import time

import pytest

PRELUDE = """
import os, signal, threading, time
from bitzoo.cli.signals import exit_on_signals
exit_on_signals()
def send():
    os.kill(os.getpid(), signal.SIGTERM)
"""


def run(code, timeout=30):
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=timeout
    )


def test_a_lock_is_not_left_held():
    """Code of `threading` that has taken a lock lets go of it before the exception comes."""
    result = run(r"""
lock = threading.Lock()
body = "os.kill(os.getpid(), 15)\n " + "sum(range(100_000))\n " * 20
names = {"__name__": "threading", "lock": lock, "os": os}
exec(f"def take():\n lock.acquire()\n {body}\n lock.release()", names)
try:
    names["take"]()
    print("came back")
    time.sleep(10)
finally:
    print("locked" if lock.locked() else "free")
""")
    assert (result.returncode, result.stderr) == (143, "")
    assert result.stdout.splitlines() in (["free"], ["came back", "free"])


@pytest.mark.parametrize("module", ["weakref", "importlib._bootstrap"])
def test_a_signal_is_not_swallowed_by_a_weak_reference(module):
    """An exception in a callback of `weakref` would be printed and forgotten."""
    result = run(
        f"module = {module!r}"
        r"""
import weakref
class Thing: pass
names = {"__name__": module, "os": os}
body = "os.kill(os.getpid(), 15)\n " + "sum(range(100_000))\n " * 20
exec(f"def callback(_):\n {body}", names)
thing = Thing()
reference = weakref.ref(thing, names["callback"])
del thing
time.sleep(10)
print("went on")
"""
    )
    assert (result.returncode, result.stdout, result.stderr) == (143, "", "")


@pytest.mark.parametrize(
    "wait",
    [
        "threading.Event().wait()",
        "threading.Thread(target=time.sleep, args=(3,), daemon=True).start(); "
        "[t.join() for t in threading.enumerate() if t.daemon]",
        "import concurrent.futures as c; c.Future().result()",
        "time.sleep(60)",
    ],
    ids=["event", "join", "future", "sleep"],
)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_waiting_is_interrupted(wait, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + f"print('up', flush=True)\n{wait}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "up\n"
        time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (code, "")
        assert time.monotonic() - began < 2.5


def test_an_ignored_signal_stays_ignored():
    result = run("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
exit_on_signals()
send()
print("went on")
""")
    assert (result.returncode, result.stdout) == (0, "went on\n")


def test_thread_pools_end_whenever_the_signal_comes():
    """Hundreds of signals while pools start, work and end: none is lost, nothing hangs."""
    result = run("""
import itertools, random, sys
from bitzoo.converters.streaming import worker_pool
class Source:
    def sha256(self, advance):
        for _ in range(5):
            time.sleep(0.0002)
            advance(1)
        return "x"
random.seed(0)
parent = os.getpid()
if not (child := os.fork()):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while os.getppid() == parent:
        time.sleep(random.uniform(0.002, 0.01))
        os.kill(parent, signal.SIGUSR1)
    os._exit(0)
armed = False
def forward(number, frame):
    global armed
    if armed:
        armed = False
        leave(number, frame)
leave = signal.getsignal(signal.SIGTERM)
signal.signal(signal.SIGUSR1, forward)
left, end = 0, time.monotonic() + 4
while time.monotonic() < end:
    try:
        armed = True
        with worker_pool("task", 10, None) as pool:
            digest = pool.hash(Source())
            pool.each(lambda block: time.sleep(0.0003), range(6))
            digest.result()
        armed = False
        while signal.getitimer(signal.ITIMER_REAL)[0]:
            time.sleep(0.001)
    except SystemExit:
        left += 1
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
print(left, sum(thread.name != "signals" for thread in threading.enumerate()))
""")
    assert (result.returncode, result.stderr) == (0, "")
    left, threads = map(int, result.stdout.split())
    assert left > 50
    assert threads == 1
