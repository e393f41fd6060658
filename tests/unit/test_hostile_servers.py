"""Servers that lie, dawdle or lead astray: a sentence, and nothing under the final name."""

import contextlib
import gzip
import os
import random
import re
import threading
import time

import pytest
from scripted_server import CERTIFICATE, ScriptedServer, head
from servers import Fault, FileServer

from bitzoo.errors import DownloadError, NotServedError
from bitzoo.fetch import connection, http
from bitzoo.fetch.http import download, how_fetched

BODY = random.Random(3).randbytes(300_000)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    for name in ("BITZOO_MIRROR", "BITZOO_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setattr(http, "_sleep", lambda _: None)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "a.npz"


def names(target):
    return {path.name for path in target.parent.iterdir()} - {"a.npz.lock"}


def ok(**headers):
    return head("200 OK", Content_Length=len(BODY), ETag='"1"', **headers)


class TestSlow:
    def test_a_byte_at_a_time_is_given_up(self, target, monkeypatch):
        monkeypatch.setattr(connection, "RATE_WINDOW", 0.3)
        with FileServer({"a.npz": BODY}) as server:
            server.drip = (1, 0.01)
            started = time.monotonic()
            with pytest.raises(DownloadError) as caught:
                download(server.url + "a.npz", target)
            server.released.set()
        assert time.monotonic() - started < 30
        message = str(caught.value)
        assert "6 attempts failed: only " in message
        assert " bytes arrived in 0 s" in message
        assert "run the same again to continue" in message
        assert names(target) == {"a.npz.part", "a.npz.part.json"}

    def test_a_slow_line_above_the_rate_is_waited_for(self, target, monkeypatch):
        monkeypatch.setattr(connection, "RATE_WINDOW", 0.1)
        with FileServer({"a.npz": BODY[:30_000]}) as server:
            server.drip = (1_000, 0.02)  # 50 kB/s
            download(server.url + "a.npz", target)
            assert len(server.requests) == 1
        assert target.read_bytes() == BODY[:30_000]

    @pytest.mark.parametrize("tls", [False, True])
    def test_headers_that_never_end(self, target, monkeypatch, tls):
        monkeypatch.setattr(connection, "ANSWER_WITHIN", 0.3)
        monkeypatch.setattr(http, "RETRIES", 1)

        def dawdle(talk, request):
            for sign in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1_000:
                talk.sendall(bytes([sign]))
                if server.released.wait(0.02):
                    return

        with ScriptedServer(dawdle, tls=tls) as server:
            started = time.monotonic()
            with pytest.raises(DownloadError, match="2 attempts failed: the server did not answer"):
                download(server.url + "a.npz", target)
        assert time.monotonic() - started < 5
        assert names(target) == set()

    def test_a_tls_handshake_that_never_ends(self, target, monkeypatch):
        monkeypatch.setattr(connection, "ANSWER_WITHIN", 0.3)
        monkeypatch.setattr(http, "RETRIES", 0)

        def dawdle(talk, request):
            server.released.wait(20)

        with ScriptedServer(dawdle) as server:
            monkeypatch.setattr(server, "talk", lambda talk: dawdle(talk, ""))
            started = time.monotonic()
            with pytest.raises(DownloadError, match="the server did not answer within 0 s"):
                download(server.url.replace("http:", "https:") + "a.npz", target)
        assert time.monotonic() - started < 5

    def test_a_line_that_breaks_every_64_kib_completes_in_one_call(self, target):
        big = random.Random(4).randbytes(8_000_000)
        with FileServer({"a.npz": big}) as server:
            server.faults += [Fault(cut_after=65_536)] * 200
            download(server.url + "a.npz", target)
            assert len(server.requests) == 123  # of 65,536 bytes
        assert target.read_bytes() == big

    def test_a_server_that_sends_a_little_each_time_is_given_up(self, target):
        with FileServer({"a.npz": BODY}) as server:
            server.faults += [Fault(cut_after=100)] * 200
            with pytest.raises(DownloadError, match="6 attempts failed"):
                download(server.url + "a.npz", target)
            assert len(server.requests) == 6


class TestLies:
    def test_an_endless_body(self, target, monkeypatch):
        monkeypatch.setattr(http, "MAX_BYTES", 1_000_000)

        def endless(talk, request):
            talk.sendall(head("200 OK"))
            while True:
                talk.sendall(BODY)

        with ScriptedServer(endless) as server:
            with pytest.raises(DownloadError, match="sent more than 1,000,000 bytes"):
                download(server.url + "a.npz", target)
            assert len(server.requests) == 1
        assert names(target) == set()

    @pytest.mark.parametrize(
        "content_range",
        ["bytes 1000-299999/300000", "bytes 1000-1999/300000", "bytes 1000-9/*"],
    )
    def test_a_range_longer_than_stated(self, target, content_range):
        def lie(talk, request):
            if "Range:" not in request:
                talk.sendall(ok() + BODY[:1_000])
                return
            more = BODY[1_000:] + b"more"
            length = {"Content_Length": len(more), "Content_Range": content_range}
            talk.sendall(head("206 Partial Content", ETag='"1"', **length) + more)

        with ScriptedServer(lie) as server, pytest.raises(DownloadError, match="more than 300,000"):
            download(server.url + "a.npz", target)
        assert names(target) == set()

    def test_a_range_that_nobody_asked_for(self, target):
        part = head("206 Partial Content", Content_Range="bytes 5-9/300000", Content_Length=5)
        with ScriptedServer(lambda talk, _: talk.sendall(part + BODY[5:10])) as server:
            pattern = "6 attempts failed: the server's 206 does not continue the part"
            with pytest.raises(DownloadError, match=pattern):
                download(server.url + "a.npz", target)
        assert names(target) == set()

    @pytest.mark.parametrize(
        "stated", ["x", "-5", "1e3", "12, 13", "9" * 5_000, "\xb2"], ids=lambda text: text[:6]
    )
    def test_lengths_that_are_no_numbers(self, target, stated):
        answer = head("200 OK", Content_Length="@").replace(b"@", stated.encode("latin-1"))
        with (
            ScriptedServer(lambda talk, _: talk.sendall(answer + BODY)) as server,
            pytest.raises(DownloadError, match=r"a\.npz (could not be|does not fit)"),
        ):
            download(server.url + "a.npz", target)
        assert not target.exists()

    def test_a_zip_bomb_is_not_unpacked(self, target):
        bomb = gzip.compress(bytes(30_000_000))
        answer = head("200 OK", Content_Encoding="gzip", Content_Length=len(bomb)) + bomb
        with ScriptedServer(lambda talk, _: talk.sendall(answer)) as server:
            with pytest.raises(NotServedError, match="200 OK in gzip encoding"):
                download(server.url + "a.npz", target)
            assert "accept-encoding: identity" in server.requests[0].lower()
        assert names(target) == set()

    @pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n <html>Log in"])
    def test_a_login_page(self, target, page):
        answer = head("200 OK", Content_Type="text/html; charset=utf-8", Content_Length=len(page))
        with (
            ScriptedServer(lambda talk, _: talk.sendall(answer + page)) as server,
            pytest.raises(NotServedError, match="expected a file, the server sent a web page"),
        ):
            download(server.url + "a.npz", target)
        assert names(target) == set()

    def test_a_file_that_the_server_calls_a_page(self, target):
        with FileServer({"a.npz": BODY}) as server:
            server.faults.append(Fault(headers={"Content-Type": "text/html"}))
            download(server.url + "a.npz", target)
        assert target.read_bytes() == BODY

    def test_huge_headers(self, target):
        answer = b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 4_000_000 + b"\r\n\r\n"
        with (
            ScriptedServer(lambda talk, _: talk.sendall(answer)) as server,
            pytest.raises(DownloadError, match="6 attempts failed"),
        ):
            download(server.url + "a.npz", target)
        assert names(target) == set()

    @pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/9.9 abc\r\n\r\n", bytes(99)])
    def test_something_else_than_http(self, target, answer):
        with (
            ScriptedServer(lambda talk, _: talk.sendall(answer)) as server,
            pytest.raises(DownloadError, match="6 attempts failed"),
        ):
            download(server.url + "a.npz", target)
        assert names(target) == set()

    @pytest.mark.parametrize("seed", range(24))
    def test_damaged_answers(self, target, seed):
        """Whatever is flipped in an answer's head: the file itself, or a sentence and no file."""
        chosen = random.Random(seed)
        whole = bytearray(ok(Content_Type="application/octet-stream"))
        for _ in range(chosen.randrange(1, 4)):
            whole[chosen.randrange(len(whole))] = chosen.randrange(256)
        with ScriptedServer(lambda talk, _: talk.sendall(bytes(whole) + BODY)) as server:
            with contextlib.suppress(DownloadError):
                download(server.url + "a.npz", target)
            if target.exists():
                # Nothing but the stated length can tell that a body is shorter.
                assert BODY.startswith(target.read_bytes())
                return
            with pytest.raises(DownloadError, match=f"^{re.escape(server.url)}a.npz c"):
                download(server.url + "a.npz", target)
        assert not target.exists()


class TestRedirects:
    def test_https_to_http_is_refused(self, target):
        with FileServer({"a.npz": BODY}) as plain:
            lead = head("302 Found", Location=plain.url + "a.npz?token=s3same", Content_Length=0)
            with (
                ScriptedServer(lambda talk, _: talk.sendall(lead), tls=True) as server,
                pytest.raises(DownloadError) as caught,
            ):
                download(server.url + "a.npz", target)
            assert plain.requests == []
        message = str(caught.value)
        assert f"leads from https to {plain.url}a.npz?***, where anyone" in message
        assert "s3same" not in message
        assert names(target) == set()

    def test_http_to_https_is_followed(self, target):
        file = ok() + BODY
        with ScriptedServer(lambda talk, _: talk.sendall(file), tls=True) as secure:
            lead = head("301 Moved", Location=secure.url + "b.npz", Content_Length=0)
            with ScriptedServer(lambda talk, _: talk.sendall(lead)) as server:
                download(server.url + "a.npz", target)
        assert target.read_bytes() == BODY

    def test_credentials_stay_at_their_origin(self, target):
        with FileServer({"a.npz": BODY}) as other, FileServer({}) as server:
            server.redirects["a.npz"] = "/again.npz"
            server.redirects["again.npz"] = other.url + "a.npz"
            download(server.url.replace("//", "//me:sesame@") + "a.npz", target)
            assert [r.headers.get("authorization") for r in server.requests] == [
                "Basic bWU6c2VzYW1l"
            ] * 2
            assert [r.headers.get("authorization") for r in other.requests] == [None]
        assert how_fetched(target).url == server.url + "a.npz"

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            ("/a.npz", "leads to more than 10 other addresses"),
            ("file:///etc/passwd", "it leads to an address that cannot be used"),
            ("http://[::1/x", "it leads to an address that cannot be used"),
            ("http://me:pa/sesame@host/x", "write / as %2F"),
        ],
    )
    def test_nowhere(self, target, location, message):
        with FileServer({}) as server:
            server.redirects["a.npz"] = location
            with pytest.raises(DownloadError) as caught:
                download(server.url + "a.npz", target)
        assert message in str(caught.value)
        assert "sesame" not in str(caught.value)
        assert names(target) == set()


