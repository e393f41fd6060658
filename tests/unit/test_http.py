"""Downloads from a real server, in real processes that are really killed."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from servers import Fault, FileServer

from bitzoo.errors import DownloadError, StorageError
from bitzoo.fetch import http
from bitzoo.fetch.http import base_url, download, how_fetched, is_offline
from bitzoo.files import cache_dir
from bitzoo.locks import file_lock

OLD = random.Random(1).randbytes(1_200_000)
NEW = random.Random(2).randbytes(700_000)
CHILD = """
import sys
from pathlib import Path
from bitzoo.fetch.http import download
download(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("BITZOO_MIRROR", "BITZOO_CACHE", "BITZOO_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Nothing here is https, and reading the real certificates would take most of the time.
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"a.npz": OLD}) as running:
        yield running


@pytest.fixture
def url(server: FileServer) -> str:
    return server.url + "a.npz"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "a.npz"


@pytest.fixture(autouse=True)
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, recorded instead of slept."""
    pauses: list[float] = []
    monkeypatch.setattr(http, "_sleep", pauses.append)
    return pauses


def start(url: str, target: Path, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, url, str(target)], **streams)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited 30 s in vain"
        time.sleep(0.01)


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def leftovers(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} - {target.name + ".lock"}


def ranges(server: FileServer) -> list[str | None]:
    return [request.headers.get("range") for request in server.requests]


def statuses(server: FileServer) -> list[int]:
    return [request.status for request in server.requests]


def leave_part(server: FileServer, url: str, target: Path, size: int) -> None:
    """Stop a download after `size` bytes, as a kill would, and clear the log."""
    server.faults += [Fault(cut_after=size), Fault(status=404)]
    with pytest.raises(DownloadError, match="404"):
        download(url, target)
    assert part_of(target).stat().st_size == size
    server.requests.clear()


class TestComplete:
    def test_the_file_arrives_under_its_name_and_its_origin_beside_it(self, server, url, target):
        assert download(url, target) == target
        assert target.read_bytes() == OLD
        assert leftovers(target) == {"a.npz", "a.npz.fetched.json"}
        assert (how_fetched(target).url, how_fetched(target).checked) == (url, True)
        assert statuses(server) == [200]
        assert server.requests[0].headers["accept-encoding"] == "identity"

    def test_an_existing_file_is_neither_touched_nor_requested(self, server, url, target):
        target.parent.mkdir()
        target.write_bytes(b"mine")
        assert download(url, target) == target
        assert target.read_bytes() == b"mine"
        assert server.requests == []

    def test_empty_file(self, server, target):
        server.put("empty", b"")
        assert download(server.url + "empty", target).read_bytes() == b""

    def test_folder_served(self, tmp_path, target):
        (tmp_path / "distill").mkdir()
        (tmp_path / "distill" / "R50x1_224.npz").write_bytes(NEW)
        with FileServer(tmp_path) as server:
            download(server.url + "distill/R50x1_224.npz", target)
        assert target.read_bytes() == NEW

    def test_redirects_are_followed(self, server, target):
        server.redirects["old.npz"] = "/a.npz"
        assert download(server.url + "old.npz", target).read_bytes() == OLD
        assert statuses(server) == [302, 200]

    @pytest.mark.parametrize("location", ["ftp://127.0.0.1/a.npz", "/old.npz"])
    def test_redirects_to_nowhere(self, server, target, location):
        server.redirects["old.npz"] = location
        with pytest.raises(DownloadError, match=r"old\.npz cannot be downloaded: .*Check the URL"):
            download(server.url + "old.npz", target)
        assert leftovers(target) == set()

    def test_unknown_length(self, server, url, target):
        server.faults.append(Fault(headers={"Content-Length": None}))
        assert download(url, target).read_bytes() == OLD

    def test_encoded_body_is_refused(self, server, url, target):
        server.faults.append(Fault(headers={"Content-Encoding": "gzip"}))
        with pytest.raises(
            DownloadError, match=r"expected the unencoded file.*200 OK in gzip encoding\."
        ):
            download(url, target)
        assert leftovers(target) == set()

    def test_memory_is_bounded_by_a_block(self, server, url, target):
        size = 24_000_000
        server.put("big.npz", bytes(size))
        code = f"""{CHILD}
