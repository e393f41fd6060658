"""Downloads from a server that fails, lies, dawdles and changes its mind.

Whatever it does, what stands under the final name is one of the contents that it served, whole; or
there is nothing, and an error that says why.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from attacks.engine import READ
from attacks.judges import Judge
from attacks.mutations import TEXTS
from servers import Fault, FileServer

from bitzoo.errors import BitzooError
from bitzoo.fetch import http

SIZE = 300_000
_STATUS = (200, 204, 206, 301, 304, 400, 403, 404, 408, 416, 418, 429, 500, 503, 599)
_HEADERS = (
    "Content-Length", "Content-Range", "ETag", "Last-Modified", "Content-Encoding", "Retry-After",
    "Transfer-Encoding", "Accept-Ranges", "Content-Type", "Location",
)  # fmt: skip


@dataclass
class Served:
    """One server, and where its file is to go."""

    path: Path
    label: str
    contents: tuple[bytes, ...]
    faults: list[Fault]
    etag: str | None
    ignore_range: bool
    redirect: str


@dataclass
class DownloadsTarget:
    """Downloads from hostile servers."""

    name: str = "downloads"
    judge: str = ""
    weight: float = 0.005
    cpu_seconds: float = 20.0

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        """Waits between attempts are left out: what they are is tested elsewhere."""
        http._sleep = lambda seconds: None
        http.READ_TIMEOUT = 1.0

    def attack(self, rng: random.Random, place: Path) -> Served:
        old, new = rng.randbytes(SIZE), rng.randbytes(SIZE - rng.choice((0, 0, 7)))
        faults = [_fault(rng, new) for _ in range(rng.randrange(1, 7))]
        locations = (
            "",
            "",
            "",
            "other.npz",
            "bit.npz",
            "ftp://localhost/x",
            "http://[::1",
            "//",
            "?",
        )
        served = Served(
            place / "input-folder" / "bit.npz",
            "; ".join(map(_words, faults)),
            (old, new),
            faults,
            rng.choice(("strong", "strong", "weak", None)),
            rng.random() < 0.2,
            rng.choice(locations),
        )
        served.path.parent.mkdir()
        return served

    def read(self, case: Served) -> bytes:
        """Download, and once more if that fails: what is half there must not do harm."""
        with FileServer({"bit.npz": case.contents[0], "other.npz": case.contents[1]}) as server:
            server.faults.extend(case.faults)
            server.etag, server.ignore_range = case.etag, case.ignore_range
            if case.redirect:
                server.redirects["bit.npz"] = case.redirect
            try:
                http.download(server.url + "bit.npz", case.path)
            except BitzooError:
                assert not case.path.exists(), "a failed download left a file"
                http.download(server.url + "bit.npz", case.path)
        return case.path.read_bytes()

    def differs(self, case: Served, ours: bytes, judge: Judge | None) -> tuple[str, str]:
        if ours not in case.contents:
            return "different", f"{len(ours):,} bytes that no server had"
        left = [entry.name for entry in case.path.parent.iterdir() if ".part" in entry.name]
        return ("different", f"left behind: {left}") if left else (READ, "")


def _fault(rng: random.Random, new: bytes) -> Fault:
    """One answer that goes wrong; checksums stay right, so that no lie can pass for the truth."""
    kind = rng.choice(("status", "cut", "cut", "header", "header", "put", "drip"))
    if kind == "status":
        return Fault(status=rng.choice(_STATUS))
    if kind == "cut":
        return Fault(cut_after=rng.choice((0, 1, 20_000, 299_999, rng.randrange(SIZE))))
    if kind == "put":
        return Fault(put=new, cut_after=rng.choice((None, 50_000)))
    if kind == "drip":
        return Fault(drip=(100_000, 0.001))
    texts = ["0", "-1", "300000", "299999", "9" * 20, "bytes 0-9/10", "bytes 5-/9", "bytes */*"]
    texts += ["gzip", "br", "chunked", "identity", '"', 'W/"', "1e9", "\u0663"]
    usable = [text for text in TEXTS if text.isprintable() and len(text) < 100]
    value = rng.choice((None, *texts, *usable))
    value = None if value is None else value.encode("latin-1", "replace").decode("latin-1")
    return Fault(headers={rng.choice(_HEADERS): value}, cut_after=rng.choice((None, 70_000)))


def _words(fault: Fault) -> str:
    if fault.status:
        return f"status {fault.status}"
    return f"{fault.headers or ''} cut {fault.cut_after} {'new' if fault.put else ''}".strip()


DOWNLOADS = DownloadsTarget()
