"""The weights of a repository and the proof about exactly their bytes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitzoo.catalogue.registry import ModelSpec, find_spec
from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.converters.parity.verify import (
    REPORT_NAME,
    Check,
    ParityReport,
    convert_and_prove,
    load_reports,
    save_report,
    verify,
)
from bitzoo.errors import CheckpointError, DownloadError, UsageError
from bitzoo.fetch.http import BASE_URL, base_url, is_offline
from bitzoo.files import Progress, cache_dir, write_json
from bitzoo.hub.repo_manifest import FileRecord, require_proof
from bitzoo.models.architecture import Architecture
from bitzoo.zoo.resolve import WEIGHTS_NAME, fetched, released_url


@dataclass(frozen=True)
class Proven:
    """Weights that are in place, and what is known of them.

    Attributes:
        source: ``name``, ``bytes``, ``sha256``, ``url`` of what they were made of, maybe a `note`.
        report: Their proof, as in `parity.json`.
        architecture: The network.
        num_classes: Outputs of its head.
        spec: The release that they are, if they are one.
        complete: False if they could be compared with a copy of the source only.
    """

    source: Mapping[str, Any]
    report: Mapping[str, Any]
    architecture: Architecture
    num_classes: int
    spec: ModelSpec | None
    complete: bool = True


def prove_released(spec: ModelSpec, folder: Path, progress: Progress | None) -> Proven:
    """Fetch Google's file, convert it into `folder` and prove it.

    Offline, the copy in the cache that was converted earlier serves if Google's file is gone.

    Raises:
        UsageError: If offline and neither is on this disk.
        BitzooError: As fetching and converting raise.
    """
    url = released_url(spec)
    try:
        with fetched(url, keep=is_offline()) as source:
            return replace(_convert(source, folder, progress, spec, _shown(url, spec)), spec=spec)
    except DownloadError as error:
        if not is_offline():
            raise
        kept = cache_dir() / "models" / spec.name / WEIGHTS_NAME
        if not kept.is_file():
            raise UsageError(
                f"{spec.name} is not on this disk, and without network it cannot be fetched. Fetch "
                f"it with `bitzoo convert --src {spec.name} --keep-source`, or let the network be "
                "used: leave out --dry-run and unset BITZOO_OFFLINE."
            ) from error
    note = (
        "the copy that bitzoo converted earlier, with its weights proven then; publishing with "
        "network compares with Google's file again"
    )
    return replace(_copy(kept, folder, progress, note), complete=False)


def prove_file(path: Path, folder: Path, progress: Progress | None) -> Proven:
    """Bring a checkpoint file into `folder`, proven.

    A converted file beside its `parity.json` is taken byte for byte, and must be what was proven.

    Raises:
        ParityError: If the file beside its proof is not the one that was proven.
        BitzooError: As converting raises.
    """
    reports = load_reports(path.with_name(REPORT_NAME))
    entry = reports.get(path.name)
    if entry is None or not path.is_file():
        return _convert(path, folder, progress, None, {})
    if isinstance(entry, dict) and not entry.get("output", {}).get("sha256"):
        raise UsageError(
            f"{path}: the proof beside it does not say for which bytes, because it was made "
            "without logits. Convert the source again with `bitzoo convert --check logits --force`."
        )
    require_proof(reports, path.name, FileRecord.of(path), path)
    stored = entry["output"].get("numbers", "float32")
    if stored != "float32":
        raise UsageError(
            f"{path}: expected the released numbers, float32; this file holds them as {stored}. "
            "Publish the float32 conversion."
        )
    facts = _copied(path, folder, reports, {})
    require_proof(load_reports(folder / REPORT_NAME), WEIGHTS_NAME, _facts(folder), folder)
    return facts


def prove_run(path: Path, folder: Path, progress: Progress | None) -> Proven:
    """Copy a run's weights into `folder`, and prove that the network computes what they say."""
    reports = load_reports(path / REPORT_NAME)
    if WEIGHTS_NAME in reports:
        require_proof(reports, WEIGHTS_NAME, FileRecord.of(path / WEIGHTS_NAME), path)
        return _copied(path / WEIGHTS_NAME, folder, reports, {})
    return _copy(path / WEIGHTS_NAME, folder, progress, "the run's own file, copied bit for bit")


