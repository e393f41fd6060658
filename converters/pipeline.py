"""Conversion: open -> identify -> move blocks -> prove -> give the file its name.

One mechanism for every pair of formats: a block is read in the source's order of axes, viewed in
the network's, copied into the output's, and written where it belongs. Nothing exists under the
output's name until every proof asked for has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bitzoo import registry
from bitzoo._version import __version__
from bitzoo.converters.blocks import Block, crew, plan_blocks
from bitzoo.converters.formats import Format, check_numbers, find_format
from bitzoo.converters.inventory import Inventory, identify
from bitzoo.converters.layouts import as_oihw, copy_blocked, out_axis, stored_shape
from bitzoo.converters.names import layout_of, name_of
from bitzoo.converters.outputs import new_file
from bitzoo.converters.precision import Deviation, round_to, widen
from bitzoo.converters.safetensors_file import SafetensorsSource
from bitzoo.converters.sources import open_source
from bitzoo.converters.tensors import (
    EPS_EXACT_SCALE,
    KERNEL_SCALE,
    Array,
    Progress,
    Scratch,
    Source,
)
from bitzoo.converters.transformers_folder import write_companions
from bitzoo.converters.weights_proof import BitComparison, WeightsProof, prove_weights
from bitzoo.errors import CheckpointError
from bitzoo.registry import ModelSpec

UNMEASURED = "unmeasured"
"""Stands for a deviation until it is known; as long as one is."""
LOGITS_DEVIATION = "logits_relative_l2"
_WEIGHTS_DEVIATION = "weights_relative_l2"
_UNKNOWN_SHA256 = "0" * 64
_FINITE_STEP = 1 << 16
_ENDINGS = (".gz", ".tgz", ".tar", ".index")
"""What comes off a source's name besides its suffix."""

Labels = Callable[[ModelSpec], Sequence[str] | None]


@dataclass(frozen=True)
class Target:
    """What to write.

    Attributes:
        format: Which format.
        number_format: float32, or what the numbers are rounded to.
        eps_exact: Whether standardized kernels are multiplied by `EPS_EXACT_SCALE`, with which the
            eps of timm and transformers computes the released function.
        labels: Class names of a release, for formats that state them.
    """

    format: Format
    number_format: str = "float32"
    eps_exact: bool = False
    labels: Labels | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the output holds the very numbers of the source."""
        return self.number_format == "float32" and not self.eps_exact

    def weights_in(self, path: Path) -> Path:
        """Return the file that has the weights of the output at `path`."""
        return path / self.format.weights if self.format.weights else path


@dataclass(frozen=True)
class Conversion:
    """What was read and written.

    Attributes:
        source: The file that was read.
        output: The file or folder.
        inventory: The network found in it; its tensors are closed.
        model: Catalogue name, if the file is known to be that release.
        sha256: SHA-256 of the source.
        notes: What a user should know, in sentences.
        weights: The proof of weights, if it was asked for.
        exact: Whether the output holds the very numbers of the source.
    """

    source: Path
    output: Path
    inventory: Inventory
    model: str | None
    sha256: str
    notes: tuple[str, ...]
    weights: WeightsProof | None = None
    exact: bool = True


def default_output(source: Path, to: str = "safetensors") -> Path:
    """Return the path beside `source` that a conversion writes unless told otherwise."""
    place = source
    while place.suffix.lower() in _ENDINGS:
        place = place.with_suffix("")
    name = place.name.removesuffix(place.suffix)
    return source.with_name(name + find_format(to).ending)


def convert(
    source: Path,
    output: Path | None = None,
    *,
    to: str = "safetensors",
    number_format: str = "float32",
    eps_exact: bool = False,
    compare: bool = False,
    prove: Callable[[Conversion], None] | None = None,
    force: bool = False,
    model: str | None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint to another format, values untouched unless asked otherwise.

    Args:
        source: A checkpoint that `open_source` reads.
        output: Where to write; default beside the source.
        to: A name in `FORMATS`; ``safetensors`` is bitzoo's own form, with timm's names.
        number_format: ``float16`` or ``bfloat16`` to round the numbers; the file says so.
        eps_exact: For timm and transformers, whose eps differs from the release's: multiply the
            standardized kernels so that they compute the released function. For inference only.
        compare: Whether to read every block back, map it to the source's axis order, and compare
            the bits; `Conversion.weights` then says what was found.
        prove: Called with the conversion, whose `output` is still a temporary file, before the
            file gets its name. It raises to refuse it.
        force: Whether an existing output may be replaced.
        model: Catalogue name of the release; default: the one the file's name stands for, if its
            architecture agrees.
        labels: Class names of a release, for formats that state them.
        progress: Called as bytes are read and written.

    Returns:
        What was converted; `output` is the final path.

    Raises:
        CheckpointError: If the source is damaged, unsafe, or holds NaN or infinity.
        TensorMismatchError: If its tensors make no BiT network.
        UsageError: If the output exists and `force` is False, there is no room for it, or the
            options do not fit the format.
    """
    target = Target(find_format(to), number_format, eps_exact, labels)
    check_numbers(target.format, number_format, eps_exact=eps_exact)
    output = output or default_output(source, to)
    with open_source(source) as opened:
        opened.require_unscaled()
        inventory = identify(opened)
        model, notes = _recognise(opened, inventory, model)
        folder = bool(target.format.weights)
        room = 4 * inventory.num_params * target.format.copies
        with new_file(output, room, force=force, folder=folder) as temporary:
            sha256, weights = _move(opened, inventory, model, temporary, target, compare, progress)
            conversion = Conversion(
                source, temporary, inventory, model, sha256, notes, weights, target.is_exact
            )
            if prove:
                prove(conversion)
    return replace(conversion, output=output)


