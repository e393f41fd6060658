"""Conversion: open -> identify -> move blocks -> prove -> give the file its name.

One mechanism serves every pair of formats: a block is read in the source's axis order, viewed in
the network's, copied into the output's, and written to its place. Nothing exists under the
output's name until every requested proof has passed. The model's record is written along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bitzoo._version import __version__
from bitzoo.catalogue.model_info import Identity, ModelInfo, Provenance, format_distance
from bitzoo.converters.dtypes import (
    RoundingError,
    describe_changes,
    holds,
    list_dtypes,
    round_to,
    widen,
)
from bitzoo.converters.formats.checkpoint_formats import (
    Target,
    choose_format,
    find_format,
)
from bitzoo.converters.formats.hf_config import render_hf_config, render_processor
from bitzoo.converters.formats.hf_folder import find_weights
from bitzoo.converters.formats.safetensors import SafetensorsSource
from bitzoo.converters.formats.timm_config import CONFIG_NAME, RECORD_KEY
from bitzoo.converters.identify import Inventory, identify
from bitzoo.converters.key_mapping import layout_of, name_of, scatters
from bitzoo.converters.layouts import as_oihw, copy_blocked, out_axis, stored_shape
from bitzoo.converters.model_record import read_info
from bitzoo.converters.open import open_source, opened
from bitzoo.converters.parity.weights import BitComparison, WeightsProof, prove_weights
from bitzoo.converters.source import EPS_EXACT_SCALE, KERNEL_SCALE, Array, Source
from bitzoo.converters.streaming import Block, Slabs, WorkerPool, plan_blocks, worker_pool
from bitzoo.converters.writer import Writer
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.files import Naming, Progress, new_output, write_json
from bitzoo.models.architecture import Slot

LOGITS_DEVIATION = "logits_relative_l2"
_WEIGHTS_DEVIATION = "weights_relative_l2"
_UNKNOWN_SHA256 = "0" * 64
_ENDINGS = (".gz", ".tgz", ".tar", ".index")
"""Endings that are removed from a source's name, besides its suffix."""
_FINITE_STEP = 1 << 18
"""Numbers checked at a time, so that the second of two passes finds them in the processor cache."""


@dataclass(frozen=True)
class Conversion:
    """What was read and written.

    Attributes:
        source: The file that was read.
        output: The file or folder.
        inventory: The network found in it; its tensors are closed.
        info: What is known about the model.
        sha256: SHA-256 of the source.
        notes: What a user should know, as sentences.
        weights: The proof of weights, if requested.
        rounded: Whether numbers were rounded, because the output's dtype lacks them.
    """

    source: Path
    output: Path
    inventory: Inventory
    info: ModelInfo
    sha256: str
    notes: tuple[str, ...]
    weights: WeightsProof | None = None
    rounded: bool = False

    @property
    def model(self) -> str | None:
        """Catalogue name of the release that the file is, as far as is known."""
        return self.info.identity.name


Prove = Callable[[Source, Conversion], None]
"""Called with the open source and the conversion, whose `output` is still a temporary file, before
the file gets its name. It raises to reject the output."""


def default_output(source: Path, to: str = "safetensors") -> Path:
    """Return the path next to `source` that a conversion writes by default."""
    place = source
    while place.suffix.lower() in _ENDINGS:
        place = place.with_suffix("")
    name = place.name.removesuffix(place.suffix)
    return source.with_name(name + find_format(to).ending)


