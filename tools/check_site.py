"""Check a built site offline: links, anchors, pictures, and that no page loads from elsewhere.

    python tools/check_site.py site

MkDocs checks what is written in Markdown; this checks what was built of it, generated parts and the
theme included. Links to other sites are only checked for their form.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADS = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("embed", "src"),
    ("object", "data"),
}
"""Elements and the attribute by which a page loads something by itself."""

_FETCHING = {"stylesheet", "preload", "prefetch", "modulepreload", "icon", "manifest", "preconnect"}
"""Values of a link's ``rel`` with which a browser asks for its address."""

_IN_STYLES = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
_HOST = re.compile(r"([a-z0-9-]+\.)+[a-z]{2,}(:\d+)?")


def main() -> None:
    """Check the folder that was named; exit status 1 if anything is wrong."""
    folder = Path(sys.argv[1])
    site = Site.read(folder)
    found = list(site.problems())
    for line in found:
        print(line)
    links = sum(len(page.links) for page in site.pages.values())
    print(f"{len(site.pages)} pages, {links:,} links: {len(found)} problems")
    sys.exit(bool(found) or not site.pages)


@dataclass
class Page(HTMLParser):
    """What a page has that can be wrong."""

    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    silent_pictures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element's id and addresses (called by `HTMLParser.feed`)."""
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.loads += [given[name] for kind, name in _LOADS if kind == tag and name in given]
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link":
            fetches = _FETCHING & set(given.get("rel", "").split())
            (self.loads if fetches else self.links).append(given.get("href", ""))
        if tag == "img" and "alt" not in dict(attrs):
            self.silent_pictures.append(given.get("src", ""))


@dataclass(frozen=True)
class Site:
    """A built site: the pages by path, and every other file."""

    folder: Path
    base: str
    pages: dict[str, Page]

    @classmethod
    def read(cls, folder: Path) -> Site:
        """Read all pages of a folder; SITE_URL says where it will be, as it does to MkDocs."""
        pages = {}
        for path in sorted(folder.rglob("*.html")):
            page = pages[path.relative_to(folder).as_posix()] = Page()
            page.feed(path.read_text(encoding="utf-8"))
        return cls(folder, urlsplit(os.environ.get("SITE_URL", "")).path.rstrip("/"), pages)

    def problems(self) -> Iterator[str]:
        """Yield a line for each thing that is wrong."""
        for name, page in self.pages.items():
            yield from (f"{name}: {problem}" for problem in self._problems_of(name, page))
        yield from self._problems_of_styles()
        yield from self._problems_of_search()

    def _problems_of(self, name: str, page: Page) -> Iterator[str]:
        for place in sorted({own for own in page.ids if page.ids.count(own) > 1}):
            yield f"two elements have the id {place!r}"
        for picture in page.silent_pictures:
            yield f"the picture {picture} has no alternative text"
        for address in page.loads:
            if _is_elsewhere(address):
                yield f"loads {address}, which is on another server"
            else:
                yield from self._problem_of_link(name, address)
        for address in page.links:
            if _is_elsewhere(address):
                yield from _problem_of_form(address)
            else:
                yield from self._problem_of_link(name, address)

    def _problem_of_link(self, name: str, address: str) -> Iterator[str]:
        parts = urlsplit(address)
        if parts.scheme == "data":
            return
        target = self._target(name, unquote(parts.path))
        if target is None or not (self.folder / target).is_file():
            yield f"{address} leads nowhere"
        elif parts.fragment and target in self.pages:
            place = unquote(parts.fragment)
            if place not in self.pages[target].ids and not place.startswith(":~:"):
                yield f"{address}: {target} has no element with the id {place!r}"

    def _target(self, name: str, path: str) -> str | None:
        """Return the file that a path of a page means, relative to the site; None if outside."""
        if path.startswith("/"):  # only the page for errors, which may be shown at any address
            path = path.removeprefix(self.base).lstrip("/")
            start = self.folder
        else:
            start = (self.folder / name).parent
        if not path and start is not self.folder:
            return name
        wanted = Path(os.path.normpath(start / path))
        if wanted.is_dir():
            wanted = wanted / "index.html"
        folder = Path(os.path.normpath(self.folder))
        return wanted.relative_to(folder).as_posix() if folder in wanted.parents else None

    def _problems_of_styles(self) -> Iterator[str]:
        for path in sorted(self.folder.rglob("*.css")):
            for match in _IN_STYLES.finditer(path.read_text(encoding="utf-8")):
                address = match[1] or match[2]
                if _is_elsewhere(address):
                    yield f"{path.relative_to(self.folder)}: loads {address}"

    def _problems_of_search(self) -> Iterator[str]:
        index = self.folder / "search" / "search_index.json"
        if not index.is_file():
            yield "there is no search index"
            return
        for document in json.loads(index.read_text(encoding="utf-8"))["docs"]:
            for problem in self._problem_of_link("index.html", document["location"] or "."):
                yield f"search: {problem}"


def _is_elsewhere(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def _problem_of_form(address: str) -> Iterator[str]:
    parts = urlsplit(address)
    if parts.scheme == "mailto":
        return
    if parts.scheme not in ("https", "http") or not _HOST.fullmatch(parts.netloc.lower()):
        yield f"{address} is no address of a public server"
    elif re.search(r"\s", address):
        yield f"{address!r} has a space in it"


if __name__ == "__main__":
    main()
