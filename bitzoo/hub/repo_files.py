"""The other files of a repository: config, card, manifest, licence."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bitzoo.catalogue.registry import ModelSpec
from bitzoo.converters.parity.verify import REPORT_NAME
from bitzoo.fetch.hub_client import MANIFEST_NAME
from bitzoo.files import read_json_lines, write_json, write_text
from bitzoo.hub.proven_weights import Proven
from bitzoo.hub.repo_manifest import CARD_NAME, LICENSE_NAME, FileRecord, listed_records
from bitzoo.hub.targets import Subject
from bitzoo.model_cards.facts import APACHE, license_text
from bitzoo.model_cards.render import CardSubject, render_card
from bitzoo.model_cards.run_card import complete_draft
from bitzoo.model_cards.text import validate_card
from bitzoo.zoo.resolve import CONFIG_NAME, WEIGHTS_NAME, locate

_METRICS_NAME = "metrics.jsonl"
_PACKAGES = ("bitzoo", "numpy", "torch", "safetensors")


def write_contents(
    folder: Path, subject: Subject, proven: Proven, repo: str, license_id: str | None
) -> None:
    """Write everything beside weights and proof.

    Args:
        folder: Where the weights and their proof are.
        subject: What the user named.
        proven: What was found out about the weights.
        repo: Full name of the repository.
        license_id: What the user says about the licence; None leaves it to what is known.

    Raises:
        UsageError: If the run's card cannot be used.
    """
    if subject.kind == "run" and subject.path:
        card = run_card(subject.path, repo, proven)
        license_id = license_id or _stated_license(card)
        config = dict(locate(subject.path).config)
        _drop_double_count(config)
    else:
        license_id = license_id or (proven.spec.license if proven.spec else None)
        card = render_card(card_subject(repo, proven.spec, proven, license_id))
        config = {}
    validate_card(card)
    write_text(folder / CARD_NAME, card)
    write_json(folder / CONFIG_NAME, config or _config(proven, license_id))
    text = license_text(license_id)
    (folder / LICENSE_NAME).unlink(missing_ok=True)
    if text:
        write_text(folder / LICENSE_NAME, text)
    write_json(folder / MANIFEST_NAME, _manifest(folder, subject, proven, repo))


def card_subject(
    repo: str, spec: ModelSpec | None, proven: Proven | None, license_id: str | None
) -> CardSubject:
    """Return what the card of a release or a file is about; `proven` or `spec` must be there."""
    from bitzoo.zoo.create import DEFAULT_TRANSFORM

    facts = spec.preprocessing if spec else DEFAULT_TRANSFORM
    if proven:
        architecture, classes = proven.architecture, proven.num_classes
    else:
        assert spec is not None
        architecture, classes = spec.architecture, spec.num_classes
    return CardSubject(
        repo=repo,
        spec=spec,
        architecture=architecture,
        num_classes=classes,
        crop=facts.crop,
        resize=facts.resize,
        interpolation=facts.interpolation,
        square=facts.square,
        license=license_id,
        source=proven.source if proven else None,
        proof=proven.report if proven else None,
    )


def run_card(path: Path, repo: str, proven: Proven | None) -> str:
    """Return the card of a run's folder: its draft completed, or a plain one without a draft.

    Raises:
        UsageError: If the draft has no metadata, or cannot be read.
        CheckpointError: If the folder's config cannot be read.
    """
    draft_path = path / CARD_NAME
    config = locate(path).config
    own = config.get("bitzoo")
    facts: Mapping[str, Any] = own if isinstance(own, dict) else {}
    draft = (
        draft_path.read_text(encoding="utf-8", errors="replace")
        if draft_path.is_file()
        else _plain_draft(path, config, facts)
    )
    return complete_draft(
        draft,
        repo=repo,
        architecture=_timm_architecture(config),
        activation=facts.get("activation"),
        names=isinstance(config.get("label_names"), list),
        history=read_json_lines(path / _METRICS_NAME),
        proof=proven.report if proven else None,
        license_id=_stated_license(draft),
    )


def _plain_draft(path: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    title = path.resolve().name
    base = f", fine-tuned from {facts['base_model']}" if facts.get("base_model") else ""
    return (
        "---\nlicense: apache-2.0\nlibrary_name: timm\npipeline_tag: image-classification\n"
        "tags:\n- image-classification\n- bitzoo\n- big-transfer\n- bit\n---\n\n"
        f"# {title}\n\n## What it is\n\nA Big Transfer (BiT) network, "
        f"{config.get('architecture', 'of unstated architecture')}{base}. Its author left no "
        "description.\n"
    )


def _timm_architecture(config: Mapping[str, Any]) -> str:
    """Return our name of what timm calls ``resnetv2_50x1_bit``; empty for what timm lacks."""
    name = str(config.get("architecture", ""))
    if name.startswith("resnetv2_") and name.endswith("_bit"):
        return "R" + name.removeprefix("resnetv2_").removesuffix("_bit")
    return ""


def _stated_license(card: str) -> str | None:
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        stated = ModelCard(card, ignore_metadata_errors=True).data.get("license")
    except (ValueError, TypeError, AttributeError, YAMLError):
        return None  # validate_card says what is wrong
    return stated if isinstance(stated, str) else None


def _drop_double_count(config: dict[str, Any]) -> None:
    """Drop the class count among the arguments, which transformers would pass a second time."""
    arguments = config.get("model_args")
    if isinstance(arguments, dict):
        config["model_args"] = {k: v for k, v in arguments.items() if k != "num_classes"}


def _config(proven: Proven, license_id: str | None) -> dict[str, Any]:
    import torch

    from bitzoo.models.bit import BiT
    from bitzoo.models.preprocessing import EvalTransform
    from bitzoo.zoo.create import DEFAULT_TRANSFORM
    from bitzoo.zoo.model_folder import render_config

    spec = proven.spec
    with torch.device("meta"):
        network = BiT(proven.architecture, proven.num_classes)
    transform = DEFAULT_TRANSFORM
    facts: dict[str, Any] = {}
    if spec:
        way = spec.preprocessing
        transform = EvalTransform(way.crop, way.resize, way.interpolation, way.square)
        facts = {
            "model": spec.name,
            "activation": spec.activation,
            "dataset": spec.dataset,
            "task": spec.task,
        }
    # The released heads' class names are timm's own, which it and transformers find by the count.
    config = render_config(network, transform, facts=facts)
    if license_id != APACHE:
        config["pretrained_cfg"].pop("license")
    if license_id:
        config["pretrained_cfg"]["license"] = license_id
    return config


def _manifest(folder: Path, subject: Subject, proven: Proven, repo: str) -> dict[str, Any]:
    """Return the manifest; no dates or paths, so that equal contents are equal bytes."""
    named = subject.spec.name if subject.spec else (subject.path.name if subject.path else "")
    names = (WEIGHTS_NAME, CONFIG_NAME, REPORT_NAME, LICENSE_NAME)
    there = [name for name in names if (folder / name).is_file()]
    return {
        "model": proven.spec.name if proven.spec else None,
        "source": dict(proven.source),
        "files": listed_records({name: FileRecord.of(folder / name) for name in there}),
        "versions": {name: _version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "command": shlex.join(["bitzoo", "publish", named, "--repo", repo]),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        from bitzoo._version import __version__

        return __version__  # bitzoo itself, run from a folder that was never installed
