"""Limits for the Hub's client: it follows https to http, waits for ever, and unpacks anything.

They are added to every client that huggingface_hub makes in this process, also if the program has
set a client of its own. A broken limit is an error of bitzoo, which the client does not retry.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from bitzoo.errors import HubError, HubUnreachableError
from bitzoo.fetch.addresses import parse
from bitzoo.fetch.connection import ANSWER_WITHIN, Deadline, redirected, steady

MAX_ANSWER = 64 << 20
"""Bytes of an answer of the Hub's API; a listing of 100,000 files has a tenth of that."""
_READING = ("GET", "HEAD")


class _Guarded:
    """Makes clients as another factory does, with the limits."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self) -> Any:
        client = self._make()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", ()), _limit_request],
            "response": [*hooks.get("response", ()), _limit_response],
        }
        return client


def guard_client() -> None:
    """Add the limits to the clients that huggingface_hub makes from now on; once per process."""
    from huggingface_hub.utils import _http

    # Private, but the only way to keep a factory that the program has set.
    make = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) or _http.default_client_factory
    if not isinstance(make, _Guarded):
        _http.set_client_factory(_Guarded(make))


def _limit_request(request: Any) -> None:
    request.headers["Accept-Encoding"] = "identity"  # so that nothing grows when it is unpacked
    if request.method in _READING:  # the Hub may take its time for a commit
        deadline = Deadline(ANSWER_WITHIN)
        request.extensions = {**request.extensions, "trace": deadline.trace, "deadline": deadline}


def _limit_response(response: Any) -> None:
    request = response.request
    if deadline := request.extensions.get("deadline"):
        deadline.cancel()
    address = parse(str(request.url))
    if response.has_redirect_location:
        redirected(address, response.headers["location"], address)
    if request.method == "HEAD":
        return
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise HubError(
            f"{address.shown}: expected an unencoded answer, found one in {encoding} encoding. "
            "Check HF_ENDPOINT and the proxy, if there is one."
        )
    most = MAX_ANSWER if "/api/" in str(request.url.path) else None
    response.stream = _limited(response.stream, address.shown, most)


def _limited(stream: Any, where: str, most: int | None) -> Any:
    """Return a body with a minimum rate and a largest size."""
    library = sys.modules[type(stream).__module__.partition(".")[0]]

    class Limited(library.SyncByteStream):  # type: ignore[name-defined, misc]
        def __iter__(self) -> Iterator[bytes]:
            count = 0
            for chunk in steady(stream, _TooSlowError):
                count += len(chunk)
                if most is not None and count > most:
                    raise HubError(
                        f"{where}: the answer has more than {most:,} bytes, which no answer of the "
                        "Hub has. Check HF_ENDPOINT."
                    )
                yield chunk

        def close(self) -> None:
            stream.close()

    return Limited()


class _TooSlowError(HubUnreachableError):
    """The Hub sends too slowly."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The Hub sends too slowly: {reason}. Run the same again to continue, or use another "
            "connection."
        )
