"""Fuse ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add -> LayerNormalization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, edit
from onnxshot.passes.base import Change
from onnxshot.passes.runtime_fusions import LayerNorm, layer_norm


@dataclass(frozen=True, slots=True)
class FuseLayerNorm:
    """Fuse (x - mean) / sqrt(var + epsilon) * gamma + beta over the last axis into LayerNormalization-17.

    Nothing is fused below opset 17. Subgraphs are searched too.

    Edits count the LayerNormalizations made. Skip reasons: a node of the pattern is in another graph, or its output is
    read elsewhere too; "it is not float32"; gamma or beta is not known to have one value per element of the last axis.
    """

    name: str = "fuse_layer_norm"

    def run(self, model: Model) -> Change:
        """Fuse the patterns."""
        change = Change()
        if model.opset < 17:
            return change
        for graph, node in list(model.walk()):
            match = layer_norm(model, node)
            if match is None:
                continue
            reason = _refusal(model, graph.nodes, match)
            if reason is not None:
                change.skip(node, reason)
                continue
            out = node.outputs[0]
            edit.remove(model, match.nodes)
            edit.add_node(
                model,
                "LayerNormalization",
                [match.x, match.gamma, match.beta],
                base=node.label,
                suffix="LayerNormalization",
                outputs=[out],
                attrs={"axis": -1, "epsilon": match.epsilon},
                graph=graph,
            )
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _refusal(model: Model, nodes: list[Node], match: LayerNorm) -> str | None:
    """Skip reason of a match; None if it can be fused."""
    inside = set(match.nodes)
    for node in match.nodes[:-1]:
        if node not in nodes:
            return f"{node.label!r} is in another graph"
        if edit.is_output(model, node.outputs[0]) or not set(edit.consumers(node.outputs[0])) <= inside:
            return f"the output of {node.label!r} is read elsewhere too"
    shape = model.shape(match.x)
    size = None if not shape else shape[-1]
    for constant in (match.gamma, match.beta):
        if constant._values.dtype != np.float32:
            return "it is not float32"
        if tuple(constant.shape) != (size,):
            return f"{constant.name!r} is not known to have one value per element of the last axis"
    return None
