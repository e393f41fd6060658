"""Hugging Face Hub client: create it, check repository names, and turn its errors into messages.

No token ever leaves this module: the client finds it by itself, and it is removed from messages,
as are the passwords in addresses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitzoo._version import __version__
from bitzoo.errors import (
    BitzooError,
    DownloadError,
    HubError,
    HubUnreachableError,
    MissingExtraError,
    UsageError,
)
from bitzoo.fetch.addresses import parse, without_secrets
from bitzoo.locks import unwritable
from bitzoo.progress import Live, shown

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MANIFEST_NAME = "manifest.json"
"""A repository's manifest of its files: where they come from, and their SHA-256."""
TIMEOUT = 10.0
"""Seconds that the first request may take; the client itself has no timeout for it."""
Purpose = Literal["load", "publish"]
"""What the Hub is asked for: an error's advice depends on it."""
_RETRY: dict[Purpose, str] = {
    "load": "Try again later.",
    "publish": "Run the same command again later. Re-running is safe: files already uploaded are "
    "skipped.",
}


def connect() -> HfApi:
    """Return a client for the Hub at HF_ENDPOINT or huggingface.co.

    Raises:
        HubUnreachableError: If the settings (HF_ENDPOINT, proxies, certificates) cannot be used.
    """
    _check_endpoint()
    from huggingface_hub import HfApi, constants

    from bitzoo.fetch.connection import certificates, check_certificates
    from bitzoo.fetch.hub_guard import guard_client
    from bitzoo.fetch.proxies import proxy_to

    try:
        address = parse(constants.ENDPOINT, "HF_ENDPOINT")
        proxy_to(address)
        check_certificates()
        if address.scheme == "https":
            certificates()
    except (DownloadError, MissingExtraError) as error:
        raise HubUnreachableError(f"The Hub cannot be contacted: {error}") from None
    guard_client()
    return HfApi(library_name="bitzoo", library_version=__version__)


def _check_endpoint() -> None:
    """Raise for an HF_ENDPOINT with which the client cannot even be imported."""
    stated = os.environ.get("HF_ENDPOINT", "").strip()
    if not stated:
        return
    try:
        parse(stated, "HF_ENDPOINT")
    except DownloadError as error:
        raise HubUnreachableError(f"The Hub cannot be contacted: {error}") from None


def check_repo(repo: str) -> str:
    """Return `repo` if it is a full repository name.

    Raises:
        UsageError: If it is not of the form ``organisation/name``, or not valid on the Hub.
        HubUnreachableError: If HF_ENDPOINT is not an address.
    """
    _check_endpoint()
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is not a valid Hub repository name: {error}") from error
    if repo.count("/") != 1:
        raise UsageError(
            f"{repo!r}: expected the full name of a repository, organisation/name. "
            "Prefix it with the organisation or your user name."
        )
    return repo


def has_token() -> bool:
    """Whether the client has a token to send."""
    from huggingface_hub import get_token

    return bool(get_token())


@contextmanager
def own_bars() -> Iterator[None]:
    """Let the client show its bars of bytes exactly where bitzoo shows a live line.

    What HF_HUB_DISABLE_PROGRESS_BARS says goes first.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    stated = getattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None) is not None
    with shown(None) as progress:
        wanted = isinstance(progress, Live) and progress.is_redrawn
        if stated or wanted or are_progress_bars_disabled():
            yield
            return
        disable_progress_bars()
        try:
            yield
        finally:
            enable_progress_bars()


@contextmanager
def hub_errors(repo: str, purpose: Purpose = "load") -> Iterator[None]:
    """Turn the client's errors in the body into errors that say what to do.

    Args:
        repo: What the message is about.
        purpose: What the body is for.

    Raises:
        StorageError: If the cache cannot be written.
        HubUnreachableError: If the Hub cannot be reached, or answers 429 or 5xx.
        HubError: For all other errors of the client or the Hub.
    """
    from bitzoo.fetch.connection import secrets_kept_out_of_logs

    kinds: tuple[type[Exception], ...] = (
        *(OSError, ValueError, RuntimeError),
        *(TypeError, LookupError, AttributeError),  # an answer of another form than expected
        *_transport_errors(),
    )
    try:
        with secrets_kept_out_of_logs():
            yield
    except BitzooError:
        raise
    except kinds as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        explained = _explain(cause, repo, purpose)
        if _without_tokens(str(cause)) != str(cause) or _without_tokens(str(error)) != str(error):
            raise explained from None  # a traceback would show the token
        raise explained from error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that caused an error of the client or of this module."""
    while error.__cause__ is not None and not hasattr(error, "response"):
        error = error.__cause__
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the base classes of all errors of the client's HTTP library."""
    import sys

    from huggingface_hub.errors import HfHubHTTPError

    found = tuple(
        base
        for base in HfHubHTTPError.__mro__
        if base.__module__.startswith("httpx") and issubclass(base, Exception)
    )
    libraries = {sys.modules[base.__module__.partition(".")[0]] for base in found}
    return (*found, *(library.InvalidURL for library in libraries))


