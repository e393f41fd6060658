"""The comparison of logits: the network that loads an output, against oracles on the source."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bitzoo.converters.dtypes import holds, in_network, round_to, widen
from bitzoo.converters.identify import Inventory
from bitzoo.converters.key_mapping import layout_of, name_of, slot_of
from bitzoo.converters.layouts import as_layout, as_oihw, out_axis
from bitzoo.converters.parity import reference_numpy
from bitzoo.converters.parity.deviation import Deviation
from bitzoo.converters.parity.reference_names import reference_name
from bitzoo.converters.parity.tensorflow_oracles import TensorFlowOracles
from bitzoo.converters.source import Array, Source
from bitzoo.converters.state_dict import read_state_dict
from bitzoo.files import Progress
from bitzoo.models.architecture import Role, Slot

if TYPE_CHECKING:
    import torch

TOLERANCES = {"float64": 1e-11, "float32": 1e-3}
SCALED = 1e-4
"""The same if kernels are multiplied by 10: divided again, in float32, they move by 2**-24."""
ROUNDED = {"float16": 0.05, "bfloat16": 0.5}
"""Largest distance from an oracle that cannot be given the rounded numbers, because it has its own:
the graph of a SavedModel. float16 and bfloat16 move each number by up to 2**-11 and 2**-8, and the
layers add to it: R50x1 comes to 1e-3 and 1e-2."""
LOGITS_REASON = (
    "relative L2 distance to the oracle. A network computing in float64 that is the "
    "same function is 1e-16 to 1e-13 away, the smallest planted error (eps 1e-8 on He-scaled "
    "kernels) 4e-9 to 1e-7, a max-pool padded with -inf 1e-5 to 1e-3, a kernel out of place about "
    "1. In float32, which is what users run, rounding alone makes 1e-6 (R50x1) to 1e-4 (R152x2)"
)
UNROUNDED_REASON = (
    "relative L2 distance of the network in float64 from the oracle on the source's unrounded "
    "numbers: what rounding the weights does to the outputs; stated, not judged"
)
PROBES = ((224, 1), (97, 2))
"""Image side in pixels and number of images; the odd side exposes errors of padding."""
SEED = 2020
_HEAD = (Slot(Role.HEAD_KERNEL), Slot(Role.HEAD_BIAS))
_HEAD_STEP = 256
_FIRST = f"NumPy {np.__version__} float64 reference"
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class LogitsProof(Deviation):
    """Outcome of one comparison of logits (pooled features, for a file without a head).

    The probe images are uniform in [-1, 1] from `SEED`. The figures are those of `Deviation`.

    Attributes:
        oracle: What the network was compared with.
        dtype: Precision that the network computed in.
        numbers: What its weights are stored as.
        unrounded: Whether the oracle has the source's numbers although the network's are rounded.
        judged: Whether there is a tolerance; if not, the distance is stated.
    """

    oracle: str
    dtype: str
    numbers: str = "float32"
    unrounded: bool = False
    judged: bool = True

    @property
    def tolerance(self) -> float:
        """Largest relative L2 distance that passes; infinite if the distance is not judged."""
        if not self.judged:
            return math.inf
        stored, _, scaled = self.numbers.partition(" ")
        rounded = ROUNDED.get(stored, 0.0) if self.unrounded else 0.0
        return max(TOLERANCES[self.dtype], SCALED if scaled else 0.0, rounded)

    @property
    def passed(self) -> bool:
        """Whether the distance is a number within the tolerance, if it is judged."""
        return not self.judged or self.within(self.tolerance)

    def to_dict(self) -> dict[str, Any]:
        """The figures, the tolerance (None if not judged) and the verdict."""
        tolerance = self.tolerance if self.judged else None
        return asdict(self) | {"tolerance": tolerance, "passed": self.passed}


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

    If the network has rounded numbers, the oracles round the source's likewise, so that they still
    judge to the last digit; that each is the nearest is for the proof of weights to say. How far
    the network is from the unrounded source is measured too, and not judged.

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
    rounding = _rounding(source, inventory, output, result)
    with closing(_Oracles(source, inventory, hidden, rounding, absent)) as oracles:
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
            expectations = oracles.judge(images, dtype, found)
            if rounding and not done:
                expectations = itertools.chain(expectations, oracles.state(images))
            for expected in expectations:
                measured = asdict(Deviation.between(found, expected.logits, size))
                proofs.append(
                    LogitsProof(
                        **measured,
                        oracle=expected.oracle,
                        dtype=dtype,
                        unrounded=expected.unrounded,
                        judged=expected.judged,
                    )
                )
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


@dataclass(frozen=True)
class _Rounded:
    """How the network's numbers of a tensor follow from the source's.

    Attributes:
        dtype: What they were rounded to.
        scale: What they were multiplied by before that, and are divided by after it.
    """

    dtype: str
    scale: float

    def __call__(self, stored: Array) -> Array:
        values = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        if self.scale == 1:
            return widen(round_to(values, self.dtype), self.dtype)
        rounded = round_to(values.astype(np.float64) * self.scale, self.dtype)
        return widen(rounded, self.dtype).astype(np.float64) / self.scale


def _rounding(
    source: Source, inventory: Inventory, output: Source, result: Inventory
) -> dict[Slot, _Rounded]:
    """Return what was rounded on the way into the network, which has float32 at the most."""
    scale = output.kernel_scale / source.kernel_scale
    rounding = {}
    for slot, tensor in inventory.tensors.items():
        dtype = in_network(result.tensors[slot].stored_dtype)
        times = scale if slot.role.is_standardized and scale > 1 else 1.0
        if times != 1 or not holds(dtype, tensor.stored_dtype):
            rounding[slot] = _Rounded(dtype, times)
    return rounding


@dataclass(frozen=True)
class _Expected:
    """What an oracle expects; the attributes are those of `LogitsProof`."""

    oracle: str
    logits: Array
    unrounded: bool = False
    judged: bool = True


class _Oracles:
    """All that can say what a source computes, each by its own way from the file to logits."""

    def __init__(
        self,
        source: Source,
        inventory: Inventory,
        hidden: Sequence[Slot],
        rounding: Mapping[Slot, _Rounded],
        absent: list[str] | None,
    ) -> None:
        self._tensors = _GoogleNames(source, inventory, hidden, rounding)
        self._as_stored = _GoogleNames(source, inventory, hidden)
        self._rounds = bool(rounding)
        # scaled kernels are those of the release with this eps
        is_standardized = inventory.architecture.weight_standardization
        self._eps = reference_numpy.EPS * source.kernel_scale**2 if is_standardized else None
        self._exact: tuple[int, Array] = (0, np.empty(0))
        self._second = TensorFlowOracles(
            source,
            _FLOAT32_BYTES * inventory.num_params,
            is_hidden=bool(hidden),
            absent=[] if absent is None else absent,
        )

    def judge(self, images: Array, dtype: str, found: Array) -> Iterator[_Expected]:
        """Yield what each oracle expects of a network computing in `dtype`."""
        whose = self._tensors.whose
        yield _Expected(f"{_FIRST} {whose}", self._reference(images))
        if second := self._second.forward(self._tensors, images, dtype, self._eps):
            yield _Expected(f"{second[0]} {whose}", second[1])
        if dtype == "float32" and (own := self._second.own_graph(images, found)):
            yield _Expected(*own, unrounded=self._rounds)

    def state(self, images: Array) -> Iterator[_Expected]:
        """Yield what the source computes without rounding; not for judging."""
        logits = reference_numpy.forward(self._as_stored, images, eps=self._eps)
        yield _Expected(f"{_FIRST} {self._as_stored.whose}", logits, unrounded=True, judged=False)

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
    """Return the coarsest dtype of an output, and whether its kernels are scaled by 10."""
    found = {tensor.stored_dtype for tensor in result.tensors.values()}
    stored = max(found, key=lambda dtype: (ROUNDED.get(dtype, 0.0), dtype))
    return stored + (" x10" if source.kernel_scale != output.kernel_scale else "")


def _has_zero_head(source: Source, inventory: Inventory) -> bool:
    kernel = inventory.tensors.get(_HEAD[0])
    if kernel is None:
        return False
    axis = out_axis(layout_of(Role.HEAD_KERNEL, source.names), len(kernel.shape))
    starts = range(0, inventory.num_classes, _HEAD_STEP)
    return not any(kernel.read_slab(axis, start, start + _HEAD_STEP).any() for start in starts)


@contextmanager
def _computing_in(network: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast each layer's numbers to `dtype` just while it runs: one layer's copy at a time."""

    def numbers_in(layer: torch.nn.Module) -> Iterator[torch.Tensor]:
        return itertools.chain(layer.parameters(), layer.buffers())

    def widen(layer: torch.nn.Module, inputs: object) -> None:
        for tensor in numbers_in(layer):
            kept[tensor] = tensor.data
            tensor.data = tensor.data.to(dtype)

    def restore(layer: torch.nn.Module, inputs: object, output: object) -> None:
        for tensor in numbers_in(layer):
            tensor.data = kept.pop(tensor)

    kept: dict[torch.Tensor, torch.Tensor] = {}
    # The stem compares its images with its kernels before they are used, so it is one layer here.
    stem = network.get_submodule("stem")
    inner = set(stem.modules()) - {stem}
    layers = [m for m in network.modules() if not list(m.children()) and m not in inner]
    layers.append(stem)
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

    def __init__(
        self,
        source: Source,
        inventory: Inventory,
        hidden: Sequence[Slot] = (),
        rounding: Mapping[Slot, _Rounded] | None = None,
    ) -> None:
        self._names = source.names
        form = inventory.architecture
        self._rounding = {reference_name(slot, form): how for slot, how in (rounding or {}).items()}
        if source.names in ("npz", "keras"):  # which differ in what the head is called alone
            self._tensors = {
                name.replace("/head/dense/", "/head/conv2d/"): tensor
                for name, tensor in source.tensors.items()
            }
            self.whose = "on the source's own names"
        else:
            self._tensors = {
                reference_name(slot, form): tensor for slot, tensor in inventory.tensors.items()
            }
            self.whose = "on mapped names"
        for slot in hidden:
            del self._tensors[reference_name(slot, form)]
        self.whose += ", without its head of zeros" if hidden else ""
        self.whose += ", rounded alike" if rounding else ""

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
        array = self._rounding[name](array) if name in self._rounding else array
        layout = self._layout(name)
        if layout in ("HWIO", "IO"):  # as TensorFlow has it; the reference reads either head
            return array
        return as_layout(as_oihw(array, layout), "HWIO")
