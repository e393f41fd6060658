"""A server that answers as a script says, byte by byte: 127.0.0.1, a free port, its own threads.

with ScriptedServer(lambda talk, request: talk.sendall(head("200 OK") + b"body")) as server:
    fetch(server.url + "a.npz")
assert server.requests[0].startswith("GET /a.npz")

`SocksProxy` and `TunnelProxy` are proxies of the same make, which pass bytes on.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""A certificate of 127.0.0.1 that signs itself, and its key, which protects nothing."""

Script = Callable[[socket.socket, str], None]
"""Called with the connection and the head of the request; the connection is closed afterwards."""


def head(status: str, **headers: object) -> bytes:
    """The head of an answer; an underscore in a header's name stands for a hyphen."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""]).encode()


class ScriptedServer:
    """Answers each connection with the script.

    Attributes:
        requests: The head of each request, in order of arrival.
        released: When set, scripts that wait for it go on.
    """

    def __init__(self, script: Script, *, tls: bool = False) -> None:
        self.script, self.requests, self.released = script, list[str](), threading.Event()
        self._tls = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(CERTIFICATE)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/"

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for thread in self._threads:
            thread.join(30)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(partial(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:  # clients go away: that is the point
            connection.settimeout(30)
            if self._tls is None:
                self.talk(connection)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secure:
                self.talk(secure)

    def talk(self, connection: socket.socket) -> None:
        request = read_head(connection)
        if request:
            self.requests.append(request)
            self.script(connection, request)


class TunnelProxy(ScriptedServer):
    """An HTTP proxy for CONNECT that passes bytes on."""

    def __init__(self) -> None:
        super().__init__(self._tunnel)

    def _tunnel(self, connection: socket.socket, request: str) -> None:
        host, _, port = request.split()[1].rpartition(":")
        with socket.create_connection((host, int(port))) as target:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            _pass_on(connection, target)


class SocksProxy(ScriptedServer):
    """A SOCKS 5 proxy without credentials (RFC 1928) that passes bytes on."""

    def __init__(self) -> None:
        super().__init__(lambda connection, request: None)

    def talk(self, connection: socket.socket) -> None:
        _, count = _exactly(connection, 2)
        _exactly(connection, count)
        connection.sendall(b"\x05\x00")
        *_, kind = _exactly(connection, 4)
        if kind == 1:
            host = socket.inet_ntoa(_exactly(connection, 4))
        else:
            host = _exactly(connection, _exactly(connection, 1)[0]).decode()
        port = int.from_bytes(_exactly(connection, 2), "big")
        self.requests.append(f"{host}:{port}")
        with socket.create_connection((host, port)) as target:
            connection.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
            _pass_on(connection, target)


def read_head(connection: socket.socket) -> str:
    """A request up to its empty line; empty if the client closes before."""
    found = b""
    while b"\r\n\r\n" not in found:
        block = connection.recv(65536)
        if not block:
            return ""
        found += block
    return found.decode("latin-1")


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        block = connection.recv(count - len(found))
        if not block:
            raise ConnectionError("the client went away")
        found += block
    return found


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                target.sendall(block)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=copy, args=(other, one), daemon=True)
    back.start()
    copy(one, other)
    back.join(30)
