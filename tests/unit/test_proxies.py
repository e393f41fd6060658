"""Proxies and certificates: used as set, and a sentence that names the variable if that fails."""

import random
import ssl

import pytest
from scripted_server import CERTIFICATE, ScriptedServer, SocksProxy, TunnelProxy, head
from servers import FileServer

from bitzoo.errors import DownloadError, MissingExtraError
from bitzoo.fetch import http
from bitzoo.fetch.addresses import parse
from bitzoo.fetch.http import download
from bitzoo.fetch.proxies import is_excluded, proxy_to

BODY = random.Random(5).randbytes(50_000)
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
BUNDLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in (*VARIABLES, *BUNDLES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(http, "_sleep", lambda _: None)


@pytest.fixture
def server():
    with FileServer({"a.npz": BODY}) as running:
        yield running


@pytest.fixture
def secure():
    file = head("200 OK", Content_Length=len(BODY)) + BODY
    with ScriptedServer(lambda talk, _: talk.sendall(file), tls=True) as running:
        yield running


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "a.npz"


class TestProxies:
    @pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
    def test_socks(self, server, target, monkeypatch, scheme):
        with SocksProxy() as proxy:
            monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:{proxy.port}")
            download(server.url + "a.npz", target)
            assert proxy.requests == [server.url.removeprefix("http://").rstrip("/")]
        assert target.read_bytes() == BODY

    def test_socks_without_the_package(self, server, target, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setenv("ALL_PROXY", "socks5://me:sesame@127.0.0.1:1080")
        with pytest.raises(MissingExtraError) as caught:
            download(server.url + "a.npz", target)
        assert str(caught.value) == (
            "ALL_PROXY=socks5://127.0.0.1:1080 is a SOCKS proxy, which needs the package socksio. "
            "Install it with `pip install 'bitzoo[socks]'`, or unset ALL_PROXY to connect directly."
        )

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("socks://me:sesame@host:1080", "If it is one, write socks5://host:1080. Correct"),
            ("socks4://host:1080", "of SOCKS, only version 5 is supported"),
            ("ftp://host:21", "expected an address that starts with http://, https:// or socks5"),
            ("http://host:port", "Invalid port"),
            ("http://[::1", "Invalid host"),
            ("http://me:pa/sesame@host:80", "write / as %2F"),
            ("http://me:pa#sesame@host:80", "write / as %2F"),
        ],
    )
    def test_settings_that_cannot_be_used(self, server, target, monkeypatch, setting, message):
        monkeypatch.setenv("http_proxy", setting)
        with pytest.raises(DownloadError) as caught:
            download(server.url + "a.npz", target)
        said = str(caught.value)
        assert said.startswith("http_proxy=")
        assert "cannot be used as a proxy: " in said
        assert message in said
        assert said.endswith("Correct http_proxy, or unset it to connect directly.")
        assert "sesame" not in said
        assert server.requests == []

    @pytest.mark.parametrize(
        "written", ["http://127.0.0.1:{}", "127.0.0.1:{}", "me:x@127.0.0.1:{}"]
    )
    def test_http_through_a_proxy(self, target, monkeypatch, written):
        file = head("200 OK", Content_Length=len(BODY)) + BODY
        with ScriptedServer(lambda talk, _: talk.sendall(file)) as proxy:
            monkeypatch.setenv("HTTP_PROXY", written.format(proxy.port))
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            download("http://nowhere.invalid/a.npz", target)
            assert proxy.requests[0].startswith("GET http://nowhere.invalid/a.npz HTTP/1.1")
            assert ("Proxy-Authorization: Basic bWU6eA==" in proxy.requests[0]) == ("@" in written)
        assert target.read_bytes() == BODY

    def test_https_through_a_proxy(self, secure, target, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        with TunnelProxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            download(secure.url + "a.npz", target)
            assert proxy.requests[0].startswith(f"CONNECT 127.0.0.1:{secure.port} ")
        assert target.read_bytes() == BODY

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_proxy_that_asks_for_a_password(self, target, monkeypatch, scheme):
        refusal = head("407 Proxy Authentication Required", Content_Length=0)
        with ScriptedServer(lambda talk, _: talk.sendall(refusal)) as proxy:
            monkeypatch.setenv("ALL_PROXY", f"http://me:sesame@127.0.0.1:{proxy.port}")
            with pytest.raises(DownloadError) as caught:
                download(f"{scheme}://nowhere.invalid/a.npz", target)
            assert len(proxy.requests) == 1  # asking again would not help
        said = str(caught.value)
        assert "407" in said
        assert f"the proxy http://127.0.0.1:{proxy.port} (ALL_PROXY)" in said
        assert "sesame" not in said
        assert "BITZOO_CACHE" not in said

    def test_a_proxy_that_is_not_there(self, server, target, monkeypatch):
        with ScriptedServer(lambda talk, _: None) as gone:
            port = gone.port
        monkeypatch.setenv("HTTP_PROXY", f"http://me:sesame@127.0.0.1:{port}")
        with pytest.raises(DownloadError) as caught:
            download(server.url + "a.npz", target)
        assert f"through the proxy http://127.0.0.1:{port} (HTTP_PROXY)" in str(caught.value)
        assert "Connection refused" in str(caught.value)
        assert "sesame" not in str(caught.value)

    def test_a_proxy_that_hangs_up(self, server, target, monkeypatch):
        with ScriptedServer(lambda talk, _: None) as proxy:
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
            with pytest.raises(DownloadError, match=r"through the proxy .* \(HTTP_PROXY\)"):
                download(server.url + "a.npz", target)


class TestExceptions:
    @pytest.mark.parametrize(
        ("entries", "host", "port", "expected"),
        [
            ("", "host.org", 443, False),
            ("*", "host.org", 443, True),
            ("a.org, *", "host.org", 443, True),
            ("host.org", "host.org", 443, True),
            (" HOST.org ", "host.org", 443, True),
            ("a.org host.org", "host.org", 443, True),
            ("host.org", "files.host.org", 443, True),
            ("host.org", "myhost.org", 443, False),
            (".host.org", "files.host.org", 443, True),
            ("*.host.org", "files.host.org", 443, True),
            ("host.org:443", "host.org", 443, True),
            ("host.org:80", "host.org", 443, False),
            ("https://host.org", "host.org", 443, True),
            ("127.0.0.1", "127.0.0.1", 80, True),
            ("127.0.0.1:81", "127.0.0.1", 80, False),
            ("127.0.0.0/8", "127.1.2.3", 80, True),
            ("10.0.0.0/8", "127.0.0.1", 80, False),
            ("10.0.0.1/8", "10.9.9.9", 80, True),
            ("::1", "::1", 80, True),
            ("[::1]", "::1", 80, True),
            ("[::1]:80", "::1", 80, True),
            ("[::1]:81", "::1", 80, False),
            ("fd00::/8", "fd12::1", 80, True),
            ("localhost", "localhost", 80, True),
            # not understood by anyone, and no reason to fail
            ("[", "host.org", 443, False),
            ("host.org:port,::/999,[::1,/,%", "host.org", 443, False),
            (",, ,", "host.org", 443, False),
        ],
    )
    def test_is_excluded(self, entries, host, port, expected):
        assert is_excluded(host, port, entries) is expected

    @pytest.mark.parametrize(
        "entries", ["127.0.0.0/8", "*", "::1, [::1]:80,127.0.0.1", "[,::/9, 127.0.0.1/32 x"]
    )
    def test_downloads_go_past_the_proxy(self, server, target, monkeypatch, entries):
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", entries)
        download(server.url + "a.npz", target)
        assert target.read_bytes() == BODY

    def test_the_variable_of_the_scheme_comes_first(self, monkeypatch):
        monkeypatch.setenv("ALL_PROXY", "http://all:1")
        monkeypatch.setenv("https_proxy", "http://secure:2")
        found = [str(proxy_to(parse(url))) for url in ("https://host/", "http://host/")]
        assert found == [
            "the proxy http://secure:2 (https_proxy)",
            "the proxy http://all:1 (ALL_PROXY)",
        ]


class TestCertificates:
    def test_of_ones_own(self, secure, target, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        download(secure.url + "a.npz", target)
        assert target.read_bytes() == BODY

    @pytest.mark.parametrize("kind", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
    def test_that_are_not_there(self, secure, target, monkeypatch, tmp_path, kind):
        monkeypatch.setenv(kind, str(tmp_path / "none"))
        with pytest.raises(DownloadError) as caught:
            download(secure.url + "a.npz", target)
        what = "file" if kind == "SSL_CERT_FILE" else "folder"
        assert str(caught.value) == (
            f"{kind}={tmp_path / 'none'} cannot be used: there is no such {what}. Correct {kind}, "
            "or unset it to use the usual certificates."
        )

    @pytest.mark.parametrize("content", [b"", b"no certificate", bytes(100)])
    def test_that_are_something_else(self, secure, target, monkeypatch, tmp_path, content):
        (tmp_path / "c.pem").write_bytes(content)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
        with pytest.raises(DownloadError, match=r"SSL_CERT_FILE=.*: expected certificates in PEM"):
            download(secure.url + "a.npz", target)

    @pytest.mark.parametrize(
        ("settings", "advice"),
        [
            ({}, "set SSL_CERT_FILE to the file with them."),
            (
                {"REQUESTS_CA_BUNDLE": str(CERTIFICATE)},
                "(REQUESTS_CA_BUNDLE is set, but not read: set SSL_CERT_FILE to the same file).",
            ),
            ({"SSL_CERT_DIR": "."}, "The certificates are those in SSL_CERT_DIR=.: correct it,"),
        ],
    )
    def test_that_do_not_match(self, secure, target, monkeypatch, settings, advice):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(DownloadError) as caught:
            download(secure.url + "a.npz", target)
        assert "certificate verify failed" in str(caught.value)
        assert advice in str(caught.value)
        assert "BITZOO_CACHE" not in str(caught.value)

    def test_plain_http_needs_none(self, server, target, monkeypatch):
        monkeypatch.setattr(ssl, "create_default_context", None)
        download(server.url + "a.npz", target)
        assert target.read_bytes() == BODY
