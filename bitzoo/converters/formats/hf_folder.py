"""Model folders of transformers and timm: one weight file, or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitzoo.converters.formats.safetensors import SafetensorsSource, as_scheme
from bitzoo.converters.formats.timm_config import CONFIG_NAME
from bitzoo.converters.formats.torch import TorchSource
from bitzoo.converters.source import KERNEL_SCALE, Source, StoredTensor, brief
from bitzoo.errors import CheckpointError
from bitzoo.files import sha256_of

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
WEIGHT_FILES = tuple(f"{name}{end}" for name in WEIGHT_NAMES for end in ("", _INDEX))
"""All files with weights, in the order in which they are looked for: safetensors first."""
_MAX_JSON = 4 << 20
_MAX_SHARDS = 1_000


def find_weights(folder: Path) -> Path | None:
    """Return a folder's weight file or index, safetensors first, or None if it has none."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def parts_of(weights: Path) -> frozenset[str]:
    """Return the names of the shards that an index lists; none for a file with weights.

    Raises:
        CheckpointError: If the index is damaged, or names files outside its folder.
    """
    is_index = weights.name.endswith(_INDEX)
    return frozenset(_read_index(weights).values()) if is_index else frozenset()


class FolderSource(Source):
    """A model folder: a weight file, or an index of shards, with the files next to it.

    Raises:
        CheckpointError: If a shard is missing or damaged, or the index points out of its folder.
    """

    def __init__(self, path: Path, weights: Path) -> None:
        """Open a model's weights.

        Args:
            path: What the user named: the folder or the index.
            weights: The weight file or index in it.
        """
        self.path = path
        index = _read_index(weights) if weights.name.endswith(".json") else None
        files = sorted({weights.parent / name for name in index.values()}) if index else [weights]
        self._parts: list[Source] = []
        try:
            for file in files:
                self._parts.append(_open_part(weights, file))
            self._files = [weights, *files] if index else files
            self.tensors = self._gather(weights, index)
        except BaseException:
            self.close()
            raise
        self.names = self._parts[0].names
        if index:
            self.names, self.tensors, _ = as_scheme(self.tensors)
        self.notes = tuple(dict.fromkeys(note for part in self._parts for note in part.notes))
        metadata = [part.metadata for part in self._parts]
        self.metadata = {key: text for part in metadata for key, text in part.items()}
        self.folder = weights.parent
        self.metadata |= marks(weights.with_name(CONFIG_NAME))

    @property
    def size(self) -> int:
        """Bytes of the weights, and of the index if there is one."""
        return sum(file.stat().st_size for file in self._files)

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the weights: the file, or the index and the shards one after the other."""
        return sha256_of(*self._files, advance=advance)

    def close(self) -> None:
        """Release the files."""
        for part in self._parts:
            part.close()

    def _gather(self, weights: Path, index: Mapping[str, str] | None) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for part in self._parts:
            for name, tensor in part.tensors.items():
                if name in tensors:
                    raise CheckpointError(
                        f"{part.path}: expected each tensor once, but another shard of "
                        f"{weights.name} has {name!r} too. The folder mixes two models."
                    )
                tensors[name] = tensor
        lost = sorted(set(index or ()) - {t.name for t in tensors.values()} - set(tensors))
        if lost:
            raise CheckpointError(
                f"{weights}: lists {len(lost)} tensors that its shards lack ({lost[0]}, ...). "
                "The folder is incomplete; download it again."
            )
        return tensors


def _open_part(weights: Path, file: Path) -> Source:
    if not file.is_file():
        raise CheckpointError(
            f"{weights}: expected the shard {file.name} in the same folder, but there is no such "
            "file. Download it."
        )
    _require_inside(weights.parent, file)
    return SafetensorsSource(file) if file.suffix == ".safetensors" else TorchSource(file)


def _require_inside(folder: Path, file: Path) -> None:
    """Raise if a shard is a link to a file elsewhere; the Hub's cache links to its own blobs."""
    root, target = folder.resolve(), file.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (target.is_relative_to(root) or target.is_relative_to(blobs)):
        raise CheckpointError(
            f"{file}: expected a shard in the folder of its index, found a link out of it. If you "
            "trust it, put the file itself there."
        )


def _read_index(path: Path) -> dict[str, str]:
    found = read_json(path).get("weight_map")
    entries: dict[str, str] = found if isinstance(found, dict) and _is_text_map(found) else {}
    names = set(entries.values())
    if not names or len(names) > _MAX_SHARDS:
        raise CheckpointError(
            f"{path}: expected an index of shards (a 'weight_map' of tensor names to files), found "
            "something else. It may be damaged."
        )
    for name in names:
        if name in ("", "..") or Path(name).name != name or "\\" in name or not name.isprintable():
            raise CheckpointError(
                f"{path}: expected names of files in its own folder, found {brief(repr(name))}. "
                "Do not load this file."
            )
    return entries


def _is_text_map(entries: dict[Any, Any]) -> bool:
    return all(isinstance(text, str) for entry in entries.items() for text in entry)


def marks(config: Path) -> dict[str, str]:
    """Return what bitzoo wrote about the numbers into a model's `config.json`.

    transformers keeps these entries when a model is trained and saved again, but drops the weight
    file's metadata. Empty if there is no such file, or none that can be read.
    """
    try:
        entry = read_json(config).get("bitzoo")
    except (CheckpointError, OSError):
        return {}
    scale = entry.get(KERNEL_SCALE) if isinstance(entry, dict) else None
    return {} if scale is None else {KERNEL_SCALE: str(scale)}


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small file.

    Raises:
        CheckpointError: If it is too large for such a file, or contains something else.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"it has more than {_MAX_JSON:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected JSON, found something else ({brief(error)}). It is damaged."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content
