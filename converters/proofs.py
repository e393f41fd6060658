"""The two comparisons behind a proof of parity: weights bit for bit, logits against an oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bitzoo.arch import Role, Slot
from bitzoo.converters import reference, tensorflow_reference
from bitzoo.converters.blocks import Block, Crew, crew, plan_blocks
from bitzoo.converters.inventory import Inventory
from bitzoo.converters.layouts import as_layout, as_oihw, copy_blocked, out_axis
from bitzoo.converters.names import layout_of, name_of, slot_of
from bitzoo.converters.precision import round_to, widen
from bitzoo.converters.state import read_state_dict
from bitzoo.converters.tensors import Array, Progress, Source

if TYPE_CHECKING:
    import torch

TOLERANCES = {"float64": 1e-11, "float32": 1e-3}
ROUNDED = {"float32": 0.0, "float32 x10": 1e-4, "float16": 0.05, "bfloat16": 0.5}
"""Largest distance of a network whose weights were rounded, which the bits of the weights prove to
be all that happened to it. Multiplying by 10 rounds each number once (2**-24); float16 and bfloat16
move it by up to 2**-11 and 2**-8, and the layers add to it: R50x1 comes to 1e-3 and 1e-2."""
LOGITS_REASON = (
    "relative L2 distance to the oracle. A network computing in float64 that is the "
    "same function is 1e-16 to 1e-13 away, the smallest planted error (eps 1e-8 on He-scaled "
    "kernels) 4e-9 to 1e-7, a max-pool padded with -inf 1e-5 to 1e-3, a kernel out of place about "
    "1. In float32, which is what users run, rounding alone makes 1e-6 (R50x1) to 1e-4 (R152x2)"
)
PROBES = ((224, 1), (97, 2))
"""Image side in pixels and number of images; the odd side exposes errors of padding."""
SEED = 2020
_PIECE = 1 << 16
_HEAD = (Slot(Role.HEAD_KERNEL), Slot(Role.HEAD_BIAS))
_HEAD_STEP = 256


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
        dtype: Precision that the network computed in.
        numbers: What its weights are stored as.
    """

    oracle: str
    dtype: str
    size: int
    images: int
    relative_l2: float
    max_abs: float
    max_logit: float
    top1_equal: int
    numbers: str = "float32"

    @property
    def tolerance(self) -> float:
        """Largest relative L2 distance that passes."""
        return max(TOLERANCES[self.dtype], ROUNDED[self.numbers])

    @property
    def passed(self) -> bool:
        """Whether the distance is a number within the tolerance."""
        return bool(self.relative_l2 <= self.tolerance)


class BitComparison:
    """Maps blocks of an output back to the source's axis order and compares the bits."""

    def __init__(
        self, source: Source, inventory: Inventory, output: Source, result: Inventory
    ) -> None:
        """Compare nothing yet.

        Args:
            source: The original, open.
            inventory: What `identify` found in it.
            output: The file made of it, open.
            result: What `identify` found there; the same architecture and classes.
        """
        self._names = source.names, output.names
        self._factors = _factors(source, output)
        self._inventory, self._result = inventory, result
        self._differing: set[Slot] = set()

    def compare(self, block: Block, stored: Array, team: Crew) -> None:
        """Compare one block; called from any thread.

        Args:
            block: Which rows of which tensor.
            stored: The source's rows, in its own axis order.
            team: Lends the memory.
        """
        from_layout, to_layout = (layout_of(block.slot.role, names) for names in self._names)
        tensor = self._result.tensors[block.slot]
        expected = stored.astype(np.float32, copy=False)
        mapped = team.scratch("mapped").array(stored.shape, np.float32)
        axis = out_axis(to_layout, len(tensor.shape))
        rows = tensor.read_slab(axis, block.start, block.stop, team.scratch("rows"))
        copy_blocked(as_oihw(rows, to_layout), as_oihw(mapped, from_layout))
        if block.slot.role.is_standardized and self._factors:
            expected, mapped = expected * self._factors[0], mapped * self._factors[1]
        if tensor.number_format in ("float16", "bfloat16"):
            rounded = round_to(np.ascontiguousarray(expected), tensor.number_format)
            expected = widen(rounded, tensor.number_format)
        if not _same_bits(mapped, expected):
            self._differing.add(block.slot)

    def outcome(self) -> WeightsProof:
        """Return what the comparisons so far found; meant for when every block was compared."""
        tensors = self._inventory.tensors
        names = tuple(tensors[slot].name for slot in tensors if slot in self._differing)
        return WeightsProof(len(tensors), self._inventory.num_params, names)


