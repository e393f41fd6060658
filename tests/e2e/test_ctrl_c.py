"""Ctrl-C and SIGTERM while a step computes: what is waited for is said at once, a second one ends.

The steps here are one long call of a library each, during which Python runs no signal handler.
"""

import re
import signal
import subprocess
import sys
import time

import pytest
from screens import Terminal, folder_of_digits

from bitzoo.training.checkpointing import latest_checkpoint

pytestmark = pytest.mark.slow


WORDS = ["finetune", "--model", "small.npz", "--data", "digits", "--out", "run", "--lr", "0.003"]
WORDS += ["--steps", "50", "--batch-size", "1536", "--micro-batch", "1536", "--resolution", "36,32"]
WORDS += ["--checkpoint-every", "2"]
STOPPING = re.compile(
    r"stopping after this step, in about (\d+) (s|min),\s+with a\s+checkpoint\.\s+Send\s+it\s+"
    r"again\s+to\s+stop\s+at\s+once"
)


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder_of_digits(tmp_path)


def begin(folder, columns=80):
    """Start on a terminal; returns it in the fourth step, whose length is known by then."""
    terminal = Terminal(WORDS, columns=columns, rows=24, folder=folder)
    terminal.until(re.compile(r"step  3/50").search, timeout=240)
    return terminal


def step_of(folder):
    found = latest_checkpoint(folder / "run/checkpoints")
    return found.step if found else 0


class TestOnATerminal:
    def test_the_first_says_what_it_waits_for_and_how_long(self, digits):
        with begin(digits) as terminal:
            began = time.monotonic()
            terminal.press(b"\x03")
            said = STOPPING.search(terminal.until(STOPPING.search))
            seconds = time.monotonic() - began
            assert terminal.finish() == 0
            waited = time.monotonic() - began
        # The step takes longer than the message, whose estimate is right within its order.
        assert seconds < 1 < waited
        estimate = int(said[1]) * {"s": 1, "min": 60}[said[2]]
        assert waited / 6 < estimate < 6 * waited
        assert "Stopped after step 4." in terminal.text()
        assert step_of(digits) == 4

    def test_a_second_one_ends_it_at_once(self, digits):
        with begin(digits) as terminal:
            terminal.press(b"\x03")
            terminal.until("stopping after this step")
            began = time.monotonic()
            terminal.press(b"\x03")
            assert terminal.finish() == 130
            assert time.monotonic() - began < 3
        assert step_of(digits) == 2  # valid, or it would not be the latest


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_through_a_pipe(digits, number, code):
    command = [sys.executable, "-m", "bitzoo", *WORDS]
    with subprocess.Popen(command, cwd=digits, stdout=subprocess.DEVNULL, stderr=-1) as process:
        while not step_of(digits):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(number)
        said = f"{number.name}: stopping after this step".encode()
        assert any(line.startswith(said) for line in iter(process.stderr.readline, b""))
        assert time.monotonic() - began < 1
        process.send_signal(number)
        began = time.monotonic()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(10) == code
        assert time.monotonic() - began < 3
    assert step_of(digits) == 2


def test_what_is_not_training_says_so_and_ends(tmp_path):
    """A computation in a library, which a first Ctrl-C cannot end."""
    code = (
        "import sys\nfrom bitzoo.cli.signals import exit_on_signals\nexit_on_signals()\n"
        "print('up', flush=True)\n"
        # One call that holds no lock of the interpreter and that no handler can interrupt.
        "import hashlib\nhashlib.pbkdf2_hmac('sha256', b'x' * 64, b'y', 2_000_000_000)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=-1, stderr=-1) as process:
        assert process.stdout.readline() == b"up\n"
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == (
            b"SIGINT: stopping as soon as the current computation or file lets it. Send it again "
            b"to stop at once.\n"
        )
        assert time.monotonic() - began < 4
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"SIGINT again: stopped at once.\n"
        assert process.wait(5) == 130