import tracemalloc
tracemalloc.start()
download(sys.argv[3], Path(sys.argv[4]))
print(tracemalloc.get_traced_memory()[1])
"""
        files = [url, str(target), server.url + "big.npz", str(target.with_name("big.npz"))]
        child = subprocess.run(
            [sys.executable, "-c", code, *files], check=True, capture_output=True
        )
        assert target.with_name("big.npz").stat().st_size == size
        assert int(child.stdout) < 2_000_000


class TestResume:
    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_a_stopped_process_is_continued(self, server, url, target, how):
        server.drip = (1_000, 60)
        child = start(url, target, stderr=subprocess.DEVNULL)
        part = part_of(target)
        wait_until(lambda: part.is_file() and part.stat().st_size == 1_000)
        child.send_signal(how)
        assert child.wait() == -how
        assert not target.exists()
        server.released.set()

        assert download(url, target).read_bytes() == OLD
        assert leftovers(target) == {"a.npz", "a.npz.fetched.json"}
        assert ranges(server) == [None, "bytes=1000-"]
        assert statuses(server) == [200, 206]
        assert server.requests[1].sent == 1_199_000

    def test_cut_twice_in_one_call(self, server, url, target, sleeps):
        server.faults += [Fault(cut_after=1_000), Fault(cut_after=500)]
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None, "bytes=1000-", "bytes=1500-"]
        assert statuses(server) == [200, 206, 206]
        tags = [request.headers.get("if-range") for request in server.requests]
        assert tags == [None, *[server.validators("a.npz", OLD)["ETag"]] * 2]
        assert len(sleeps) == 2

    def test_short_ranges_are_put_together(self, server, url, target):
        server.faults += [Fault(cut_after=1_000), Fault(headers={"Content-Length": "100"})]
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None, "bytes=1000-", "bytes=1100-"]

    def test_stopped_just_before_the_rename(self, server, url, target, monkeypatch):
        replace = os.replace

        def stop(source: Path, name: Path) -> None:
            if name == target:
                raise KeyboardInterrupt
            replace(source, name)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop)
            with pytest.raises(KeyboardInterrupt):
                download(url, target)
        assert not target.exists()
        assert download(url, target).read_bytes() == OLD
        assert statuses(server) == [200]  # all bytes were there: nothing is requested again

    def test_changed_file_starts_over(self, server, url, target):
        server.faults.append(Fault(cut_after=400_000, put=NEW))
        assert download(url, target).read_bytes() == NEW
        assert ranges(server) == [None, "bytes=400000-"]
        assert statuses(server) == [200, 200]

    @pytest.mark.parametrize("etag", ["weak", None])
    def test_last_modified_replaces_a_missing_strong_etag(self, server, url, target, etag):
        server.etag = etag
        server.faults.append(Fault(cut_after=1_000))
        assert download(url, target).read_bytes() == OLD
        assert statuses(server) == [200, 206]
        date = server.validators("a.npz", OLD)["Last-Modified"]
        assert server.requests[1].headers["if-range"] == date

    @pytest.mark.parametrize("etag", ["weak", None])
    def test_last_modified_shows_a_change(self, server, url, target, etag):
        server.etag = etag
        server.faults.append(Fault(cut_after=1_000, put=NEW))
        assert download(url, target).read_bytes() == NEW
        assert statuses(server) == [200, 200]

    def test_server_without_validators_starts_over(self, server, url, target):
        server.faults.append(Fault(cut_after=1_000, headers={"ETag": None, "Last-Modified": None}))
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None, None]

    def test_server_that_ignores_range(self, server, url, target):
        server.ignore_range = True
        server.faults.append(Fault(cut_after=1_000))
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None, "bytes=1000-"]
        assert statuses(server) == [200, 200]

    @pytest.mark.parametrize(
        "headers",
        [
            {"ETag": '"another"'},
            {"Content-Range": "bytes 0-9/1200000"},
            {"Content-Range": "bytes 1000-9/77"},
            {"Content-Range": None},
        ],
    )
    def test_range_of_something_else_is_not_appended(self, server, url, target, headers):
        server.faults += [Fault(cut_after=1_000), Fault(headers=headers)]
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None, "bytes=1000-", None]

    def test_range_without_validators_is_trusted(self, server, url, target):
        # RFC 9110, 15.3.7: the response to If-Range may omit Last-Modified.
        silent = Fault(headers={"ETag": None, "Last-Modified": None})
        server.faults += [Fault(cut_after=1_000), silent]
        assert download(url, target).read_bytes() == OLD
        assert statuses(server) == [200, 206]

    @pytest.mark.parametrize("date", ["Thu, 01 J\xe4n", ""])
    def test_validators_that_cannot_be_sent_back(self, server, url, target, date):
        server.faults.append(Fault(cut_after=1_000, headers={"ETag": None, "Last-Modified": date}))
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None, None]

    def test_refused_range_starts_over(self, server, url, target):
        server.faults += [Fault(cut_after=1_000), Fault(status=416)]
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None, "bytes=1000-", None]

    def test_part_of_another_url_is_not_used(self, server, url, target):
        leave_part(server, url, target, 1_000)
        server.put("b.npz", NEW)
        assert download(server.url + "b.npz", target).read_bytes() == NEW
        assert ranges(server) == [None]

    @pytest.mark.parametrize("note", ["", "{", "[]", '{"url": "x"}', None])
    def test_part_without_a_readable_note_is_not_used(self, server, url, target, note):
        leave_part(server, url, target, 1_000)
        path = part_of(target).with_name("a.npz.part.json")
        path.write_text(note) if note is not None else path.unlink()
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None]


class TestChecks:
    def test_wrong_md5_twice(self, server, url, target):
        server.put("a.npz", b"a")
        server.md5 = "wrong"
        expected = server.validators("a.npz", b"a")["x-goog-hash"].partition("md5=")[2]
        found = "DMF1ucDxtqgxw5niaXcmYQ=="  # RFC 1321, A.5: 0cc175b9c0f1b6a831c399e269772661
        with pytest.raises(DownloadError, match="arrived damaged twice") as caught:
            download(url, target)
        assert f"expected md5 {expected} (base64), found {found}" in str(caught.value)
        assert leftovers(target) == set()
        assert ranges(server) == [None, None]

    def test_wrong_md5_once(self, server, url, target):
        server.faults.append(Fault(headers={"x-goog-hash": "md5=AAAAAAAAAAAAAAAAAAAAAA=="}))
        assert download(url, target).read_bytes() == OLD
        assert statuses(server) == [200, 200]

    def test_damaged_part_is_detected(self, server, url, target):
        leave_part(server, url, target, 1_000)
        part_of(target).write_bytes(bytes(1_000))
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == ["bytes=1000-", None]

    def test_crc32c_without_md5_is_accepted(self, server, url, target):
        server.md5 = None
        assert download(url, target).read_bytes() == OLD

    def test_fewer_bytes_than_announced(self, server, url, target, sleeps):
        server.faults += [Fault(headers={"Content-Length": "1200001"})] * 20
        with pytest.raises(DownloadError, match=r"6 attempts failed: .*run the same again"):
            download(url, target)
        assert not target.exists()
        assert len(server.requests) == 6
        assert len(sleeps) == 5


class TestRetries:
    def test_unavailable_twice(self, server, url, target, sleeps):
        server.faults += [Fault(status=503)] * 2
        assert download(url, target).read_bytes() == OLD
        assert statuses(server) == [503, 503, 200]
        assert 0.375 <= sleeps[0] <= 0.625
        assert 0.75 <= sleeps[1] <= 1.25

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 504])
    def test_retried_statuses(self, server, url, target, status):
        server.faults.append(Fault(status=status))
        assert download(url, target).read_bytes() == OLD
        assert statuses(server) == [status, 200]

    @pytest.mark.parametrize(
        ("asked", "low", "high"),
        [
            ("7", 7, 7),
            ("86400", 120, 120),
            (3600, 120, 120),  # a date that many seconds from now
            (formatdate(0, usegmt=True), 0, 0),
            ("soon", 0.375, 0.625),
        ],
    )
    def test_retry_after(self, server, url, target, sleeps, asked, low, high):
        if isinstance(asked, int):
            asked = formatdate(time.time() + asked, usegmt=True)
        server.faults.append(Fault(status=429, headers={"Retry-After": asked}))
        download(url, target)
        assert len(sleeps) == 1
        assert low <= sleeps[0] <= high

    def test_attempts_are_bounded(self, server, url, target, sleeps):
        server.faults += [Fault(status=503)] * 20
        with pytest.raises(DownloadError, match="6 attempts failed: the server answered 503"):
            download(url, target)
        assert statuses(server) == [503] * 6
        assert len(sleeps) == 5

    def test_progress_earns_new_attempts(self, server, url, target, monkeypatch):
        monkeypatch.setattr(http, "PROGRESS_BYTES", 100_000)
        server.faults += [Fault(cut_after=110_000)] * 10
        assert download(url, target).read_bytes() == OLD
        assert len(server.requests) == 11

    def test_the_same_bytes_again_do_not_count_as_progress(self, server, url, target, monkeypatch):
        monkeypatch.setattr(http, "PROGRESS_BYTES", 100_000)
        server.ignore_range = True
        server.faults += [Fault(cut_after=110_000)] * 10
        with pytest.raises(DownloadError, match="6 attempts failed"):
            download(url, target)
        assert len(server.requests) == 6

    def test_silent_server(self, server, url, target, monkeypatch):
        monkeypatch.setattr(http, "READ_TIMEOUT", 0.2)
        server.faults.append(Fault(drip=(1_000, 60)))
        assert download(url, target).read_bytes() == OLD
        assert ranges(server) == [None, "bytes=1000-"]

    def test_no_server(self, target, sleeps):
        with FileServer({}) as gone:
            url = gone.url + "a.npz"
        with pytest.raises(DownloadError, match=r"6 attempts failed: .*set BITZOO_MIRROR"):
            download(url, target)
        assert len(sleeps) == 5

    @pytest.mark.parametrize("status", [401, 403, 404, 410])
    def test_refusals_are_final(self, server, url, target, sleeps, status):
        server.faults.append(Fault(status=status))
        pattern = rf"{re.escape(url)} could not.* answered {status} .*Check the name.*BITZOO_MIRROR"
        with pytest.raises(DownloadError, match=pattern):
            download(url, target)
        assert statuses(server) == [status]
        assert sleeps == []
        assert leftovers(target) == set()

    def test_passwords_stay_out_of_messages_and_notes(self, server, url, target):
        secret = url.replace("http://", "http://me:sesame@")
        server.faults += [Fault(cut_after=1_000), Fault(status=404)]
        with pytest.raises(DownloadError) as caught:
            download(secret, target)
        note = part_of(target).with_name("a.npz.part.json").read_text()
        assert "sesame" not in str(caught.value) + note
        assert json.loads(note)["url"] == url
        assert server.requests[0].headers["authorization"] == "Basic bWU6c2VzYW1l"


class TestBeforeTheNetwork:
    @pytest.mark.parametrize("bad", ["ftp://host/a", "file:///etc/passwd", "a.npz", "http://"])
    def test_only_http(self, target, bad):
        with pytest.raises(DownloadError, match=r"cannot be downloaded: expected .*https://"):
            download(bad, target)
        assert not target.parent.exists()

    def test_malformed_url(self, target):
        with pytest.raises(DownloadError, match="cannot be downloaded: Invalid port"):
            download("http://127.0.0.1:x/a.npz", target)

    def test_offline(self, server, url, target, monkeypatch):
        monkeypatch.setenv("BITZOO_OFFLINE", "1")
        with pytest.raises(DownloadError) as caught:
            download(url, target)
        message = str(caught.value)
        assert message.startswith(f"a.npz is not at {target}, and BITZOO_OFFLINE forbids")
        assert f"Unset BITZOO_OFFLINE, or download {url} elsewhere" in message
        assert server.requests == []
        assert not target.parent.exists()

    def test_offline_uses_an_existing_file(self, url, target, monkeypatch):
        monkeypatch.setenv("BITZOO_OFFLINE", "1")
        target.parent.mkdir()
        target.write_bytes(b"mine")
        assert download(url, target).read_bytes() == b"mine"

    @pytest.mark.parametrize(
        ("value", "offline"),
        [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("", False), ("no", False)],
    )
    def test_offline_values(self, monkeypatch, value, offline):
        monkeypatch.setenv("BITZOO_OFFLINE", value)
        assert is_offline() is offline

    def test_disk_full(self, url, target, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_199_999))
        pattern = r"does not fit in .*: it needs 1\.2 MB more, found 1\.2 MB free.*BITZOO_CACHE"
        with pytest.raises(DownloadError, match=pattern):
            download(url, target)
        assert leftovers(target) == set()

    def test_only_the_rest_must_fit(self, server, url, target, monkeypatch):
        leave_part(server, url, target, 400_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=800_000))
        assert download(url, target).read_bytes() == OLD

    def test_folder_that_cannot_be_created(self, url, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match=r"cannot be written: .*BITZOO_CACHE"):
            download(url, tmp_path / "file" / "a.npz")

    def test_disk_that_fails_while_writing(self, url, target, monkeypatch):
        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match=r"cannot be written: .*No space left"):
            download(url, target)
        assert not target.exists()


class TestSettings:
    @pytest.mark.parametrize(
        ("mirror", "expected"),
        [
            (None, "https://storage.googleapis.com/bit_models/"),
            ("", "https://storage.googleapis.com/bit_models/"),
            ("http://127.0.0.1:80/bit", "http://127.0.0.1:80/bit/"),
            ("http://127.0.0.1:80/bit/", "http://127.0.0.1:80/bit/"),
        ],
    )
    def test_base_url(self, monkeypatch, mirror, expected):
        if mirror is not None:
            monkeypatch.setenv("BITZOO_MIRROR", mirror)
        assert base_url() == expected

    @pytest.mark.parametrize(
        ("own", "xdg", "expected"),
        [
            ("/data/bit", "/xdg", "/data/bit"),
            ("~/bit", "/xdg", "/home/me/bit"),
            ("", "/xdg", "/xdg/bitzoo"),
            ("", "relative", "/home/me/.cache/bitzoo"),
            ("", "", "/home/me/.cache/bitzoo"),
        ],
    )
    def test_cache_dir(self, monkeypatch, own, xdg, expected):
        monkeypatch.setenv("HOME", "/home/me")
        monkeypatch.setenv("BITZOO_CACHE", own)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert cache_dir() == Path(expected)

    def test_import_is_cheap(self):
        code = "import sys, bitzoo.fetch.http; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert not {"httpx", "rich", "filelock", "numpy", "torch"} & set(
            loaded.stdout.decode().split()
        )


class TestLock:
    def test_two_processes_fetch_once(self, server, url, target, tmp_path):
        server.drip = (400_000, 60)
        logs = [tmp_path / "0.log", tmp_path / "1.log"]
        with logs[0].open("wb") as first, logs[1].open("wb") as second:
            children = [start(url, target, stderr=log) for log in (first, second)]
        waiting = f"Waiting for another process that is using {target}"
        wait_until(lambda: any(waiting in log.read_text() for log in logs))
        wait_until(lambda: bool(server.requests))
        server.released.set()
        assert [child.wait() for child in children] == [0, 0]
        assert target.read_bytes() == OLD
        assert [(r.method, r.status, r.sent) for r in server.requests] == [("GET", 200, 1_200_000)]
        assert sorted(log.read_text() for log in logs) == ["", waiting + "\n"]

    def test_one_holder_at_a_time(self, target):
        entered = threading.Event()

        def enter() -> None:
            with file_lock(target):
                entered.set()

        other = threading.Thread(target=enter)
        with file_lock(target):
            other.start()
            assert not entered.wait(0.3)
        assert entered.wait(10)
        other.join()
        assert leftovers(target) == set()


class TestProgress:
    def test_shown_on_request(self, url, target, capsys):
        download(url, target, progress=True)
        assert re.search(r"^downloaded a\.npz, 1\.2 MB in [\d.]+ s$", capsys.readouterr().err, re.M)

    def test_not_off_a_terminal(self, url, target, capsys):
        download(url, target)
        assert capsys.readouterr() == ("", "")

    def test_not_for_small_files(self, server, target, capsys):
        server.put("small.npz", OLD[:999_999])
        download(server.url + "small.npz", target, progress=True)
        assert capsys.readouterr() == ("", "")

    def test_on_a_terminal(self, url, target):
        ours, theirs = pty.openpty()
        child = start(url, target, stderr=theirs, env=os.environ | {"TERM": "xterm"})
        assert child.wait() == 0
        shown = os.read(ours, 65536).decode()
        os.close(ours)
        os.close(theirs)
        assert re.search(r"downloaded a\.npz, 1\.2 MB in [\d.]+ s\r\n$", shown)
