"""What every test gets."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker a core, and the processes that it starts: more threads only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whatever else runs beside the tests, threads give way, and no command says that it chose so.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
    # What a command prints is then that of its own terminal, whatever the tests are started from.
    os.environ.pop(name, None)

# A shell ignores SIGINT for what it puts into the background, nohup SIGHUP; children inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def signal_handlers_stay():
    """A command that a test runs in this process installs its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_make_parametrize_id(val, argname):
    """Megabytes are no name of a test; pytest 8 takes them, and sends them many times over."""
    return argname if isinstance(val, (str, bytes)) and len(val) > 200 else None


def pytest_collection_modifyitems(items):
    """Full-size tests take minutes; their time limit is there to end a standstill, no more."""
    for item in items:
        if item.get_closest_marker("full_size") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
