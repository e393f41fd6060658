"""What can be published: a released name, a checkpoint file, a run folder, a prepared folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bitzoo.catalogue.registry import ModelSpec, get_spec
from bitzoo.converters.formats.timm_config import CONFIG_NAME, is_timm_config
from bitzoo.converters.open import open_source
from bitzoo.errors import UsageError
from bitzoo.fetch.addresses import without_secrets
from bitzoo.fetch.hub_client import MANIFEST_NAME
from bitzoo.fetch.hub_snapshot import is_hub_address
from bitzoo.files import user_path
from bitzoo.hub.repo_manifest import require_own_files
from bitzoo.small_files import read_json
from bitzoo.zoo.resolve import WEIGHTS_NAME, is_address, is_location


@dataclass(frozen=True)
class Released:
    """A release of the catalogue."""

    spec: ModelSpec

    @property
    def title(self) -> str:
        """What to call it."""
        return self.spec.name


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint, a file or a folder, of any format that bitzoo reads."""

    path: Path

    @property
    def title(self) -> str:
        """What to call it."""
        return self.path.resolve().name if self.path.is_dir() else self.path.stem


@dataclass(frozen=True)
class RunFolder:
    """A model folder in timm's form, as fine-tuning writes it."""

    path: Path

    @property
    def title(self) -> str:
        """What to call it."""
        return self.path.resolve().name


@dataclass(frozen=True)
class PreparedFolder:
    """A folder that bitzoo prepared for publishing."""

    path: Path

    @property
    def title(self) -> str:
        """What to call it."""
        return self.path.resolve().name


PublishTarget: TypeAlias = Released | CheckpointFile | RunFolder | PreparedFolder
"""What the user named."""


def find_target(model: str) -> PublishTarget:
    """Recognise what the user named.

    Raises:
        UnknownModelError: If it is neither a path nor a name.
        WeightsUnavailableError: If Google never released it.
        UsageError: If it is an address, or a folder with links to files elsewhere.
        CheckpointError: If it is not a checkpoint that bitzoo reads.
    """
    if is_address(model) or is_hub_address(model):
        raise UsageError(
            f"{without_secrets(model)}: expected a catalogue name, a file or a folder, found an "
            "address. Fetch it first with `bitzoo convert --src ADDRESS`, then give the file "
            "that this writes."
        )
    path = user_path(model)
    if not is_location(model):
        spec = get_spec(model)
        spec.url("npz")  # raises, with the reason, for a checkpoint that was never released
        return Released(spec)
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        require_own_files(path)
        return PreparedFolder(path)
    config = path / CONFIG_NAME
    is_folder = (path / WEIGHTS_NAME).is_file() and config.is_file()
    if is_folder and is_timm_config(read_json(config)):
        require_own_files(path)
        return RunFolder(path)
    open_source(path).close()  # reports its problems before the Hub is asked
    return CheckpointFile(path)
