"""Locks between processes, and file systems that have none."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from checkpoints import make_checkpoint, write_npz

from bitzoo import locks
from bitzoo.files import remove_unfinished, replaced
from bitzoo.locks import claimed, file_lock, folder_lock, hold_shared, is_held

HOLD = """
import sys
from pathlib import Path
from bitzoo.locks import file_lock, folder_lock
with {lock}(Path(sys.argv[1])):
    print("has it", flush=True)
    sys.stdin.read()
"""
WITHOUT = """
import fcntl, sys
def flock(descriptor, operation):
    raise OSError({number}, "not here")
fcntl.flock = flock
from bitzoo.cli.main import main
main()
"""
"""`bitzoo`, on file systems that have no locks."""
NUMBERS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL]


def start(code, *words):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def no_locks(monkeypatch):
    """Every file system but that of temporary files answers as if it had no locks."""
    original, stand_ins = fcntl.flock, os.path.realpath(tempfile.gettempdir())

    def flock(descriptor, operation):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        name = os.readlink(f"/proc/self/fd/{number}")
        if os.path.dirname(name) != stand_ins:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        return original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_has_warned", False)


@pytest.mark.parametrize("lock", ["file_lock", "folder_lock"])
def test_one_process_waits_for_the_other(tmp_path, lock, caplog):
    process = start(HOLD.format(lock=lock), tmp_path)
    with process:
        assert process.stdout.readline() == "has it\n"
        second = start(HOLD.format(lock=lock), tmp_path)
        with second:
            assert second.stderr.readline().startswith("Waiting for another process that is using")
            process.send_signal(signal.SIGKILL)
            assert second.stdout.readline() == "has it\n"
            second.stdin.close()
            assert second.wait(30) == 0


def test_a_stand_in_keeps_processes_of_this_machine_apart(tmp_path, no_locks, caplog):
    place = locks._stand_in(tmp_path / "x")
    with file_lock(tmp_path / "x"):
        assert is_locked(place)
        with folder_lock(tmp_path):
            pass
    assert not is_locked(place)
    place.unlink()
    locks._stand_in(tmp_path).unlink()
    (said,) = caplog.messages
    assert "is on a file system without locks (No locks available)" in said
    assert "let only one of them write there" in said


def is_locked(path):
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_without_any_lock_work_goes_on(tmp_path, monkeypatch, caplog):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_has_warned", False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with file_lock(tmp_path / "x"), folder_lock(tmp_path), replaced(tmp_path / "y") as new:
        new.write_text("written")
    assert (tmp_path / "y").read_text() == "written"
    assert len(caplog.messages) == 1


def test_other_errors_are_not_taken_for_it(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    says = r"x cannot be written: .*Input/output error"
    with pytest.raises(OSError, match=says), file_lock(tmp_path / "x"):
        pass


def test_what_is_in_use(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert not is_held(path)
    with path.open("rb") as file:
        hold_shared(file)
        assert is_held(path)
        with claimed(path) as free:
            assert not free
    assert not is_held(path)
    assert is_held(tmp_path / "missing")


def test_without_locks_what_was_written_within_a_day_is_in_use(tmp_path, no_locks):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("new")
    old = time.time() - 25 * 3600
    os.utime(folder, (old, old))
    assert is_held(folder)  # for what is in it
    os.utime(folder / "file", (old, old))
    assert not is_held(folder)
    left = tmp_path / ".bitzoo-00c0ffee.tmp"
    folder.rename(left)
    remove_unfinished(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.__getitem__)
def test_a_conversion_without_locks(tmp_path, number):
    """It says so once, succeeds, and the proof is there."""
    write_npz(tmp_path / "a.npz", make_checkpoint(num_classes=3))
    done = start(WITHOUT.format(number=number), "convert", "--src", tmp_path / "a.npz",
                 "--check", "weights")  # fmt: skip
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert err.count("is on a file system without locks (not here)") == 1
    report = json.loads((tmp_path / "parity.json").read_text())["a.safetensors"]
    assert report["passed"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.npz", "a.safetensors", "parity.json"]
