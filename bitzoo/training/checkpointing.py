"""Training checkpoints that survive a power cut: written atomically and checked when read.

A checkpoint is one safetensors file, ``step-00000120.safetensors``: float32 tensors, and in the
header the step, the caller's JSON and a SHA-256 over all of it. It is written under another name,
synced to the disk and only then renamed, and only after that are older ones removed. So at every
moment the folder holds the newest checkpoint that was ever reported as saved, and any other file
there is recognized as damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitzoo.converters.formats.safetensors import SafetensorsWriter
from bitzoo.errors import (
    BitzooError,
    CheckpointError,
    UsageError,
    damage_reported,
    reason_of,
)
from bitzoo.files import replaced

FILES = "step-[0-9]*.safetensors"
"""Pattern of the names of all checkpoints."""

_NAME = re.compile(r"step-(\d{8,18})\.safetensors")
_ASIDE = "other-run-{}"
_NO_HASH = "0" * 64
_log = logging.getLogger(__name__)


class SaveError(BitzooError, OSError):
    """A checkpoint could not be written: the disk is full, read-only or gone."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete, checked checkpoint.

    Attributes:
        step: Number of updates made.
        state: float32 tensors by name; memory-mapped, so copy them before writing to them.
        meta: The metadata that the caller stored with them.
        path: The file.
    """

    step: int
    state: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


def save_checkpoint(
    folder: Path,
    step: int,
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    keep: int = 2,
    spare: Collection[int] = (),
) -> Path:
    """Write a checkpoint and, once it is safely on the disk, remove old ones.

    The new checkpoint, the newest `keep` - 1 before it, and those of `spare` remain. Checkpoints
    of later steps are removed too: training went back before them, so they were damaged or belong
    to an abandoned continuation of the run.

    Args:
        folder: Created if missing. Only one process at a time may write to it.
        step: Updates made so far, at least 0.
        state: float32 tensors on any device, in any memory format.
        meta: JSON-serializable metadata.
        keep: How many to keep, at least 1; with 2, a run survives damage to the newest.
        spare: Steps whose checkpoints remain in any case, unless they are later than this one.

    Returns:
        The file.

    Raises:
        SaveError: If it cannot be written, as on a full disk. Earlier checkpoints stay.
        UsageError: If `keep` is below 1 or a tensor is not float32.
    """
    if keep < 1:
        raise UsageError(f"`keep` must be at least 1 checkpoint, found {keep!r}. 2 is usual.")
    path = checkpoint_path(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(path, durable=True) as unfinished:
            _write(unfinished, step, state, meta)
    except OSError as error:
        raise SaveError(_save_failure(folder, path, error)) from error
    _rotate(folder, step, keep, spare)
    return path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the file of the checkpoint after `step` updates, whether it exists or not."""
    return folder / f"step-{step:08d}.safetensors"


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest undamaged checkpoint in `folder`, or None if there is none.

    Every file is read completely and checked against its SHA-256. A damaged file stays in place,
    and a logged warning says what is wrong with it.
    """
    files = _files(folder)
    for step in sorted(files, reverse=True):
        try:
            return read_checkpoint(files[step])
        except CheckpointError as error:
            _log.warning("%s Going back to the checkpoint before it.", error)
    if files:
        _log.warning("%s has no undamaged checkpoint: the run cannot be resumed.", folder)
    return None


def newest_loop(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the step of the newest checkpoint and what its trainer recorded, unchecked.

    For statements in advance: nothing but the header is read, so a damaged file may be named.

    Returns:
        The number of updates made and `Trainer.facts`; (0, {}) if there is no readable one.
    """
    files = _files(folder)
    for step in sorted(files, reverse=True):
        with contextlib.suppress(Exception):  # damaged in any way
            with safe_open(files[step], framework="pt") as file:
                record = json.loads(file.metadata()["bitzoo_checkpoint"])
            return step, dict(record["meta"]["loop"])
    return 0, {}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a file written by `save_checkpoint`.

    Raises:
        CheckpointError: If it is missing, damaged, or not such a file.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise ValueError("it is no regular file")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in sorted(file.keys())}
        with damage_reported("its header", "a step and its metadata", ""):
            # Not `parse_json`: a trainer's metadata may have infinity, which JSON does not.
            record = json.loads(metadata["bitzoo_checkpoint"])
            step, meta, stored = record["step"], dict(record["meta"]), metadata["sha256"]
            if type(step) is not int or step < 0:
                raise TypeError(f"the step is {step!r:.80}")
            if (named := _NAME.fullmatch(path.name)) and int(named[1]) != step:
                raise ValueError(f"it is of step {step!r:.80}, which its name does not say")
        for name, tensor in state.items():
            if tensor.dtype != torch.float32:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"tensor {name!r:.80} is {kind}, where a run writes float32")
    except (OSError, SafetensorError, ValueError) as error:  # CheckpointError is a ValueError
        raise CheckpointError(
            f"{path} cannot be read as a training checkpoint ({reason_of(error)}): it is damaged "
            "or another kind of file."
        ) from error
    found = _sha256(metadata["bitzoo_checkpoint"], state)
    if found != stored:
        raise CheckpointError(
            f"{path} is damaged: expected content with SHA-256 {stored[:16]}..., found "
            f"{found[:16]}...."
        )
    return Checkpoint(step, state, meta, path)


