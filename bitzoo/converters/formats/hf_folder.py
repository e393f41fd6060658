"""Model folders of transformers and timm: one weight file, or shards with an index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitzoo.converters.formats.safetensors import SafetensorsSource, choose_stored
from bitzoo.converters.formats.timm_config import CONFIG_NAME
from bitzoo.converters.formats.torch import TorchSource
from bitzoo.converters.source import KERNEL_SCALE, Source, StoredTensor, brief
from bitzoo.errors import CheckpointError
from bitzoo.small_files import read_bytes, read_json

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
WEIGHT_FILES = tuple(f"{name}{end}" for name in WEIGHT_NAMES for end in ("", _INDEX))
"""All files with weights, in the order in which they are looked for: safetensors first."""
_MAX_SHARDS = 1_000
_MAX_NAME_BYTES = 255
"""What file systems allow; a longer name is an error of the system already when it is looked up."""


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

    def __init__(self, path: Path, weights: Path, choice: str | None = None) -> None:
        """Open a model's weights.

        Args:
            path: What the user named: the folder or the index.
            weights: The weight file or index in it.
            choice: Which of several sets of weights; see `choose_network`.
        """
        self.path = path
        index = _read_index(weights) if weights.name.endswith(".json") else None
        files = sorted({weights.parent / name for name in index.values()}) if index else [weights]
        self._parts: list[SafetensorsSource | TorchSource] = []
        try:
            for file in files:
                self._parts.append(_open_part(weights, file, None if index else choice))
            self._files = [weights, *files] if index else files
            self.tensors = self._gather(weights, index)
        except BaseException:
            self.close()
            raise
        self.names, self.taken = self._parts[0].names, self._parts[0].taken
        self.notes = tuple(dict.fromkeys(note for part in self._parts for note in part.notes))
        if index:
            chosen = choose_stored(self.tensors, path, choice)
            self.names, self.tensors, self.taken = chosen.names, chosen.tensors, chosen.taken
            self.notes = tuple(dict.fromkeys((*self.notes, *chosen.notes)))
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
        digest = hashlib.sha256()
        for file in self._files[: -len(self._parts)]:  # the index, if there is one
            digest.update(read_bytes(file))
        for part in self._parts:
            part.hash_into(digest, advance)
        return digest.hexdigest()

    def close(self) -> None:
        """Release the files."""
        for part in self._parts:
            part.close()

    def _gather(self, weights: Path, index: Mapping[str, str] | None) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for part in self._parts:
            for own, tensor in part.tensors.items():
                name = tensor.name if index else own  # whole again, as prefixes are common to all
                if name in tensors:
                    raise CheckpointError(
                        f"{part.path}: expected each tensor once, but another shard of "
                        f"{weights.name} has {name!r} too. The folder mixes two models."
                    )
                tensors[name] = tensor
        lost = sorted(set(index or ()) - set(tensors))
        if lost:
            raise CheckpointError(
                f"{weights}: lists {len(lost)} tensors that its shards lack ({brief(lost[0])}, "
                "...). The folder is incomplete; download it again."
            )
        return tensors


def _open_part(weights: Path, file: Path, choice: str | None) -> SafetensorsSource | TorchSource:
    if not file.is_file():
        raise CheckpointError(
            f"{weights}: expected the shard {file.name} in the same folder, but there is no such "
            "file. Download it."
        )
    _require_inside(weights.parent, file)
    reader = SafetensorsSource if file.suffix == ".safetensors" else TorchSource
    return reader(file, choice)


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
        plain = name.isprintable() and len(name.encode()) <= _MAX_NAME_BYTES
        if name in ("", "..") or Path(name).name != name or "\\" in name or not plain:
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
