"""What the Hub has now, and what it lets us do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bitzoo.errors import HubError, HubUnreachableError
from bitzoo.fetch.hub_client import TIMEOUT, has_token, hub_errors, status_of
from bitzoo.hub.repo_manifest import ALLOWED

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_HIDDEN = (".gitattributes",)


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: size in bytes, and its SHA-256 or git's SHA-1, whichever it states."""

    bytes: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True)
class RemoteState:
    """A repository as it is now.

    Attributes:
        commit: What it points at; None before its first commit.
        private: Whether only some may see it.
        files: Those of `records.ALLOWED` that it has.
        others: Names of its other files.
    """

    commit: str | None
    private: bool
    files: Mapping[str, RemoteFile]
    others: tuple[str, ...] = field(default=())


def read_state(api: HfApi, repo: str) -> RemoteState | None:
    """Return a repository's state, or None if the Hub has none of that name for us.

    Raises:
        HubUnreachableError: If the Hub cannot be reached.
        HubError: If it does not accept the token, or the repository is gated for us.
    """
    from huggingface_hub.errors import HfHubHTTPError

    with hub_errors(repo):
        try:
            info = api.model_info(repo, timeout=TIMEOUT)
        except HfHubHTTPError as error:
            if status_of(error) != 404:
                raise
            return None
    names = [entry.rfilename for entry in info.siblings or ()]
    others = sorted(name for name in names if name not in (*ALLOWED, *_HIDDEN))
    commit = info.sha or None
    files = read_files(api, repo, commit) if commit else {}
    return RemoteState(commit, bool(info.private), files, tuple(others))


def read_files(api: HfApi, repo: str, revision: str | None) -> dict[str, RemoteFile]:
    """Return those of `records.ALLOWED` that a revision has."""
    from huggingface_hub.hf_api import RepoFile

    with hub_errors(repo):
        entries = api.get_paths_info(repo, list(ALLOWED), revision=revision)
    return {
        entry.path: RemoteFile(
            entry.size, entry.lfs.sha256 if entry.lfs else None, str(entry.blob_id)
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def check_access(api: HfApi, repo: str, *, write: bool = True) -> RemoteState | None:
    """Return a repository's state, having asked the Hub who we are and whether we may write.

    A repository that is not there yet is judged when it is made, before anything is sent.

    Args:
        api: The client.
        repo: Full name of the repository.
        write: False for a pull request, which needs no right to write.

    Raises:
        HubError: If there is no token, it is not accepted, or it may not write there.
        HubUnreachableError: If the Hub cannot be reached.
    """
    if not has_token():
        raise HubError(
            f"{repo}: no token for the Hub was found, and publishing needs one with write access. "
            "Log in with `hf auth login`, or set HF_TOKEN."
        )
    state = read_state(api, repo)
    _ask(lambda: api.whoami(cache=True), repo, refusals=(401,))
    if state is not None and write:
        _ask(lambda: api.auth_check(repo, write=True), repo, refusals=(401, 403))
    return state


def _ask(question: Callable[[], object], repo: str, refusals: tuple[int, ...]) -> None:
    """Ask; where the Hub has no answer to give, the upload itself will be the judge."""
    try:
        with hub_errors(repo):
            question()
    except HubUnreachableError:
        raise
    except HubError as error:
        if status_of(error) in (None, *refusals):
            raise
