"""The other files of a repository: config, card, manifest, licence."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.converters.formats.timm_config import (
    CONFIG_NAME,
    RECORD_KEY,
    own_record,
    read_timm_config,
    render_timm_config,
)
from bitzoo.converters.parity.verify import REPORT_NAME
from bitzoo.errors import UsageError
from bitzoo.fetch.hub_client import MANIFEST_NAME
from bitzoo.files import write_json, write_text
from bitzoo.hub.proven_weights import Proven, describe_file
from bitzoo.hub.repo_manifest import (
    CARD_NAME,
    LICENSE_NAME,
    METRICS_NAME,
    FileRecord,
    listed_records,
)
from bitzoo.hub.targets import CheckpointFile, PreparedFolder, PublishTarget, Released, RunFolder
from bitzoo.model_cards.facts import license_text
from bitzoo.model_cards.render import CardSubject, card_metadata, render_card
from bitzoo.model_cards.run_card import complete_draft
from bitzoo.model_cards.text import escape, validate_card
from bitzoo.small_files import read_json, read_json_lines, read_text
from bitzoo.zoo.resolve import WEIGHTS_NAME

_PACKAGES = ("bitzoo", "numpy", "torch", "safetensors")
_PUBLISHER = "the publisher"


@dataclass(frozen=True)
class Stated:
    """What the publisher states about a model.

    Attributes:
        license: SPDX identifier in lower case; None if not stated.
        vouch: Whether the publisher vouches that the weights are the release that their name or
            address refers to.
    """

    license: str | None = None
    vouch: bool = False

    def applied_to(self, info: ModelInfo) -> ModelInfo:
        """Return the record with what the publisher states.

        Raises:
            UsageError: If they vouch for a model that does not refer to a release.
        """
        if self.vouch:
            info = _vouched(info)
        if self.license and self.license != info.license:
            info = info.stating(_PUBLISHER, license=self.license)
        return info

    @property
    def options(self) -> list[str]:
        """The options of `bitzoo publish` that state the same."""
        licence = ["--license", self.license] if self.license else []
        return [*licence, *(["--vouch"] if self.vouch else [])]


def _vouched(info: ModelInfo) -> ModelInfo:
    known = info.identity
    if known.name is None:
        raise UsageError(
            "`vouch` needs a file that is named after a release, but nothing says which release "
            "this is. Rename the file to the name of the release, or leave `vouch` out."
        )
    if known.established:
        return info
    evidence = f"{_PUBLISHER}; otherwise only {known.basis}: {known.evidence}"
    return replace(
        info, identity=Identity(known.name, "vouched", evidence)
    ).completed_by_catalogue()


def write_repo_files(
    folder: Path,
    target: Released | CheckpointFile | RunFolder,
    proven: Proven,
    repo: str,
    stated: Stated,
) -> None:
    """Write everything except weights and proof.

    Args:
        folder: The folder with the weights and their proof.
        target: What is published.
        proven: What is known about the weights.
        repo: Full name of the repository.
        stated: What the publisher states.

    Raises:
        UsageError: If the run's card cannot be used, or there is no release to vouch for.
    """
    if isinstance(target, RunFolder):
        info = _run_info(target.path, stated)
        card = _run_card(target.path, repo, info, proven.report)
        config = _run_config(target.path, info)
    else:
        info = stated.applied_to(proven.info)
        card = render_card(CardSubject(repo, info, proven.source, proven.report))
        config = render_timm_config(info)
    validate_card(card)
    write_text(folder / CARD_NAME, card)
    write_json(folder / CONFIG_NAME, config)
    text = license_text(info.license)
    (folder / LICENSE_NAME).unlink(missing_ok=True)
    if text:
        write_text(folder / LICENSE_NAME, text)
    write_json(folder / MANIFEST_NAME, _manifest(folder, target, proven, info, repo, stated))


def card_of(
    target: PublishTarget,
    repo: str,
    *,
    license: str | None = None,  # noqa: A002
    vouch: bool = False,
) -> str:
    """Return the model card of a target, before anything is proven.

    Args:
        target: What the card is about.
        repo: Full name of the repository, for the snippets.
        license: SPDX identifier that the publisher states.
        vouch: Whether the publisher vouches for the identity.
    """
    if license and isinstance(target, Released | PreparedFolder):
        raise UsageError(
            f"{target.title}: `license` is for files and runs. A release and a prepared folder "
            "have their own."
        )
    stated = Stated(license.lower() if license else None, vouch)
    if isinstance(target, PreparedFolder):
        return read_text(target.path / CARD_NAME)
    if isinstance(target, RunFolder):
        return _run_card(target.path, repo, _run_info(target.path, stated), None)
    if isinstance(target, Released):
        return render_card(CardSubject(repo, ModelInfo.of_release(target.spec)))
    described = describe_file(target.path)
    return render_card(CardSubject(repo, stated.applied_to(described.info), described.source))


def _run_info(path: Path, stated: Stated) -> ModelInfo:
    """Return what is known about a run; in rising precedence: record, config, card, publisher."""
    config = read_json(path / CONFIG_NAME)
    record = own_record(config)
    blank = ModelInfo(_architecture(config), int(config.get("num_classes") or 0))
    info = read_timm_config(config, record or blank, recorded=record is not None)
    if draft := _draft(path):
        license_id = _license_in(draft)
        if license_id and license_id != info.license:
            info = info.stating(CARD_NAME, license=license_id)
    return stated.applied_to(info)


def _run_card(path: Path, repo: str, info: ModelInfo, proof: Mapping[str, Any] | None) -> str:
    """Return the card of a run folder: its draft completed, or a plain one without a draft.

    Raises:
        UsageError: If the draft has no metadata, or cannot be read.
    """
    draft = _draft(path) or _plain_draft(path, info)
    metrics = path / METRICS_NAME
    lines = read_json_lines(metrics) if metrics.is_file() else []
    history = [record for record in lines if record is not None]
    return complete_draft(draft, repo=repo, info=info, history=history, proof=proof)


def _draft(path: Path) -> str | None:
    draft = path / CARD_NAME
    return read_text(draft) if draft.is_file() else None


def _plain_draft(path: Path, info: ModelInfo) -> str:
    title = escape(path.resolve().name)
    base = info.base.name if info.base else None
    known = f", fine-tuned from {escape(base)}" if base else ""
    network = escape(info.architecture) or "of unknown architecture"
    return (
        f"---\n{card_metadata(info)}\n---\n\n# {title}\n\n## What it is\n\nA Big Transfer (BiT) "
        f"network, {network}{known}. Its author has not described it.\n"
    )


def _architecture(config: Mapping[str, Any]) -> str:
    """Return our name for timm's ``resnetv2_50x1_bit``; other names are ours already."""
    name = str(config.get("architecture", ""))
    if name.startswith("resnetv2_") and name.endswith("_bit"):
        return "R" + name.removeprefix("resnetv2_").removesuffix("_bit")
    return name


