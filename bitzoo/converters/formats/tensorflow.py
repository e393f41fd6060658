"""Read TensorFlow checkpoints, TF1 and TF2: a prefix, a SavedModel or a TF-Hub module.

TensorFlow reads the tensors one by one and checks its own checksums. No graph is loaded, so nothing
in the file can run. Memory is bounded by the last two tensors read. Tensor names:

==========================  ========================================================================
TF1 checkpoint, Hub module  the names of the npz; optimizer slots are skipped
TF2 object graph            a variable's `full_name` if these are unique and known, else its path of
                            attributes
==========================  ========================================================================
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.converters.averages import choose_average
from bitzoo.converters.formats.keras import clean_name
from bitzoo.converters.key_mapping import slot_of
from bitzoo.converters.parity.reference_tensorflow import load_tensorflow
from bitzoo.converters.parity.serving_graph import GRAPH_NAME
from bitzoo.converters.source import Array, Scratch, Source, StoredTensor, brief
from bitzoo.errors import CheckpointError, MissingExtraError
from bitzoo.files import sha256_of

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$", re.ASCII)
_HUB_SHARD = re.compile(r"\.data@(\d+)$", re.ASCII)
_INDEX_MAGIC = bytes.fromhex("57fb808b247547db")
"""Last bytes of a checkpoint's index; tensorflow/core/lib/io/format.h."""
_STEP = re.compile(
    r"_root|_blocks|_pre_head|_head|_unit_[abc]|_unit_a_conv|_proj|\d|layer_with_weights-\d{1,3}"
    r"|kernel|bias|gamma|beta",
    re.ASCII,
)
"""Attributes that lead to a variable; aliases that Keras adds, such as `layer-1`, are ignored."""
_TRAINING_STATE = re.compile(
    r"(^|/)_?(optim\w*|momentum\w*|adam\w*|rmsprop\w*|ema|exponentialmovingaverage|\.optimizer_slot"
    r"|keras_api|save_counter|global_step)(/|$)",
    re.IGNORECASE | re.ASCII,
)
_RENUMBERED = re.compile(r"(?<=/standardized_conv2d)_\d+(?=/)", re.ASCII)
_MAX_STEPS = 200_000
"""Bound on the traversal of an object graph; the largest network takes 3,000."""
_MAX_DEPTH = 8
_CACHED_TENSORS = 2


def find_prefix(path: Path) -> Path | None:
    """Return the prefix of the checkpoint at `path`, or None if there is none.

    Args:
        path: A prefix, its index or one of its shards; a folder with `saved_model.pb` or
            `tfhub_module.pb` and `variables/`, or with exactly one checkpoint.

    Raises:
        CheckpointError: If a folder holds several checkpoints and does not state the current one.
    """
    if path.is_dir():
        variables = path / "variables" / "variables"
        return variables if _index(variables).is_file() else _only_prefix(path)
    if _index(path).is_file():
        return path
    name = _HUB_SHARD.sub("", _SHARD.sub("", path.name))
    if name != path.name and _index(path.with_name(name)).is_file():
        return path.with_name(name)
    if path.is_file() and path.suffix == ".index" and _is_index(path):
        return path.with_suffix("")
    return None


