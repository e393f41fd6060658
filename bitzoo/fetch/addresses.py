"""Web addresses: which are refused before anything is sent, and what may be shown of the others.

An address can carry secrets: a user name and a password before its host, a token in its query.
`shown` is the form for messages, notes, proofs and cards; `without_secrets` is for text in which
addresses occur, such as another library's error.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

from bitzoo.errors import DownloadError

HIDDEN = "***"
"""What replaces a secret."""

_PORTS = {"http": 80, "https": 443}
_HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[^\s\[\]:<>\"\\^`{|}%,;!$&'()*+=]+)(?::(\d{0,5}))?")
_PUBLIC_HOST = re.compile(r"[\w-]+(\.[\w-]+)+")
_IN_TEXT = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_SECRET_VARIABLES = ("BITZOO_MIRROR", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_ESCAPES = "write / as %2F, # as %23, ? as %3F and @ as %40"


@dataclass(frozen=True)
class Address:
    """An http or https address, taken apart.

    Attributes:
        url: The address without user name, password and fragment, as it is requested.
        scheme: ``http`` or ``https``.
        host: Name or IP address, an IPv6 address without its brackets.
        port: The stated or the usual one.
        auth: User name and password, if it has them.
        shown: The address without what may be secret.
    """

    url: str
    scheme: str
    host: str
    port: int
    auth: tuple[str, str] | None
    shown: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: credentials are for one origin."""
        return self.scheme, self.host.lower(), self.port


def shown(address: str) -> str:
    """Return an address without user name, password, query and fragment.

    If it cannot be told where the password ends, everything that may belong to it is hidden.
    """
    scheme, mark, rest = address.partition("://")
    if not mark:
        scheme, rest = "", address
    authority, tail = _split(rest)
    if is_ambiguous(authority, tail):
        host, tail = _split(rest.rpartition("@")[2])
        authority = f"{HIDDEN}@{host}"
    else:
        authority = authority.rpartition("@")[2]
        name, colon, port = authority.rpartition(":")
        if colon and "[" not in authority and not port.isdecimal():
            return f"{scheme}{mark}{name.partition(':')[0]}:{HIDDEN}"  # not a port: a password
    path, query, _ = tail.partition("#")[0].partition("?")
    return f"{scheme}{mark}{authority}{path}{query and '?' + HIDDEN}"


def is_ambiguous(authority: str, tail: str) -> bool:
    """Whether an `@` after the host may end a password that was not escaped."""
    return "@" in tail and not _PUBLIC_HOST.fullmatch(authority)


def without_secrets(text: str) -> str:
    """Return text with its addresses `shown`, and without the Hub's tokens.

    The passwords and queries of the addresses in the environment are removed wherever they stand,
    because libraries quote parts of an address too.
    """
    text = _IN_TEXT.sub(lambda match: _shown_in_text(match[0]), _HUB_TOKEN.sub("<token>", text))
    for secret in sorted(_secrets_of_environment(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def parse(address: str, variable: str = "") -> Address:
    """Take an address apart.

    Args:
        address: What the user or a server gave.
        variable: The environment variable that it is the value of; empty if none.

    Raises:
        DownloadError: If it is not an http or https address, or it is not clear where its host is.
    """
    subject = f"{variable}={shown(address)}" if variable else shown(address)
    wrong = f"{subject} cannot be {'used' if variable else 'downloaded'}: "
    match = re.match(r"(https?)://(?=[^/?#])", address, re.IGNORECASE)
    if not match:
        raise DownloadError(
            f"{wrong}expected a URL that starts with https:// or http://. For a file on this "
            "machine, give its path instead."
        )
    authority, tail = _split(address[match.end() :])
    if is_ambiguous(authority, tail):
        raise DownloadError(
            f"{wrong}it has an @ after the host. In a user name or password, {_ESCAPES}; in the "
            "path or query, write @ as %40."
        )
    if any(sign.isspace() or not sign.isprintable() for sign in address):
        raise DownloadError(
            f"{wrong}expected no spaces and control characters. Write a space as %20."
        )
    userinfo, at, place = authority.rpartition("@")
    # browsers read a \ as /, so that the host would be another
    host, port = _host_and_port("" if "\\" in authority else place, wrong)
    scheme = match[1].lower()
    user, _, password = userinfo.partition(":")
    return Address(
        url=f"{scheme}://{place}{tail.partition('#')[0]}",
        scheme=scheme,
        host=host,
        port=port or _PORTS[scheme],
        auth=(unquote(user), unquote(password)) if at else None,
        shown=shown(address),
    )


def joined(base: str, path: str) -> str:
    """Return the address of `path` below `base`, whose query, such as a token, is kept."""
    place, mark, query = base.partition("#")[0].partition("?")
    return f"{place.rstrip('/')}/{path}{mark}{query}"


def path_of(address: str) -> str:
    """Return the path in an address, still escaped.

    Raises:
        DownloadError: As `parse` raises.
    """
    return _split(parse(address).url.partition("://")[2])[1].partition("?")[0]


def _split(rest: str) -> tuple[str, str]:
    """Split what follows ``://`` where its path, query or fragment begins."""
    end = re.search(r"[/?#]", rest)
    return (rest[: end.start()], rest[end.start() :]) if end else (rest, "")


def _host_and_port(place: str, wrong: str) -> tuple[str, int | None]:
    match = _HOST_AND_PORT.fullmatch(place)
    if not match:
        what = "port" if re.fullmatch(r"(\[[^\[\]]*\]|[^\[\]:]+):.*", place) else "host"
        raise DownloadError(
            f"{wrong}Invalid {what}. Expected a name or an IP address (IPv6 in brackets), and "
            f"optionally a port from 1 to 65535. In a user name or password, {_ESCAPES}."
        )
    host, port = match[1], int(match[2]) if match[2] else None
    try:
        if host.startswith("["):
            host = host[1:-1]
            ipaddress.IPv6Address(host)
        else:
            host.encode("idna")
    except ValueError:
        raise DownloadError(
            f"{wrong}Invalid host. Expected a name or an IP address (IPv6 in brackets)."
        ) from None
    if port is not None and not 0 < port < 1 << 16:
        raise DownloadError(f"{wrong}Invalid port. Expected a number from 1 to 65535.")
    return host, port


def _shown_in_text(address: str) -> str:
    plain = address.rstrip(".,;:)")  # of the sentence, not of the address
    return shown(plain) + address[len(plain) :]


def _secrets_of_environment() -> set[str]:
    found = set()
    for name in _SECRET_VARIABLES:
        for address in (os.environ.get(name, ""), os.environ.get(name.lower(), "")):
            rest = address.strip().partition("://")[2] or address.strip()
            userinfo, _, place = rest.rpartition("@")
            _, _, password = userinfo.partition(":")
            query = place.partition("#")[0].partition("?")[2]
            values = {pair.partition("=")[2] for pair in query.split("&")} | {query}
            found |= {userinfo, password, unquote(password)}
            found |= {value for value in values if len(value) > 7}  # not `alt=media`
    return {secret for secret in found if len(secret) > 3}  # shorter ones occur in ordinary words
