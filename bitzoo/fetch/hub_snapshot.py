"""Fetch weights from the Hugging Face Hub: the files of one commit, cached and SHA-256-checked.

Files are looked for in bitzoo's cache and in the Hub's standard one (HF_HUB_CACHE), where
`hf download` and other programs put them; fetched files go into bitzoo's. Files that are there are
used without writing anything, so that a cache may be a copy, or read-only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitzoo.errors import CheckpointError, HubError, HubUnreachableError, UsageError
from bitzoo.fetch.http import is_offline
from bitzoo.fetch.hub_client import (
    MANIFEST_NAME,
    TIMEOUT,
    check_repo,
    connect,
    hub_errors,
    own_bars,
)
from bitzoo.files import cache_dir, sha256_of, write_text
from bitzoo.small_files import read_json, read_text

PREFIX = "hub:"
_PREFIXES = (PREFIX, "hf-hub:", "hf_hub:")
"""The first is ours; the others are timm's, and mean the same."""
_COMMIT = re.compile("[0-9a-f]{40}")
_NOT_IN_REVISIONS = re.compile(r"[~^:?*\[\\\"'<>|%#]|\.\.|@\{")
_LONGEST_REVISION = 200
_MAX_NOTE = 1_000
_log = logging.getLogger(__name__)

Parts = Callable[[Path], Collection[str]]
"""Names of the further files that a weight file needs: the shards in an index."""


