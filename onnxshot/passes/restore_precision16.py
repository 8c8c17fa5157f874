"""Convert nodes that `WidenPrecision16` widened to float32 back to float16 or bfloat16, with the nodes added since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxshot.graph import Graph, Model, Node, edit, shape_inference
from onnxshot.graph.float16_types import TYPE_ATTRIBUTES
from onnxshot.passes.base import Change
from onnxshot.passes.store_original_dtype import narrowed
from onnxshot.passes.to_precision16 import ToPrecision16
from onnxshot.planning.plan import HALF, NodePlan
from onnxshot.planning.precision16_ops import HALVES, HalfType
from onnxshot.planning.precision16_plan import HalfPlan

_PAIRS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class RestorePrecision16:
    """Narrow the tensors that were 16-bit before, and new tensors computed from them. Subgraphs stay float32.

    Edits count the nodes. Nothing is reported as skipped: a Q or DQ whose scale does not fit 16 bits stays float32.

    Attributes:
        computed: name of each tensor that was computed in 16 bits -> ONNX element type.
        known: names of all tensors of the input model. All others are new.
        makers: names of the nodes that produced 16-bit tensors. Their outputs may have other names now, as Casts were
            removed.
    """

    computed: Mapping[str, int]
    known: frozenset[str]
    makers: frozenset[str]
    name: str = "restore_precision16"

    def run(self, model: Model) -> Change:
        """Narrow the tensors."""
        change = Change()
        for kind in (replace(k, largest=None) for k in HALVES.values() if k.elem_type in set(self.computed.values())):
            shape_inference.infer(model)
            chosen = self._chosen(model, kind)
            for node in chosen:
                _narrow_attributes(node, kind)
            plan = HalfPlan(kind, tuple(NodePlan(node.label, node.op, HALF) for node in chosen))
            change.edits += ToPrecision16(plan).run(model).edits
        return change

    def _chosen(self, model: Model, kind: HalfType) -> dict[Node, None]:
        """The nodes of the top-level graph whose outputs become 16-bit, in graph order."""
        half = {name for name, elem_type in self.computed.items() if elem_type == kind.elem_type}
        half |= {model.renamed[name] for name in half if name in model.renamed}
        chosen: dict[Node, None] = {}
        for node in model.graph.nodes:
            if any(isinstance(value, Graph) for value in node.attrs.values()) or not _fits(node, kind):
                continue
            made = [t.name for t in node.outputs if t.name]
            new = not any(name in self.known for name in made)
            read = [edit.producer(t) for t in node.inputs]
            follows = new and (_widens(model, node, kind) or any(m in chosen for m in read if m is not None))
            if node.name in self.makers or half.intersection(made) or follows:
                chosen[node] = None
        for node in reversed(model.graph.nodes):
            new = node not in chosen and not any(t.name in self.known for t in node.outputs)
            users = [user for t in node.outputs for user in edit.consumers(t)]
            if new and node.op == "DequantizeLinear" and _fits(node, kind) and any(u in chosen for u in users):
                chosen[node] = None
        return chosen


def _widens(model: Model, node: Node, kind: HalfType) -> bool:
    """Whether the node is a Cast from the 16-bit type to float32."""
    return (
        node.op == "Cast"
        and node.attrs.get("to") == TensorProto.FLOAT
        and model.elem_type(node.inputs[0]) == kind.elem_type
    )


def _fits(node: Node, kind: HalfType) -> bool:
    """False for a Q or DQ whose scale would become 0 or infinite in 16 bits."""
    scale = edit.constant_input(node, 1) if node.op in _PAIRS else None
    if scale is None:
        return True
    half = narrowed(np.asarray(scale, np.float32), kind.elem_type).astype(np.float32)
    return bool(np.isfinite(half).all() and (half > 0).all())


def _narrow_attributes(node: Node, kind: HalfType) -> None:
    for key, value in node.attrs.items():
        if key in TYPE_ATTRIBUTES and value == TensorProto.FLOAT and node.op != "Cast":
            node.attrs[key] = kind.elem_type
        elif isinstance(value, AttributeProto) and value.t.data_type == TensorProto.FLOAT:
            made = AttributeProto()
            made.CopyFrom(value)
            values = narrowed(numpy_helper.to_array(value.t), kind.elem_type)
            made.t.CopyFrom(numpy_helper.from_array(values, value.t.name))
            node.attrs[key] = made
