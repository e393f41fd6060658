"""Conversion: open -> identify -> move blocks -> prove -> give the file its name.

Nothing exists under the output's name until every proof asked for has passed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bitzoo import registry
from bitzoo._version import __version__
from bitzoo.converters.blocks import Block, crew, plan_blocks
from bitzoo.converters.inventory import Inventory, identify
from bitzoo.converters.layouts import as_oihw, copy_blocked, out_axis
from bitzoo.converters.names import LAYOUTS, name_of
from bitzoo.converters.proofs import BitComparison, WeightsProof
from bitzoo.converters.safetensors_file import SafetensorsSource, SafetensorsWriter
from bitzoo.converters.sources import open_source
from bitzoo.converters.tensors import Progress, Source
from bitzoo.errors import CheckpointError, UsageError

_UNKNOWN_SHA256 = "0" * 64
_FINITE_STEP = 1 << 16


@dataclass(frozen=True)
class Conversion:
    """What was read and written.

    Attributes:
        source: The file that was read.
        output: The safetensors file.
        inventory: The network found in it; its tensors are closed.
        model: Catalogue name, if the file is known to be that release.
        sha256: SHA-256 of the source.
        notes: What a user should know, in sentences.
        weights: The proof of weights, if it was asked for.
    """

    source: Path
    output: Path
    inventory: Inventory
    model: str | None
    sha256: str
    notes: tuple[str, ...]
    weights: WeightsProof | None = None


def default_output(source: Path) -> Path:
    """Return the path beside `source` that a conversion writes unless told otherwise."""
    return source.with_suffix(".safetensors")


def convert(
    source: Path,
    output: Path | None = None,
    *,
    compare: bool = False,
    prove: Callable[[Conversion], None] | None = None,
    force: bool = False,
    model: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint to safetensors with timm's names, float32, values untouched.

    Args:
        source: A checkpoint that `open_source` reads.
        output: Where to write; default beside the source.
        compare: Whether to read every block back, map it to the source's axis order, and compare
            the bits; `Conversion.weights` then says what was found.
        prove: Called with the conversion, whose `output` is still a temporary file, before the
            file gets its name. It raises to refuse it.
        force: Whether an existing output may be replaced.
        model: Catalogue name of the release; default: the one the file's name stands for, if its
            architecture agrees.
        progress: Called as bytes are read and written.

    Returns:
        What was converted; `output` is the final path.

    Raises:
        CheckpointError: If the source is damaged, unsafe, or holds NaN or infinity.
        TensorMismatchError: If its tensors make no BiT network.
        UsageError: If the output exists and `force` is False, or there is no room for it.
    """
    output = output or default_output(source)
    with open_source(source) as opened:
        inventory = identify(opened)
        model, notes = _recognise(opened, inventory, model)
        with new_file(output, 4 * inventory.num_params, force=force) as temporary:
            sha256, weights = _move(opened, inventory, model, temporary, compare, progress)
            conversion = Conversion(source, temporary, inventory, model, sha256, notes, weights)
            if prove:
                prove(conversion)
    return replace(conversion, output=output)


@contextmanager
def new_file(path: Path, size: int, *, force: bool) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the body succeeds, and vanishes if not.

    Args:
        path: The final name.
        size: Bytes that will be written; the disk must have them.
        force: Whether an existing file may be replaced.

    Raises:
        UsageError: If `path` may not or cannot be written.
    """
    if path.is_dir() or (path.exists() and not force):
        raise UsageError(f"{path} already exists. Choose another output, or replace it: --force.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise UsageError(
            f"{path}: needs {size:,} bytes, but its disk has {free:,} free. Make room or choose "
            "another output."
        )
    # Process numbers repeat across containers that share a disk, and threads share theirs.
    temporary = path.with_name(f".bitzoo-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def _recognise(
    source: Source, inventory: Inventory, model: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the release that a file is, if name and tensors agree, and notes about it."""
    notes = list(source.notes)
    dtypes = {str(tensor.dtype) for tensor in inventory.tensors.values()} - {"float32"}
    if dtypes:
        notes.append(f"Tensors stored as {', '.join(sorted(dtypes))} are converted to float32.")
    spec = registry.find_spec(model or source.metadata.get("model") or source.path.stem)
    if spec is None:
        return None, tuple(notes)
    found = (inventory.architecture, inventory.num_classes)
    if found != (spec.architecture, spec.num_classes):
        notes.append(
            f"Named like {spec.name} ({spec.arch_name}, {spec.num_classes:,} classes), but its "
            f"tensors are {inventory.title}. The tensors decide."
        )
        return None, tuple(notes)
    return spec.name, tuple(notes)


def _move(
    source: Source,
    inventory: Inventory,
    model: str | None,
    output: Path,
    compare: bool,
    progress: Progress | None,
) -> tuple[str, WeightsProof | None]:
    """Write every tensor to `output`, and meanwhile hash the source and compare the bits.

    Returns:
        The source's SHA-256, and the proof of weights if asked for.
    """
    shapes = inventory.architecture.shapes(inventory.num_classes)
    layout = LAYOUTS[source.names]
    names = {slot: name_of(slot, "timm") for slot in shapes}
    metadata = _metadata(source, inventory, model)
    with ExitStack() as stack:
        writer = SafetensorsWriter(output, {names[slot]: shapes[slot] for slot in shapes}, metadata)
        stack.callback(writer.close)
        comparison = None
        if compare:
            written = stack.enter_context(SafetensorsSource(output))
            comparison = BitComparison(source, inventory, written, identify(written))

        def move(block: Block) -> None:
            axis = out_axis(layout, len(block.tensor.shape))
            slab = block.tensor.read_slab(axis, block.start, block.stop, team.scratch("stored"))
            stored = as_oihw(slab, layout)
            values = team.scratch("values").array(stored.shape, np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
                copy_blocked(stored, values)
            _check_finite(source, block, values)
            writer.write(names[block.slot], block.start, values)
            if comparison:
                comparison.compare(block, slab, team)
            team.advance(values.nbytes)

        with crew("convert", source.size + 4 * inventory.num_params, progress) as team:
            digest = team.hash(source)
            team.each(move, plan_blocks(inventory.tensors, shapes))
            sha256 = digest.result()
        writer.finish({"source_sha256": sha256})
    return sha256, comparison.outcome() if comparison else None


def _metadata(source: Source, inventory: Inventory, model: str | None) -> dict[str, str]:
    return {
        "format": "pt",
        "architecture": inventory.architecture.name,
        "num_classes": str(inventory.num_classes),
        "source": source.path.name,
        "source_sha256": _UNKNOWN_SHA256,
        "bitzoo_version": __version__,
    } | ({"model": model} if model else {})


def _check_finite(
    source: Source, block: Block, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _FINITE_STEP):
        if not np.isfinite(flat[start : start + _FINITE_STEP]).all():
            raise CheckpointError(
                f"{source.path}: tensor {block.tensor.name!r} holds NaN or infinite numbers (or "
                "numbers too large for float32); expected finite ones. The file is damaged, or "
                "its training diverged."
            )
