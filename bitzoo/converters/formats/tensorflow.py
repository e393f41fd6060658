"""TensorFlow's checkpoints: TF1 and TF2, as a prefix, a SavedModel or a TF-Hub module.

TensorFlow reads the tensors one by one, checking its own checksums; no graph is loaded for that and
nothing in the file can run. Memory is bounded by the two tensors read last.

=========================  =========================================================================
TF1 checkpoint, Hub module  variables bear the names of the npz; optimizer slots are left out
TF2 object graph            `full_name` of a variable, where these are unique and known, else the
                            path of attributes that leads to it
=========================  =========================================================================
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

from bitzoo.converters.formats.keras import clean_name
from bitzoo.converters.key_mapping import slot_of
from bitzoo.converters.parity.serving_graph import GRAPH_NAME
from bitzoo.converters.parity.reference_tensorflow import load_tensorflow
from bitzoo.converters.source import Array, Scratch, Source, StoredTensor, brief
from bitzoo.files import sha256_of
from bitzoo.errors import CheckpointError, MissingExtraError

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$", re.ASCII)
_HUB_SHARD = re.compile(r"\.data@(\d+)$", re.ASCII)
_INDEX_MAGIC = bytes.fromhex("57fb808b247547db")
"""How a checkpoint's index ends; tensorflow/core/lib/io/format.h."""
_STEP = re.compile(
    r"_root|_blocks|_pre_head|_head|_unit_[abc]|_unit_a_conv|_proj|\d|layer_with_weights-\d{1,3}"
    r"|kernel|bias|gamma|beta",
    re.ASCII,
)
"""Attributes that lead to a variable; aliases that Keras adds, such as `layer-1`, are not asked."""
_LEAVINGS = re.compile(
    r"(^|/)_?(optim\w*|momentum\w*|adam\w*|rmsprop\w*|ema|exponentialmovingaverage|\.optimizer_slot"
    r"|keras_api|save_counter|global_step)(/|$)",
    re.IGNORECASE | re.ASCII,
)
_RENUMBERED = re.compile(r"(?<=/standardized_conv2d)_\d+(?=/)", re.ASCII)
_MAX_STEPS = 200_000
"""Bound on the walk through an object graph; the largest network takes 3,000."""
_MAX_DEPTH = 8
_KEPT = 2


def find_prefix(path: Path) -> Path | None:
    """Return the prefix of the checkpoint at `path`, or None if there is none.

    Args:
        path: A prefix, its index or one of its shards; a folder with `saved_model.pb` or
            `tfhub_module.pb` and `variables/`, or with one checkpoint in it.

    Raises:
        CheckpointError: If a folder holds several checkpoints and does not say which is current.
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
        f"{folder}: expected one checkpoint, found {len(prefixes)} ({listed}). Name the one you "
        f"mean: {prefixes[-1]}."
    )


class TensorFlowSource(Source):
    """An open TensorFlow checkpoint.

    Raises:
        MissingExtraError: If TensorFlow is not installed.
        CheckpointError: If the checkpoint is damaged or a shard is missing.
    """

    def __init__(self, path: Path, prefix: Path) -> None:
        """Open a checkpoint.

        Args:
            path: What the user named.
            prefix: What `find_prefix` made of it.
        """
        self.path, self.metadata = path, {}
        self._files = _find_files(path, prefix)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._kept: dict[str, Array] = {}
        self._lock = threading.Lock()
        tensorflow = _tensorflow(path)
        try:
            readable = self._readable(prefix)
            self._reader: Any = tensorflow.train.load_checkpoint(str(readable))
            found, graph = self._list()
            self.names, named = _name(found, graph)
        except CheckpointError:
            self.close()
            raise
        except Exception as error:  # whatever TensorFlow finds wrong with a file
            self.close()
            raise _damaged(path, error) from error
        if (path / GRAPH_NAME).is_file():
            self.graph = (path / GRAPH_NAME, readable)
        left = sorted(name for name in named if _is_leaving(name, named[name], self.names))
        self.tensors = {name: tensor for name, tensor in named.items() if name not in left}
        self.notes = _notes(left, self.names)

    @property
    def size(self) -> int:
        """Bytes of the index and all shards."""
        return sum(file.stat().st_size for file in self._files)

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the index and the shards, one after the other; TensorFlow checks its checksums."""
        return sha256_of(*self._files, advance=advance)

    def close(self) -> None:
        """Release the files."""
        self._reader = None
        self._kept.clear()
        if self._folder:
            self._folder.cleanup()

    def value(self, key: str) -> Array:
        """Return a whole tensor; the last ones read stay in memory."""
        with self._lock:
            if key not in self._kept:
                while len(self._kept) >= _KEPT:
                    del self._kept[next(iter(self._kept))]
                try:
                    self._kept[key] = self._reader.get_tensor(key)
                except Exception as error:  # of TensorFlow, such as a checksum that is wrong
                    raise _damaged(self.path, error) from error
            return self._kept[key]

    def _list(self) -> tuple[dict[str, StoredTensor], bytes]:
        """Return the tensors by key, and the object graph of a TF2 checkpoint."""
        shapes = self._reader.get_variable_to_shape_map()
        dtypes = self._reader.get_variable_to_dtype_map()
        graph: bytes = self._reader.get_tensor(GRAPH_KEY) if GRAPH_KEY in shapes else b""
        return {
            key: _CheckpointTensor(self, key, tuple(shape), dtypes[key].as_numpy_dtype)
            for key, shape in sorted(shapes.items())
            if key != GRAPH_KEY
        }, graph

    def _readable(self, prefix: Path) -> Path:
        """Return a prefix with shard names that TensorFlow reads; the hubs serve another."""
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
        """Return a view of the tensor, which TensorFlow reads in one piece."""
        slab: Array = self._source.value(self._key)[(slice(None),) * axis + (slice(start, stop),)]
        return slab


def _name(found: Mapping[str, StoredTensor], graph: bytes) -> tuple[str, dict[str, StoredTensor]]:
    """Return the scheme that knows most of the tensors, and these under its names."""
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
    """Return the full name and the path of each variable in an object graph, by checkpoint key."""
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


def _is_leaving(name: str, tensor: StoredTensor, scheme: str) -> bool:
    """Whether a tensor is what training keeps beside the network's own."""
    if slot_of(name, scheme):
        return False
    owner = clean_name(name.rpartition("/")[0])
    is_slot = slot_of(owner, scheme) is not None
    says_so = _LEAVINGS.search(name) or _LEAVINGS.search(tensor.name)  # its name or its key
    return is_slot or not tensor.shape or tensor.dtype.kind != "f" or bool(says_so)


def _notes(left: Collection[str], scheme: str) -> tuple[str, ...]:
    notes = []
    if scheme == "tf2":
        notes.append("The variables' names are ambiguous, so their object paths were read.")
    if left:
        shown = ", ".join(map(brief, list(left)[:4])) + (", ..." if len(left) > 4 else "")
        notes.append(f"Left out {len(left)} tensors that belong to training: {shown}.")
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
            f"{path}: {index.name} calls for a shard {min(missing)} (or {prefix.name}.data@1) "
            "beside it, which is not there. Fetch it into the same folder."
        )
    return [index, *(file for file in shards if file.name in expected)]


def _tensorflow(path: Path) -> Any:
    try:
        return load_tensorflow()
    except MissingExtraError as error:
        raise MissingExtraError(f"{path}: a TensorFlow checkpoint. {error}") from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(
        f"{path}: expected a TensorFlow checkpoint, but it cannot be read ({brief(reason)}). "
        "It is damaged or incomplete; fetch it again."
    )
