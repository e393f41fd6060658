"""Conversion: open -> identify -> move blocks -> prove -> give the file its name.

One mechanism for every pair of formats: a block is read in the source's order of axes, viewed in
the network's, copied into the output's, and written where it belongs. Nothing exists under the
output's name until every proof asked for has passed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bitzoo.catalogue import registry
from bitzoo._version import __version__
from bitzoo.converters.streaming import worker_pool, plan_blocks
from bitzoo.converters.formats.checkpoint_formats import check_numbers, find_format
from bitzoo.converters.identify import Inventory, identify
from bitzoo.converters.moving import Labels, Mover, Target
from bitzoo.converters.key_mapping import name_of, scatters
from bitzoo.files import new_output
from bitzoo.converters.dtypes import RoundingError
from bitzoo.converters.formats.safetensors import SafetensorsSource
from bitzoo.converters.open import open_source
from bitzoo.converters.source import EPS_EXACT_SCALE, KERNEL_SCALE, Source
from bitzoo.files import Progress
from bitzoo.converters.formats.hf_config import write_companions
from bitzoo.converters.parity.weights import BitComparison, WeightsProof, prove_weights

UNMEASURED = "unmeasured"
"""Stands for a deviation until it is known; as long as one is."""
LOGITS_DEVIATION = "logits_relative_l2"
_WEIGHTS_DEVIATION = "weights_relative_l2"
_UNKNOWN_SHA256 = "0" * 64
_ENDINGS = (".gz", ".tgz", ".tar", ".index")
"""What comes off a source's name besides its suffix."""


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
        contents = target.format.contents or None
        room = 4 * inventory.num_params * target.format.copies
        with new_output(output, room, force=force, contents=contents) as temporary:
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
    deviation = None if target.number_format == "float32" else RoundingError()
    with ExitStack() as stack:
        writer = target.format.create(
            weights_file, target.format.places(shapes), metadata, target.number_format
        )
        stack.callback(writer.close)
        comparison = None
        if compare and target.format.reads_while_written:
            written = stack.enter_context(SafetensorsSource(weights_file, own=True))
            comparison = BitComparison(source, inventory, written, identify(written))

        with worker_pool("convert", source.size + 4 * inventory.num_params, progress) as pool:
            mover = Mover(source, target, names, writer, pool, deviation, comparison)
            digest = pool.hash(source)
            held = 2 if scatters(target.format.names) else 1
            pool.each(mover.move, plan_blocks(inventory.tensors, shapes, held))
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
