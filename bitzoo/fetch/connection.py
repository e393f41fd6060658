"""One HTTP GET: through the right proxy, with the right certificates, within a time that ends.

Redirects are followed to http and https addresses, but not from https to http, where anyone on the
way could change the file. Credentials stay at the origin that they were given for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin

from bitzoo.errors import DownloadError
from bitzoo.fetch.addresses import Address, parse, without_secrets
from bitzoo.fetch.proxies import proxy_to

if TYPE_CHECKING:
    import httpx

ANSWER_WITHIN = 60.0
"""Seconds from the connection to the end of the answer's headers: a server that sends one byte
after the other is never silent for long."""
MIN_RATE = 1_000
"""Bytes per second, on average over `RATE_WINDOW`, below which a connection is given up: at this
rate the smallest release takes a day, and a new connection or another mirror is better."""
RATE_WINDOW = 60.0
"""Seconds of waiting for bytes, over which the rate is measured: a line that stalls for less goes
on."""
MAX_REDIRECTS = 10

_LIBRARIES = ("httpx", "httpx2", "huggingface_hub.utils._http", "huggingface_hub.file_download")
"""The loggers whose records have addresses."""
_Chunk = TypeVar("_Chunk", bound=bytes)


class Connections:
    """The clients of one download, one for each combination of scheme and proxy."""

    def __init__(self, connect: float, read: float) -> None:
        """Make no connection yet.

        Args:
            connect: Seconds within which a connection must be made.
            read: Seconds within which the next byte must arrive.
        """
        self._timeouts = connect, read
        self._first: Address | None = None
        self._clients: dict[tuple[bool, object], httpx.Client] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Connections:
        self._stack.enter_context(secrets_kept_out_of_logs())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def get(self, address: Address, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Send a GET, and yield the first answer that is not a redirect; its body is not read.

        Raises:
            DownloadError: If the settings do not allow a connection, or a redirect leads nowhere.
            httpx.HTTPError: If the connection fails, or is too slow.
        """
        self._first = hop = address
        for _ in range(MAX_REDIRECTS + 1):
            auth = address.auth if hop.origin == address.origin else None
            with self._send(hop, headers, auth) as response:
                if not response.has_redirect_location:
                    yield response
                    return
                location = response.headers["location"]
            hop = redirected(hop, location, address)
        raise DownloadError(
            f"{address.shown} cannot be downloaded: it leads to more than {MAX_REDIRECTS} other "
            "addresses, one after the other. Check the URL (and BITZOO_MIRROR)."
        )

    @contextmanager
    def _send(
        self, hop: Address, headers: Mapping[str, str], auth: tuple[str, str] | None
    ) -> Iterator[httpx.Response]:
        import httpx

        client = self._client(hop)
        deadline = Deadline(ANSWER_WITHIN)
        request = client.build_request(
            "GET", hop.url, headers=dict(headers), extensions={"trace": deadline.trace}
        )
        try:
            response = client.send(request, stream=True, auth=auth)
        except httpx.TransportError as error:
            if deadline.passed:
                raise httpx.ReadTimeout(deadline.reason) from error
            raise
        finally:
            deadline.cancel()
        try:
            yield response
        finally:
            response.close()

    def _check_redirect(self, response: httpx.Response) -> None:
        """Refuse a redirect before the client reads it, whose errors are another's words."""
        assert self._first is not None
        if response.has_redirect_location:
            hop = parse(str(response.request.url))
            redirected(hop, response.headers["location"], self._first)

    def _client(self, hop: Address) -> httpx.Client:
        import httpx

        proxy = proxy_to(hop)
        needs_tls = hop.scheme == "https" or bool(proxy and proxy.url.startswith("https:"))
        key = (needs_tls, proxy)
        connect, read = self._timeouts
        if key not in self._clients:
            way = httpx.Proxy(proxy.url, auth=proxy.auth) if proxy else None
            client = httpx.Client(
                trust_env=False,  # `proxy_to` and `certificates` read the environment
                proxy=way,
                verify=certificates() if needs_tls else False,  # nothing to verify in plain http
                timeout=httpx.Timeout(read, connect=connect),
                event_hooks={"response": [self._check_redirect]},
                limits=httpx.Limits(max_keepalive_connections=0),  # a deadline is per connection
            )
            self._clients[key] = self._stack.enter_context(client)
        return self._clients[key]


def redirected(hop: Address, location: str, first: Address) -> Address:
    """Return where a redirect leads.

    Raises:
        DownloadError: If it leads from https to http, or to something else than these.
    """
    wrong = f"{first.shown} cannot be downloaded: "
    try:
        found = parse(urljoin(hop.url, location))
    except (DownloadError, ValueError) as error:
        reason = without_secrets(str(error)).rstrip(".")
        raise DownloadError(
            f"{wrong}it leads to an address that cannot be used ({reason}). Check the URL (and "
            "BITZOO_MIRROR)."
        ) from None
    if hop.scheme == "https" and found.scheme == "http":
        raise DownloadError(
            f"{wrong}it leads from https to {found.shown}, where anyone on the way could change "
            "the file. Use an address that stays with https (check BITZOO_MIRROR), or give the "
            "http address itself if you trust the way to it."
        )
    return found


