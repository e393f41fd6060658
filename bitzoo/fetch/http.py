"""Atomic, resumable, checksummed HTTP download.

Bytes are collected in ``<target>.part``. ``<target>.part.json`` beside it says which version of the
file they belong to, so that a later call, in this process or another, continues where the last one
stopped. Only a part with the right size and MD5 is renamed to ``target``. One lock per file keeps
two processes from fetching the same file.

Messages and notes have addresses in the form that `bitzoo.fetch.addresses.shown` gives.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitzoo.catalogue.registry import BASE_URL
from bitzoo.errors import BitzooError, CheckpointError, DownloadError, NotServedError
from bitzoo.fetch.addresses import Address, joined, parse, without_secrets
from bitzoo.files import Progress, sync, write_json
from bitzoo.locks import file_lock, unwritable
from bitzoo.portable import NO_FOLLOW
from bitzoo.progress import shown
from bitzoo.progress_line import size_of
from bitzoo.small_files import read_json

if TYPE_CHECKING:
    import httpx

    from bitzoo.fetch.connection import Connections

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
"""Seconds without a byte; `bitzoo.fetch.connection` has the limits for slow ones."""
RETRIES = 5
"""Attempts without progress after the first; attempts that made progress do not count."""
LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more with Retry-After is retried after this long."""
PROGRESS_BYTES = 16_000
"""Fewest new bytes of an attempt that count as progress: a line that breaks again and again still
completes a download, and a server that sends a few bytes each time is given up."""
BAR_BYTES = 1_000_000
"""Smallest transfer with a progress bar."""
MAX_BYTES = 64 << 30
"""Bytes after which a body of unstated length is taken to be endless; the largest release has
4 GB."""

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_MD5 = re.compile(r"\bmd5=([\w+/=]+)")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]+/([0-9]+|\*)")
_LENGTH = re.compile(r"[0-9]{1,19}")
_sleep = time.sleep
_log = logging.getLogger(__name__)


def base_url() -> str:
    """Return the base URL of the released files, ending in a slash: BITZOO_MIRROR or `BASE_URL`.

    A mirror's query, such as a token, comes after the slash: `joined` adds a file before it.

    Raises:
        DownloadError: If BITZOO_MIRROR is not an http or https address.
    """
    mirror = os.environ.get("BITZOO_MIRROR", "").strip()
    if mirror:
        parse(mirror, "BITZOO_MIRROR")
    return joined(mirror or BASE_URL, "")


