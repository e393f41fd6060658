"""The weights of a repository, and the proof about exactly their bytes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.registry import BASE_URL, ModelSpec
from bitzoo.converters.identify import identify
from bitzoo.converters.model_record import read_info
from bitzoo.converters.open import open_source
from bitzoo.converters.parity.verify import (
    REPORT_NAME,
    Check,
    convert_and_prove,
    load_reports,
    save_report,
    verify,
)
from bitzoo.errors import CheckpointError, DownloadError, ParityError, UsageError
from bitzoo.fetch.addresses import shown
from bitzoo.fetch.http import base_url, is_offline
from bitzoo.files import Progress, replaced, write_json
from bitzoo.hub.repo_manifest import FileRecord, require_proof
from bitzoo.zoo.resolve import (
    WEIGHTS_NAME,
    fetched,
    identity_of_download,
    kept_weights,
    released_url,
)


@dataclass(frozen=True)
class Proven:
    """Weights that are in place, and what is known about them.

    Attributes:
        source: ``name``, ``bytes``, ``sha256``, ``url`` of their source, optionally a ``note``.
        report: Their proof, as in `parity.json`; empty if nothing was proven.
        info: What is known about the model.
        complete: False if they could only be compared with a copy of the source.
    """

    source: Mapping[str, Any]
    report: Mapping[str, Any]
    info: ModelInfo
    complete: bool = True


def prove_released(spec: ModelSpec, folder: Path, progress: Progress | None) -> Proven:
    """Fetch Google's file, convert it into `folder` and prove it.

    Offline, if Google's file is not cached, the converted file in the cache is used.

    Raises:
        UsageError: If offline and neither is on this disk.
        BitzooError: As fetching and converting raise.
    """
    url = released_url(spec)
    try:
        with fetched(url, keep=is_offline()) as source:
            _require_release(spec, source)
            identity = identity_of_download(source, spec)
            return _convert(source, folder, progress, identity, _origin(url, spec))
    except DownloadError as error:
        if not is_offline():
            raise
        kept = kept_weights(spec)
        if kept is None:
            raise UsageError(
                f"{spec.name} is not on this disk, and the network must not be used. Fetch it "
                f"first with `bitzoo convert --src {spec.name} --keep-source`, or allow the "
                "network: leave out `dry_run` and unset BITZOO_OFFLINE."
            ) from error
    note = (
        "the copy that bitzoo converted earlier, with its weights proven then; publishing with "
        "the network compares it with Google's file again"
    )
    copied = _copy(kept.path, folder, progress, note, kept.identity)
    return replace(copied, complete=False)


def prove_file(path: Path, folder: Path, progress: Progress | None) -> Proven:
    """Convert or copy a checkpoint file into `folder`, with its proof.

    A converted file next to its `parity.json` is copied byte for byte, and must be what was proven.

    Raises:
        ParityError: If the file next to its proof is not the one that was proven.
        BitzooError: As converting raises.
    """
    reports = load_reports(path.with_name(REPORT_NAME))
    entry = reports.get(path.name)
    if entry is None or not path.is_file():
        return _convert(path, folder, progress, None, {})
    if isinstance(entry, dict) and entry.get("output"):
        lacks = "of the weights alone" if entry.get("logits") == [] else ""
        lacks = lacks or ("" if _sha256_in(entry) else "silent about which bytes it is for")
        if lacks:
            raise UsageError(
                f"{path}: the proof next to it is {lacks}. Convert the source again with "
                "`bitzoo convert --check logits --force`."
            )
    require_proof(reports, path.name, FileRecord.of(path), path)
    stored = entry["output"].get("numbers", "float32")
    if stored != "float32":
        raise UsageError(
            f"{path}: expected float32 numbers, found {stored}. Publish the float32 conversion."
        )
    proven = _copied(path, folder, reports)
    weights = FileRecord.of(folder / WEIGHTS_NAME)
    require_proof(load_reports(folder / REPORT_NAME), WEIGHTS_NAME, weights, folder)
    return proven


def _sha256_in(entry: Mapping[str, Any]) -> object:
    output = entry["output"]
    return output.get("sha256") if isinstance(output, dict) else None


def prove_run(path: Path, folder: Path, progress: Progress | None) -> Proven:
    """Copy a run's weights into `folder`, and prove that the network computes their function."""
    reports = load_reports(path / REPORT_NAME)
    if WEIGHTS_NAME in reports:
        require_proof(reports, WEIGHTS_NAME, FileRecord.of(path / WEIGHTS_NAME), path)
        return _copied(path / WEIGHTS_NAME, folder, reports)
    return _copy(path / WEIGHTS_NAME, folder, progress, "the run's own file, copied bit for bit")


