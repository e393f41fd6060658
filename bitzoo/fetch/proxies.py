"""Which proxy leads to a host, and whether it can be used: HTTP_PROXY, ALL_PROXY, NO_PROXY.

The HTTP library reads these variables too, but it fails on lists that other programs accept, and
its errors name no variable.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.request import getproxies

from bitzoo.errors import DownloadError, MissingExtraError
from bitzoo.fetch.addresses import Address, parse, shown

_SOCKS = ("socks5", "socks5h")
_KINDS = ("http", "https", *_SOCKS)


@dataclass(frozen=True)
class Proxy:
    """A proxy, and who says that it is to be used.

    Attributes:
        url: Its address without user name and password.
        auth: User name and password, if they are stated.
        variable: The environment variable, or in words where the setting was found.
    """

    url: str
    auth: tuple[str, str] | None
    variable: str

    def __str__(self) -> str:
        """Return it as a phrase for messages, without credentials."""
        return f"the proxy {self.url} ({self.variable})"


def proxy_to(address: Address) -> Proxy | None:
    """Return the proxy for an address; None if it is reached directly.

    Raises:
        DownloadError: If the setting is not the address of a proxy that can be used.
        MissingExtraError: If it is a SOCKS proxy, and the package for them is not installed.
    """
    settings = getproxies()
    kind = next((kind for kind in (address.scheme, "all") if settings.get(kind)), None)
    if kind is None or is_excluded(address.host, address.port, settings.get("no", "")):
        return None
    return _checked(settings[kind].strip(), _variable_of(kind, settings[kind]))


def is_excluded(host: str, port: int, exceptions: str) -> bool:
    """Whether NO_PROXY names a host.

    Args:
        host: Name or IP address, an IPv6 address without brackets.
        port: Its port.
        exceptions: Entries separated by commas or spaces: ``*``; names, which cover their
            subdomains; IP addresses and networks; all but networks optionally with a port.
            Entries of another form name nothing.
    """
    return any(_covers(entry, host, port) for entry in re.split(r"[\s,]+", exceptions) if entry)


def _covers(entry: str, host: str, port: int) -> bool:
    entry = entry.rpartition("://")[2]
    if entry == "*":
        return True
    own, theirs = _ip(host), None
    try:
        theirs = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):(\d+)", entry)
        if match:
            return int(match[2]) == port and _covers(match[1], host, port)
    if theirs is not None:
        return own is not None and own in theirs
    name = entry.lower().removeprefix("*").strip(".")
    return bool(name) and f".{host.lower().rstrip('.')}".endswith(f".{name}")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _variable_of(kind: str, value: str) -> str:
    names = (f"{kind}_proxy", f"{kind.upper()}_PROXY")
    return next(
        (name for name in names if os.environ.get(name) == value), "the system's proxy settings"
    )


def _checked(setting: str, variable: str) -> Proxy:
    """Return a proxy, or raise for one that cannot be used."""
    said = setting if "://" in setting else f"http://{setting}"
    kind, _, rest = said.partition("://")
    kind = kind.lower()
    wrong = f"{variable}={shown(said)} cannot be used as a proxy: "
    otherwise = f" Correct {variable}, or unset it to connect directly."
    if kind in ("socks", "socks4", "socks4a"):
        raise DownloadError(
            f"{wrong}of SOCKS, only version 5 is supported. If it is one, write "
            f"socks5://{shown('http://' + rest).partition('://')[2]}.{otherwise}"
        )
    if kind not in _KINDS:
        raise DownloadError(
            f"{wrong}expected an address that starts with http://, https:// or socks5://.{otherwise}"
        )
    try:
        place = parse(f"http://{rest}")
    except DownloadError as error:
        reason = str(error).partition("cannot be downloaded: ")[2]
        raise DownloadError(f"{wrong}{reason}{otherwise}") from None
    if kind in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise MissingExtraError(
            f"{variable}={shown(said)} is a SOCKS proxy, which needs the package socksio. Install "
            f"it with `pip install 'bitzoo[socks]'`, or unset {variable} to connect directly."
        )
    return Proxy(f"{kind}://{place.url.partition('://')[2]}", place.auth, variable)