def is_offline() -> bool:
    """Whether BITZOO_OFFLINE forbids the network (1, true, yes or on, in any case)."""
    return os.environ.get("BITZOO_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def download(url: str, target: Path, *, progress: Progress | bool | None = None) -> Path:
    """Download the file at `url` to `target`, unless `target` already exists.

    The next call resumes an interrupted download (Ctrl-C, a killed process, a lost connection).
    Connection errors, connections that are too slow, and the statuses 408, 429 and 5xx are retried
    with growing pauses, as long as there is progress.

    Args:
        url: http or https; redirects are followed, but not from https to http.
        target: Final path; missing parent folders are created. An existing file is never touched.
        progress: As for `bitzoo.progress.shown`; transfers below `BAR_BYTES` are not reported.

    Returns:
        `target`, complete, with its size and (if the server states one) its MD5 checked.

    Raises:
        DownloadError: If the file is not available, does not match its checksum, does not fit on
            the disk, or is missing while BITZOO_OFFLINE is set.
    """
    if target.is_file():
        return target
    address = parse(url)
    if is_offline():
        raise DownloadError(
            f"{target.name} is not at {target}, and BITZOO_OFFLINE forbids downloading it. Unset "
            f"BITZOO_OFFLINE, or download {address.shown} elsewhere and put it there, or point "
            f"BITZOO_CACHE at a folder that has it."
        )
    with file_lock(target), _storage_errors_of(target), shown(progress) as report:
        if not target.is_file():  # the process that held the lock may have downloaded it
            _fetch(address, _Part(target, address), report)
    return target


@dataclass(frozen=True)
class Fetched:
    """How a file was fetched.

    Attributes:
        url: Its address, without credentials.
        checked: Whether the server stated a checksum, and the bytes match it.
    """

    url: str
    checked: bool


def how_fetched(target: Path) -> Fetched | None:
    """Return how `download` fetched a file; None if it did not, or left no note of it."""
    try:
        note = read_json(_note_of(target))
        return Fetched(str(note["url"]), note["checked"] is True)
    except (OSError, CheckpointError, KeyError):
        return None


def forget(target: Path) -> None:
    """Remove a fetched file and the note beside it."""
    target.unlink(missing_ok=True)
    _note_of(target).unlink(missing_ok=True)


def _note_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.fetched.json")


@dataclass(frozen=True)
class _Version:
    """Identifies the version of a file that a server is sending."""

    url: str  # as shown
    key: str  # a hash of the address, so that files that differ by their query are told apart
    validator: str  # strong ETag or Last-Modified date, for If-Range; empty forbids resuming
    size: int | None  # of the whole file; None if the server does not state it
    md5: str | None  # of the whole file, base64, as in x-goog-hash; None if not stated

    @classmethod
    def of(cls, response: httpx.Response, address: Address) -> _Version:
        headers = response.headers
        etag, date = headers.get("etag", ""), headers.get("last-modified", "")
        validator = etag if _STRONG_ETAG.fullmatch(etag) else date if date.isascii() else ""
        length = headers.get("content-length", "")
        md5 = _MD5.search(headers.get("x-goog-hash", ""))
        size = int(length) if _LENGTH.fullmatch(length) else None
        return cls(address.shown, _key_of(address), validator, size, md5 and md5[1])

    def is_of_its_types(self) -> bool:
        """Whether a version that was read from a file has values that `of` can give."""
        texts = all(isinstance(text, str) for text in (self.url, self.key, self.validator))
        counts = self.size is None or (type(self.size) is int and self.size >= 0)
        return texts and counts and (self.md5 is None or isinstance(self.md5, str))


def _key_of(address: Address) -> str:
    return hashlib.sha256(address.url.encode()).hexdigest()[:16]


_NO_VERSION = _Version("", "", "", None, None)


class _Part:
    """The bytes fetched so far, and the version of the file that they belong to."""

    def __init__(self, target: Path, address: Address) -> None:
        self.target, self.address, self.url = target, address, address.shown
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.size, self.digest = 0, hashlib.md5(usedforsecurity=False)
        self.version = self._read_note()
        if self.version is _NO_VERSION:
            self.discard()
        else:
            with self.path.open("rb") as file:
                while block := file.read(1 << 20):
                    self._count(block)

    def _read_note(self) -> _Version:
        try:
            version = _Version(**read_json(self.note))
        except (OSError, CheckpointError, TypeError):
            return _NO_VERSION
        if not version.is_of_its_types():
            return _NO_VERSION
        usable = version.key == _key_of(self.address) and version.validator
        there = self.path.is_file() and not self.path.is_symlink()
        return version if usable and there else _NO_VERSION

    def _count(self, block: bytes) -> None:
        self.size += len(block)
        self.digest.update(block)

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are here, perhaps from a process that died before checking them."""
        return self.size == self.version.size

    def request_headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}  # so that sizes and ranges count file bytes
        if self.version.validator and self.size:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self.version.validator}
        return headers

    def continues_with(self, response: httpx.Response) -> bool:
        """Whether a response starts where the part ends, in the same version of the file."""
        match = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
        if not match or not self.version.validator:
            return False
        start, total = match.groups()
        same_size = total in ("*", str(self.version.size))
        same_tag = _Version.of(response, self.address).validator in ("", self.version.validator)
        return int(start) == self.size and same_size and same_tag

    def restart(self, version: _Version) -> None:
        self.discard()
        self.version = version
        write_json(self.note, asdict(version))

    def write_from(self, chunks: Iterable[bytes], advance: Callable[[int], object]) -> None:
        """Append a body.

        Raises:
            DownloadError: If it is endless, or longer than the server stated.
        """
        most = MAX_BYTES if self.version.size is None else self.version.size
        with open(self.path, "ab", opener=_without_links) as file:
            for chunk in chunks:
                if self.size + len(chunk) > most:
                    self.discard()
                    raise DownloadError(
                        f"{self.url} cannot be downloaded: the server sent more than {most:,} "
                        "bytes, which is not what it stated or not a checkpoint. Nothing was "
                        "kept. Check the URL (and BITZOO_MIRROR)."
                    )
                file.write(chunk)
                file.flush()  # so that a killed process loses nothing that arrived
                self._count(chunk)
                advance(len(chunk))

    def problem(self) -> str | None:
        """Return how the finished part differs from what the server stated, or None."""
        if self.version.size not in (None, self.size):
            return f"expected {self.version.size:,} bytes, found {self.size:,}"
        found = base64.b64encode(self.digest.digest()).decode()
        if self.version.md5 not in (None, found):
            return f"expected md5 {self.version.md5} (base64), found {found}"
        # The hash is of what arrived. Where nothing keeps processes apart, as on a file system
        # without locks, another may have appended to the same file or replaced it.
        there = self.path.stat().st_size if self.path.is_file() else 0
        if there != self.size:
            return f"expected {self.size:,} bytes in {self.path}, found {there:,}"
        return None

    def keep(self) -> None:
        sync(self.path)
        write_json(_note_of(self.target), {"url": self.url, "checked": bool(self.version.md5)})
        os.replace(self.path, self.target)
        self.note.unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.version, self.size = _NO_VERSION, 0
        self.digest = hashlib.md5(usedforsecurity=False)


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | NO_FOLLOW, 0o666)


def _fetch(address: Address, part: _Part, report: Progress | None) -> None:
    """Download, check and rename; a file that fails its check is downloaded once more."""
    # not at the top: TLS takes a while to import, and most files are here already
    from bitzoo.fetch.connection import Connections

    problem = None
    with Connections(CONNECT_TIMEOUT, READ_TIMEOUT) as connections:
        for _ in range(2):
            if not part.is_complete:
                _transfer(connections, address, part, report)
            problem = part.problem()
            if problem is None:
                return part.keep()
            _log.warning("%s arrived damaged: %s", part.url, problem)
            part.discard()
    raise DownloadError(
        f"{part.url} arrived damaged twice: {problem}. Nothing was kept. Try again later or from "
        f"another network; if BITZOO_MIRROR is set, its copy may differ from the released file."
    )


def _transfer(
    connections: Connections, address: Address, part: _Part, report: Progress | None
) -> None:
    """Fetch all bytes into the part, over as many connections as necessary."""
    import httpx

    from bitzoo.fetch.connection import explained

    failures, best = 0, part.size
    while True:
        try:
            return _attempt(connections, address, part, report)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise DownloadError(
                f"{part.url} cannot be downloaded: {without_secrets(str(error))}. Check the URL "
                "(and BITZOO_MIRROR)."
            ) from None
        except (httpx.HTTPStatusError, httpx.TransportError) as error:
            if part.size >= best + PROGRESS_BYTES:
                failures, best = 0, part.size
            failures += 1
            reason = explained(error, address)
            if _is_final(error):
                raise DownloadError(f"{part.url} could not be downloaded: {reason}.") from error
            if failures > RETRIES:
                raise DownloadError(
                    f"{part.url} could not be downloaded, {failures} attempts failed: {reason}. "
                    f"{part.size:,} bytes are kept in {part.path}; run the same again to continue "
                    f"from there, or set BITZOO_MIRROR to the base URL of another copy."
                ) from error
            wait = _pause(failures, error)
        _log.warning("%s: %s; retrying in %.1f s", part.url, reason, wait)
        _sleep(wait)


def _is_final(error: httpx.HTTPError) -> bool:
    """Whether trying again cannot help: a certificate, or a proxy that asks for credentials."""
    return bool(re.match(r"4\d\d |Invalid username", str(error))) or (
        "CERTIFICATE_VERIFY_FAILED" in str(error)
    )


def _attempt(
    connections: Connections, address: Address, part: _Part, report: Progress | None
) -> None:
    """Make one connection: start over on 200, continue from the end of the part on 206."""
    import httpx

    from bitzoo.fetch.connection import steady

    with connections.get(address, part.request_headers()) as response:
        _check_status(response, part)
        fresh = _Version.of(response, address) if response.status_code == 200 else None
        if not fresh and not part.continues_with(response):
            part.discard()
            raise httpx.RemoteProtocolError(
                f"the server's {response.status_code} does not continue the part"
            )
        size = (fresh or part.version).size
        _check_space(size, part)
        if fresh:  # the first request, or the file changed, or the server ignores Range
            part.restart(fresh)
        chunks = steady(response.iter_raw(), httpx.ReadTimeout)
        if response.headers.get("content-type", "").startswith("text/html"):
            chunks = _not_a_page(chunks, part)
        with _progress_bar(part.target.name, size, part.size, report) as advance:
            part.write_from(chunks, advance)
    if size is not None and part.size < size:
        raise httpx.RemoteProtocolError(f"only {part.size:,} of {size:,} bytes arrived")


def _not_a_page(chunks: Iterator[bytes], part: _Part) -> Iterator[bytes]:
    """Yield a body that its server calls a web page, if it is none.

    Raises:
        NotServedError: If it is one.
    """
    first = next(chunks, b"")
    if not part.size and first.lstrip().startswith(b"<"):
        part.discard()
        raise NotServedError(
            f"{part.url} could not be downloaded: expected a file, the server sent a web page. It "
            "may ask you to log in, or to confirm something. Open the address in a browser, or "
            "ask for one that leads to the file itself."
        )
    yield first
    yield from chunks


def _check_status(response: httpx.Response, part: _Part) -> None:
    import httpx

    from bitzoo.fetch.proxies import proxy_to

    code = response.status_code
    if code == 407 and (proxy := proxy_to(part.address)):
        raise DownloadError(
            f"{part.url} could not be downloaded: {proxy} asks for a user name and a password "
            f"(407). Put them into {proxy.variable}: http://USER:PASSWORD@HOST:PORT."
        )
    answer = f"{code} {response.reason_phrase}".strip()
    if code in (408, 429) or code >= 500:
        problem = f"the server answered {answer}"
        raise httpx.HTTPStatusError(problem, request=response.request, response=response)
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        answer += f" in {encoding} encoding"
    if code not in (200, 206, 416) or encoding != "identity":
        raise NotServedError(
            f"{part.url} could not be downloaded: expected the unencoded file, the server answered "
            f"{answer}. Check the name and that the file is public; if there is a copy elsewhere, "
            f"set BITZOO_MIRROR to that copy's base URL."
        )


def _check_space(size: int | None, part: _Part) -> None:
    """Check the disk space; the part's own bytes are either kept or freed first, so they count."""
    free = shutil.disk_usage(part.target.parent).free
    needed = (size or 0) - part.size
    if needed > free:
        raise DownloadError(
            f"{part.target.name} does not fit in {part.target.parent}: it needs {size_of(needed)} "
            f"more, found {size_of(free)} free. Free some space, or point BITZOO_CACHE at a "
            f"folder on a larger disk."
        )


def _pause(failures: int, error: httpx.HTTPError) -> float:
    """Return the seconds to wait: the server's Retry-After, or doubling from 0.5, +/- 25 %."""
    from email.utils import parsedate_to_datetime

    response: httpx.Response | None = getattr(error, "response", None)
    retry_after = response.headers.get("retry-after", "") if response is not None else ""
    try:  # it is a number of seconds or a date (RFC 9110, 10.2.3)
        if retry_after.isdigit():
            wait = float(retry_after)
        else:
            wait = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        wait = 0.5 * 2.0 ** (failures - 1) * random.uniform(0.75, 1.25)
    return min(max(wait, 0.0), LONGEST_WAIT)


@contextlib.contextmanager
def _storage_errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except BitzooError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def _progress_bar(
    label: str, total: int | None, done: int, report: Progress | None
) -> Iterator[Callable[[int], object]]:
    """Show progress from `done` to `total` bytes; yields the function that advances it."""
    if report is None or (total is not None and total - done < BAR_BYTES):
        yield lambda count: None
        return

    task = f"download: {label}"
    report(task, done, total or 0)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(task, done, total or 0)

    yield advance
    if total is None:
        report(task, done, done)
