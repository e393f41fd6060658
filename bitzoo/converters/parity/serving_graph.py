"""A SavedModel's own serving graph: what its makers ran, and so the best witness there is.

A graph is a program, and TensorFlow has operations that read and write files. So nothing is loaded
whole: only what a signature's output needs is taken out of the graph, along with what restores the
variables, and it runs only if each operation in it is one of arithmetic (`HARMLESS`). A graph with
any other is no witness, nor is one whose functions call themselves. What arithmetic alone can still
do, such as to fill all memory, is bounded by the process that it runs in: `tensorflow_process`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from bitzoo.converters.parity.reference_tensorflow import load_tensorflow
from bitzoo.converters.source import Array, brief
from bitzoo.errors import CheckpointError

GRAPH_NAME = "saved_model.pb"
RANGES = {"[-1, 1]": (1.0, 0.0), "[0, 1]": (0.5, 0.5)}
"""What pixels a graph takes -> how to make them of RGB in [-1, 1]: factor and summand. TF-Hub's
modules take [0, 1] and rescale inside; which one a graph takes is not written in it."""
HARMLESS = frozenset(
    """
    Abs Add AddN AddV2 All Any Assert Assign AssignVariableOp AvgPool BatchToSpaceND BiasAdd
    BroadcastTo Cast Const ConcatV2 Conv2D DepthwiseConv2dNative Div DivNoNan Equal ExpandDims
    Fill FloorDiv FloorMod FusedBatchNormV3 GatherV2 Greater GreaterEqual Identity
    IdentityN If Less LessEqual LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool Maximum
    Mean Merge Min Minimum MirrorPad Mul Neg NoOp NotEqual Pack Pad PadV2
    PartitionedCall Placeholder PlaceholderWithDefault Pow Prod Range Rank ReadVariableOp RealDiv
    Reciprocal Relu Reshape ResizeBilinear ResizeNearestNeighbor RestoreV2 Rsqrt Select SelectV2
    Shape ShapeN Sigmoid Size Slice Softmax SpaceToBatchND Split SplitV Sqrt Square
    SquaredDifference Squeeze StatefulPartitionedCall StatelessIf StopGradient StridedSlice Sub Sum
    Switch Tanh Tile Transpose Unpack VarHandleOp VarIsInitializedOp Variable VariableV2 Where
    ZerosLike
    """.split()  # noqa: SIM905 - a hundred lines as a list
)
"""Operations that compute, and those that bring the variables. `RestoreV2` can read any checkpoint
on this machine, whose numbers then go nowhere; one elsewhere takes an address, which is refused."""

MAX_NODES = 1_000_000
"""Bound on a function with all that it calls written out; the largest network has 10,000."""
_FLOAT, _STRING = 1, 7
"""DT_FLOAT and DT_STRING; tensorflow/core/framework/types.proto."""


class NoWitness(CheckpointError):  # noqa: N818 - it says what the graph is, and is no failure
    """The graph cannot be run, or must not be; says why."""


@dataclass(frozen=True)
class _Way:
    """One output of one signature, and the range of images given to it."""

    signature: str
    output: str
    pixels: str

    def __str__(self) -> str:
        return f"signature {self.signature}, output {self.output}, images in {self.pixels}"


class ServingGraph:
    """A SavedModel's graph with its variables restored, ready to run.

    Raises:
        NoWitness: If there is no signature that takes images, if it needs an operation that is not
            `HARMLESS`, or if TensorFlow cannot run it.
    """

    def __init__(self, graph: Path, prefix: Path) -> None:
        """Open a graph.

        Args:
            graph: The file `GRAPH_NAME`.
            prefix: The checkpoint of its variables.
        """
        self._tf = load_tensorflow()
        meta = _meta_graph(graph)
        self._signatures = {
            name: signature
            for name, signature in sorted(meta.signature_def.items())
            if _image_input(signature) and signature.outputs
        }
        if not self._signatures:
            found = ", ".join(sorted(meta.signature_def)) or "none"
            raise NoWitness(f"none of its signatures takes images (it has: {brief(found)})")
        ends = [output.name for _, _, output in self._outputs()]
        saver = meta.saver_def
        needed = _needed(meta.graph_def, [*ends, saver.restore_op_name, saver.filename_tensor_name])
        _check(needed)
        self._session = self._restored(needed, saver, prefix)
        self._way: _Way | None = None

    def __call__(self, images: Array, like: Array) -> tuple[str, Array] | None:
        """Run the graph.

        A module may have several outputs of the same size, and takes images in one of `RANGES`:
        what comes closest to `like` on the first images is taken, and is named; so it is for all
        later ones.

        Args:
            images: RGB in [-1, 1], float32, shape (batch, height, width, channels).
            like: Outputs of a network that may be the same, shape (batch, outputs).

        Returns:
            What was run, and its outputs in the shape of `like`; None if the graph is made for
            images of another size.

        Raises:
            NoWitness: If no output has the shape of `like`, or TensorFlow fails.
        """
        ways = [self._way] if self._way else [*self._ways(images.shape)]
        if not ways:
            return None
        found = {way: self._run(way, images) for way in ways}
        same = {way: out for way, out in found.items() if out.size == like.size}
        if not same:
            shapes = ", ".join(sorted({str(out.shape) for out in found.values()}))
            raise NoWitness(f"its outputs have the shapes {shapes}, expected {like.shape}")
        self._way = min(same, key=lambda way: _distance(same[way], like))
        return str(self._way), same[self._way].reshape(like.shape)

    def close(self) -> None:
        """Release the variables."""
        self._session.close()

    def _outputs(self) -> Iterator[tuple[str, str, Any]]:
        for name, signature in self._signatures.items():
            for key, output in sorted(signature.outputs.items()):
                yield name, key, output

    def _ways(self, shape: tuple[int, ...]) -> Iterator[_Way]:
        for name, key, _ in self._outputs():
            sides = [side.size for side in _image_input(self._signatures[name]).tensor_shape.dim]
            fitting = [side in (-1, size) for side, size in zip(sides, shape, strict=False)]
            if all(fitting):
                yield from (_Way(name, key, pixels) for pixels in RANGES)

    def _run(self, way: _Way, images: Array) -> Array:
        signature = self._signatures[way.signature]
        factor, summand = RANGES[way.pixels]
        given = {_image_input(signature).name: images * np.float32(factor) + np.float32(summand)}
        try:
            found = self._session.run(signature.outputs[way.output].name, given)
        except Exception as error:  # whatever TensorFlow finds wrong with a graph
            raise NoWitness(f"it cannot be run ({_reason(error)})") from error
        return np.asarray(found, np.float64)

    def _restored(self, graph_def: Any, saver: Any, prefix: Path) -> Any:
        v1 = self._tf.compat.v1
        try:
            with self._tf.Graph().as_default() as graph:
                self._tf.graph_util.import_graph_def(graph_def, name="")
            session = v1.Session(graph=graph)
            session.run(saver.restore_op_name, {saver.filename_tensor_name: str(prefix)})
        except Exception as error:  # whatever TensorFlow finds wrong with a graph
            raise NoWitness(f"it cannot be loaded ({_reason(error)})") from error
        return session


def _meta_graph(path: Path) -> Any:
    """Return the graph that serves: tagged so, or without tags as TF-Hub's are."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    try:
        graphs = SavedModel.FromString(path.read_bytes()).meta_graphs
    except Exception as error:  # of protobuf's several implementations
        raise NoWitness(f"{path.name} is damaged ({_reason(error)})") from error
    if not graphs:
        raise NoWitness(f"{path.name} has no graph")
    preferred: tuple[tuple[str, ...], ...] = (("serve",), ())
    tagged = {tuple(meta.meta_info_def.tags): meta for meta in reversed(graphs)}
    return next((tagged[tags] for tags in preferred if tags in tagged), graphs[0])


