"""A repository's files as data: allowed names, sizes, SHA-256, and the proof."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitzoo.converters.formats.timm_config import CONFIG_NAME
from bitzoo.converters.parity.verify import REPORT_NAME, load_reports
from bitzoo.display import list_names
from bitzoo.errors import CheckpointError, ParityError, UsageError, damage_reported
from bitzoo.fetch.hub_client import MANIFEST_NAME
from bitzoo.files import sha256_of
from bitzoo.small_files import read_bytes, read_json
from bitzoo.zoo.resolve import WEIGHTS_NAME

CARD_NAME = "README.md"
LICENSE_NAME = "LICENSE"
METRICS_NAME = "metrics.jsonl"
"""A run's metrics, of which a card has the curves."""
ALLOWED = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME, REPORT_NAME, MANIFEST_NAME, LICENSE_NAME)
"""All files of a repository; nothing else is ever uploaded."""
NOTE_NAME = "publication.json"
"""Local note next to the files: what they were made from, where they were published. Not uploaded.
"""
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return size and SHA-256 of a file."""
        return cls(path.stat().st_size, sha256_of(path))


def require_own_files(folder: Path) -> None:
    """Raise if what would be published is a link to a file elsewhere.

    Links within the folder are followed, and those of the Hub's cache to its own files.

    Raises:
        UsageError: With the link and where it leads.
    """
    root = folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    for name in (*ALLOWED, METRICS_NAME):
        path = folder / name
        target = path.resolve()
        inside = target.is_relative_to(root) or target.is_relative_to(blobs)
        if path.is_symlink() and not inside:
            raise UsageError(
                f"{path} is a link to {target}, outside the folder, whose content would be "
                "published. If that is what you want, put a copy of the file there instead."
            )


def git_sha1(path: Path) -> str:
    """Return git's hash of a file's content, which the Hub states for small files."""
    content = read_bytes(path)
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def read_note(folder: Path) -> dict[str, Any]:
    """Return a folder's local note, `NOTE_NAME`; an empty one if there is none.

    Raises:
        CheckpointError: If the file contains anything but a JSON object.
    """
    try:
        return read_json(folder / NOTE_NAME)
    except FileNotFoundError:
        return {}


def manifest_files(folder: Path) -> dict[str, FileRecord]:
    """Return the files that the manifest in a folder lists.

    Raises:
        CheckpointError: If there is no manifest, or it is not in bitzoo's form.
    """
    path = folder / MANIFEST_NAME
    expected = "bitzoo's list of files with bytes and sha256"
    with damage_reported(path, expected, "Prepare the folder again."):
        try:
            listed = read_json(path)["files"]
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: there is no such file. Prepare the folder again."
            ) from None
        found = {name: _stated(name, facts) for name, facts in listed.items()}
    strange = sorted(found.keys() - set(ALLOWED))
    if strange or WEIGHTS_NAME not in found:
        raise CheckpointError(
            f"{path}: expected {', '.join(ALLOWED)}, found {list_names(strange) or 'no weights'}."
        )
    return found


def _stated(name: str, facts: Mapping[str, Any]) -> FileRecord:
    size, sha256 = facts["bytes"], facts["sha256"]
    if type(size) is not int or size < 0:
        raise TypeError(f"bytes of {name!r:.80} are {size!r:.80}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise TypeError(f"sha256 of {name!r:.80} is {sha256!r:.80}")
    return FileRecord(size, sha256)


def listed_records(files: Mapping[str, FileRecord]) -> dict[str, dict[str, Any]]:
    """Return files as JSON-ready data."""
    return {name: asdict(facts) for name, facts in files.items()}


def check_files(folder: Path, *, weights: bool = True) -> dict[str, FileRecord]:
    """Compare a prepared folder with its manifest and its proof, and return all its files.

    Args:
        folder: The folder with the files and their manifest.
        weights: False allows the weights to be missing; then only the manifest describes them.

    Raises:
        ParityError: If the weights are not the bytes that were proven.
        CheckpointError: If another file was changed, or one is missing.
        UsageError: If one is a link to a file elsewhere.
    """
    require_own_files(folder)
    files = manifest_files(folder)
    for name, stated in files.items():
        path = folder / name
        if not path.is_file():
            if name == WEIGHTS_NAME and not weights:
                continue
            raise CheckpointError(
                f"{path}: the manifest lists this file, but there is no such file. Remove {folder} "
                "and prepare it again."
            )
        found = FileRecord.of(path)
        if found != stated:
            kind = ParityError if name == WEIGHTS_NAME else CheckpointError
            raise kind(
                f"{path}: changed after it was proven. Expected SHA-256 {stated.sha256} "
                f"({stated.bytes:,} bytes), found {found.sha256} ({found.bytes:,} bytes). The file "
                f"is not published. Remove {folder} and prepare it again."
            )
    require_proof(load_reports(folder / REPORT_NAME), WEIGHTS_NAME, files[WEIGHTS_NAME], folder)
    for name in (CARD_NAME, MANIFEST_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: every repository needs this file, but it is missing. Remove "
                f"{folder} and prepare it again."
            )
        files[name] = FileRecord.of(folder / name)
    return {name: files[name] for name in ALLOWED if name in files}


def require_proof(
    reports: Mapping[str, Any], name: str, file: FileRecord, place: Path
) -> Mapping[str, Any]:
    """Return the report that proves exactly these bytes, weights and logits.

    Raises:
        ParityError: If there is none, it failed, or it is about other bytes.
    """
    report = reports.get(name)
    if not isinstance(report, dict):
        raise ParityError(f"{place}: {REPORT_NAME} has no proof of {name}. Prepare it again.")
    try:
        proven = report["output"]["sha256"]
        proofs = [report, *report["logits"]]  # of an unsigned file: "yes" is no True
        good = len(proofs) > 1 and all(proof["passed"] is True for proof in proofs)
        good = good and report["weights"]["differing"] == []
    except (KeyError, TypeError) as error:
        raise ParityError(f"{place}: its {REPORT_NAME} is not bitzoo's ({error!r}).") from error
    if not good:
        raise ParityError(
            f"{place}: {REPORT_NAME} does not show {name} equal to its source, weights and logits. "
            "Convert the source again with `bitzoo convert`, which proves both."
        )
    if proven != file.sha256:
        raise ParityError(
            f"{place}: {name} is not the file that was proven. Expected SHA-256 {proven}, as in "
            f"{REPORT_NAME}, found {file.sha256}. It changed after the proof: convert the source "
            "again."
        )
    return report
