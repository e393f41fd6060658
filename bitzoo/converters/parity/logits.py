"""The comparison of logits: the network that loads an output, against oracles on the source."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bitzoo.converters.identify import Inventory
from bitzoo.converters.key_mapping import layout_of, name_of, slot_of
from bitzoo.converters.layouts import as_layout, as_oihw, out_axis
from bitzoo.converters.parity import reference_numpy
from bitzoo.converters.parity.deviation import Deviation
from bitzoo.converters.parity.tensorflow_oracles import TensorFlowOracles
from bitzoo.converters.source import Array, Source
from bitzoo.converters.state_dict import read_state_dict
from bitzoo.files import Progress
from bitzoo.models.architecture import Role, Slot

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
_HEAD = (Slot(Role.HEAD_KERNEL), Slot(Role.HEAD_BIAS))
_HEAD_STEP = 256
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class LogitsProof(Deviation):
    """Outcome of one comparison of logits (pooled features, for a file without a head).

    The probe images are uniform in [-1, 1] from `SEED`. The figures are those of `Deviation`.

    Attributes:
        oracle: What the network was compared with.
        dtype: Precision that the network computed in.
        numbers: What its weights are stored as.
    """

    oracle: str
    dtype: str
    numbers: str = "float32"

    @property
    def tolerance(self) -> float:
        """Largest relative L2 distance that passes."""
        return max(TOLERANCES[self.dtype], ROUNDED[self.numbers])

    @property
    def passed(self) -> bool:
        """Whether the distance is a number within the tolerance."""
        return self.within(self.tolerance)

    def to_dict(self) -> dict[str, Any]:
        """The figures, the tolerance and the verdict."""
        return asdict(self) | {"tolerance": self.tolerance, "passed": self.passed}


def prove_logits(
    source: Source,
    inventory: Inventory,
    output: Source,
    result: Inventory,
    progress: Progress | None = None,
    absent: list[str] | None = None,
) -> tuple[LogitsProof, ...]:
    """Compare the network that loads `output` with what `source` is said to compute.

    The first oracle is the float64 reference in NumPy. Where TensorFlow is installed, its forward
    pass of `source`, in float32 and in float64, judges the network too, and so does a SavedModel's
    own serving graph. Both run in a process of their own; one that cannot be run, or must not be,
    is left out with a warning.

    A head of zeros, as training starts with, hides all that is before it: then both leave it out.

    Args:
        source: The original, open.
        inventory: What `identify` found in it.
        output: The file made of it, open.
        result: What `identify` found there; the same architecture and classes.
        progress: Called as the comparisons are done. A few seconds for R50x1, a minute for R152x4.
        absent: Receives a sentence about each oracle that there is and that did not testify.
    """
    hidden = _HEAD if _has_zero_head(source, inventory) else ()
    proofs: list[LogitsProof] = []
    steps = len(PROBES) * len(TOLERANCES)
    with closing(_Oracles(source, inventory, hidden, absent)) as oracles:
        import torch  # while TensorFlow is loaded in its own process

        network = _network(output, result, hidden)
        for done, ((size, count), dtype) in enumerate(itertools.product(PROBES, TOLERANCES)):
            if progress:
                progress("logits", done, steps)
            shape = (count, size, size, inventory.architecture.in_chans)
            images = np.random.default_rng(SEED).uniform(-1, 1, shape).astype(np.float32)
            batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
            with torch.no_grad(), _computing_in(network, getattr(torch, dtype)):
                found = network(batch.to(getattr(torch, dtype))).double().numpy()
            for oracle, expected in oracles.judge(images, dtype, found):
                measured = asdict(Deviation.between(found, expected, size))
                proofs.append(LogitsProof(**measured, oracle=oracle, dtype=dtype))
    if progress:
        progress("logits", steps, steps)
    numbers = numbers_of(source, output, result)
    return tuple(replace(proof, numbers=numbers) for proof in proofs)


def _network(output: Source, result: Inventory, hidden: Sequence[Slot]) -> torch.nn.Module:
    """Return the network as users load it, without the hidden tensors."""
    import torch

    from bitzoo.models.bit import BiT

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
    return network.eval()


class _Oracles:
    """All that can say what a source computes, each by its own way from the file to logits."""

    def __init__(
        self,
        source: Source,
        inventory: Inventory,
        hidden: Sequence[Slot],
        absent: list[str] | None,
    ) -> None:
        self._tensors = _GoogleNames(source, inventory, hidden)
        # scaled kernels are those of the release with this eps
        self._eps = reference_numpy.EPS * source.kernel_scale**2
        self._exact: tuple[int, Array] = (0, np.empty(0))
        self._second = TensorFlowOracles(
            source,
            _FLOAT32_BYTES * inventory.num_params,
            is_hidden=bool(hidden),
            absent=[] if absent is None else absent,
        )

    def judge(self, images: Array, dtype: str, found: Array) -> Iterator[tuple[str, Array]]:
        """Yield each oracle's name and what it expects of a network computing in `dtype`."""
        whose = self._tensors.whose
        yield f"NumPy {np.__version__} float64 reference {whose}", self._reference(images)
        if second := self._second.forward(self._tensors, images, dtype, self._eps):
            yield f"{second[0]} {whose}", second[1]
        if dtype == "float32" and (own := self._second.own_graph(images, found)):
            yield own

    def close(self) -> None:
        """End TensorFlow's process."""
        self._second.close()

    def _reference(self, images: Array) -> Array:
        size, logits = self._exact
        if size != images.shape[1]:
            logits = reference_numpy.forward(self._tensors, images, eps=self._eps)
            self._exact = images.shape[1], logits
        return logits


def numbers_of(source: Source, output: Source, result: Inventory) -> str:
    """Return the coarsest of what an output's numbers were rounded to on the way."""
    formats = {tensor.stored_dtype for tensor in result.tensors.values()} & set(ROUNDED)
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