def _license_in(card: str) -> str | None:
    from huggingface_hub import ModelCard

    try:
        stated = ModelCard(card, ignore_metadata_errors=True).data.get("license")
    except Exception:  # of many kinds; validate_card reports what is wrong
        return None
    return stated if isinstance(stated, str) else None


def _run_config(path: Path, info: ModelInfo) -> dict[str, Any]:
    """Return the run's own config, which its author may have edited, with the current record."""
    config = read_json(path / CONFIG_NAME)
    arguments = config.get("model_args")
    if isinstance(arguments, dict):  # transformers would pass the class count a second time
        config["model_args"] = {k: v for k, v in arguments.items() if k != "num_classes"}
    pretrained = dict(config["pretrained_cfg"])
    pretrained.pop("license", None)
    if info.license:
        pretrained["license"] = info.license
    own = config.get("bitzoo")
    record = {**(own if isinstance(own, dict) else {}), RECORD_KEY: info.to_dict()}
    return {**config, "pretrained_cfg": pretrained, "bitzoo": record}


def _manifest(
    folder: Path,
    target: Released | CheckpointFile | RunFolder,
    proven: Proven,
    info: ModelInfo,
    repo: str,
    stated: Stated,
) -> dict[str, Any]:
    """Return the manifest; no dates or paths, so that equal contents are equal bytes."""
    named = target.spec.name if isinstance(target, Released) else target.path.name
    names = (WEIGHTS_NAME, CONFIG_NAME, REPORT_NAME, LICENSE_NAME)
    there = [name for name in names if (folder / name).is_file()]
    return {
        "model": info.identity.name if info.identity.established else None,
        "identity": asdict(info.identity),
        "source": dict(proven.source),
        "files": listed_records({name: FileRecord.of(folder / name) for name in there}),
        "versions": {name: _version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "command": shlex.join(["bitzoo", "publish", named, "--repo", repo, *stated.options]),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        from bitzoo._version import __version__

        return __version__  # bitzoo itself, run from a folder that was never installed
