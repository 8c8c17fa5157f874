"""Replace SimplifiedLayerNormalization, which only ONNX Runtime has, by Pow, ReduceMean, Add, Sqrt, Div and Mul."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Model, Node, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.node_writer import Writer, is_read


@dataclass(frozen=True, slots=True)
class ExpandSimplifiedNorm:
    """Write it as x / sqrt(mean(x^2) + epsilon) * gamma over the last axis. ONNX Runtime fuses these operators again.

    Edits count the norms. Skipped: norms over more than the last axis, or whose second output is read.
    """

    name: str = "expand_simplified_norm"

    def run(self, model: Model) -> Change:
        """Replace the norms, in subgraphs too."""
        change = Change()
        for graph, node in list(model.walk()):
            if node.op != "SimplifiedLayerNormalization" or node.domain not in STANDARD_DOMAINS:
                continue
            if not _is_over_last(model, node) or is_read(model, node, 1):
                change.skip(node, "it normalizes more than the last axis, or its second output is read")
                continue
            _rewrite(Writer(model, graph, node))
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _is_over_last(model: Model, node: Node) -> bool:
    axis, shape = int(node.attrs.get("axis", -1)), model.shape(node.inputs[0])
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _rewrite(write: Writer) -> None:
    x, gamma, out = write.node.inputs[0], write.node.inputs[1], write.node.outputs[0]
    square = write.op("Pow", x, write.scalar("two", 2.0, x))
    if write.model.opset < 18:
        mean = write.op("ReduceMean", square, axes=[-1], keepdims=1)
    else:
        mean = write.op("ReduceMean", square, write.ints("axes", -1), keepdims=1)
    epsilon = write.scalar("epsilon", float(write.node.attrs.get("epsilon", 1e-5)), x)
    root = write.op("Sqrt", write.op("Add", mean, epsilon))
    write.op("Mul", write.op("Div", x, root), gamma, out=out)
    write.done()