def set_aside(folder: Path, is_ours: Callable[[Mapping[str, Any]], bool]) -> list[Path]:
    """Rename the checkpoints of other runs, so that none is read, removed or taken for the newest.

    Args:
        folder: The checkpoints' folder; it may be missing.
        is_ours: Called with the metadata that `save_checkpoint` stored. Files that cannot be read
            are left to `latest_checkpoint`.

    Returns:
        The renamed files, under their new names.

    Raises:
        OSError: If one cannot be renamed.
    """
    moved = []
    for path in _files(folder).values():
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()["bitzoo_checkpoint"])["meta"]
            ours = is_ours(meta)
        except Exception:  # damaged in any way
            continue
        if not ours:
            aside = path.with_name(_ASIDE.format(path.name))
            os.replace(path, aside)
            moved.append(aside)
    return sorted(moved)


def _files(folder: Path) -> dict[int, Path]:
    """Return step -> file of every checkpoint, damaged or not."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {
        int(match[1]): path
        for path in paths
        if (match := _NAME.fullmatch(path.name)) and path.is_file()  # opening a pipe would wait
    }


def _write(path: Path, step: int, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise UsageError(
                f"Tensor {name!r} of a checkpoint must be float32, found {tensor.dtype}. Convert "
                "it, or store it in the metadata."
            )
    record = json.dumps({"step": step, "meta": meta}, sort_keys=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    header = {"bitzoo_checkpoint": record, "format": "pt", "sha256": _NO_HASH}
    digest = _start_hash(record, state)
    writer = SafetensorsWriter(path, shapes, header)
    try:
        for name, array in _arrays(state):
            writer.write(name, 0, array)
            digest.update(array.data)
        writer.finish({"sha256": digest.hexdigest()})
    finally:
        writer.close()


def _rotate(folder: Path, step: int, keep: int, spare: Collection[int]) -> None:
    files = _files(folder)
    usable = sorted((found for found in files if found <= step), reverse=True)
    kept = {*usable[:keep], *(set(usable) & set(spare))}
    for found in sorted(set(files) - kept):
        try:
            files[found].unlink(missing_ok=True)
        except OSError as error:
            _log.warning("Cannot delete the old checkpoint %s: %s", files[found], error.strerror)


def _arrays(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    for name in sorted(state):  # one at a time, because each is a copy of a GPU's tensor
        yield name, state[name].detach().cpu().contiguous().numpy()


def _start_hash(record: str, state: Mapping[str, Tensor]) -> Any:
    shapes = [[name, list(state[name].shape)] for name in sorted(state)]
    return hashlib.sha256(json.dumps([record, shapes]).encode())


def _sha256(record: str, state: Mapping[str, Tensor]) -> str:
    digest = _start_hash(record, state)
    for _, array in _arrays(state):
        digest.update(array.data)
    return str(digest.hexdigest())


def _save_failure(folder: Path, path: Path, error: OSError) -> str:
    earlier = [found for _, found in sorted(_files(folder).items()) if found != path]
    stays = (
        f"The last good checkpoint stays: {earlier[-1]}."
        if earlier
        else "There is no earlier checkpoint."
    )
    return (
        f"Checkpoint {path.name} cannot be written to {folder}: {error.strerror or error}. "
        f"{stays} Free some space or repair the disk, then resume the run."
    )