def _explain(error: BaseException, repo: str, purpose: Purpose) -> BitzooError:
    status = status_of(error)
    reason = _without_tokens(_brief(error))
    known = _known(error, repo, reason)
    if known:
        return known
    if status == 401:
        return HubError(_unauthorized(repo))
    if status is None and isinstance(error, (*_transport_errors(), ConnectionError)):
        return HubUnreachableError(
            f"{repo}: the Hub cannot be reached ({_with_settings(error, reason)}). Check the "
            f"connection and HF_ENDPOINT. {_RETRY[purpose]}"
        )
    if status == 429 or (status is not None and status >= 500):
        return HubUnreachableError(
            f"{repo}: the Hub cannot answer now (status {status}: {reason}). {_RETRY[purpose]}"
        )
    if status is None and isinstance(error, OSError) and error.errno:
        return unwritable(Path(str(error.filename or "The cache")), error)
    if isinstance(error, (TypeError, LookupError, AttributeError, ValueError)) and status is None:
        return HubError(
            f"{repo}: the Hub's answer has another form than expected ({type(error).__name__}: "
            f"{reason}). Check HF_ENDPOINT, and whether the network asks you to log in."
        )
    return HubError(_refused(repo, status, reason, purpose))


def _with_settings(error: BaseException, reason: str) -> str:
    """Add to a reason what the connection went through."""
    from huggingface_hub import constants

    from bitzoo.fetch.connection import explained

    whole = explained(error, parse(constants.ENDPOINT, "HF_ENDPOINT"))
    return reason + whole.removeprefix(without_secrets(str(error)) or type(error).__name__)


def _known(error: BaseException, repo: str, reason: str) -> HubError | None:
    """Return the meaning of the client's own error classes, the most specific first."""
    from huggingface_hub import errors as client

    access = "this token cannot" if has_token() else "nobody without a token can"
    meanings: list[tuple[type[BaseException], type[HubError], str]] = [
        (
            client.LocalTokenNotFoundError,
            HubError,
            "this needs a Hub token, and none was found. Log in with `hf auth login`, or set "
            "HF_TOKEN.",
        ),
        (
            client.GatedRepoError,
            HubError,
            "it is gated: its owners decide who may use it, and this account or token has no "
            "access. Ask for access on its page, then try again with that account's token.",
        ),
        (
            client.OfflineModeIsEnabled,
            HubUnreachableError,
            "HF_HUB_OFFLINE forbids contacting the Hub. Unset it.",
        ),
        (
            client.LocalEntryNotFoundError,
            HubUnreachableError,
            f"it is not in the cache, and the Hub may not or cannot be contacted ({reason}).",
        ),
        (
            client.RevisionNotFoundError,
            HubError,
            "it has no such branch, tag or commit. Its page lists the existing ones.",
        ),
        (
            client.EntryNotFoundError,
            HubError,
            f"it lacks an expected file ({reason}).",
        ),
    ]
    if status_of(error) != 401:
        meanings.append(
            (
                client.RepositoryNotFoundError,
                HubError,
                f"it is not on the Hub, or it is private and {access} see it. Check the "
                "spelling, or use the token of an account that can.",
            )
        )
    for kind, raised, text in meanings:
        if isinstance(error, kind):
            return raised(f"{repo}: {text}")
    return None


def _unauthorized(repo: str) -> str:
    if not has_token():
        return (
            f"{repo}: the Hub requires a token and there is none (or there is no such repository). "
            "Log in with `hf auth login`, or set HF_TOKEN."
        )
    return (
        f"{repo}: the Hub does not accept the token (401): it is wrong, expired or revoked. Create "
        "a new one in the settings of your account and log in with `hf auth login --force`, or "
        "set HF_TOKEN."
    )


def _refused(repo: str, status: int | None, reason: str, purpose: Purpose) -> str:
    advice = {
        403: "The token has no permission for this. Use one with "
        f"{'write' if purpose == 'publish' else 'read'} access to {repo.partition('/')[0]}, or ask "
        "its owners for the role.",
        407: "The proxy asks for a user name and a password: put them into HTTP_PROXY or "
        "HTTPS_PROXY, as http://USER:PASSWORD@HOST:PORT.",
        409: "The name is taken, or someone else is changing the repository. Choose another name.",
        412: "The repository changed since the plan was made, and nothing was committed. Run the "
        "same command again: it makes a new plan, and files already uploaded are skipped.",
    }
    answer = f"the Hub refused (status {status}: {reason})." if status else f"{reason}."
    otherwise = "Nothing was committed." if purpose == "publish" else "Nothing was loaded."
    return f"{repo}: {answer} " + advice.get(status or 0, otherwise)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not re.match(r"\d{3} (Client|Server) Error", line)]
    return " ".join(useful or lines)[:300].rstrip(". ") or type(error).__name__


def _without_tokens(text: str) -> str:
    from huggingface_hub import get_token

    if own := get_token():
        text = text.replace(own, "<token>")
    return without_secrets(text)
