"""Give an operator that wants a single number a scalar, where it reads a tensor [1].

ONNX Runtime takes a computed [1] for a scalar when it runs, and refuses a constant [1] when it loads: a model that runs
stops loading once its constants are folded, by this package or by the runtime. An Expand wants the opposite.
Sources: ONNX Operator Schemas (the shape inference of each operator below); measured on ONNX Runtime 1.32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Graph, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.linear_ops import fixed

_SCALARS: dict[str, tuple[int, ...]] = {
    "Range": (0, 1, 2),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "Dropout": (1,),
    "MelWeightMatrix": (0, 1, 2),
    "DFT": (1, 2),
    "STFT": (3,),
}  # op -> input slots where a constant [1] is refused
_VECTORS: dict[str, tuple[int, ...]] = {"Expand": (1,)}  # and where a constant scalar is


@dataclass(frozen=True, slots=True)
class ScalarInputs:
    """Reshape one-element inputs to the rank that their reader's schema asks for; constants without a node."""

    name: str = "scalar_inputs"

    def run(self, model: Model) -> Change:
        """Rewrite; edits counts the inputs."""
        change = Change()
        for graph, node in list(model.walk()):
            if node.domain not in STANDARD_DOMAINS:
                continue
            for table, shape in ((_SCALARS, ()), (_VECTORS, (1,))):
                for slot in table.get(node.op, ()):
                    if slot < len(node.inputs) and node.inputs[slot].name:
                        change.edits += _to_shape(model, graph, node, slot, shape)
        if change.edits:
            edit.toposort(model)
        return change


def _to_shape(model: Model, graph: Graph, node: Node, slot: int, wanted: tuple[int, ...]) -> bool:
    tensor = node.inputs[slot]
    if fixed(tensor):
        values = weights.read(tensor)
        if values.size != 1 or values.shape == wanted:
            return False
        node.inputs[slot] = edit.add_constant(model, tensor.name, "number", values.reshape(wanted))
        return True
    if not _may_be(model, graph, tensor, 1 - len(wanted)):
        return False
    shape = edit.add_constant(model, node.label, "shape", np.array(wanted, np.int64))
    reshape = edit.add_node(model, "Reshape", [tensor, shape], base=tensor.name, suffix="number", graph=graph)
    node.inputs[slot] = reshape.outputs[0]
    return True


def _may_be(model: Model, graph: Graph, tensor: Tensor, rank: int) -> bool:
    """True for a tensor that is known to have this rank and one element, or whose branches may give different ranks."""
    if graph is not model.graph:
        return False  # shapes inside of branches are not known
    shape, maker = model.shape(tensor), edit.producer(tensor)
    if shape is None:
        return rank == 1 and maker is not None and maker.op == "If"
    return len(shape) == rank and all(d in (1, None) or isinstance(d, str) for d in shape)
