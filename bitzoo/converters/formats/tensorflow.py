"""Read TensorFlow checkpoints, TF1 and TF2: a prefix, a SavedModel or a TF-Hub module.

TensorFlow is not needed: its bundle of tensors is read as it lies on disk, in slabs. No graph is
loaded, so nothing in the file can run. Tensor names:

==========================  ========================================================================
TF1 checkpoint, Hub module  the names of the npz; optimizer slots are skipped
TF2 object graph            a variable's `full_name` if these are unique and known, else its path of
                            attributes
==========================  ========================================================================
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bitzoo.converters.averages import choose_average
from bitzoo.converters.formats.keras import clean_name
from bitzoo.converters.formats.object_graph import GRAPH_KEY, read_names
from bitzoo.converters.formats.sorted_table import MAGIC
from bitzoo.converters.formats.tensor_bundle import TensorBundle
from bitzoo.converters.key_mapping import slot_of
from bitzoo.converters.parity.serving_graph import GRAPH_NAME
from bitzoo.converters.source import Source, StoredTensor, brief
from bitzoo.errors import CheckpointError
from bitzoo.files import temporary_folder

_SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$", re.ASCII)
_HUB_SHARD = re.compile(r"\.data@(\d+)$", re.ASCII)
_TRAINING_STATE = re.compile(
    r"(^|/)_?(optim\w*|momentum\w*|adam\w*|rmsprop\w*|ema|exponentialmovingaverage|\.optimizer_slot"
    r"|keras_api|save_counter|global_step)(/|$)",
    re.IGNORECASE | re.ASCII,
)
_RENUMBERED = re.compile(r"(?<=/standardized_conv2d)_\d+(?=/)", re.ASCII)
_STATE_BYTES = 1 << 16
"""Bytes of a folder's note on its checkpoints that are read: the current one stands first."""


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
        file.seek(-min(len(MAGIC), path.stat().st_size), os.SEEK_END)
        return file.read(len(MAGIC)) == MAGIC


def _only_prefix(folder: Path) -> Path | None:
    prefixes = sorted(index.with_suffix("") for index in folder.glob("*.index"))
    if len(prefixes) < 2:
        return prefixes[0] if prefixes else None
    state = folder / "checkpoint"
    text = _start_of(state).decode(errors="replace") if state.is_file() else ""
    current = re.search(r'^model_checkpoint_path: "(.*)"$', text, re.MULTILINE)
    chosen = folder / Path(current[1]).name if current else None
    if chosen in prefixes:
        return chosen
    listed = ", ".join(prefix.name for prefix in prefixes[:5])
    raise CheckpointError(
        f"{folder}: expected one checkpoint, found {len(prefixes)} ({listed}). Give the path of "
        f"one, such as {prefixes[-1]}."
    )


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_STATE_BYTES)


class TensorFlowSource(Source):
    """An open TensorFlow checkpoint.

    Raises:
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
        self._held = ExitStack()
        with _damage_reported(path):
            index = _index(prefix)
            self._bundle = TensorBundle(index, lambda count: _find_shards(path, prefix, count))
        try:
            with _damage_reported(path):
                full, paths = read_names(self._bundle.text(GRAPH_KEY))
            found = {key: t for key, t in self._bundle.tensors.items() if key != GRAPH_KEY}
            found, self.taken, chosen = choose_average(found, weights, file=path)
            self.names, named = _named(found, full, paths)
            _check_numbers(path, named, self.names)
        except BaseException:
            self.close()
            raise
        if (path / GRAPH_NAME).is_file():
            self.graph = (path / GRAPH_NAME, self._readable(prefix))
        skipped = sorted(
            name for name in named if _is_training_state(name, named[name], self.names)
        )
        self.tensors = {name: tensor for name, tensor in named.items() if name not in skipped}
        self.notes = (*chosen, *_notes(skipped, self.names))

    @property
    def size(self) -> int:
        """Bytes of the index and all shards."""
        return self._bundle.size

    def sha256(self, advance: Callable[[int], None] | None = None) -> str:
        """Hash the index and the shards in order, and check every tensor's CRC-32C."""
        with _damage_reported(self.path):
            return self._bundle.sha256(advance)

    def close(self) -> None:
        """Close the files."""
        self._bundle.close()
        self._held.close()

    def _readable(self, prefix: Path) -> Path:
        """Return a prefix whose shard names TensorFlow can read; the hubs' names differ."""
        index, *shards = (file.path for file in self._bundle.files)
        if not _HUB_SHARD.search(shards[0].name):
            return prefix
        readable = self._held.enter_context(temporary_folder()) / "variables"
        _index(readable).symlink_to(index.resolve())
        _shard(readable, 0, 1).symlink_to(shards[0].resolve())
        return readable


def _named(
    found: Mapping[str, StoredTensor], full: Mapping[str, str], paths: Mapping[str, str]
) -> tuple[str, dict[str, StoredTensor]]:
    """Return the naming scheme that fits most tensors, and the tensors under its names.

    Args:
        found: The tensors by key.
        full: Full names of variables by key; empty for TensorFlow 1.
        paths: Paths of attributes by key; empty for TensorFlow 1.
    """
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


def _check_numbers(path: Path, named: Mapping[str, StoredTensor], scheme: str) -> None:
    for name, tensor in named.items():
        if slot_of(name, scheme) and tensor.dtype.kind != "f":
            raise CheckpointError(
                f"{path}: tensor {name!r} holds {tensor.stored_dtype}, expected float32 (float16, "
                "bfloat16 and float64 are converted). Save the network's own numbers, not "
                "quantized ones."
            )


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


def _find_shards(path: Path, prefix: Path, count: int) -> list[Path]:
    """Return the shards in order.

    Raises:
        CheckpointError: If one is missing.
    """
    shards = [_shard(prefix, number, count) for number in range(count)]
    missing = next((shard for shard in shards if not shard.is_file()), None)
    if missing is None:
        return shards
    served = [
        file
        for file in prefix.parent.iterdir()
        if _HUB_SHARD.sub("", file.name) == prefix.name != file.name and file.is_file()
    ]
    if count == 1 and served:
        return [min(served)]
    raise CheckpointError(
        f"{path}: {prefix.name}.index needs the shard {missing.name} (or {prefix.name}.data@1) in "
        "its folder, which is missing. Fetch it into the same folder."
    )


def _shard(prefix: Path, number: int, count: int) -> Path:
    return prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{count:05d}")


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:  # bytes that are no checkpoint
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: expected a TensorFlow checkpoint, but it cannot be read ({brief(reason)}). "
            "It is damaged or incomplete; fetch it again."
        ) from error
