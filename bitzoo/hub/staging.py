"""A repository as a folder on this disk: made once, and checked whenever it is used again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitzoo._version import __version__
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.converters.formats.timm_config import CONFIG_NAME, own_record
from bitzoo.converters.open import open_source
from bitzoo.converters.parity.verify import REPORT_NAME, load_reports
from bitzoo.display import list_names
from bitzoo.errors import UsageError
from bitzoo.fetch.http import is_offline
from bitzoo.fetch.hub_client import MANIFEST_NAME, check_repo
from bitzoo.files import Progress, cache_dir, remove_unfinished, sha256_of, write_json
from bitzoo.hub.proven_weights import prove_file, prove_released, prove_run
from bitzoo.hub.repo_files import Stated, write_repo_files
from bitzoo.hub.repo_manifest import (
    ALLOWED,
    CARD_NAME,
    METRICS_NAME,
    NOTE_NAME,
    FileRecord,
    check_files,
    read_note,
)
from bitzoo.hub.targets import (
    CheckpointFile,
    PreparedFolder,
    PublishTarget,
    Released,
    RunFolder,
)
from bitzoo.locks import file_lock
from bitzoo.model_cards.text import validate_card
from bitzoo.small_files import read_json, read_text
from bitzoo.zoo.resolve import WEIGHTS_NAME, released_url


@dataclass(frozen=True)
class Prepared:
    """A repository's files, proven and checked.

    Attributes:
        repo: Full name of the repository.
        title: What is published.
        folder: Where the files are.
        files: The files by name, in the order of `repo_manifest.ALLOWED`.
        kept: Whether the folder is the user's own, and stays complete after publishing.
        info: What is known about the model; None if the folder has no bitzoo record.
    """

    repo: str
    title: str
    folder: Path
    files: Mapping[str, FileRecord]
    kept: bool
    info: ModelInfo | None = None

    @property
    def has_weights(self) -> bool:
        """Whether the folder has the weights; after publishing it may not."""
        return (self.folder / WEIGHTS_NAME).is_file()


def default_folder(repo: str) -> Path:
    """Return the default folder in which a repository's files are staged."""
    return cache_dir() / "publish" / repo.replace("/", "--")


def prepare(
    target: PublishTarget,
    repo: str,
    *,
    folder: Path | None = None,
    license: str | None = None,  # noqa: A002
    vouch: bool = False,
    weights: bool = True,
    progress: Progress | None = None,
) -> Prepared:
    """Make the files of a repository, or check those made from the same source before.

    Args:
        target: What to publish.
        repo: Full name of the repository.
        folder: Where to write them; default a folder for this repository in the cache.
        license: SPDX identifier of the licence; None leaves it to what is stated.
        vouch: Whether the publisher vouches that the weights are the release that their name or
            their address refers to; the card says so.
        weights: Whether the weights must be there; with False, a finished repository can be
            compared with the Hub by its manifest only.
        progress: Called with the progress in bytes.

    Raises:
        ParityError: If a proof fails, or a file changed after it was proven.
        UsageError: If the folder contains something else, or options do not fit the target.
        BitzooError: As fetching and converting raise.
    """
    check_repo(repo)
    if license and isinstance(target, Released):
        raise UsageError(
            f"{target.title}: `license` is for files and runs. A released model has its own, "
            f"{target.spec.license}."
        )
    if isinstance(target, PreparedFolder):
        if folder or license or vouch:
            raise UsageError(
                f"{target.path} is already prepared. Leave out `folder`, `license` and `vouch`."
            )
        made_for = read_note(target.path).get("repo", repo)
        if made_for != repo:
            raise UsageError(
                f"{target.path} is prepared for {made_for}, which its card and manifest name. "
                f"Publish it there, or prepare {repo} from the model itself."
            )
        return _checked(repo, target, target.path, kept=True)
    stated = Stated(license.lower() if license else None, vouch)
    place = folder or default_folder(repo)
    with file_lock(default_folder(repo)):
        origin = _origin(target, repo, stated)
        if (place / MANIFEST_NAME).is_file():  # raises if a file has changed since
            found = _checked(repo, target, place, kept=folder is not None, weights=False)
            enough = found.has_weights or not weights
            if enough and _is_made_of(read_note(place), origin):
                return found
        _make(place, target, repo, stated, origin, progress)
        return _checked(repo, target, place, kept=folder is not None)


def drop_weights(prepared: Prepared) -> None:
    """Remove the weights of a repository that is on the Hub, unless the folder is the user's."""
    if not prepared.kept:
        (prepared.folder / WEIGHTS_NAME).unlink(missing_ok=True)


def _checked(
    repo: str, target: PublishTarget, folder: Path, *, kept: bool, weights: bool = True
) -> Prepared:
    files = check_files(folder, weights=weights)
    validate_card(read_text(folder / CARD_NAME))
    config = folder / CONFIG_NAME
    info = own_record(read_json(config)) if config.is_file() else None
    return Prepared(repo, target.title, folder, files, kept, info)


def _make(
    folder: Path,
    target: Released | CheckpointFile | RunFolder,
    repo: str,
    stated: Stated,
    origin: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    _require_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # first: a folder without it is not ready
    # and then the note, by which `_require_ours` knows the files that a killed process leaves
    write_json(folder / NOTE_NAME, read_note(folder) | {"repo": repo})
    if isinstance(target, Released):
        proven = prove_released(target.spec, folder, progress)
    elif isinstance(target, CheckpointFile):
        proven = prove_file(target.path, folder, progress)
    else:
        proven = prove_run(target.path, folder, progress)
    own = {"repo": repo, "made_of": dict(origin), "complete": proven.complete}
    write_json(folder / NOTE_NAME, read_note(folder) | own)
    write_repo_files(folder, target, proven, repo, stated)


def _require_ours(folder: Path) -> None:
    """Raise if the folder has files that would be replaced and that bitzoo did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder, found a file. Choose another `folder`.")
    ours = (folder / NOTE_NAME).is_file() or folder.is_relative_to(cache_dir())
    taken = sorted(name for name in ALLOWED if (folder / name).exists())
    if taken and not ours:
        raise UsageError(
            f"{folder} contains {list_names(taken)}, which bitzoo did not write for publishing. "
            "Choose an empty folder for `folder`."
        )


def _is_made_of(note: Mapping[str, Any], origin: Mapping[str, Any]) -> bool:
    # Files made offline, from a copy in the cache, are made again when Google's file is available.
    return note.get("made_of") == dict(origin) and bool(note.get("complete") or is_offline())


def _origin(
    target: Released | CheckpointFile | RunFolder, repo: str, stated: Stated
) -> dict[str, Any]:
    """Return everything that determines the files, as comparable data."""
    origin: dict[str, Any] = {"bitzoo": __version__, "repo": repo, **asdict(stated)}
    if isinstance(target, Released):
        where = hashlib.sha256(released_url(target.spec).encode()).hexdigest()[:16]
        return origin | {"released": target.spec.name, "url": where}
    if isinstance(target, CheckpointFile):
        proof = load_reports(target.path.with_name(REPORT_NAME)).get(target.path.name)
        with open_source(target.path) as source:
            return origin | {"file": target.path.name, "sha256": source.sha256(), "proof": proof}
    names = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME, REPORT_NAME, METRICS_NAME)
    paths = [target.path / name for name in names if (target.path / name).is_file()]
    return origin | {"files": {path.name: sha256_of(path) for path in paths}}
