"""`tools/check_site.py` finds each kind of fault in a built site, and nothing in a sound one."""

import json

import pytest
from check_site import Site

PAGE = """<html><head><link rel="stylesheet" href="../style.css"><script src="../own.js"></script>
</head><body id="top"><h1 id="one">One</h1>{}<img src="../a%20b.png" alt="">
<a href="../">home</a> <a href="#one">up</a> <a href="../#there">there</a>
<a href="https://example.org/x">out</a></body></html>"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("SITE_URL", "https://example.org/base/")
    (tmp_path / "page").mkdir()
    (tmp_path / "search").mkdir()
    for name in ("own.js", "a b.png", "search/worker.js"):
        (tmp_path / name).touch()
    (tmp_path / "style.css").write_text("a { background: url(data:image/svg+xml,x) }")
    (tmp_path / "index.html").write_text('<p id="there"><a href="page/">page</a>')
    (tmp_path / "404.html").write_text(
        '<script src="/base/own.js"></script><a href="/base/">home</a>'
    )
    (tmp_path / "page" / "index.html").write_text(PAGE.format(""))
    places = [{"location": ""}, {"location": "page/"}, {"location": "page/#one"}]
    (tmp_path / "search" / "search_index.json").write_text(json.dumps({"docs": places}))
    return tmp_path


def test_a_sound_site(site):
    found = Site.read(site)
    assert list(found.pages) == ["404.html", "index.html", "page/index.html"]
    assert list(found.problems()) == []


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ('<a href="../nowhere/">', "../nowhere/ leads nowhere"),
        ('<a href="../../outside/">', "../../outside/ leads nowhere"),
        ('<a href="../page/#two">', "page/index.html has no element with the id 'two'"),
        ('<a href="#two">', "page/index.html has no element with the id 'two'"),
        ('<a href="https://localhost/x">', "https://localhost/x is no address of a public server"),
        ('<a href="https://example/x">', "https://example/x is no address of a public server"),
        ('<a href="javascript:void(0)">', "javascript:void(0) is no address of a public server"),
        ('<a href="https://example.org/a b">', "has a space in it"),
        ('<h2 id="one">', "two elements have the id 'one'"),
        ('<img src="../own.js">', "the picture ../own.js has no alternative text"),
        ('<img src="../no.png" alt="">', "../no.png leads nowhere"),
        ('<img src="https://example.org/x.png" alt="">', "which is on another server"),
        ('<script src="//example.org/x.js"></script>', "which is on another server"),
        ('<link rel="preconnect" href="https://example.org">', "which is on another server"),
        ('<link rel="stylesheet" href="../no.css">', "../no.css leads nowhere"),
        ('<iframe src="https://example.org/"></iframe>', "which is on another server"),
    ],
)
def test_a_fault_of_a_page(site, added, problem):
    (site / "page" / "index.html").write_text(PAGE.format(added))
    (found,) = Site.read(site).problems()
    assert found.startswith("page/index.html: ")
    assert problem in found


@pytest.mark.parametrize(
    "style", ['@import "https://example.org/x.css";', "a { background: url('//example.org/x') }"]
)
def test_a_fault_of_a_style(site, style):
    (site / "style.css").write_text(style)
    (found,) = Site.read(site).problems()
    assert found.startswith("style.css: loads ")


def test_a_fault_of_the_search(site):
    index = site / "search" / "search_index.json"
    index.write_text('{"docs": [{"location": "page/#two"}, {"location": "none/"}]}')
    first, second = Site.read(site).problems()
    assert first == "search: page/#two: page/index.html has no element with the id 'two'"
    assert second == "search: none/ leads nowhere"
    index.unlink()
    assert list(Site.read(site).problems()) == ["there is no search index"]
