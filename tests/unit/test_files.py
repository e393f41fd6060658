"""Files appear complete or not at all, and nothing unfinished stays behind."""

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from formats import write_keras

from bitzoo import files
from bitzoo.converters.open import open_source
from bitzoo.errors import CheckpointError, StorageError, UsageError
from bitzoo.files import cache_dir, new_output, remove_unfinished, replaced, workspace
from bitzoo.locks import hold_shared

PAUSE = """
import sys, time
from pathlib import Path
from bitzoo.{module} import {function}
with {function}(Path(sys.argv[1]){more}) as place:
    {body}
    print("is in", flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def pause():
    """Start a process that stops inside a context manager of `files`."""
    started = []

    def begin(function, path, more="", body="place.write_text('half')", module="files"):
        code = PAUSE.format(function=function, more=more, body=body, module=module)
        command = [sys.executable, "-c", code, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "is in\n"
        return process

    yield begin
    for process in started:
        kill(process)
        process.stdout.close()


def kill(process):
    process.kill()
    process.wait()


class TestLeftovers:
    @pytest.mark.parametrize(
        ("function", "more", "body"),
        [
            ("replaced", "", "place.write_text('half')"),
            ("new_output", ", 1, option='dst', force=False", "place.write_text('half')"),
            (
                "new_output",
                ", 1, option='dst', force=False, contents=('a',)",
                "(place / 'a').write_text('x')",
            ),
        ],
        ids=["file", "output", "folder"],
    )
    def test_of_a_killed_process_go_with_the_next_write(
        self, tmp_path, pause, function, more, body
    ):
        process = pause(function, tmp_path / "x", more, body)
        with replaced(tmp_path / "other") as new:
            new.write_text("done")
        assert len(names(tmp_path)) == 2  # what a living process writes stays
        kill(process)
        assert len(names(tmp_path)) == 2
        with replaced(tmp_path / "other") as new:
            new.write_text("done")
        assert names(tmp_path) == ["other"]

    def test_anywhere_in_the_cache(self, tmp_path, pause, monkeypatch):
        monkeypatch.setenv("BITZOO_CACHE", str(tmp_path))
        one, other = tmp_path / "models/one", tmp_path / "publish/other"
        for folder in (one, other):
            folder.mkdir(parents=True)
        kill(pause("replaced", one / "model.safetensors"))
        assert len(names(one)) == 1
        files.write_text(other / "card", "text")
        assert (names(one), names(other)) == ([], ["card"])

    def test_free_their_space_before_it_is_counted(self, tmp_path, pause, monkeypatch):
        kill(pause("replaced", tmp_path / "x"))
        usage = shutil.disk_usage

        def measured(path):
            assert names(tmp_path) == []
            return usage(path)

        monkeypatch.setattr(shutil, "disk_usage", measured)
        with new_output(tmp_path / "y", 1, option="dst", force=False) as new:
            new.write_text("done")
        assert names(tmp_path) == ["y"]

    def test_a_replaced_folder_goes_back_if_the_new_one_has_not_its_name(self, tmp_path):
        kept = tmp_path / ".bitzoo-00c0ffee.tmp/.bitzoo-replaced/x"
        kept.mkdir(parents=True)
        (kept / "model").write_text("old")
        remove_unfinished(tmp_path)
        assert (tmp_path / "x/model").read_text() == "old"
        assert names(tmp_path) == ["x"]

    def test_an_unfinished_folder_may_be_called_replaced(self, tmp_path):
        (tmp_path / ".bitzoo-00c0ffee.tmp/replaced/half").mkdir(parents=True)
        remove_unfinished(tmp_path)
        assert names(tmp_path) == []

    def test_a_replaced_folder_does_not_replace_the_new_one(self, tmp_path):
        (tmp_path / ".bitzoo-00c0ffee.tmp/.bitzoo-replaced/x").mkdir(parents=True)
        (tmp_path / "x").mkdir()
        (tmp_path / "x/model").write_text("new")
        remove_unfinished(tmp_path)
        assert (tmp_path / "x/model").read_text() == "new"
        assert names(tmp_path) == ["x"]

    def test_files_of_earlier_versions_go_after_a_day(self, tmp_path):
        old, new = tmp_path / ".bitzoo-00000001.tmp", tmp_path / ".bitzoo-00000002.tmp"
        for path in (old, new):
            path.write_text("half")
        before = time.time() - 25 * 3600
        os.utime(old, (before, before))
        remove_unfinished(tmp_path)
        assert names(tmp_path) == [new.name]

    def test_a_link_of_that_name_is_not_followed(self, tmp_path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/file").write_text("mine")
        (tmp_path / ".bitzoo-00c0ffee.tmp").symlink_to(tmp_path / "precious")
        remove_unfinished(tmp_path)
        assert (tmp_path / "precious/file").read_text() == "mine"

    def test_a_workspace_taken_for_abandoned_is_made_again(self, tmp_path, monkeypatch):
        """Between making and locking a workspace, another process may have removed it."""
        original, taken = hold_shared, list[list[str]]()

        def late(descriptor):
            if not taken:
                taken.append(names(tmp_path))
                remove_unfinished(tmp_path)
            original(descriptor)

        monkeypatch.setattr(files, "hold_shared", late)
        with workspace(tmp_path) as place:
            assert place.is_dir()
            assert [place.name] != taken[0]
        assert names(tmp_path) == []


class TestTemporaryFiles:
    @pytest.fixture
    def place(self, tmp_path, monkeypatch):
        """The folder of temporary files, of this process and of those that it starts."""
        (tmp_path / "temporary").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        return tmp_path / "temporary"

    @pytest.fixture
    def archive(self, tmp_path):
        folder = tmp_path / "module"
        folder.mkdir()
        write_npz(folder / "a.npz", make_checkpoint())
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(folder / "a.npz", "a.npz")
        return tmp_path / "a.tar"

    def test_an_unpacked_archive_goes_with_the_next(self, tmp_path, place, pause, archive):
        assert_left_then_removed(place, pause, archive)

    def test_nobody_else_can_enter(self, place):
        with files.temporary_folder() as folder:
            assert folder.parent == place
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert names(place) == []

    def test_decompressed_tensors_have_no_name(self, tmp_path, place):
        arrays = make_checkpoint()
        np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        write_keras(tmp_path / "a.h5", arrays, compression="gzip", chunks=True)
        for path in (tmp_path / "a.npz", tmp_path / "a.h5"):
            with open_source(path) as source:
                for tensor in source.tensors.values():
                    tensor.read()
                assert names(place) == []

    @pytest.mark.parametrize("name", ["a.npz", "a.h5"])
    def test_no_folder_for_them_is_a_sentence(self, tmp_path, place, monkeypatch, name):
        arrays = make_checkpoint()
        np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        write_keras(tmp_path / "a.h5", arrays, compression="gzip", chunks=True)
        place.rmdir()
        with open_source(tmp_path / name) as source:
            tensor = max(source.tensors.values(), key=lambda tensor: tensor.nbytes)
            with pytest.raises(CheckpointError, match=r"\(No such file .*\)\. Set TMPDIR to"):
                tensor.read()

    def test_are_made_here_only(self):
        """Those of `tempfile` that have a name stay where a process is killed."""
        named = re.compile(r"(?<!Un)NamedTemporaryFile|TemporaryDirectory|mkdtemp|mkstemp")
        package = Path(files.__file__).parent
        modules = {path: path.read_text() for path in package.rglob("*.py")}
        assert [path.name for path, text in modules.items() if named.search(text)] == []


def assert_left_then_removed(place, pause, archive):
    body = "next(iter(place.tensors.values())).read()"
    process = pause("open_source", archive, body=body, module="converters.open")
    assert len(names(place)) == 1
    with open_source(archive):
        assert len(names(place)) == 2  # what a living process has stays
    kill(process)
    assert len(names(place)) == 1
    with open_source(archive):
        assert len(names(place)) == 1
    assert names(place) == []


class TestNaming:
    def test_happens_in_the_given_context(self, tmp_path):
        seen = []

        @contextmanager
        def naming():
            seen.append((tmp_path / "x").exists())
            yield
            seen.append((tmp_path / "x").exists())

        with new_output(tmp_path / "x", 1, option="dst", force=False, naming=naming) as new:
            new.write_text("done")
        assert seen == [False, True]

    def test_errors_name_the_output(self, tmp_path):
        with (
            pytest.raises(OSError, match="No space left") as caught,
            replaced(tmp_path / "x") as new,
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
        assert caught.value.filename == str(tmp_path / "x")
        says = r"/x: cannot be written \(No space left on device\)"
        with (
            pytest.raises(UsageError, match=says),
            new_output(tmp_path / "x", 1, option="dst", force=False) as new,
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
        assert names(tmp_path) == []


class TestHome:
    """A user id that the system does not know, as in containers, without HOME."""

    @pytest.fixture(autouse=True)
    def without_home(self, monkeypatch):
        for name in ("HOME", "BITZOO_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 54_321)

    def test_the_cache_has_no_place(self):
        says = (
            r"~/\.cache: expected a home folder for ~, found none: HOME is not set, and the system "
            r"does not know it for user id 54321\. Set BITZOO_CACHE to a folder that can be written"
        )
        with pytest.raises(StorageError, match=says):
            cache_dir()

    def test_a_path_of_the_users(self):
        with pytest.raises(
            StorageError, match=r"~/a\.npz: .* Give the path without ~, or set HOME"
        ):
            files.user_path("~/a.npz")

    def test_is_not_needed_with_a_cache_folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_dir() == tmp_path / "bitzoo"
        monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "own"))
        assert cache_dir() == tmp_path / "own"

    def test_writing_needs_none(self, tmp_path):
        files.write_text(tmp_path / "x", "text")
        assert names(tmp_path) == ["x"]
