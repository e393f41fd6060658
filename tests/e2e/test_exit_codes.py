"""docs/reference/exit-codes.md: a command for each code, and no code without one."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_npz
from click.testing import CliRunner
from PIL import Image

from bitzoo.cli.main import app

PAGE = Path(__file__).parents[2] / "docs/reference/exit-codes.md"
WAITING = """
import sys, time
from bitzoo.cli.main import main
class Typed:
    class buffer:
        @staticmethod
        def read():
            print("reading", flush=True)
            time.sleep(60)
sys.stdin = Typed
sys.argv[1:] = ["predict", "own.npz", "-"]
main()
"""
"""A command that waits for somebody to type."""
SIGNALS = {129: signal.SIGHUP, 130: signal.SIGINT, 143: signal.SIGTERM}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    write_npz("own.npz", make_checkpoint(num_classes=3))
    write_npz("other.npz", make_checkpoint(num_classes=3, seed=1))
    Image.new("RGB", (40, 30), "teal").save("photo.jpg")
    Path("broken.jpg").write_bytes(b"no image")


def code_of(*words):
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code


def test_the_page_lists_these():
    listed = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert [int(code) for code in listed] == [0, 1, 2, *SIGNALS]


def test_0_is_done(here):
    assert code_of("convert", "own.npz", "--check", "weights") == 0
    assert code_of("list", "no such name") == 0
    assert code_of("predict", "own.npz", "photo.jpg", "broken.jpg", "--skip-bad") == 0


def test_1_is_no(here):
    assert code_of("verify", "own.npz", "other.npz", "--check", "weights") == 1
    assert code_of("predict", "own.npz", "photo.jpg", "broken.jpg") == 1


def test_2_is_what_could_not_run(here):
    assert code_of("verify", "own.npz") == 2
    assert code_of("verify", "own.npz", "gone.npz") == 2
    assert code_of("predict", "own.npz", "broken.jpg") == 2
    assert code_of("predict", "own.npz", "broken.jpg", "--skip-bad") == 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX")
@pytest.mark.parametrize(("code", "number"), SIGNALS.items())
def test_a_signal(here, code, number):
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1) as process:
        assert process.stdout.readline() == b"reading\n"
        process.send_signal(number)
        assert process.wait(30) == code


def test_a_closed_pipe():
    command = [sys.executable, "-m", "bitzoo", "list"]
    with subprocess.Popen(command, stdout=-1, stderr=-1) as process:
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""