def steady(chunks: Iterable[_Chunk], error: type[Exception]) -> Iterator[_Chunk]:
    """Yield chunks of bytes as they arrive, until they arrive too slowly.

    Args:
        chunks: The body of an answer.
        error: Raised with the reason if fewer than `MIN_RATE` bytes per second arrived during
            `RATE_WINDOW` seconds of waiting for them; the time that the caller takes does not
            count.
    """
    waited, count = 0.0, 0
    iterator = iter(chunks)
    while True:
        started = time.monotonic()
        chunk = next(iterator, None)
        waited, count = waited + time.monotonic() - started, count + len(chunk or b"")
        if chunk is None:
            return
        yield chunk
        if waited >= RATE_WINDOW:
            if count < MIN_RATE * waited:
                raise error(f"only {count:,} bytes arrived in {waited:.0f} s")
            waited, count = 0.0, 0


class Deadline:
    """Ends a connection whose answer has not begun in time; `trace` tells it about the connection.

    Attributes:
        seconds: From the connection to the end of the answer's headers.
        passed: Whether the connection was ended.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.passed = seconds, False
        self._timer: threading.Timer | None = None
        self._socket: socket.socket | None = None

    @property
    def reason(self) -> str:
        """Why the connection was ended."""
        return f"the server did not answer within {self.seconds:.0f} s"

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Receive the HTTP library's events (the request extension ``trace``)."""
        if not event.endswith("connect_tcp.complete"):
            return
        self.cancel()
        connection = info["return_value"].get_extra_info("socket")
        # A descriptor of its own: TLS takes over the original one.
        self._socket = connection.dup()
        self._timer = threading.Timer(self.seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Forget the connection."""
        if self._timer:
            self._timer.cancel()
            self._timer.join()
        if self._socket:
            self._socket.close()
        self._timer = self._socket = None

    def _end(self) -> None:
        self.passed = True
        if self._socket:
            with contextlib.suppress(OSError):  # it ended by itself
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()


def certificates() -> ssl.SSLContext:
    """Return the certificates that servers are checked against.

    They are those in SSL_CERT_FILE, else in SSL_CERT_DIR, else those that come with the HTTP
    library.

    Raises:
        DownloadError: If the variable does not name such a file or folder.
    """
    import httpx

    check_certificates()
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        try:
            return ssl.create_default_context(cafile=file)
        except OSError as error:  # ssl.SSLError is one
            raise DownloadError(
                f"SSL_CERT_FILE={file} cannot be used: expected certificates in PEM form, found "
                f"something else ({error}). Correct or unset SSL_CERT_FILE."
            ) from error
    if folder:
        return ssl.create_default_context(capath=folder)
    return httpx.create_ssl_context(trust_env=False)


def check_certificates() -> None:
    """Raise if a variable names certificates that are not there.

    Raises:
        DownloadError: With the name of the variable.
    """
    for variable, there, what in (
        ("SSL_CERT_FILE", os.path.isfile, "file"),
        ("SSL_CERT_DIR", os.path.isdir, "folder"),
    ):
        place = os.environ.get(variable)
        if place and not there(place):
            raise DownloadError(
                f"{variable}={place} cannot be used: there is no such {what}. Correct {variable}, "
                "or unset it to use the usual certificates."
            )
        if place:
            return  # the other variable is not read


def explained(error: BaseException, address: Address) -> str:
    """Return why a connection failed, with the settings that may be the cause."""
    reason = without_secrets(str(error)) or type(error).__name__
    proxy = proxy_to(address)
    if proxy:
        reason = f"{reason}, through {proxy}"
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        reason += ". " + certificate_advice()
    return reason


def certificate_advice() -> str:
    """Return what to do if a server's certificate cannot be verified."""
    used = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    ignored = [name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)]
    advice = (
        f"The certificates are those in {used}={os.environ[used]}: correct it, or unset it"
        if used
        else "If a proxy or your organisation has certificates of its own, set SSL_CERT_FILE to "
        "the file with them"
    )
    if ignored and used != "SSL_CERT_FILE":
        advice += f" ({ignored[0]} is set, but not read: set SSL_CERT_FILE to the same file)"
    return advice


@contextmanager
def secrets_kept_out_of_logs() -> Iterator[None]:
    """Show addresses in the HTTP libraries' log records without what may be secret."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage()), None
        return True

    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    for logger in loggers:
        logger.addFilter(hide)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(hide)
