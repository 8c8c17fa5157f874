"""Reshape one-element inputs to the rank that the operator needs: Range(start [1], ..) -> Range(start [], ..).

ONNX Runtime accepts a computed tensor [1] as a scalar at run time, but refuses a constant [1] when it loads the model.
So a model may stop loading once constants are folded, by this package or by the runtime. Expand needs the opposite.
Sources: ONNX Operator Schemas (shape inference of the operators below); measured on ONNX Runtime 1.32.
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
}  # operator -> indices of inputs that must not be a constant [1]
_VECTORS: dict[str, tuple[int, ...]] = {"Expand": (1,)}  # indices of inputs that must not be a constant scalar


@dataclass(frozen=True, slots=True)
class ScalarInputs:
    """Reshape one-element inputs to the rank that the operator's schema asks for.

    Constants are replaced; for computed inputs, a Reshape is added.

    Edits count the inputs. Nothing is reported as skipped.
    """

    name: str = "scalar_inputs"

    def run(self, model: Model) -> Change:
        """Reshape the inputs, in subgraphs too."""
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
    """Whether the tensor may have this rank and one element, or is made by an If whose branches may differ in rank."""
    if graph is not model.graph:
        return False  # shapes inside subgraphs are unknown
    shape, maker = model.shape(tensor), edit.producer(tensor)
    if shape is None:
        return rank == 1 and maker is not None and maker.op == "If"
    return len(shape) == rank and all(d in (1, None) or isinstance(d, str) for d in shape)
