"""The lock of a run folder: who has it is said at once, and nothing of it stays."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from bitzoo import locks
from bitzoo.errors import UsageError
from bitzoo.runs.run_lock import sole_use

LOCK = ".bitzoo-run.lock"
HOLD = """
import os, sys
from pathlib import Path
from bitzoo.runs.run_lock import sole_use
with sole_use(Path(sys.argv[1])):
    if "fork" in sys.argv and os.fork() == 0:
        os.write(1, b"child\\n")
        sys.stdin.read()
        os._exit(0)
    os.write(1, b"has it\\n")
    sys.stdin.read()
"""


def hold(folder, *words):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    said = {process.stdout.readline() for _ in ("it", *words)}
    assert "has it\n" in said
    return process


def test_another_process_is_named_at_once(tmp_path):
    with hold(tmp_path) as process:
        began = time.monotonic()
        with pytest.raises(UsageError) as refused, sole_use(tmp_path):
            pass
        assert time.monotonic() - began < 5
        assert re.fullmatch(
            rf"{re.escape(str(tmp_path))} is in use by process {process.pid} on "
            rf"{re.escape(socket.gethostname())} \(since \d{{4}}-\d\d-\d\d [\d:+-]+\)\. Only one "
            "run at a time can write there: wait until it has ended, stop it, or use another "
            r"folder\.",
            str(refused.value),
        )
        process.stdin.close()
        assert process.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["fork"]])
def test_what_a_killed_process_leaves_does_not_count(tmp_path, words):
    """Nor do its children that live on: they inherit no lock."""
    with hold(tmp_path, *words) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == process.pid
        with sole_use(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []
        process.stdin.close()


def test_a_second_run_in_one_process(tmp_path):
    """As in a notebook; an exception releases the lock."""
    says = r"in use by another run of this process \(since 20"
    with sole_use(tmp_path), pytest.raises(UsageError, match=says), sole_use(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), sole_use(tmp_path):
        1 / 0  # noqa: B018
    with sole_use(tmp_path):
        pass


def test_only_new_empty_folders_are_removed(tmp_path):
    (tmp_path / "old").mkdir()
    with sole_use(tmp_path / "old/new/run"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    with sole_use(tmp_path / "old/new/run"):
        (tmp_path / "old/new/run/notes").touch()
    assert (tmp_path / "old/new/run/notes").exists()
    assert not (tmp_path / f"old/new/run/{LOCK}").exists()


def test_a_lock_that_was_removed_in_between_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """The holder removes it at its end, perhaps between another's opening and locking it."""
    original, waiting = locks._open_lock, [True]

    def opened(path):
        descriptor = original(path)
        if waiting and waiting.pop():
            path.unlink()
        return descriptor

    monkeypatch.setattr(locks, "_open_lock", opened)
    with sole_use(tmp_path):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(UsageError, match="in use"), sole_use(tmp_path):
            pass


@pytest.fixture
def no_locks(monkeypatch):
    """Only the file system of temporary files has locks."""
    original = fcntl.flock

    def flock(descriptor, operation):
        if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")) == LOCK:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        return original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_has_warned", False)


def test_without_locks_processes_of_this_machine_are_kept_apart(tmp_path, no_locks, caplog):
    says = "in use by another run of this process"
    with sole_use(tmp_path), pytest.raises(UsageError, match=says), sole_use(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    assert "is on a file system without locks" in caplog.text
    (tmp_path / LOCK).write_text('{"pid": 7, "host": "' + socket.gethostname() + '"}')
    with sole_use(tmp_path):
        pass


def test_without_locks_another_machine_is_believed(tmp_path, no_locks):
    text = '{"pid": 7, "host": "elsewhere", "since": "2026-01-02"}'
    (tmp_path / LOCK).write_text(text)
    says = (
        r"in use by process 7 on elsewhere \(since 2026-01-02\), as .bitzoo-run.lock says\. Its "
        "file system has no locks, so whether that process still runs cannot be checked. If it "
        "does not, delete "
    )
    with pytest.raises(UsageError, match=says), sole_use(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == text