def _image_input(signature: Any) -> Any:
    """Return the only input of a signature if it takes float images, else None."""
    inputs = list(signature.inputs.values())
    if len(inputs) != 1:
        return None
    shape, is_float = inputs[0].tensor_shape, inputs[0].dtype == _FLOAT
    return inputs[0] if is_float and (shape.unknown_rank or len(shape.dim) == 4) else None


def _needed(graph: Any, names: Iterable[str]) -> Any:
    """Return the part of a graph that some tensors or operations depend on, and its functions."""
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    part = type(graph)(versions=graph.versions)
    ahead, seen = [_node(name) for name in names], set()
    while ahead:
        name = ahead.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        part.node.append(nodes[name])
        ahead += [_node(text) for text in nodes[name].input]
    calls, called = [*_calls(part.node)], set()
    while calls:
        name = calls.pop()
        if name not in called and name in functions:
            called.add(name)
            part.library.function.append(functions[name])
            calls += _calls(functions[name].node_def)
    return part


def _node(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _calls(nodes: Iterable[Any]) -> Iterator[str]:
    """Names of the functions that operations call, of any kind of call."""
    for node in nodes:
        for value in node.attr.values():
            yield from (function.name for function in (value.func, *value.list.func))


def _check(graph: Any) -> None:
    """Raise `NoWitness` for what could do more than compute."""
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    functions = {function.signature.name for function in graph.library.function}
    others = {node.op for nodes in bodies for node in nodes} - HARMLESS - functions
    if others:
        raise NoWitness(f"it needs operations that may do more than compute: {_listed(others)}")
    for nodes in bodies:
        for node in nodes:
            if any(b"://" in text for text in _texts(node)):
                raise NoWitness(f"its constant {brief(node.name)} holds an address")
    _check_calls(graph)


def _check_calls(graph: Any) -> None:
    """Raise `NoWitness` for functions that never end, or that are endless written out."""
    bodies = {function.signature.name: function.node_def for function in graph.library.function}
    called = {
        name: [other for other in (*_calls(body), *(node.op for node in body)) if other in bodies]
        for name, body in bodies.items()
    }
    try:
        order = [*TopologicalSorter(called).static_order()]
    except CycleError as error:
        raise NoWitness(f"its function {brief(error.args[1][0])} calls itself") from error
    sizes: dict[str, int] = {}
    for name in order:  # from those that call none
        sizes[name] = len(bodies[name]) + sum(sizes[other] for other in called[name])
        if sizes[name] > MAX_NODES:
            raise NoWitness(f"its function {brief(name)} is of more than {MAX_NODES:,} operations")


def _texts(node: Any) -> Iterator[bytes]:
    """Strings in a constant; the bytes of numbers may spell anything."""
    value = node.attr["value"].tensor if "value" in node.attr else None
    if value is not None and value.dtype == _STRING:
        yield from value.string_val
        yield value.tensor_content


def _listed(names: Iterable[str]) -> str:
    first, *more = [*sorted(names)]
    return brief(", ".join([first, *more[:4]]) + (", ..." if len(more) > 4 else ""))


def _distance(found: Array, like: Array) -> float:
    distance = float(np.linalg.norm(found.reshape(like.shape) - like))
    return distance if distance == distance else float("inf")


def _reason(error: Exception) -> str:
    return brief(" ".join(str(error).split()))
