"""The two comparisons behind a proof of parity: weights bit for bit, logits against an oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bitzoo.arch import Slot
from bitzoo.converters import reference
from bitzoo.converters.blocks import Block, crew, plan_blocks
from bitzoo.converters.inventory import Inventory
from bitzoo.converters.layouts import as_layout, as_oihw, copy_blocked, out_axis
from bitzoo.converters.names import LAYOUTS, name_of
from bitzoo.converters.state import read_state_dict
from bitzoo.converters.tensors import Array, Progress, Scratch, Source, StoredTensor

LOGITS_TOLERANCE = 1e-4
LOGITS_REASON = (
    "relative L2 distance of float32 logits to the float64 reference: float32 rounding alone gives "
    "2e-6 to 2e-5; a kernel out of place or transposed gives about 1, a max-pool padded with -inf "
    "1e-3 to 1e-2, eps 1e-8 on kernels of std 0.001 about 1e-2"
)
PROBES = ((224, 1), (97, 2))
"""Image side in pixels and number of images; the odd side exposes errors of padding."""
SEED = 2020


@dataclass(frozen=True)
class WeightsProof:
    """Outcome of the comparison of weights.

    Attributes:
        tensors: Tensors compared.
        params: Numbers compared.
        differing: Source names of tensors that differ in at least one bit.
    """

    tensors: int
    params: int
    differing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every bit is equal."""
        return not self.differing


@dataclass(frozen=True)
class LogitsProof:
    """Outcome of one comparison of logits (pooled features, for a file without a head).

    Attributes:
        oracle: What the network was compared with.
        size: Side of the square probe images in pixels.
        images: Number of probe images, uniform in [-1, 1] from `SEED`.
        relative_l2: ``|network - oracle| / |oracle|`` over all outputs.
        max_abs: Largest absolute difference.
        max_logit: Largest absolute output of the oracle.
        top1_equal: Images for which both rank the same class first.
        tolerance: Largest relative L2 distance that passes.
    """

    oracle: str
    size: int
    images: int
    relative_l2: float
    max_abs: float
    max_logit: float
    top1_equal: int
    tolerance: float = LOGITS_TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether the distance is a number within the tolerance."""
        return bool(self.relative_l2 <= self.tolerance)


def prove_weights(
    source: Source,
    inventory: Inventory,
    output: Source,
    result: Inventory,
    progress: Progress | None = None,
) -> WeightsProof:
    """Map every tensor of `output` back to the source's axis order and compare the bits.

    Args:
        source: The original, open.
        inventory: What `identify` found in it.
        output: The file made of it, open.
        result: What `identify` found there; the same architecture and classes.
        progress: Called as bytes are compared.
    """
    shapes = inventory.architecture.shapes(inventory.num_classes)

    def differs(block: Block) -> Slot | None:
        stored = _read_rows(block.tensor, source, block, team.scratch("stored"))
        expected = stored.astype(np.float32, copy=False)
        mapped = team.scratch("mapped").array(stored.shape, np.float32)
        rows = _read_rows(result.tensors[block.slot], output, block, team.scratch("rows"))
        copy_blocked(as_oihw(rows, LAYOUTS[output.names]), as_oihw(mapped, LAYOUTS[source.names]))
        team.advance(stored.nbytes)
        same = np.array_equal(mapped.view(np.uint32), expected.view(np.uint32))
        return None if same else block.slot

    total = sum(tensor.nbytes for tensor in inventory.tensors.values())
    with crew("compare", total, progress) as team:
        slots = team.each(differs, plan_blocks(inventory.tensors, shapes))
    names = {inventory.tensors[slot].name: None for slot in slots if slot is not None}
    return WeightsProof(len(shapes), inventory.num_params, tuple(names))


def prove_logits(
    source: Source,
    inventory: Inventory,
    output: Source,
    result: Inventory,
    progress: Progress | None = None,
) -> tuple[LogitsProof, ...]:
    """Compare the network that loads `output` with the float64 reference of `source`.

    Args: as of `prove_weights`. A few seconds for R50x1, a minute for R152x4.
    """
    import torch

    from bitzoo.model import BiT

    with torch.device("meta"):
        network = BiT(result.architecture, result.num_classes)
    network.load_state_dict(read_state_dict(output, result), assign=True)
    network.eval()
    tensors = _GoogleNames(source, inventory)
    proofs = []
    for step, (size, count) in enumerate(PROBES):
        if progress:
            progress("logits", step, len(PROBES))
        images = np.random.default_rng(SEED).uniform(-1, 1, (count, size, size, 3))
        images = images.astype(np.float32)
        expected = reference.forward(tensors, images)
        with torch.inference_mode():
            logits = network(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
        proofs.append(_compare(tensors.oracle, size, expected, logits.double().numpy()))
    if progress:
        progress("logits", len(PROBES), len(PROBES))
    return tuple(proofs)


def _compare(oracle: str, size: int, expected: Array, found: Array) -> LogitsProof:
    difference = found - expected
    return LogitsProof(
        oracle=oracle,
        size=size,
        images=len(expected),
        relative_l2=float(np.linalg.norm(difference) / np.linalg.norm(expected)),
        max_abs=float(np.abs(difference).max()),
        max_logit=float(np.abs(expected).max()),
        top1_equal=int((found.argmax(1) == expected.argmax(1)).sum()),
    )


def _read_rows(tensor: StoredTensor, file: Source, block: Block, scratch: Scratch) -> Array:
    axis = out_axis(LAYOUTS[file.names], len(tensor.shape))
    return tensor.read_slab(axis, block.start, block.stop, scratch)


class _GoogleNames(Mapping[str, Array]):
    """A checkpoint as the reference reads it: Google's names, HWIO, nothing kept in memory.

    Tensors of an `.npz` are handed over untouched. Those of another format pass through the name
    table, so the reference is then no witness for the table; `oracle` says which it was.
    """

    def __init__(self, source: Source, inventory: Inventory) -> None:
        self._layout = LAYOUTS[source.names]
        if source.names == "npz":
            self._tensors = dict(source.tensors)
            self.oracle = "NumPy float64 reference on the source's own names"
        else:
            self._tensors = {
                name_of(slot, "npz"): tensor for slot, tensor in inventory.tensors.items()
            }
            self.oracle = "NumPy float64 reference on mapped names"

    def __getitem__(self, name: str) -> Array:
        return self._stored(name, self._tensors[name].read())

    def read_columns(self, name: str, start: int, stop: int) -> Array:
        """Return outputs `start` to `stop` of a tensor: a slice of its last axis."""
        tensor = self._tensors[name]
        axis = out_axis(self._layout, len(tensor.shape))
        return self._stored(name, tensor.read_slab(axis, start, stop))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _stored(self, name: str, array: Array) -> Array:
        if self._layout == LAYOUTS["npz"]:
            return array
        return as_layout(as_oihw(array, self._layout), LAYOUTS["npz"])
