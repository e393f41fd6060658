"""Fetch weights from the Hugging Face Hub: the files of one commit, cached and SHA-256-checked."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitzoo.errors import CheckpointError, HubError, HubUnreachableError
from bitzoo.fetch.http import is_offline
from bitzoo.fetch.hub_client import MANIFEST_NAME, TIMEOUT, check_repo, connect, hub_errors
from bitzoo.files import cache_dir, sha256_of, write_text

PREFIX = "hub:"
_COMMIT = re.compile("[0-9a-f]{40}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubAddress:
    """A repository at a revision: a branch, a tag or a commit."""

    repo: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Parse ``hub:organisation/name`` or ``hub:organisation/name@revision``.

        Raises:
            UsageError: If the text has another form.
        """
        repo, _, revision = text.removeprefix(PREFIX).partition("@")
        return cls(check_repo(repo), revision or "main")

    def __str__(self) -> str:
        return PREFIX + self.repo + ("" if self.revision == "main" else f"@{self.revision}")


def is_hub_address(place: object) -> bool:
    """Whether `place` begins with ``hub:``."""
    return isinstance(place, str) and place.startswith(PREFIX)


def fetch_snapshot(address: HubAddress, required: str, optional: Sequence[str] = ()) -> Path:
    """Return a folder with the files of one commit, fetching missing ones into the cache.

    All files come from the one commit that the revision names now; if the Hub cannot be reached,
    from the commit that it named when the Hub was last contacted. A cached commit needs no contact.

    Args:
        address: What to fetch.
        required: The main file; its SHA-256 is checked against the repository's manifest.
        optional: Files that may be missing.

    Raises:
        HubUnreachableError: If the Hub cannot or must not be contacted, and the file is not cached.
        HubError: If there is no such repository, revision or file, or no permission to read it.
        CheckpointError: If the file is not the one that the manifest describes.
    """
    folder = _cached(address, required)
    if folder is None or not (is_offline() or _COMMIT.fullmatch(address.revision)):
        try:
            folder = _fetch(address, required, optional)
        except HubUnreachableError as error:
            if folder is None:
                raise
            _log.warning("%s Using the cached files.", error)
    _check(address, folder / required)
    return folder


def _cached(address: HubAddress, required: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        address.repo, required, cache_dir=cache_dir() / "hub", revision=address.revision
    )
    return Path(found).parent if isinstance(found, str) else None


def _fetch(address: HubAddress, required: str, optional: Sequence[str]) -> Path:
    if is_offline():
        raise HubUnreachableError(
            f"{address} is not in the cache, and BITZOO_OFFLINE forbids contacting the Hub. Unset "
            "it, or point BITZOO_CACHE at a folder that has it."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    cache = cache_dir() / "hub"

    def get(name: str, revision: str) -> Path | None:
        try:
            return Path(hf_hub_download(address.repo, name, revision=revision, cache_dir=cache))
        except EntryNotFoundError:
            if name == required:
                raise
            return None

    with hub_errors(str(address).removeprefix(PREFIX)):
        # First, because a download that cannot connect keeps retrying for half a minute.
        info = connect().model_info(address.repo, revision=address.revision, timeout=TIMEOUT)
        manifest = get(MANIFEST_NAME, address.revision)  # by revision, so that the cache records it
        commit = manifest.parent.name if manifest else str(info.sha)
        for name in optional:
            get(name, commit)
        found = get(required, commit)  # last: if it is in the cache, so are the others
    assert found is not None
    return found.parent


def _check(address: HubAddress, path: Path) -> None:
    """Compare the file with the manifest; a note of its size and time avoids doing it again."""
    expected = _stated_sha256(address, path)
    if expected is None:
        return
    status = path.stat()
    seen = f"{status.st_size} {status.st_mtime_ns}"
    note = cache_dir() / "hub-checked" / expected
    if note.is_file() and note.read_text(encoding="utf-8") == seen:
        return
    found = sha256_of(path)
    if found != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{address}: expected {path.name} with SHA-256 {expected}, as its {MANIFEST_NAME} "
            f"says, found {found}. The fetched file is removed: load again, and if the error "
            "persists, the repository's files do not belong together; tell its owners."
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, seen)


def _stated_sha256(address: HubAddress, path: Path) -> str | None:
    manifest = path.with_name(MANIFEST_NAME)
    if not manifest.is_file():
        _log.warning(
            "%s has no %s, so its weights cannot be checked.",
            address,
            MANIFEST_NAME,
        )
        return None
    try:
        content: Any = json.loads(manifest.read_text(encoding="utf-8"))
        stated = content["files"][path.name]["sha256"]
        if not re.fullmatch("[0-9a-f]{64}", stated):
            raise ValueError(f"{stated!r} is not a SHA-256")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HubError(
            f"{address}: its {MANIFEST_NAME} does not state the SHA-256 of {path.name} in bitzoo's "
            f"form ({error!r}). Fetch the files yourself and load them by their path, if you "
            "trust them."
        ) from error
    return str(stated)