def _factors(source: Source, output: Source) -> tuple[np.float32, np.float32] | None:
    """Return what to multiply either side's kernels with to make them equal, if anything."""
    one, other = source.kernel_scale, output.kernel_scale
    return None if one == other else (np.float32(other), np.float32(one))


def _same_bits(one: Array, other: Array) -> bool:
    """Compare in pieces that stay in the cache; a slab's padded rows make no difference."""
    lines = [array.view(np.uint32).reshape(-1, array.shape[-1]) for array in (one, other)]
    step = max(1, _PIECE // one.shape[-1])
    return all(
        np.array_equal(lines[0][row : row + step], lines[1][row : row + step])
        for row in range(0, len(lines[0]), step)
    )


def prove_weights(
    source: Source,
    inventory: Inventory,
    output: Source,
    result: Inventory,
    progress: Progress | None = None,
) -> WeightsProof:
    """Compare every tensor of two open files by `BitComparison`; its arguments, and progress."""
    comparison = BitComparison(source, inventory, output, result)

    def compare(block: Block) -> None:
        layout = layout_of(block.slot.role, source.names)
        axis = out_axis(layout, len(block.tensor.shape))
        scratch = team.scratch("stored")
        stored = block.tensor.read_slab(axis, block.start, block.stop, scratch)
        comparison.compare(block, stored, team)
        team.advance(stored.nbytes)

    total = sum(tensor.nbytes for tensor in inventory.tensors.values())
    with crew("compare", total, progress) as team:
        shapes = inventory.architecture.shapes(inventory.num_classes)
        team.each(compare, plan_blocks(inventory.tensors, shapes))
    return comparison.outcome()


def prove_logits(
    source: Source,
    inventory: Inventory,
    output: Source,
    result: Inventory,
    progress: Progress | None = None,
) -> tuple[LogitsProof, ...]:
    """Compare the network that loads `output` with the float64 reference of `source`.

    Where TensorFlow is installed, its forward pass of `source`, in float32 and in float64, judges
    the network too.

    A head of zeros, as training starts with, hides all that is before it: then both leave it out.
    Args: as of `prove_weights`. A few seconds for R50x1, a minute for R152x4.
    """
    import torch

    from bitzoo.model import BiT

    hidden = _HEAD if _has_zero_head(source, inventory) else ()
    with torch.device("meta"):
        network = BiT(result.architecture, 0 if hidden else result.num_classes)
    state = read_state_dict(output, result, scaled=True)
    if output.kernel_scale != 1:  # of a file for eps 1e-8: (10 k)^2 + 1e-8 = 100 (k^2 + 1e-10)
        for slot in result.tensors:
            if slot.role.is_standardized:
                state[name_of(slot, "timm")] = state[name_of(slot, "timm")] / output.kernel_scale
    for slot in hidden:
        del state[name_of(slot, "timm")]
    network.load_state_dict(state, assign=True)
    network.eval()
    tensors = _GoogleNames(source, inventory, hidden)
    eps = reference.EPS * source.kernel_scale**2  # scaled kernels are those of the release then
    proofs: list[LogitsProof] = []
    steps = len(PROBES) * len(TOLERANCES)
    first = f"NumPy {np.__version__} float64 reference"
    second = tensorflow_reference.describe() if tensorflow_reference.is_installed() else ""
    for size, count in PROBES:
        shape = (count, size, size, inventory.architecture.in_chans)
        images = np.random.default_rng(SEED).uniform(-1, 1, shape).astype(np.float32)
        expected = reference.forward(tensors, images, eps=eps)
        for dtype in TOLERANCES:
            if progress:
                progress("logits", len({(proof.size, proof.dtype) for proof in proofs}), steps)
            batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
            with torch.no_grad(), _computing_in(network, getattr(torch, dtype)):
                found = network(batch.to(getattr(torch, dtype))).double().numpy()
            proofs.append(_compare(f"{first} {tensors.whose}", dtype, size, expected, found))
            if second:
                judged = tensorflow_reference.forward(tensors, images, dtype=dtype, eps=eps).numpy()
                oracle = f"{second} {tensors.whose}"
                proofs.append(_compare(oracle, dtype, size, judged.astype(np.float64), found))
    if progress:
        progress("logits", steps, steps)
    numbers = numbers_of(source, output, result)
    return tuple(replace(proof, numbers=numbers) for proof in proofs)


def numbers_of(source: Source, output: Source, result: Inventory) -> str:
    """Return the coarsest of what an output's numbers were rounded to on the way."""
    formats = {tensor.number_format for tensor in result.tensors.values()} & set(ROUNDED)
    formats |= {"float32 x10"} if source.kernel_scale != output.kernel_scale else set()
    return max(formats or {"float32"}, key=lambda numbers: ROUNDED[numbers])


def _has_zero_head(source: Source, inventory: Inventory) -> bool:
    kernel = inventory.tensors.get(_HEAD[0])
    if kernel is None:
        return False
    axis = out_axis(layout_of(Role.HEAD_KERNEL, source.names), len(kernel.shape))
    starts = range(0, inventory.num_classes, _HEAD_STEP)
    return not any(kernel.read_slab(axis, start, start + _HEAD_STEP).any() for start in starts)


@contextmanager
def _computing_in(network: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast each layer's parameters to `dtype` just while it runs: one layer's copy at a time."""

    def widen(layer: torch.nn.Module, inputs: object) -> None:
        for parameter in layer.parameters(recurse=False):
            kept[parameter] = parameter.data
            parameter.data = parameter.data.to(dtype)

    def restore(layer: torch.nn.Module, inputs: object, output: object) -> None:
        for parameter in layer.parameters(recurse=False):
            parameter.data = kept.pop(parameter)

    kept: dict[torch.nn.Parameter, torch.Tensor] = {}
    layers = [module for module in network.modules() if not list(module.children())]
    hooks = [layer.register_forward_pre_hook(widen) for layer in layers]
    hooks += [layer.register_forward_hook(restore) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _compare(oracle: str, dtype: str, size: int, expected: Array, found: Array) -> LogitsProof:
    difference = found - expected
    scale = np.linalg.norm(expected) or 1.0  # a network that says nothing is compared as it is
    return LogitsProof(
        oracle=oracle,
        dtype=dtype,
        size=size,
        images=len(expected),
        relative_l2=float(np.linalg.norm(difference) / scale),
        max_abs=float(np.abs(difference).max()),
        max_logit=float(np.abs(expected).max()),
        top1_equal=int((found.argmax(1) == expected.argmax(1)).sum()),
    )


class _GoogleNames(Mapping[str, Array]):
    """A checkpoint as the reference reads it: Google's names, HWIO, nothing kept in memory.

    Tensors of an `.npz` are handed over untouched. Those of another format pass through the name
    table, so no oracle is then a witness for the table; `whose` says which it was.
    """

    def __init__(self, source: Source, inventory: Inventory, hidden: Sequence[Slot] = ()) -> None:
        self._names = source.names
        if source.names in ("npz", "keras"):  # which differ in what the head is called alone
            self._tensors = {
                name.replace("/head/dense/", "/head/conv2d/"): tensor
                for name, tensor in source.tensors.items()
            }
            self.whose = "on the source's own names"
        else:
            self._tensors = {
                name_of(slot, "npz"): tensor for slot, tensor in inventory.tensors.items()
            }
            self.whose = "on mapped names"
        for slot in hidden:
            del self._tensors[name_of(slot, "npz")]
        self.whose += ", without its head of zeros" if hidden else ""

    def __getitem__(self, name: str) -> Array:
        return self._stored(name, self._tensors[name].read())

    def read_columns(self, name: str, start: int, stop: int) -> Array:
        """Return outputs `start` to `stop` of a tensor: a slice of its last axis."""
        tensor = self._tensors[name]
        axis = out_axis(self._layout(name), len(tensor.shape))
        return self._stored(name, tensor.read_slab(axis, start, stop))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _layout(self, name: str) -> str:
        slot = slot_of(name, "npz")
        return layout_of(slot.role if slot else Role.KERNEL, self._names)

    def _stored(self, name: str, array: Array) -> Array:
        layout = self._layout(name)
        if layout in ("HWIO", "IO"):  # as TensorFlow has it; the reference reads either head
            return array
        return as_layout(as_oihw(array, layout), "HWIO")