def _recognise(
    source: Source, inventory: Inventory, model: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the release that a file is, if name and tensors agree, and notes about it."""
    notes = list(source.notes)
    dtypes = {tensor.number_format for tensor in inventory.tensors.values()} - {"float32"}
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
    target: Target,
    compare: bool,
    progress: Progress | None,
) -> tuple[str, WeightsProof | None]:
    """Write every tensor to `output`, and meanwhile hash the source and compare the bits.

    Returns:
        The source's SHA-256, and the proof of weights if asked for.
    """
    shapes = inventory.architecture.shapes(inventory.num_classes)
    names = {slot: name_of(slot, target.format.names) for slot in shapes}
    metadata = _metadata(source, inventory, model, target)
    weights_file = target.weights_in(output)
    deviation = None if target.number_format == "float32" else Deviation()
    with ExitStack() as stack:
        writer = target.format.create(
            weights_file, target.format.places(shapes), metadata, target.number_format
        )
        stack.callback(writer.close)
        comparison = None
        if compare and target.format.reads_while_written:
            written = stack.enter_context(SafetensorsSource(weights_file))
            comparison = BitComparison(source, inventory, written, identify(written))

        def move(block: Block) -> None:
            layout = layout_of(block.slot.role, source.names)
            axis = out_axis(layout, len(block.tensor.shape))
            slab = block.tensor.read_slab(axis, block.start, block.stop, team.scratch("stored"))
            values = _transposed(block, as_oihw(slab, layout), team.scratch("values"), target)
            _check_finite(source, block, values)
            rounded = round_to(values, target.number_format)
            if deviation:
                widened = widen(rounded, target.number_format)
                _check_finite(source, block, widened, target.number_format)
                deviation.add(values, widened)
            writer.write(names[block.slot], block.start, rounded)
            if comparison:
                comparison.compare(block, slab, team)
            team.advance(values.nbytes)

        with crew("convert", source.size + 4 * inventory.num_params, progress) as team:
            digest = team.hash(source)
            team.each(move, plan_blocks(inventory.tensors, shapes))
            sha256 = digest.result()
        known = {"source_sha256": sha256}
        writer.finish(known | ({_WEIGHTS_DEVIATION: str(deviation)} if deviation else {}))
    if target.format.weights:
        spec = registry.find_spec(model) if model else None
        labels = target.labels(spec) if target.labels and spec else None
        write_companions(output, inventory, spec, labels, metadata)
    if comparison:
        return sha256, comparison.outcome()
    if not compare:
        return sha256, None
    with open_source(output) as written:
        return sha256, prove_weights(source, inventory, written, identify(written), progress)


def _transposed(block: Block, stored: Array, scratch: Scratch, target: Target) -> Array:
    """Return a block's numbers in the output's order of axes, float32, scaled if asked for."""
    layout = layout_of(block.slot.role, target.format.names)
    values = scratch.array(stored_shape(stored.shape, layout), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
        copy_blocked(stored, as_oihw(values, layout))
        if target.eps_exact and block.slot.role.is_standardized:
            values *= np.float32(EPS_EXACT_SCALE)
    return values


def _metadata(
    source: Source, inventory: Inventory, model: str | None, target: Target
) -> dict[str, str]:
    metadata = {
        "format": "pt",
        "architecture": inventory.architecture.name,
        "num_classes": str(inventory.num_classes),
        "source": source.path.name,
        "source_sha256": _UNKNOWN_SHA256,
        "bitzoo_version": __version__,
    } | ({"model": model} if model else {})
    if target.eps_exact:
        metadata[KERNEL_SCALE] = str(EPS_EXACT_SCALE)
        metadata["kernel_scale_reason"] = (
            f"with kernels x{EPS_EXACT_SCALE} the eps 1e-8 of {target.format.readers} computes the "
            "released function (eps 1e-10); for inference only, fine-tuning would be 100 x slower"
        )
    if target.number_format != "float32":
        metadata["dtype"] = target.number_format
        metadata[_WEIGHTS_DEVIATION] = metadata[LOGITS_DEVIATION] = UNMEASURED
    return metadata


def _check_finite(
    source: Source, block: Block, values: Array, number_format: str = "float32"
) -> None:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _FINITE_STEP):
        piece = flat[start : start + _FINITE_STEP]
        with np.errstate(over="ignore", invalid="ignore"):
            total = piece.sum()  # quicker to look at: NaN and infinity show in it
        if not np.isfinite(total) and not np.isfinite(piece).all():  # it may just have overflowed
            raise CheckpointError(
                f"{source.path}: tensor {block.tensor.name!r} holds NaN or infinite numbers (or "
                f"numbers too large for {number_format}); expected finite ones. The file is "
                "damaged, or its training diverged."
            )