class TestPlantedLinks:
    @pytest.mark.parametrize("name", ["a.npz.part", "a.npz.part.json"])
    def test_a_link_is_replaced_and_its_target_left_alone(self, target, tmp_path, name):
        target.parent.mkdir()
        victim = tmp_path / "victim"
        victim.write_text("mine")
        (target.parent / name).symlink_to(victim)
        with FileServer({"a.npz": BODY}) as server:
            download(server.url + "a.npz", target)
        assert victim.read_text() == "mine"
        assert target.read_bytes() == BODY
        assert not target.is_symlink()


def make_pipe(note):
    note.unlink()
    os.mkfifo(note)


@pytest.mark.parametrize(
    "damage",
    [
        lambda note: note.write_text("[" * 100_000),
        lambda note: note.write_text(note.read_text().replace(": 300000", '": "300000"')),
        lambda note: note.write_text(note.read_text().replace(": 300000", '": true')),
        lambda note: note.write_text(re.sub('"md5": ".*"', '"md5": 5', note.read_text())),
        lambda note: os.truncate(note, 1 << 40),
        make_pipe,
    ],
    ids=["deep", "text", "bool", "md5", "without end", "a pipe"],
)
def test_a_damaged_note_of_a_part_starts_over(target, damage):
    with FileServer({"a.npz": BODY}) as server:
        server.faults += [Fault(cut_after=20_000), Fault(status=404)]
        with pytest.raises(NotServedError):
            download(server.url + "a.npz", target)
        damage(target.with_name("a.npz.part.json"))
        download(server.url + "a.npz", target)
        assert "range" not in server.requests[-1].headers
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("size", [None, 1 << 40])
def test_a_note_of_a_file_that_never_ends_is_none(target, size):
    with FileServer({"a.npz": BODY}) as server:
        download(server.url + "a.npz", target)
    note = target.with_name("a.npz.fetched.json")
    if size:
        os.truncate(note, size)
    else:
        note.unlink()
        os.mkfifo(note)
    assert how_fetched(target) is None


