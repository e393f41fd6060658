"""What may be published: a released name, a checkpoint file, a run or model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitzoo.catalogue.registry import ModelSpec, get_spec
from bitzoo.converters.open import open_source
from bitzoo.errors import UsageError
from bitzoo.fetch.hub_client import MANIFEST_NAME
from bitzoo.zoo.resolve import WEIGHTS_NAME, is_address, is_location, locate

Kind = Literal["released", "file", "run", "prepared"]


@dataclass(frozen=True)
class Subject:
    """What a user named.

    Attributes:
        kind: ``released`` a catalogue name; ``file`` a checkpoint of any format that is read,
            folders among them; ``run`` a folder in timm's form, as fine-tuning leaves it;
            ``prepared`` a folder that bitzoo prepared for publishing.
        title: What to call it.
        spec: The catalogue entry of a released name.
        path: Where the others are.
    """

    kind: Kind
    title: str
    spec: ModelSpec | None = None
    path: Path | None = None


def find_subject(model: str) -> Subject:
    """Recognise what a user named.

    Raises:
        UnknownModelError: If it is neither a path nor a name.
        WeightsUnavailableError: If Google never released it.
        UsageError: If it is an address.
        CheckpointError: If it is no checkpoint that bitzoo reads.
    """
    if is_address(model) or model.startswith("hub:"):
        raise UsageError(
            f"{model}: expected a name of the catalogue, a file or a folder. Fetch it first: "
            "`bitzoo convert --src ADDRESS`."
        )
    path = Path(model).expanduser()
    if not is_location(model):
        spec = get_spec(model)
        spec.url("npz")  # says why, for a checkpoint that was never released
        return Subject("released", spec.name, spec)
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        return Subject("prepared", path.resolve().name, path=path)
    if path.is_dir() and (path / WEIGHTS_NAME).is_file() and _is_ours(locate(path).config):
        return Subject("run", path.resolve().name, path=path)
    open_source(path).close()  # says what is wrong with it before the Hub is asked
    return Subject("file", path.resolve().name if path.is_dir() else path.stem, path=path)


def _is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a folder's config is in timm's form, as bitzoo writes it, and not transformers'."""
    return isinstance(config.get("pretrained_cfg"), dict)