def describe_file(path: Path) -> Proven:
    """Return what a checkpoint file is, without a proof."""
    with open_source(path) as source:
        file = {"name": path.name, "bytes": source.size, "sha256": source.sha256(), "url": None}
        reports = load_reports(path.with_name(REPORT_NAME))
        claimed = _claimed_identity(reports.get(path.name), str(file["sha256"]))
        info, _ = read_info(source, identify(source), claimed)
    return Proven(file, {}, info)


def _claimed_identity(entry: object, sha256: str) -> Identity | None:
    """Return the identity that a proof states for exactly these bytes; None if it states none.

    It stays a claim: nobody signs a proof, and who reads it has not compared the bytes with those
    of the release.
    """
    if not isinstance(entry, dict):
        return None
    output, said = entry.get("output"), entry.get("identity")
    if not isinstance(output, dict) or output.get("sha256") != sha256:
        return None
    if not isinstance(said, dict) or not said.get("name"):
        return None
    try:
        stated = Identity.from_dict(said)
    except CheckpointError:  # of another form
        return None
    return stated.as_claim(f"the {REPORT_NAME} next to it")


def _origin(url: str, spec: ModelSpec) -> dict[str, Any]:
    """Return where a release was fetched from, without credentials, and Google's own address."""
    official = spec.url("npz")
    if base_url() == BASE_URL:
        return {"url": official}
    return {"url": shown(url), "note": f"a mirror; Google's own file is {official}"}


def _require_release(spec: ModelSpec, path: Path) -> None:
    with open_source(path) as source:
        inventory = identify(source)
    if not spec.fits(inventory.architecture, inventory.num_classes):
        raise CheckpointError(
            f"{path}: fetched as {spec.name}, expected {spec.arch_name} with "
            f"{spec.num_classes:,} classes, found {inventory.title}. A model is not published "
            "under another model's name."
        )


def _convert(
    source: Path,
    folder: Path,
    progress: Progress | None,
    identity: Identity | None,
    origin: Mapping[str, Any],
) -> Proven:
    _forget_proof(folder)
    conversion, report = convert_and_prove(
        source,
        folder / WEIGHTS_NAME,
        report_path=folder / REPORT_NAME,
        check=Check.LOGITS,
        identity=identity,
        force=True,
        progress=progress,
    )
    assert report is not None
    return _proven(report.to_dict(), conversion.info, origin)


def _forget_proof(folder: Path) -> None:
    """Remove the proof in a folder, whatever it contains, before its weights are replaced.

    If the process is killed, there is no proof rather than one of other weights.
    """
    (folder / REPORT_NAME).unlink(missing_ok=True)


def _put_copy(path: Path, folder: Path) -> Path:
    """Copy weights into a folder; they get their name when they are complete."""
    _forget_proof(folder)
    target = folder / WEIGHTS_NAME
    with replaced(target) as temporary:
        shutil.copyfile(path, temporary)
    return target


def _proven(report: Mapping[str, Any], info: ModelInfo, origin: Mapping[str, Any]) -> Proven:
    try:
        stated = report["source"]
        source = {"name": stated["name"], "bytes": stated["bytes"], "sha256": stated["sha256"]}
        if [type(value) for value in source.values()] != [str, int, str]:
            raise TypeError(f"expected text, a number and text, found {source!r:.100}")
    except (KeyError, TypeError, ValueError) as error:
        raise ParityError(
            f"The {REPORT_NAME} of {info.path} does not say what was converted ({error!r:.200}). "
            "Convert the source again with `bitzoo convert`."
        ) from error
    return Proven(source | {"url": None} | dict(origin), report, info)


def _copied(path: Path, folder: Path, reports: Mapping[str, Any]) -> Proven:
    """Copy a file and the proof next to it unchanged."""
    _put_copy(path, folder)
    report = reports[path.name]
    report = {**report, "output": {**report["output"], "name": WEIGHTS_NAME}}
    write_json(folder / REPORT_NAME, {WEIGHTS_NAME: report})
    identity = _claimed_identity(report, report["output"]["sha256"])
    return _proven(report, _info_in(path, identity), {})


def _copy(
    path: Path,
    folder: Path,
    progress: Progress | None,
    note: str,
    identity: Identity | None = None,
) -> Proven:
    """Copy a file unchanged, and compare its network with the reference."""
    with open_source(path) as source:
        if source.names != "timm" or source.metadata.get("format") != "pt":
            return _convert(path, folder, progress, identity, {"note": note})
    report = verify(path, _put_copy(path, folder), check=Check.LOGITS, progress=progress)
    report.require()
    save_report(report, folder / REPORT_NAME)
    return _proven(report.to_dict(), _info_in(path, identity), {"note": note})


def _info_in(path: Path, identity: Identity | None) -> ModelInfo:
    with open_source(path) as source:
        return read_info(source, identify(source), identity)[0]
