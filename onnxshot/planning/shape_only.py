"""Find nodes that depend on shapes and constants only, for example masks, positions and zero initial states.

Once the input shapes are fixed, their results are constants.
"""

from __future__ import annotations

from onnxshot.graph import Constant, Graph, Model, Node, Tensor
from onnxshot.graph.ops import RANDOM, STANDARD_DOMAINS


def from_sizes_alone(model: Model) -> tuple[set[Node], set[Tensor]]:
    """(nodes of the top-level graph whose results do not depend on input values, their output tensors).

    Shape and Size nodes are included.
    """
    nodes: set[Node] = set()
    made: set[Tensor] = set()
    for node in model.graph.nodes:
        if node.domain not in STANDARD_DOMAINS or node.op in RANDOM:
            continue
        if any(isinstance(value, Graph) for value in node.attrs.values()):
            continue
        read = [t for t in node.inputs if t.name]
        if node.op in ("Shape", "Size") or all(t in made or isinstance(t, Constant) for t in read):
            nodes.add(node)
            made.update(t for t in node.outputs if t.name)
    return nodes, made
