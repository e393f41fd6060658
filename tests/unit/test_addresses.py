"""Addresses: what is refused, and that no secret in them is ever shown."""

import contextlib
import logging
import random

import pytest

from bitzoo.errors import DownloadError
from bitzoo.fetch.addresses import joined, parse, path_of, shown, without_secrets

SECRET = "ses4me"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://host.org/a/b.npz", "https://host.org/a/b.npz"),
        ("https://host.org", "https://host.org"),
        (f"https://me:{SECRET}@host.org/b.npz", "https://host.org/b.npz"),
        (f"https://{SECRET}@host.org:8443/b.npz", "https://host.org:8443/b.npz"),
        (f"https://me:{SECRET}@[::1]:80/b.npz", "https://[::1]:80/b.npz"),
        (f"https://host.org/b.npz?token={SECRET}", "https://host.org/b.npz?***"),
        (f"https://host.org/b.npz?token={SECRET}#part", "https://host.org/b.npz?***"),
        (f"https://host.org/b.npz#{SECRET}", "https://host.org/b.npz"),
        ("https://host.org/@scope/b@v1.npz", "https://host.org/@scope/b@v1.npz"),
        # passwords that were not escaped
        (f"https://me:pa/{SECRET}@host.org/b.npz", "https://***@host.org/b.npz"),
        (f"https://me:pa#{SECRET}@host.org/b.npz", "https://***@host.org/b.npz"),
        (f"https://me:pa?{SECRET}@host.org/b.npz", "https://***@host.org/b.npz"),
        (f"https://me:pa@{SECRET}@host.org/b.npz", "https://host.org/b.npz"),
        (f"https://me:80/{SECRET}@host.org/b.npz", "https://***@host.org/b.npz"),
        (f"https://me:pa@host/{SECRET}@host.org/b.npz", "https://***@host.org/b.npz"),
        (f"https://me:{SECRET}", "https://me:***"),
        (f"https://me:pa/{SECRET}", "https://me:***"),
        (f"me:{SECRET}@proxy:3128", "proxy:3128"),
        ("proxy:3128", "proxy:3128"),
    ],
)
def test_shown(address, expected):
    assert shown(address) == expected
    assert without_secrets(f"see {address}.") == (
        f"see {expected}." if "://" in address else f"see {address}."
    )


def test_no_password_is_shown_whatever_is_in_it():
    """Passwords of all printable characters, in every place of an address that has an @."""
    chosen = random.Random(7)
    signs = [chr(code) for code in range(33, 127)]
    for _ in range(3_000):
        around = ["".join(chosen.choices(signs, k=chosen.randrange(4))) for _ in range(2)]
        password = SECRET.join(around)
        address = f"https://me:{password}@files.example.org/bit/R50x1.npz"
        assert SECRET not in shown(address), address
        with contextlib.suppress(DownloadError):
            parse(address)  # accepted, or refused with a message without the secret:
            continue
        with pytest.raises(DownloadError) as caught:
            parse(address)
        assert SECRET not in str(caught.value), address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://[::1/a.npz", "http://[::1/a.npz cannot be downloaded: Invalid host"),
        ("http://[::g]/a.npz", "http://[::g]/a.npz cannot be downloaded: Invalid host"),
        ("http://host:99999/a", "http://host:99999/a cannot be downloaded: Invalid port"),
        ("http://host:0/a", "http://host:0/a cannot be downloaded: Invalid port"),
        ("http://a..b/a", "http://a..b/a cannot be downloaded: Invalid host"),
        (f"http://{'a' * 64}/a", "cannot be downloaded: Invalid host"),
        ("http://host\\@other/a", "cannot be downloaded: Invalid host"),
        ("http://host/a b", "http://host/a b cannot be downloaded: expected no spaces"),
        ("http://host/a\nb", "cannot be downloaded: expected no spaces and control characters"),
        ("http:///a.npz", "expected a URL that starts with https:// or http://"),
        ("http://?a", "expected a URL that starts with https:// or http://"),
        (
            f"http://me:pa/{SECRET}@host/a.npz",
            "http://***@host/a.npz cannot be downloaded: it has an @ after the host. In a user "
            "name or password, write / as %2F, # as %23, ? as %3F and @ as %40",
        ),
    ],
)
def test_refused_addresses(address, message):
    with pytest.raises(DownloadError) as caught:
        parse(address)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_taken_apart():
    found = parse("HTTPS://me%40home:pass%2Fword@Host.org/a.npz?x=1#y")
    assert found.url == "https://Host.org/a.npz?x=1"
    assert found.auth == ("me@home", "pass/word")
    assert found.origin == ("https", "host.org", 443)
    assert parse("http://host").origin == ("http", "host", 80)
    assert parse("http://[::1]:81/").origin == ("http", "::1", 81)
    assert path_of("https://host/a/b%20c.npz?d") == "/a/b%20c.npz"


def test_a_mirrors_query_stays_at_the_end():
    assert joined("https://host/bit?token=x", "a.npz") == "https://host/bit/a.npz?token=x"
    assert joined("https://host/bit/", "d/a.npz") == "https://host/bit/d/a.npz"


@pytest.mark.parametrize("variable", ["BITZOO_MIRROR", "HF_ENDPOINT", "https_proxy", "ALL_PROXY"])
def test_secrets_of_the_environment_are_removed_wherever_they_stand(monkeypatch, variable):
    monkeypatch.setenv(variable, f"https://me:pa/{SECRET}@host.org/x?token=abcdefgh12")
    said = without_secrets(f"Invalid port: 'pa' in pa/{SECRET}, abcdefgh12 and hf_abcdefgh1234.")
    assert said == "Invalid port: 'pa' in ***, *** and <token>."


def test_log_records_of_the_http_library(caplog):
    from bitzoo.fetch.connection import secrets_kept_out_of_logs

    logger = logging.getLogger("httpx")
    with caplog.at_level(logging.INFO), secrets_kept_out_of_logs():
        logger.info("HTTP Request: %s %s", "GET", f"https://me:{SECRET}@host/a?t={SECRET}")
    logger.info("after")
    assert caplog.messages[0] == "HTTP Request: GET https://host/a?***"
    assert not logger.filters
