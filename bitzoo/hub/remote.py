"""What the Hub has now, and what the token allows."""

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
    """A file on the Hub: size in bytes, SHA-256 if the Hub states it, and git's SHA-1."""

    bytes: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True)
class RemoteState:
    """A repository as it is now.

    Attributes:
        commit: The latest commit; None before the first one.
        private: Whether it is private.
        files: Those of `repo_manifest.ALLOWED` that it has.
        others: Names of its other files.
    """

    commit: str | None
    private: bool
    files: Mapping[str, RemoteFile]
    others: tuple[str, ...] = field(default=())


def read_state(api: HfApi, repo: str) -> RemoteState | None:
    """Return a repository's state, or None if there is none of that name that the token can see.

    Raises:
        HubUnreachableError: If the Hub cannot be reached.
        HubError: If it does not accept the token, or the token has no access to the gated
            repository.
    """
    from huggingface_hub.errors import HfHubHTTPError

    with hub_errors(repo, "publish"):
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
    """Return those of `repo_manifest.ALLOWED` that a revision has."""
    from huggingface_hub.hf_api import RepoFile

    with hub_errors(repo, "publish"):
        entries = api.get_paths_info(repo, list(ALLOWED), revision=revision)
    return {
        entry.path: RemoteFile(
            entry.size, entry.lfs.sha256 if entry.lfs else None, str(entry.blob_id)
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def check_access(api: HfApi, repo: str, *, write: bool = True) -> RemoteState | None:
    """Check the token and its write access, and return a repository's state.

    For a repository that does not exist yet, access is checked when it is created, before anything
    is sent.

    Args:
        api: The client.
        repo: Full name of the repository.
        write: False for a pull request, which needs no write access.

    Raises:
        HubError: If there is no token, it is not accepted, or it has no write access.
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
    """Ask the Hub; if it does not support the question, the upload itself will tell."""
    try:
        with hub_errors(repo, "publish"):
            question()
    except HubUnreachableError:
        raise
    except HubError as error:
        if status_of(error) in (None, *refusals):
            raise