def test_a_file_that_another_process_appends_to_is_not_kept(target, monkeypatch):
    """Where there are no locks, two processes may fetch the same file."""
    part, problem = target.with_name("a.npz.part"), http._Part.problem
    done: list[object] = []

    def mixed(self):
        if not done:
            done.append(self)
            with part.open("ab") as file:
                file.write(b"of the other")
        return problem(self)

    monkeypatch.setattr(http._Part, "problem", mixed)
    with FileServer({"a.npz": BODY}) as server:
        download(server.url + "a.npz", target)
        assert len(server.requests) == 2
    assert target.read_bytes() == BODY


def test_tokens_are_neither_in_notes_nor_in_names(target):
    with FileServer({"a.npz": BODY}) as server:
        server.faults.append(Fault(cut_after=20_000))
        server.faults.append(Fault(status=404))
        with pytest.raises(NotServedError) as caught:
            download(server.url + "a.npz?token=s3same", target)
        notes = target.with_name("a.npz.part.json").read_text()
        download(server.url + "a.npz?token=s3same", target)
        assert len(server.requests) == 3
        assert server.requests[-1].headers["range"] == "bytes=20000-"
    notes += target.with_name("a.npz.fetched.json").read_text() + str(caught.value)
    assert "s3same" not in notes
    assert "a.npz?***" in notes


def test_another_query_is_another_file(target):
    with FileServer({"a.npz": BODY}) as server:
        server.faults += [Fault(cut_after=20_000), Fault(status=404)]
        with pytest.raises(NotServedError):
            download(server.url + "a.npz?v=1", target)
        download(server.url + "a.npz?v=2", target)
        assert "range" not in server.requests[-1].headers


def test_deadlines_leave_no_connection_open(target):
    with FileServer({"a.npz": BODY}) as server:
        download(server.url + "a.npz", target)
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
