"""A real HTTP file server for tests: 127.0.0.1, a free port, its own threads, faults on demand.

with FileServer({"a.npz": b"..."}) as server:
    server.faults += [Fault(status=503), Fault(cut_after=1000)]
    fetch(server.url + "a.npz")
assert [r.status for r in server.requests] == [503, 200, 206]
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

START = 1_700_000_000
"""The Last-Modified of a file that was put once, in seconds since 1970."""
BLOCK = 1 << 16


@dataclass
class Request:
    """One line of the log; `sent` counts body bytes handed to the socket so far."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one GET.

    Attributes:
        status: Answer this instead of the file.
        headers: Headers to add or to replace; None as a value removes one.
        cut_after: Close the connection after so many bytes of the body.
        drip: Send so many bytes at a time and pause this many seconds after each.
        put: Replace the file's content once this answer is over.
    """

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    cut_after: int | None = None
    drip: tuple[int, float] | None = None
    put: bytes | None = None


FINE = Fault()


class FileServer:
    """Serves a dict of path to bytes, or a folder, the way Google Cloud Storage does.

    Attributes:
        url: Base address, ending in a slash.
        requests: The log, in order of arrival.
        faults: One is used up by each GET, from the left; without any, answers are right.
        drip: As in `Fault`, for answers whose fault has none.
        ignore_range: Whether Range headers are ignored.
        etag: "strong", "weak" or None.
        md5: What `x-goog-hash` says: "right", "wrong", or None for crc32c alone.
        redirects: Path to the Location that a 302 answers with.
        released: When set, nothing drips any more.
    """

    def __init__(self, files: dict[str, bytes] | Path) -> None:
        self.requests: list[Request] = []
        self.faults: deque[Fault] = deque()
        self.drip: tuple[int, float] | None = None
        self.ignore_range = False
        self.etag: str | None = "strong"
        self.md5: str | None = "right"
        self.redirects: dict[str, str] = {}
        self.released = threading.Event()
        self._files = files
        self._changes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.005,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}/"

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def put(self, path: str, content: bytes) -> None:
        """Replace a file's content: another ETag, a later Last-Modified."""
        if isinstance(self._files, Path):
            (self._files / path).write_bytes(content)
        else:
            self._files[path] = content
        self._changes[path] = self._changes.get(path, 0) + 1

    def read(self, path: str) -> bytes | None:
        """The content of `path`; None if there is no such file, or it is outside the folder."""
        if isinstance(self._files, dict):
            return self._files.get(path)
        file = (self._files / path).resolve()
        inside = file.is_relative_to(self._files.resolve())
        return file.read_bytes() if inside and file.is_file() else None

    def validators(self, path: str, content: bytes) -> dict[str, str]:
        """ETag, Last-Modified and x-goog-hash of a file."""
        digest = hashlib.md5(content if self.md5 != "wrong" else content + b"!")
        # Nobody reads the crc32c (Python's library cannot compute it), so it is a constant.
        hashes = ["crc32c=AAAAAA=="]
        if self.md5:
            hashes.append(f"md5={base64.b64encode(digest.digest()).decode()}")
        changes = self._changes.get(path, 0)
        headers = {
            "Last-Modified": formatdate(START + changes, usegmt=True),
            "x-goog-hash": ",".join(hashes),
        }
        if self.etag:
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            headers["ETag"] = tag if self.etag == "strong" else f"W/{tag}"
        return headers

    def next_fault(self) -> Fault:
        """The fault of the GET that just arrived."""
        with self._lock:
            return self.faults.popleft() if self.faults else FINE


class _Server(ThreadingHTTPServer):
    owner: FileServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are the point of these tests; anything else is a bug here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def log_message(self, *_: object) -> None:
        """Quiet: the log is `FileServer.requests`."""

    def do_HEAD(self) -> None:
        self._answer(FINE)

    def do_GET(self) -> None:
        self._answer(self.server.owner.next_fault())

    def _answer(self, fault: Fault) -> None:
        owner = self.server.owner
        path = unquote(urlsplit(self.path).path).lstrip("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.entry = Request(self.command, path, headers)
        owner.requests.append(self.entry)
        content = owner.read(path)
        if fault.status:
            self._head(fault.status, {}, b"", fault)
        elif path in owner.redirects:
            self._head(302, {"Location": owner.redirects[path]}, b"", fault)
        elif content is None:
            self._head(404, {}, b"", fault)
        else:
            self._send_file(path, content, fault)
        if fault.put is not None:
            owner.put(path, fault.put)

    def _send_file(self, path: str, content: bytes, fault: Fault) -> None:
        size = len(content)
        headers = {"Accept-Ranges": "bytes", **self.server.owner.validators(path, content)}
        span = self._range(size, headers)
        if span is None:
            self._head(200, headers, content, fault)
        elif span.start >= size:
            headers["Content-Range"] = f"bytes */{size}"
            self._head(416, headers, b"", fault)
        else:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
            self._head(206, headers, content[span.start : span.stop], fault)

    def _range(self, size: int, headers: dict[str, str]) -> range | None:
        """The bytes asked for; None for all, as when If-Range names another version."""
        wanted = self.entry.headers.get("range", "")
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
        if self.server.owner.ignore_range or not match or match.groups() == ("", ""):
            return None
        condition = self.entry.headers.get("if-range")
        # A weak ETag never satisfies If-Range (RFC 9110, 13.1.5).
        strong = [headers["Last-Modified"], headers.get("ETag", "W/").partition("W/")[0]]
        if condition is not None and condition not in strong:
            return None
        first, last = match.groups()
        if not first:
            return range(max(0, size - int(last)), size)
        return range(int(first), min(size, int(last) + 1) if last else size)

    def _head(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        self.entry.status = status
        merged: dict[str, str | None] = {**headers, "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in (merged | fault.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._body(body, fault)

    def _body(self, body: bytes, fault: Fault) -> None:
        owner = self.server.owner
        step, seconds = fault.drip or owner.drip or (BLOCK, 0.0)
        view = memoryview(body)[: fault.cut_after]
        for start in range(0, len(view), step):
            block = view[start : start + step]
            self.entry.sent += len(block)
            self.wfile.write(block)
            if seconds:
                owner.released.wait(seconds)
        wrong_length = "Content-Length" in fault.headers
        if fault.cut_after is not None or wrong_length:
            self.close_connection = True
