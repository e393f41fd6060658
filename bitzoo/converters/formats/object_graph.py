"""Names of the variables in a TensorFlow 2 checkpoint, from the graph of objects in it.

Source: github.com/tensorflow/tensorflow, tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import islice

from bitzoo.converters.formats.protobuf_wire import Message

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The key that a checkpoint has its graph under."""
_STEP = re.compile(
    r"_root|_blocks|_pre_head|_head|_unit_[abc]|_unit_a_conv|_proj|\d|layer_with_weights-\d{1,3}"
    r"|kernel|bias|gamma|beta",
    re.ASCII,
)
"""Attributes that lead to a variable; aliases that Keras adds, such as `layer-1`, are ignored."""
_MAX_STEPS = 50_000
"""Bound on the traversal of a graph; the largest network takes 3,000."""
_MAX_DEPTH = 8


class _Node:
    """An object: the objects in its attributes, and its value if it is a variable."""

    def __init__(self, data: memoryview) -> None:
        self._fields = Message(data)
        self.key = self.full_name = ""
        for attribute in map(Message, self._fields.each(2)):
            if attribute.text(1) == "VARIABLE_VALUE":
                self.full_name, self.key = attribute.text(2), attribute.text(3)
                break

    @cached_property
    def children(self) -> list[tuple[str, int]]:
        """Attributes that may lead to a variable, and the numbers of the objects in them."""
        named = ((child.text(2), child.number(1)) for child in map(Message, self._fields.each(1)))
        return [(name, number) for name, number in named if _STEP.fullmatch(name)]


def read_names(graph: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Return the full names of the variables, and their paths of attributes, by checkpoint key.

    Args:
        graph: The serialized graph; empty if there is none.

    Raises:
        ValueError: If it is damaged, or has more paths than a network.
    """
    nodes = [_Node(node) for node in Message(memoryview(graph)).each(1)]
    full = {node.key: node.full_name for node in nodes if node.full_name.isprintable()}
    roots = (node for node in nodes if any(name == "_root" for name, _ in node.children))
    paths: dict[str, str] = {}
    ahead = [("", root, 0) for root in islice(roots, 1)]
    steps = 0
    while ahead:
        path, node, depth = ahead.pop()
        steps += 1 + len(node.children)
        if steps > _MAX_STEPS:
            raise ValueError(f"its object graph has more than {_MAX_STEPS:,} paths")
        for name, number in node.children:
            if not 0 <= number < len(nodes):
                continue
            child, step = nodes[number], f"{path}{name}"
            if child.key:
                paths.setdefault(child.key, step)
            elif depth < _MAX_DEPTH:
                ahead.append((f"{step}/", child, depth + 1))
    return {key: name for key, name in full.items() if key and name}, paths