def convert(
    source: Path | Source,
    output: Path | None = None,
    target: Target | None = None,
    *,
    identity: Identity | None = None,
    compare: bool = False,
    prove: Prove | None = None,
    naming: Naming = nullcontext,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint to another format; values do not change unless `target` says so.

    Args:
        source: A checkpoint that `open_source` reads, or an open one.
        output: Where to write; default next to the source.
        target: What to write; default the format of the output's ending, else bitzoo's own
            safetensors.
        identity: Which release the source is, if the caller knows it from the bytes; None leaves
            it to what the file says about itself.
        compare: Whether to read every block back, map it to the source's axis order, and compare
            the bits; `Conversion.weights` has the result.
        prove: See `Prove`.
        naming: See `bitzoo.files.Naming`.
        force: Whether an existing output may be replaced.
        progress: Called with the progress in bytes read and written.

    Returns:
        What was converted; `output` is the final path.

    Raises:
        CheckpointError: If the source is damaged or unsafe, or contains NaN or infinity.
        TensorMismatchError: If its tensors do not form a BiT network.
        UsageError: If the output exists and `force` is False, or there is no disk space for it; if
            `target` is float64 and the source is not, or contradicts the output's ending, or is a
            format that has no place for the network.
    """
    to = choose_format(output, target.to if target else None)
    target = target or Target(to)
    with opened(source) as original:
        output = output or default_output(original.path, target.to)
        original.require_unscaled()
        inventory = identify(original)
        target.format.require_place_for(inventory.architecture)
        _require_wide(original, inventory, target)
        info, notes = _what_is_known(original, inventory, target, identity)
        room = target.itemsize * inventory.num_params * target.format.copies
        contents = target.format.contents or None
        with new_output(
            output, room, option="dst", force=force, contents=contents, naming=naming
        ) as temporary:
            job = _Job(original, inventory, temporary, target, info, compare, progress)
            sha256, info, weights = job.run()
            rounded = bool(_rounded(inventory, target))
            conversion = Conversion(
                original.path, temporary, inventory, info, sha256, notes, weights, rounded
            )
            if prove:
                prove(original, conversion)
    return replace(conversion, output=output)


def record_logits_distance(conversion: Conversion, target: Target, moved: float) -> Path:
    """Write into the record of an output, if its format has one, how far rounding moved its logits.

    Returns:
        The file that has the weights.
    """
    weights = find_weights(conversion.output) or conversion.output
    made = conversion.info.provenance
    assert made is not None
    info = replace(conversion.info, provenance=replace(made, logits_relative_l2=moved))
    if target.format.rewrite:
        target.format.rewrite(
            weights, {LOGITS_DEVIATION: format_distance(moved), RECORD_KEY: info.to_json()}
        )
    if target.format.weights:
        write_json(conversion.output / CONFIG_NAME, render_hf_config(info, target.dtype))
    return weights


def _rounded(inventory: Inventory, target: Target) -> set[str]:
    """Return the dtypes in the source that lose digits in the output."""
    found = {tensor.stored_dtype for tensor in inventory.tensors.values()}
    return {dtype for dtype in found if not holds(target.dtype, dtype)}


def _require_wide(source: Source, inventory: Inventory, target: Target) -> None:
    found = {tensor.stored_dtype for tensor in inventory.tensors.values()}
    if target.dtype == "float64" and "float64" not in found:
        raise UsageError(
            f'`dtype="float64"` keeps the numbers of a float64 source, but {source.path} is stored '
            f"as {list_dtypes(found)}: float32 holds all of them, and float64 would only double "
            "the file. Leave `dtype` out."
        )


def _what_is_known(
    source: Source, inventory: Inventory, target: Target, identity: Identity | None
) -> tuple[ModelInfo, tuple[str, ...]]:
    """Return the record for the output, and notes for the user."""
    notes = list(source.notes)
    keep = "; the dtype float64 would keep them" if target.dtype == "float32" else ""
    notes += describe_changes(inventory.tensors.values(), target.dtype, keep)
    info, more_notes = read_info(source, inventory, identity)
    notes += more_notes
    if target.format.weights and info.preprocessing is None:
        notes.append(
            "How images are prepared is not known: preprocessor_config.json has the preprocessing "
            "of BiT's pre-training, and the record in config.json says that nothing is known."
        )
    room = target.format.record_bytes
    if room == 0 and (info.own_names or info.run or "license" in info.sources):
        notes.append(
            f"A file of format {target.to} has no place for class names, licence, preprocessing "
            "and the like: what is known about the model is left out, except in parity.json."
        )
    elif room and info.own_names and len(info.to_json()) > room:
        info = replace(info, own_names=None)
        notes.append(
            f"The class names are too long for a file of format {target.to} and are left out."
        )
    return info, tuple(notes)


@dataclass(frozen=True)
class _Job:
    """One planned conversion: everything needed to write the output."""

    source: Source
    inventory: Inventory
    output: Path
    target: Target
    info: ModelInfo
    compare: bool
    progress: Progress | None

    def run(self) -> tuple[str, ModelInfo, WeightsProof | None]:
        """Write every tensor, and hash the source and compare the bits at the same time.

        Returns:
            The source's SHA-256, the record as written, and the proof of weights if requested.
        """
        source, inventory, target = self.source, self.inventory, self.target
        shapes = inventory.architecture.shapes(inventory.num_classes)
        names = {slot: name_of(slot, target.format.names) for slot in shapes}
        weights_file = target.weights_in(self.output)
        rounding = RoundingError() if _rounded(inventory, target) else None
        with ExitStack() as stack:
            writer = target.format.create(
                weights_file,
                target.format.places(shapes),
                self._metadata(self._record(_UNKNOWN_SHA256)),
                target.dtype,
            )
            stack.callback(writer.close)
            comparison = None
            if self.compare and target.format.reads_while_written:
                written = stack.enter_context(SafetensorsSource(weights_file, own=True))
                comparison = BitComparison(source, inventory, written, identify(written))
            total = source.size + target.itemsize * inventory.num_params
            with worker_pool("convert", total, self.progress) as pool:
                mover = Mover(source, target, names, writer, pool, rounding, comparison)
                digest = pool.hash(source)
                held = 2 if scatters(target.format.names) else 1
                held += held == 2 and rounding is not None  # the numbers before and after
                pool.each(mover.move, plan_blocks(inventory.tensors, shapes, held))
                sha256 = digest.result()
            info = self._record(sha256, rounding.relative_l2 if rounding else None)
            known = {"source_sha256": sha256, RECORD_KEY: info.to_json()}
            if rounding:
                known[_WEIGHTS_DEVIATION] = format_distance(rounding.relative_l2)
            writer.finish(known)
        if target.format.weights:
            write_json(self.output / CONFIG_NAME, render_hf_config(info, target.dtype))
            write_json(self.output / "preprocessor_config.json", render_processor(info))
        return sha256, info, self._proof(comparison)

    def _proof(self, comparison: BitComparison | None) -> WeightsProof | None:
        if comparison:
            return comparison.outcome()
        if not self.compare:
            return None
        with open_source(self.output) as written:
            return prove_weights(
                self.source, self.inventory, written, identify(written), self.progress
            )

    def _record(self, sha256: str, moved: float | None = None) -> ModelInfo:
        """Return the record for the output; its length does not depend on the SHA-256."""
        target, rounded = self.target, _rounded(self.inventory, self.target)
        made = self.info.provenance or Provenance(
            self.source.path.name, sha256, weights=self.source.taken
        )
        if rounded:
            earlier = made.rounded_from and f"{made.rounded_from} to {made.dtype}"
            made = replace(made, rounded_from=earlier or list_dtypes(rounded))
        if rounded or target.dtype == "float64":
            made = replace(made, dtype=target.dtype)
        if rounded or target.eps_exact:
            made = replace(
                made,
                kernel_scale=EPS_EXACT_SCALE if target.eps_exact else 1,
                weights_relative_l2=moved,
                logits_relative_l2=None,
            )
        return replace(self.info, provenance=made)

    def _metadata(self, info: ModelInfo) -> dict[str, str]:
        """Return the output's header; values that are not known yet have their final length."""
        target, name = self.target, info.identity.name
        metadata = {
            "format": "pt",
            "architecture": info.architecture,
            "num_classes": str(info.num_classes),
            "source": self.source.path.name,
            "source_sha256": _UNKNOWN_SHA256,
            "bitzoo_version": __version__,
        } | ({"model": name} if name else {})
        if target.eps_exact:
            metadata[KERNEL_SCALE] = str(EPS_EXACT_SCALE)
            metadata["kernel_scale_reason"] = (
                f"with kernels x{EPS_EXACT_SCALE} the eps 1e-8 of {target.format.readers} gives "
                "the released function (eps 1e-10); for inference only, fine-tuning would be "
                "100 x slower"
            )
        rounded = _rounded(self.inventory, target)
        if rounded or target.dtype != "float32":
            metadata["dtype"] = target.dtype
        if rounded:
            metadata["rounded_from"] = list_dtypes(rounded)
            metadata[_WEIGHTS_DEVIATION] = metadata[LOGITS_DEVIATION] = format_distance(None)
        return metadata | {RECORD_KEY: info.to_json()}


@dataclass(frozen=True)
class Mover:
    """Converts blocks, from any thread: read, transpose, check, round, write, compare.

    A large block is read as a whole if the file scatters it. It is then processed in pieces, so
    that each piece stays in the processor's cache from step to step.

    Attributes:
        source: The original, open.
        target: What to write.
        names: The output's name of each tensor.
        writer: The output, open.
        pool: Provides scratch memory, and receives the progress.
        rounding: Accumulates how far rounding moves the numbers, if any are rounded.
        comparison: Compares each piece after it is written, if requested.
    """

    source: Source
    target: Target
    names: Mapping[Slot, str]
    writer: Writer
    pool: WorkerPool
    rounding: RoundingError | None = None
    comparison: BitComparison | None = None

    def move(self, block: Block) -> None:
        """Convert a block.

        Raises:
            CheckpointError: If it cannot be read, or contains NaN or infinity.
        """
        layout = layout_of(block.slot.role, self.source.names)
        axis = out_axis(layout, len(block.tensor.shape))
        slabs = Slabs(block, block.tensor, axis, self.pool.scratch("stored"))
        written = self.comparison.slabs(block, self.pool) if self.comparison else None
        for piece in self._pieces(block):
            slab = slabs.of(piece)
            values = _transposed(piece, as_oihw(slab, layout), self.pool, self.target)
            self._write(piece, values)
            if self.comparison and written:
                self.comparison.compare(piece, slab, written.of(piece), self.pool)
            self.pool.advance(values.size * self.target.itemsize)

    def _pieces(self, block: Block) -> Iterable[Block]:
        """Cut a block, unless the output scatters it: then each piece would touch every row."""
        return [block] if scatters(self.target.format.names) else block.pieces()

    def _write(self, piece: Block, values: Array) -> None:
        dtype = self.target.dtype
        _check_finite(self.source, piece, values)
        rounded = round_to(values, dtype)
        if self.rounding:
            widened = widen(rounded, dtype)
            _check_finite(self.source, piece, widened, dtype)
            self.rounding.add(values, widened)
        self.writer.write(self.names[piece.slot], piece.start, rounded)


def _transposed(piece: Block, stored: Array, pool: WorkerPool, target: Target) -> Array:
    """Return a piece's numbers in the output's axis order, scaled with `eps_exact`, not rounded.

    They are float64 if float32 would round them, so that they are rounded once, by the writer.
    """
    layout = layout_of(piece.slot.role, target.format.names)
    scaled = target.eps_exact and piece.slot.role.is_standardized
    halved = target.itemsize < np.dtype(np.float32).itemsize
    wide = "float64" in (stored.dtype.name, target.dtype) or (scaled and halved)
    shape, dtype = stored_shape(stored.shape, layout), np.float64 if wide else np.float32
    values = pool.scratch("values").array(shape, dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are rejected afterwards
        copy_blocked(stored, as_oihw(values, layout))
        if scaled:
            values *= dtype(EPS_EXACT_SCALE)
    return values


def _check_finite(source: Source, piece: Block, values: Array, dtype: str = "float32") -> None:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _FINITE_STEP):
        part = flat[start : start + _FINITE_STEP]
        extremes = np.maximum.reduce(part), np.minimum.reduce(part)  # either is NaN if any is
        if not np.isfinite(extremes).all():
            raise CheckpointError(
                f"{source.path}: expected finite numbers, but tensor {piece.tensor.name!r} holds "
                f"NaN or infinite numbers (or numbers too large for {dtype}). The file is "
                "damaged, or its training diverged."
            )
