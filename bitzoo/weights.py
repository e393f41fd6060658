"""Where weights come from: names, paths, folders and addresses -> a checkpoint file on this disk.

A catalogue name is served by the first source that has it: the local cache of converted files; the
Hugging Face organisation in ``BITZOO_HUB_ORG``, when one is set; Google's bucket (or
``BITZOO_MIRROR``), whose file is fetched, checked, converted with its weights proven, and kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from bitzoo.converters.inventory import identify
from bitzoo.converters.parity import REPORT_NAME, Check, convert_and_prove, save_report
from bitzoo.converters.sources import open_source
from bitzoo.converters.tensors import Progress
from bitzoo.download import base_url, cache_dir, download, file_lock, is_offline
from bitzoo.errors import CheckpointError
from bitzoo.registry import ModelSpec, find_spec

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_SUFFIXES = (".npz", ".safetensors")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """A checkpoint on this disk.

    Attributes:
        path: The file.
        config: The `config.json` beside it, if it came as a folder.
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)


def is_location(text: str | os.PathLike[str]) -> bool:
    """Whether `text` is a path or an address rather than a catalogue name."""
    if not isinstance(text, str):
        return True
    if "/" in text or os.sep in text or text.lower().endswith(_SUFFIXES):
        return True
    return find_spec(text) is None and Path(text).exists()


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether `text` is a web address."""
    return isinstance(text, str) and text.startswith(("http://", "https://"))


def locate(place: str | os.PathLike[str], *, progress: bool | None = None) -> Located:
    """Return the checkpoint at a path, in a folder, or behind an address (fetched and cached).

    Args:
        place: A file; a folder with `model.safetensors` and maybe `config.json`; an http(s) URL.
        progress: Whether to show a bar; None shows it on a terminal.

    Raises:
        CheckpointError: If there is nothing of the kind.
        DownloadError: If the address cannot be fetched.
    """
    if is_address(place):
        return Located(fetch(str(place), progress=progress))
    path = Path(place).expanduser()
    if not path.is_dir():
        return Located(path)
    weights, config = path / WEIGHTS_NAME, path / CONFIG_NAME
    if not weights.is_file():
        raise CheckpointError(
            f"{path}: expected a folder with {WEIGHTS_NAME}, as conversions and runs leave it; "
            "there is none. Give the checkpoint file itself."
        )
    return Located(weights, _read_config(config) if config.is_file() else {})


def fetch(url: str, *, progress: bool | None = None) -> Path:
    """Return the cached copy of the file at `url`, fetching it if there is none."""
    name = PurePosixPath(urlsplit(url).path).name or "checkpoint"
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    return download(url, cache_dir() / "downloads" / key / name, progress=progress)


def fetch_released(spec: ModelSpec, *, progress: bool | None = None) -> Path:
    """Return the cached copy of a released `.npz`, fetching it from Google's bucket or the mirror.

    Raises:
        WeightsUnavailableError: If Google never released it.
        DownloadError: If it cannot be fetched.
    """
    spec.url("npz")  # says why, for a checkpoint that was never released
    return fetch(base_url() + spec.files["npz"], progress=progress)


def find_weights(
    spec: ModelSpec,
    *,
    keep_source: bool = False,
    progress: bool | None = None,
    on_bytes: Progress | None = None,
) -> Path:
    """Return a catalogue entry's weights as a safetensors file, from the first source that has it.

    Args:
        spec: The catalogue entry.
        keep_source: Whether a fetched `.npz` stays in the cache after its conversion.
        progress: Whether to show a bar while fetching; None shows it on a terminal.
        on_bytes: Called as the conversion moves bytes.

    Raises:
        WeightsUnavailableError: If the weights were never released.
        DownloadError: If no source can be reached.
        CheckpointError: If the fetched file is damaged or of another architecture.
        ParityError: If the converted weights differ from the original.
    """
    target = cache_dir() / "models" / spec.name / WEIGHTS_NAME
    if target.is_file():
        return target
    spec.url("npz")
    with file_lock(target):
        if target.is_file():
            return target
        if published := _from_hub(spec):
            return published
        source = fetch_released(spec, progress=progress)
        _check_architecture(source, spec)
        _, report = convert_and_prove(
            source, target, check=Check.WEIGHTS, model=spec.name, progress=on_bytes
        )
        if report:
            save_report(report, target.parent / REPORT_NAME)
        if not keep_source:
            source.unlink()
    return target


def _check_architecture(path: Path, spec: ModelSpec) -> None:
    with open_source(path) as source:
        inventory = identify(source)
    if (inventory.architecture, inventory.num_classes) != (spec.architecture, spec.num_classes):
        raise CheckpointError(
            f"{path}: fetched as {spec.name}, expected {spec.arch_name} with "
            f"{spec.num_classes:,} classes, found {inventory.title}. The published file is "
            f"mislabelled; load it as what it is: bitzoo.create_model({str(path)!r}, "
            "pretrained=True)."
        )


def _from_hub(spec: ModelSpec) -> Path | None:
    """Return the weights from the configured organisation on the Hub, or None if it lacks them."""
    organisation = os.environ.get("BITZOO_HUB_ORG", "").strip()
    if not organisation or is_offline():
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = f"{organisation}/{spec.name}"
    try:
        return Path(hf_hub_download(repository, WEIGHTS_NAME, cache_dir=cache_dir() / "hub"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        _log.warning(
            "%s is not to be had from the Hub (%s); taking Google's file instead.",
            repository,
            str(error).splitlines()[0],
        )
        return None


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, found something else ({error}).") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(config).__name__}.")
    return config
