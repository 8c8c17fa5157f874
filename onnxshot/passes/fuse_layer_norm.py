"""Write a decomposed LayerNormalization as the one operator it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, edit
from onnxshot.passes.base import Change
from onnxshot.passes.runtime_fusions import LayerNorm, layer_norm


@dataclass(frozen=True, slots=True)
class FuseLayerNorm:
    """Fuse (x - mean) / sqrt(var + epsilon) * gamma + beta into LayerNormalization-17; below opset 17 it stays."""

    name: str = "fuse_layer_norm"

    def run(self, model: Model) -> Change:
        """Fuse; edits counts the LayerNormalizations made."""
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
    inside = set(match.nodes)
    for node in match.nodes[:-1]:
        if node not in nodes:
            return f"{node.label!r} stands in another graph"
        if edit.is_output(model, node.outputs[0]) or not set(edit.consumers(node.outputs[0])) <= inside:
            return f"the output of {node.label!r} is read elsewhere too"
    shape = model.shape(match.x)
    size = None if not shape else shape[-1]
    for constant in (match.gamma, match.beta):
        if constant._values.dtype != np.float32:
            return "it is not float32"
        if tuple(constant.shape) != (size,):
            return f"{constant.name!r} is not known to have one value for each of the last axis"
    return None
