"""Fuse Add, Clip, Div -> HardSigmoid and Add, Clip, Mul, Div -> HardSwish.

Time in ONNX Runtime on CPU, 2 threads, shape [1, 96, 24, 160]: Add, Clip, Mul, Div 175 us; HardSigmoid, Mul 98 us;
HardSwish 100 us.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.runtime_fusions import made_by, scalar, with_constant

_HARD_SWISH = {"alpha": 1 / 6, "beta": 0.5}  # HardSwish-14: x * max(0, min(1, alpha * x + beta))


@dataclass(frozen=True, slots=True)
class FuseActivations:
    """Fuse clip(x + 3, 0, 6) / 6 into HardSigmoid, and x * clip(x + 3, 0, 6) / 6 into HardSwish.

    Below opset 14, which introduced HardSwish, the latter becomes HardSigmoid and Mul. Only float32 is fused, in
    subgraphs too.

    Edits count the fusions; a HardSwish fused from a HardSigmoid that this pass made counts twice. Nothing is reported
    as skipped.
    """

    name: str = "fuse_activations"

    def run(self, model: Model) -> Change:
        """Fuse the activations."""
        change = Change()
        for graph, node in list(model.walk()):
            if _is_clip(node):
                change.edits += _fuse_clip(model, graph, node)
        if model.opset >= 14:
            for graph, node in list(model.walk()):
                change.edits += _fuse_swish(model, graph, node)
        if change.edits:
            edit.toposort(model)
        return change


def _is_clip(node: Node) -> bool:
    """Whether the node is a Clip to [0, 6]; its limits are attributes before opset 11 and inputs since."""
    if node.op != "Clip" or node.domain not in STANDARD_DOMAINS:
        return False
    limits = [scalar(t) for t in node.inputs[1:]] or [node.attrs.get("min"), node.attrs.get("max")]
    return limits == [0, 6]


def _fuse_clip(model: Model, graph: Graph, clip: Node) -> int:
    """Fuse the Add before a Clip, the Clip, the division after it, and a Mul by x; the number of fusions."""
    add = made_by(clip.inputs[0], "Add")
    shifted = with_constant(add)
    if add is None or shifted is None or scalar(shifted[1]) != 3 or not _float32(shifted[1]):
        return 0
    x, user = shifted[0], edit.only_consumer(model, clip.outputs[0])
    if user is None or edit.only_consumer(model, add.outputs[0]) is not clip or not _together(graph, add, clip, user):
        return 0
    if _sixth(user) is clip.outputs[0]:
        _replace(model, graph, [add, clip, user], x, swish=False)
        return 1
    gated = _times(user, clip.outputs[0])
    if gated is x:
        last = edit.only_consumer(model, user.outputs[0])
        if last is not None and last in graph.nodes and _sixth(last) is user.outputs[0]:
            return _replace(model, graph, [add, clip, user, last], x, swish=True)
    division = None if gated is None else edit.producer(gated)
    if division is None or gated is x or _sixth(division) is not x or not _together(graph, division):
        return 0
    if edit.only_consumer(model, division.outputs[0]) is not user:
        return 0
    return _replace(model, graph, [add, clip, division, user], x, swish=True)


def _fuse_swish(model: Model, graph: Graph, node: Node) -> int:
    """Fuse x * HardSigmoid(x) into HardSwish; the number of fusions."""
    if node.op != "HardSigmoid" or node.domain not in STANDARD_DOMAINS:
        return 0
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    if not math.isclose(alpha, 1 / 6, rel_tol=1e-5) or beta != 0.5:
        return 0
    user = edit.only_consumer(model, node.outputs[0])
    x = node.inputs[0]
    if user is None or user not in graph.nodes or _times(user, node.outputs[0]) is not x:
        return 0
    out = user.outputs[0]
    edit.remove(model, [node, user])
    edit.add_node(model, "HardSwish", [x], base=user.label, suffix="HardSwish", outputs=[out], graph=graph)
    return 1


def _replace(model: Model, graph: Graph, nodes: list[Node], x: Tensor, *, swish: bool) -> int:
    """Replace nodes by HardSigmoid, by HardSwish, or by HardSigmoid and Mul; the number of fusions."""
    last = nodes[-1]
    out, base = last.outputs[0], last.label
    edit.remove(model, nodes)
    if swish and model.opset >= 14:
        edit.add_node(model, "HardSwish", [x], base=base, suffix="HardSwish", outputs=[out], graph=graph)
        return 1
    gate = edit.add_node(
        model,
        "HardSigmoid",
        [x],
        base=base,
        suffix="HardSigmoid",
        outputs=1 if swish else [out],
        attrs=dict(_HARD_SWISH),
        graph=graph,
    )
    if not swish:
        return 1
    edit.add_node(model, "Mul", [x, gate.outputs[0]], base=base, suffix="Mul", outputs=[out], graph=graph)
    return 1


def _sixth(node: Node) -> Tensor | None:
    """The tensor that is divided by 6, as a Div by 6 or a Mul by 1/6; None for other nodes."""
    if node.domain not in STANDARD_DOMAINS:
        return None
    if node.op == "Div":
        return node.inputs[0] if scalar(node.inputs[1]) == 6 and not isinstance(node.inputs[0], Constant) else None
    pair = with_constant(node) if node.op == "Mul" else None
    value = None if pair is None else scalar(pair[1])
    return pair[0] if pair is not None and value is not None and math.isclose(value, 1 / 6, rel_tol=1e-5) else None


def _times(node: Node, tensor: Tensor) -> Tensor | None:
    """The other factor of a Mul with `tensor`; None if it is constant or the same tensor."""
    if node.op != "Mul" or node.domain not in STANDARD_DOMAINS or len(node.inputs) != 2:
        return None
    other = node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]
    return None if isinstance(other, Constant) or other is tensor else other


def _together(graph: Graph, *nodes: Node) -> bool:
    """Whether all nodes are in this graph."""
    return all(node in graph.nodes for node in nodes)


def _float32(tensor: Tensor) -> bool:
    return bool(tensor._values.dtype == np.float32)
