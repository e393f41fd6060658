"""Checkpoints are complete or absent, whatever happens to process, disk or file."""

import contextlib
import errno
import os
import re
import resource
import shutil
import signal
import warnings

import pytest
import torch
from safetensors.torch import load_file

from bitzoo.errors import BitzooError, CheckpointError, UsageError
from bitzoo.training.checkpointing import (
    SaveError,
    latest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

META = {"lr": 0.1, "names": ["a", "ü"], "nested": {"none": None}}


def make_state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.b": torch.randn(3, 4, 5, 5, generator=generator),
        "model.a": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def bits(tensor):
    return tensor.detach().contiguous().view(torch.int32).tolist()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert bits(found[name]) == bits(tensor), name


def steps_in(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*"))


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@contextlib.contextmanager
def fork(work):
    """Run `work` in a fork of this process; yields its id and the pipe that it writes to."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # other threads do not matter: the copy only writes files
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            work(open(writing, "w", buffering=1))  # noqa: SIM115 - the process ends here
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        yield child, pipe
    os.waitpid(child, 0)


class TestWhole:
    def test_comes_back_bit_for_bit(self, tmp_path):
        path = save_checkpoint(tmp_path / "new", 7, make_state(), META)
        found = latest_checkpoint(tmp_path / "new")
        assert (found.step, found.meta, found.path) == (7, META, path)
        assert_same(found.state, make_state())

    def test_is_a_plain_safetensors_file(self, tmp_path):
        assert_same(load_file(save_checkpoint(tmp_path, 1, make_state(), {})), make_state())

    def test_memory_format_does_not_matter(self, tmp_path):
        state = {"a": make_state()["model.b"].to(memory_format=torch.channels_last)}
        save_checkpoint(tmp_path, 1, state, {})
        assert_same(latest_checkpoint(tmp_path).state, state)

    @pytest.mark.parametrize("folder", ["missing", "."])
    def test_none_if_there_is_no_checkpoint(self, tmp_path, folder, caplog):
        (tmp_path / "notes.txt").write_text("not a checkpoint")
        assert latest_checkpoint(tmp_path / folder) is None
        assert caplog.text == ""

    def test_refuses_what_it_cannot_store_exactly(self, tmp_path):
        with pytest.raises(
            UsageError, match=r"^Tensor 'a' of a checkpoint must be float32, found torch"
        ):
            save_checkpoint(tmp_path, 1, {"a": torch.zeros(2, dtype=torch.float64)}, {})
        with pytest.raises(UsageError, match="`keep` must be at least 1 checkpoint, found 0"):
            save_checkpoint(tmp_path, 1, {}, {}, keep=0)


class TestRotation:
    def test_keeps_the_newest_two(self, tmp_path):
        for step in (1, 2, 10, 3000000000):
            save_checkpoint(tmp_path, step, make_state(step), {})
        assert steps_in(tmp_path) == [10, 3000000000]
        assert_same(latest_checkpoint(tmp_path).state, make_state(3000000000))

    def test_an_old_one_that_cannot_be_deleted_is_a_warning(self, tmp_path, monkeypatch, caplog):
        old = save_checkpoint(tmp_path, 1, make_state(), {})

        def refuse(*args, **options):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(type(old), "unlink", refuse)
        save_checkpoint(tmp_path, 2, make_state(2), {}, keep=1)
        assert latest_checkpoint(tmp_path).step == 2
        assert f"Cannot delete the old checkpoint {old}: Operation not permitted" in caplog.text

    @pytest.mark.parametrize(("keep", "left"), [(1, [4]), (3, [2, 3, 4])])
    def test_keeps_the_given_number(self, tmp_path, keep, left):
        for step in range(5):
            save_checkpoint(tmp_path, step, make_state(), {}, keep=keep)
        assert steps_in(tmp_path) == left

    def test_a_run_that_went_back_removes_later_checkpoints(self, tmp_path):
        for step in (10, 20):
            path = save_checkpoint(tmp_path, step, make_state(step), {})
        flip(path, -1)
        assert latest_checkpoint(tmp_path).step == 10
        save_checkpoint(tmp_path, 15, make_state(15), {})
        assert steps_in(tmp_path) == [10, 15]

    def test_the_same_step_again_replaces(self, tmp_path):
        save_checkpoint(tmp_path, 1, make_state(1), {})
        save_checkpoint(tmp_path, 1, make_state(2), {})
        assert_same(latest_checkpoint(tmp_path).state, make_state(2))

    def test_new_reaches_the_disk_before_old_is_removed(self, tmp_path, monkeypatch):
        old = save_checkpoint(tmp_path, 1, make_state(), {}, keep=1)
        events = []

        def record(name, original):
            def call(*args):
                kind = os.fstat(args[0]).st_mode if name == "fsync" else None
                events.append((name, "folder" if kind and kind & 0o40000 else "file", old.exists()))
                return original(*args)

            monkeypatch.setattr(os, name, call)

        for name in ("fsync", "replace"):
            record(name, getattr(os, name))
        save_checkpoint(tmp_path, 2, make_state(), {}, keep=1)
        assert events == [
            ("fsync", "file", True),
            ("replace", "file", True),
            ("fsync", "folder", True),
        ]
        assert not old.exists()


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        for step in (1, 2):
            save_checkpoint(tmp_path, step, make_state(step), META)
        return tmp_path

    def falls_back(self, folder, caplog, says):
        found = latest_checkpoint(folder)
        assert found.step == 1
        assert_same(found.state, make_state(1))
        assert f"{folder / 'step-00000002.safetensors'} {says}" in caplog.text
        assert "Going back to the checkpoint before it" in caplog.text

    @pytest.mark.parametrize("size", [0, 4, 100, -1, -1000])
    def test_truncated(self, folder, caplog, size):
        newest = folder / "step-00000002.safetensors"
        newest.write_bytes(newest.read_bytes()[:size])
        self.falls_back(folder, caplog, "cannot be read as a training checkpoint")

    @pytest.mark.parametrize("position", [-1, -1200])
    def test_one_bit_of_a_tensor(self, folder, caplog, position):
        flip(folder / "step-00000002.safetensors", position, bit=3)
        self.falls_back(folder, caplog, "is damaged: expected content with SHA-256")

    def test_blocks_that_never_reached_the_disk(self, folder, caplog):
        newest = folder / "step-00000002.safetensors"
        newest.write_bytes(bytes(newest.stat().st_size))
        self.falls_back(folder, caplog, "cannot be read")

    def test_tensors_of_another_checkpoint(self, folder, caplog):
        newest = folder / "step-00000002.safetensors"
        other = (folder / "step-00000001.safetensors").read_bytes()
        newest.write_bytes(newest.read_bytes()[:-1200] + other[-1200:])
        self.falls_back(folder, caplog, "is damaged")

    def test_a_safetensors_file_of_something_else(self, folder, caplog):
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(3)}, folder / "step-00000002.safetensors")
        self.falls_back(folder, caplog, "cannot be read as a training checkpoint")

    @pytest.mark.parametrize(
        ("record", "says"),
        [
            ("[" * 100_000, "recursion"),
            ('{"step": Infinity, "meta": {}}', "the step is inf"),
            ('{"step": "2", "meta": {}}', "the step is '2'"),
            ('{"step": 2, "meta": 5}', "'int' object is not iterable"),
            ("null", "'NoneType' object is not subscriptable"),
        ],
    )
    def test_a_header_of_another_form(self, folder, caplog, record, says):
        from safetensors.torch import save_file

        header = {"bitzoo_checkpoint": record, "sha256": "0" * 64}
        save_file({"a": torch.zeros(3)}, folder / "step-00000002.safetensors", header)
        self.falls_back(folder, caplog, "cannot be read as a training checkpoint")
        assert says in caplog.text

    def test_a_pipe(self, folder):
        os.mkfifo(folder / "pipe.safetensors")
        with pytest.raises(CheckpointError, match=r"training checkpoint \(it is no regular file\)"):
            read_checkpoint(folder / "pipe.safetensors")

    def test_a_flipped_bit_anywhere_is_detected_or_harmless(self, tmp_path):
        state = {"a": torch.arange(3.0)}
        path = save_checkpoint(tmp_path, 1, state, {"x": 1})
        whole = path.read_bytes()
        seen = 0
        for position in range(len(whole)):
            flip(path, position, bit=position % 7)
            try:
                found = read_checkpoint(path)
                assert (found.step, found.meta) == (1, {"x": 1})
                assert_same(found.state, state)
            except CheckpointError:
                seen += 1
            path.write_bytes(whole)
        assert seen > 0.9 * len(whole)

    def test_an_unfinished_file_is_ignored_and_removed_with_the_next_save(self, folder):
        unfinished = folder / ".bitzoo-00c0ffee.tmp"
        unfinished.mkdir()
        shutil.copy(folder / "step-00000002.safetensors", unfinished)
        assert latest_checkpoint(folder).step == 2
        save_checkpoint(folder, 4, make_state(), {})
        assert not unfinished.exists()

    def test_only_damaged_ones_is_none_with_a_warning(self, folder, caplog):
        for path in folder.iterdir():
            flip(path, -1)
        assert latest_checkpoint(folder) is None
        assert "has no undamaged checkpoint" in caplog.text


class TestFullDisk:
    SAYS = (
        r"step-00000002.*cannot be written.*The last good checkpoint stays: .*step-00000001.*Free"
    )

    def fails(self, folder, says, state=None):
        with pytest.raises(BitzooError, match=says) as caught:
            save_checkpoint(folder, 2, state or make_state(2), {}, keep=1)
        assert isinstance(caught.value, SaveError)
        assert caught.value.exit_code == 2
        return caught.value

    @pytest.mark.parametrize("stage", ["pwrite", "fsync", "replace"])
    def test_keeps_the_last_good_one(self, tmp_path, monkeypatch, stage):
        save_checkpoint(tmp_path, 1, make_state(1), {})

        original = getattr(os, stage)

        def refuse(*args):
            if stage == "pwrite" and args[2] == 0:  # the header still fits
                return original(*args)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, stage, refuse)
        error = self.fails(tmp_path, f"(?s)(?=.*No space left on device){self.SAYS}")
        assert error.__cause__.errno == errno.ENOSPC
        monkeypatch.undo()
        assert os.listdir(tmp_path) == ["step-00000001.safetensors"]
        assert_same(latest_checkpoint(tmp_path).state, make_state(1))

    def test_a_limit_enforced_by_the_system(self, tmp_path):
        save_checkpoint(tmp_path, 1, make_state(1), {})
        state = {"a": torch.zeros(100_000)}

        def save(pipe):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                save_checkpoint(tmp_path, 2, state, {})
            except BitzooError as error:
                pipe.write(f"{error}\n")

        with fork(save) as (_, pipe):
            said = pipe.read()
        assert re.search(f"(?=.*File too large){self.SAYS}", said), said
        assert os.listdir(tmp_path) == ["step-00000001.safetensors"]
        assert_same(latest_checkpoint(tmp_path).state, make_state(1))

    def test_without_an_earlier_one(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        self.fails(tmp_path / "file" / "folder", "There is no earlier checkpoint")


@pytest.mark.parametrize("reports", [3, 40])
def test_kill_9_while_saving_leaves_the_newest_reported_checkpoint(tmp_path, reports):
    states = [{"a": torch.full((300_000,), float(number))} for number in range(10)]

    def save(pipe):
        for step in range(1, 100_000):
            save_checkpoint(tmp_path, step, states[step % 10], {})
            pipe.write(f"{step}\n")

    with fork(save) as (child, pipe):
        for _ in range(reports):
            pipe.readline()
        os.kill(child, signal.SIGKILL)
        reported = [reports, *(int(line) for line in pipe if line.endswith("\n"))][-1]
    found = latest_checkpoint(tmp_path)
    assert found.step in (reported, reported + 1)
    assert torch.equal(found.state["a"], states[found.step % 10]["a"])