def _index(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _is_index(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(8, path.stat().st_size), os.SEEK_END)
        return file.read() == _INDEX_MAGIC


def _only_prefix(folder: Path) -> Path | None:
    prefixes = sorted(index.with_suffix("") for index in folder.glob("*.index"))
    if len(prefixes) < 2:
        return prefixes[0] if prefixes else None
    state = folder / "checkpoint"
    text = state.read_text(encoding="utf-8", errors="replace") if state.is_file() else ""
    current = re.search(r'^model_checkpoint_path: "(.*)"$', text, re.MULTILINE)
    chosen = folder / Path(current[1]).name if current else None
    if chosen in prefixes:
        return chosen
    listed = ", ".join(prefix.name for prefix in prefixes[:5])
    raise CheckpointError(
        f"{folder}: expected one checkpoint, found {len(prefixes)} ({listed}). Give the path of "
        f"one, such as {prefixes[-1]}."
    )


class TensorFlowSource(Source):
    """An open TensorFlow checkpoint.

    Raises:
        MissingExtraError: If TensorFlow is not installed.
        CheckpointError: If the checkpoint is damaged or a shard is missing.
    """

    def __init__(self, path: Path, prefix: Path, weights: str | None = None) -> None:
        """Open a checkpoint.

        Args:
            path: Path that the user gave.
            prefix: The result of `find_prefix` for it.
            weights: ``ema`` or ``raw``, of a TF1 checkpoint with moving averages; see
                `choose_average`.
        """
        self.path, self.metadata = path, {}
        self._files = _find_files(path, prefix)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._cache: dict[str, Array] = {}
        self._lock = threading.Lock()
        tensorflow = _tensorflow(path)
        try:
            readable = self._readable(prefix)
            self._reader: Any = tensorflow.train.load_checkpoint(str(readable))
            found, graph = self._list()
            found, self.taken, chosen = choose_average(found, weights, file=path)
            self.names, named = _named(found, graph)
        except CheckpointError:
            self.close()
            raise
        except Exception as error:  # TensorFlow raises many kinds for a damaged file
            self.close()
            raise _damaged(path, error) from error
        if (path / GRAPH_NAME).is_file():
            self.graph = (path / GRAPH_NAME, readable)
        skipped = sorted(
            name for name in named if _is_training_state(name, named[name], self.names)
        )
        self.tensors = {name: tensor for name, tensor in named.items() if name not in skipped}
        self.notes = (*chosen, *_notes(skipped, self.names))

    @property
    def size(self) -> int:
        """Bytes of the index and all shards."""
        return sum(file.stat().st_size for file in self._files)

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the index and the shards in order; TensorFlow checks its own checksums."""
        return sha256_of(*self._files, advance=advance)

    def close(self) -> None:
        """Close the files."""
        self._reader = None
        self._cache.clear()
        if self._folder:
            self._folder.cleanup()

    def value(self, key: str) -> Array:
        """Return a whole tensor; the last `_CACHED_TENSORS` read stay in memory."""
        with self._lock:
            if key not in self._cache:
                while len(self._cache) >= _CACHED_TENSORS:
                    del self._cache[next(iter(self._cache))]
                try:
                    self._cache[key] = self._reader.get_tensor(key)
                except Exception as error:  # from TensorFlow, such as for a wrong checksum
                    raise _damaged(self.path, error) from error
            return self._cache[key]

    def _list(self) -> tuple[dict[str, StoredTensor], bytes]:
        """Return the tensors by key, and a TF2 checkpoint's object graph (else no bytes)."""
        shapes = self._reader.get_variable_to_shape_map()
        dtypes = self._reader.get_variable_to_dtype_map()
        graph: bytes = self._reader.get_tensor(GRAPH_KEY) if GRAPH_KEY in shapes else b""
        return {
            key: _CheckpointTensor(self, key, tuple(shape), dtypes[key].as_numpy_dtype)
            for key, shape in sorted(shapes.items())
            if key != GRAPH_KEY
        }, graph

    def _readable(self, prefix: Path) -> Path:
        """Return a prefix whose shard names TensorFlow can read; the hubs' names differ."""
        index, *shards = self._files
        if not _HUB_SHARD.search(shards[0].name):
            return prefix
        self._folder = tempfile.TemporaryDirectory(prefix="bitzoo-")
        readable = Path(self._folder.name) / "variables"
        _index(readable).symlink_to(index.resolve())
        readable.with_name("variables.data-00000-of-00001").symlink_to(shards[0].resolve())
        return readable


class _CheckpointTensor(StoredTensor):
    def __init__(
        self, source: TensorFlowSource, key: str, shape: tuple[int, ...], dtype: Any
    ) -> None:
        self.name, self.shape, self.dtype = key, shape, np.dtype(dtype)
        self._key, self._source = key, source

    def read_slab(self, axis: int, start: int, stop: int, scratch: Scratch | None = None) -> Array:
        """Return a view of the tensor, which TensorFlow can only read as a whole."""
        slab: Array = self._source.value(self._key)[(slice(None),) * axis + (slice(start, stop),)]
        return slab


def _named(found: Mapping[str, StoredTensor], graph: bytes) -> tuple[str, dict[str, StoredTensor]]:
    """Return the naming scheme that fits most tensors, and the tensors under its names."""
    full, paths = _names_in(graph) if graph else ({}, {})
    cleaned = {key: _RENUMBERED.sub("", clean_name(full.get(key, key))) for key in found}
    counts = Counter(cleaned.values())
    unique = {key: name for key, name in cleaned.items() if counts[name] == 1}
    given = {"npz": unique, "keras": unique, "tf2": paths}
    known = {
        scheme: {key: name for key, name in names.items() if key in found and slot_of(name, scheme)}
        for scheme, names in given.items()
    }
    scheme = max(known, key=lambda scheme: len(known[scheme]))
    names = {key: known[scheme].get(key) or full.get(key) or key for key in found}
    taken = Counter(names.values())
    return scheme, {name if taken[name] == 1 else key: found[key] for key, name in names.items()}


def _names_in(graph: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Return the full names and the paths of an object graph's variables, by checkpoint key."""
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    nodes = TrackableObjectGraph.FromString(graph).nodes
    values = [
        next((entry for entry in node.attributes if entry.name == "VARIABLE_VALUE"), None)
        for node in nodes
    ]
    full = {value.checkpoint_key: value.full_name for value in values if value and value.full_name}
    roots = (node for node in nodes if any(child.local_name == "_root" for child in node.children))
    paths: dict[str, str] = {}
    ahead = [("", root, 0) for root in islice(roots, 1)]
    for _ in range(_MAX_STEPS):
        if not ahead:
            return full, paths
        path, node, depth = ahead.pop()
        for child in node.children:
            if _STEP.fullmatch(child.local_name) and 0 <= child.node_id < len(nodes):
                step = f"{path}{child.local_name}"
                if value := values[child.node_id]:
                    paths.setdefault(value.checkpoint_key, step)
                elif depth < _MAX_DEPTH:
                    ahead.append((f"{step}/", nodes[child.node_id], depth + 1))
    raise ValueError(f"its object graph has more than {_MAX_STEPS:,} paths")


def _is_training_state(name: str, tensor: StoredTensor, scheme: str) -> bool:
    """Whether a tensor is training state, such as an optimizer slot, and not of the network."""
    if slot_of(name, scheme):
        return False
    owner = clean_name(name.rpartition("/")[0])
    is_slot = slot_of(owner, scheme) is not None
    known = _TRAINING_STATE.search(name) or _TRAINING_STATE.search(tensor.name)  # name or key
    return is_slot or not tensor.shape or tensor.dtype.kind != "f" or bool(known)


def _notes(skipped: Collection[str], scheme: str) -> tuple[str, ...]:
    notes = []
    if scheme == "tf2":
        notes.append("The variables' names are ambiguous, so their object paths were used.")
    if skipped:
        shown = ", ".join(map(brief, list(skipped)[:4])) + (", ..." if len(skipped) > 4 else "")
        notes.append(f"Skipped {len(skipped)} tensors of training state: {shown}.")
    return tuple(notes)


def _find_files(path: Path, prefix: Path) -> list[Path]:
    """Return the index and every shard.

    Raises:
        CheckpointError: If one is missing.
    """
    index = _index(prefix)
    shards = sorted(
        file
        for file in prefix.parent.iterdir()
        if file.name.startswith(f"{prefix.name}.data")
        and (_SHARD.search(file.name) or _HUB_SHARD.search(file.name))
    )
    regular = [match for file in shards if (match := _SHARD.search(file.name))]
    count = int(regular[0][2]) if regular else 1
    expected = {f"{prefix.name}.data-{i:05d}-of-{count:05d}" for i in range(min(count, 9999))}
    missing = expected - {file.name for file in shards}
    if shards and not regular:
        return [index, shards[0]]
    if missing:
        raise CheckpointError(
            f"{path}: {index.name} needs the shard {min(missing)} (or {prefix.name}.data@1) in "
            "its folder, which is missing. Fetch it into the same folder."
        )
    return [index, *(file for file in shards if file.name in expected)]


def _tensorflow(path: Path) -> Any:
    try:
        return load_tensorflow()
    except MissingExtraError as error:
        raise MissingExtraError(f"{path} is a TensorFlow checkpoint. {error}") from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(
        f"{path}: expected a TensorFlow checkpoint, but it cannot be read ({brief(reason)}). "
        "It is damaged or incomplete; fetch it again."
    )