def describe_file(path: Path) -> Proven:
    """Say what a checkpoint file is, proving nothing."""
    with open_source(path) as source:
        inventory = identify(source)
        said = find_spec(source.metadata.get("model") or path.stem)
        facts = {"name": path.name, "bytes": source.size, "sha256": source.sha256(), "url": None}
    found = (inventory.architecture, inventory.num_classes)
    same = said is not None and (said.architecture, said.num_classes) == found
    return Proven(facts, {}, *found, said if same else None)


def _facts(folder: Path) -> FileRecord:
    return FileRecord.of(folder / WEIGHTS_NAME)


def _shown(url: str, spec: ModelSpec) -> dict[str, Any]:
    """Return where a release was fetched, without credentials, and where Google has it."""
    official = spec.url("npz")
    if base_url() == BASE_URL:
        return {"url": official}
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    plain = f"{scheme}://{host.rpartition('@')[2]}/{path.partition('?')[0]}"
    return {"url": plain, "note": f"a mirror; Google's own file is {official}"}


def _convert(
    source: Path,
    folder: Path,
    progress: Progress | None,
    spec: ModelSpec | None,
    origin: Mapping[str, Any],
) -> Proven:
    conversion, report = convert_and_prove(
        source,
        folder / WEIGHTS_NAME,
        check=Check.LOGITS,
        force=True,
        model=spec.name if spec else None,
        progress=progress,
    )
    assert report is not None
    if spec and conversion.model != spec.name:
        raise CheckpointError(
            f"{source}: fetched as {spec.name}, expected {spec.arch_name} with "
            f"{spec.num_classes:,} classes, found {conversion.inventory.title}. It is not "
            "published under a name that is not its own."
        )
    return _saved(report, folder, conversion.model, origin)


def _saved(
    report: ParityReport, folder: Path, model: str | None, origin: Mapping[str, Any]
) -> Proven:
    (folder / REPORT_NAME).unlink(missing_ok=True)
    save_report(report, folder / REPORT_NAME)
    return _proven(folder, report.to_dict(), model, origin)


def _proven(
    folder: Path, report: Mapping[str, Any], model: str | None, origin: Mapping[str, Any]
) -> Proven:
    with open_source(folder / WEIGHTS_NAME) as written:
        inventory = identify(written)
    source = {key: report["source"][key] for key in ("name", "bytes", "sha256")}
    return Proven(
        source | {"url": None} | dict(origin),
        report,
        inventory.architecture,
        inventory.num_classes,
        find_spec(model) if model else None,
    )


def _copied(
    path: Path, folder: Path, reports: Mapping[str, Any], origin: Mapping[str, Any]
) -> Proven:
    """Take a file and the proof beside it as they are."""
    shutil.copyfile(path, folder / WEIGHTS_NAME)
    report = reports[path.name]
    report = {**report, "output": {**report["output"], "name": WEIGHTS_NAME}}
    write_json(folder / REPORT_NAME, {WEIGHTS_NAME: report})
    return _proven(folder, report, _model_in(folder), origin)


def _copy(path: Path, folder: Path, progress: Progress | None, note: str) -> Proven:
    """Take a file as it is, and compare its network with the reference."""
    with open_source(path) as source:
        if source.names != "timm" or source.metadata.get("format") != "pt":
            return _convert(path, folder, progress, None, {"note": note})
    target = folder / WEIGHTS_NAME
    shutil.copyfile(path, target)
    report = verify(path, target, check=Check.LOGITS, progress=progress)
    report.require()
    return _saved(report, folder, _model_in(folder), {"note": note})


def _model_in(folder: Path) -> str | None:
    """Return the release that a converted file says it is, if its network agrees."""
    with open_source(folder / WEIGHTS_NAME) as written:
        inventory, said = identify(written), written.metadata.get("model")
    spec = find_spec(said) if said else None
    found = (inventory.architecture, inventory.num_classes)
    same = spec is not None and (spec.architecture, spec.num_classes) == found
    return spec.name if spec and same else None