@dataclass(frozen=True)
class HubAddress:
    """A repository at a revision: a branch, a tag or a commit."""

    repo: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Parse ``hub:organisation/name`` or ``hub:organisation/name@revision``.

        timm's prefix ``hf-hub:`` means the same.

        Raises:
            UsageError: If the text has another form.
        """
        prefix = next((prefix for prefix in _PREFIXES if text.startswith(prefix)), "")
        repo, at, revision = text.removeprefix(prefix).partition("@")
        check_repo(repo)
        if at and not _is_revision(revision):
            raise UsageError(
                f"{text!r}: expected a branch, a tag or a commit after the @, found {revision!r}. "
                f"Leave out the @ for the branch main: {PREFIX}{repo}"
            )
        return cls(repo, revision or "main")

    def __str__(self) -> str:
        return PREFIX + self.repo + ("" if self.revision == "main" else f"@{self.revision}")


def is_hub_address(place: object) -> bool:
    """Whether `place` begins with ``hub:``, or with ``hf-hub:`` as timm writes it."""
    return isinstance(place, str) and place.startswith(_PREFIXES)


def _is_revision(text: str) -> bool:
    """Whether text can be a name in git, such as ``v1`` or ``refs/pr/1``."""
    parts = text.split("/")
    return (
        0 < len(text) <= _LONGEST_REVISION
        and text.isprintable()
        and not any(sign.isspace() for sign in text)
        and not _NOT_IN_REVISIONS.search(text)
        and not any(part == "" or part[0] in ".-" or part[-1] == "." for part in parts)
        and not any(part.endswith(".lock") for part in parts)
    )


def _no_parts(_: Path) -> Collection[str]:
    return ()


def fetch_snapshot(
    address: HubAddress,
    weights: Sequence[str],
    optional: Sequence[str] = (),
    parts: Parts = _no_parts,
) -> Path:
    """Return the weights of one commit, with the files next to them, fetching what is missing.

    All files come from the one commit that the revision names now; if the Hub cannot be reached,
    from the commit that it named when the Hub was last contacted. A cached commit needs no contact.

    Args:
        address: What to fetch.
        weights: Names of the file with the weights, of which the first that the repository has is
            fetched. Their SHA-256 is checked against the repository's manifest.
        optional: Files that may be missing.
        parts: Which further files of the repository a weight file needs.

    Returns:
        The path of the file with the weights.

    Raises:
        HubUnreachableError: If the Hub cannot or must not be contacted, and the file is not cached.
        HubError: If there is no such repository, revision or file, or no permission to read it.
        CheckpointError: If the file is not the one that the manifest describes.
    """
    found = _cached(address, weights, parts)
    forbidden = _forbidden_by()
    if found is None and forbidden:
        raise HubUnreachableError(
            f"{address} is not in the cache, and {forbidden} forbids contacting the Hub. Unset "
            "it, or point BITZOO_CACHE or HF_HUB_CACHE at a folder that has it."
        )
    if found is None or not (forbidden or _COMMIT.fullmatch(address.revision)):
        try:
            found = _fetch(address, weights, optional, parts)
        except HubUnreachableError as error:
            if found is None:
                raise
            _log.warning("%s Using the cached files.", error)
    manifest = found.with_name(MANIFEST_NAME)
    if manifest.is_file():
        for name in (found.name, *sorted(parts(found))):
            _check(address, found.with_name(name), manifest)
    else:
        _log.warning("%s has no %s, so its weights cannot be checked.", address, MANIFEST_NAME)
    return found


def _forbidden_by() -> str | None:
    """Return the variable that forbids contacting the Hub."""
    from huggingface_hub import constants

    if is_offline():
        return "BITZOO_OFFLINE"
    if constants.HF_HUB_OFFLINE:  # it is read when the client is imported
        return "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    return None


def _caches() -> tuple[Path, Path]:
    """Return bitzoo's cache of repositories and the Hub's standard one."""
    from huggingface_hub import constants

    return cache_dir() / "hub", Path(constants.HF_HUB_CACHE).expanduser()


def _cached(address: HubAddress, weights: Sequence[str], parts: Parts) -> Path | None:
    """Return the cached weights of a revision, from the cache that learned last what it names."""
    found: list[tuple[float, Path]] = []
    for cache in _caches():
        with contextlib.suppress(OSError):  # what cannot be read is not cached
            repo = cache / f"models--{address.repo.replace('/', '--')}"
            ref = repo / "refs" / address.revision
            learned = ref.stat().st_mtime if ref.is_file() else 0.0
            commit = _text_in(ref).strip() if learned else address.revision
            if _COMMIT.fullmatch(commit):
                there = _complete(repo / "snapshots" / commit, weights, parts)
                found += [(learned, there)] if there else []
    return max(found, key=lambda entry: entry[0])[1] if found else None


def _complete(
    folder: Path, weights: Sequence[str], parts: Parts, others: Sequence[str] = ()
) -> Path | None:
    """Return the weights in a folder, if they and all `others` are there."""
    for name in weights:
        if (path := folder / name).is_file():
            needed = (*parts(path), *others)
            return path if all((folder / part).is_file() for part in needed) else None
    return None


def _fetch(
    address: HubAddress, weights: Sequence[str], optional: Sequence[str], parts: Parts
) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    ours = _caches()[0]
    with own_bars(), hub_errors(str(address).removeprefix(PREFIX)):
        # First, because a download that cannot connect keeps retrying for half a minute.
        info = connect().model_info(address.repo, revision=address.revision, timeout=TIMEOUT)
        commit = _commit_of(address, info.sha)
        names = {entry.rfilename for entry in info.siblings or ()}
        main = _first_of(address, weights, names)
        wanted = [name for name in (MANIFEST_NAME, *optional) if name in names]
        for snapshot in _snapshots(address.repo, commit):
            if there := _complete(snapshot, (main,), parts, wanted):
                return there

        def get(name: str, revision: str = commit) -> Path:
            path = Path(hf_hub_download(address.repo, name, revision=revision, cache_dir=ours))
            if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(ours)):
                raise HubError(f"{address}: the Hub states a path outside the cache for {name}.")
            return path

        with contextlib.suppress(EntryNotFoundError):
            # By revision, so that the cache records what it names; also if there is no such file.
            commit = get(MANIFEST_NAME, address.revision).parent.name
        for name in wanted:
            with contextlib.suppress(EntryNotFoundError):
                get(name, commit)
        path = get(main, commit)
        for name in sorted(parts(path)):  # last: if they are in the cache, so are the others
            get(name, commit)
    return path


def _commit_of(address: HubAddress, stated: object) -> str:
    if not isinstance(stated, str) or not _COMMIT.fullmatch(stated):
        raise HubError(
            f"{address}: expected the Hub to name a commit of 40 hexadecimal digits, found "
            f"{stated!s:.60}. The repository may be empty; if not, check HF_ENDPOINT."
        )
    return stated


def _first_of(address: HubAddress, weights: Sequence[str], names: Collection[str]) -> str:
    for name in weights:
        if name in names:
            return name
    raise HubError(
        f"{address}: it lacks an expected file, {' or '.join(weights)}. Check that it is a "
        "repository with weights for PyTorch."
    )


def _snapshots(repo: str, commit: str) -> Iterator[Path]:
    for cache in _caches():
        yield cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit


def _check(address: HubAddress, path: Path, manifest: Path) -> None:
    """Compare the file with the manifest; a note of its size and time avoids doing it again."""
    expected = _stated_sha256(address, path.name, manifest)
    status = path.stat()
    seen = f"{status.st_size} {status.st_mtime_ns}"
    note = cache_dir() / "hub-checked" / expected
    with contextlib.suppress(OSError, ValueError):
        if note.is_file() and _text_in(note) == seen:
            return
    found = sha256_of(path)
    if found != expected:
        raise CheckpointError(
            f"{address}: expected {path.name} with SHA-256 {expected}, as its {MANIFEST_NAME} "
            f"says, found {found}. {_removed(path)}: load again, and if the error "
            "persists, the repository's files do not belong together; tell its owners."
        )
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, seen)
    except OSError as error:  # a cache that is read-only: it is checked again next time
        _log.debug("%s cannot be written: %s", note, error)


def _text_in(path: Path) -> str:
    """Return the text of a file that the cache has for itself; a pipe or a huge one has none."""
    try:
        return read_text(path, _MAX_NOTE)
    except CheckpointError:
        return ""


def _removed(path: Path) -> str:
    """Remove a damaged file from bitzoo's cache; return what was done, as a phrase."""
    ours = _caches()[0]
    try:
        if not path.resolve().is_relative_to(ours.resolve()):
            return f"Remove {path}, which another program fetched"
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"The fetched file cannot be removed ({error}); remove it yourself"
    return "The fetched file is removed"


def _stated_sha256(address: HubAddress, name: str, manifest: Path) -> str:
    try:
        stated = read_json(manifest)["files"][name]["sha256"]
        if not re.fullmatch("[0-9a-f]{64}", stated):
            raise ValueError(f"{stated!r:.80} is not a SHA-256")
    except (ValueError, KeyError, TypeError) as error:  # CheckpointError is a ValueError
        raise HubError(
            f"{address}: its {MANIFEST_NAME} does not state the SHA-256 of {name} in bitzoo's "
            f"form ({error!r:.200}). Fetch the files yourself and load them by their path, if you "
            "trust them."
        ) from error
    return str(stated)
