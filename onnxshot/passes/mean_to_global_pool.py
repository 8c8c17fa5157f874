"""Replace means over all spatial axes: ReduceMean -> GlobalAveragePool (and Flatten without keepdims).

Runtimes keep their blocked and int8 layouts through pooling, but not through a reduction: in ONNX Runtime, a
squeeze-and-excitation net spends a quarter of its time on layout changes. A ReduceMean that is part of a normalization
is kept, as runtimes match it for fusion. By its shape alone, the last axis of [N, T, C] looks like a spatial axis.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change

_ROOTS = ("Sqrt", "Pow", "Reciprocal", "Rsqrt")
_FROM = ("Sub", "Div")
_FAR = 16  # number of nodes after the mean to search for a normalization


@dataclass(frozen=True, slots=True)
class MeanToGlobalPool:
    """Replace ReduceMean over axes 2.. of [N, C, L], [N, C, H, W] or [N, C, D, H, W] by GlobalAveragePool.

    Edits count the nodes. Nothing is reported as skipped.
    """

    name: str = "mean_to_global_pool"

    def run(self, model: Model) -> Change:
        """Replace the nodes, in subgraphs too."""
        change = Change()
        for graph in model.graphs():
            for node in list(graph.nodes):
                if node.op != "ReduceMean" or node.domain not in STANDARD_DOMAINS:
                    continue
                if _is_spatial(model, node) and not _norms(node):
                    _rewrite(model, graph, node)
                    change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _is_spatial(model: Model, node: Node) -> bool:
    shape = model.shape(node.inputs[0])
    if shape is None or len(shape) not in (3, 4, 5):
        return False
    axes = node.attrs.get("axes")  # an input from ReduceMean-18 on
    if axes is None:
        given = edit.constant_input(node, 1)
        axes = [] if given is None else given.tolist()
    return sorted(a % len(shape) for a in axes) == list(range(2, len(shape)))


def _norms(node: Node) -> bool:
    """Whether the mean is part of a normalization: a root follows, or it is subtracted from or divides its input."""
    x = _without_casts(node.inputs[0])
    stack, steps = list(edit.consumers(node.outputs[0])), 0
    while stack and steps < _FAR:
        user, steps = stack.pop(), steps + 1
        if user.op in _ROOTS or (user.op in _FROM and any(_without_casts(t) is x for t in user.inputs)):
            return True
        constant = any(isinstance(t, Constant) for t in user.inputs)
        if user.op in ("Cast", "Clip", "Identity") or (user.op in ("Add", "Max", "Mul") and constant):
            stack += [u for out in user.outputs for u in edit.consumers(out)]
    return False


def _without_casts(tensor: Tensor) -> Tensor:
    maker = edit.producer(tensor)
    while maker is not None and maker.op in ("Cast", "Identity"):
        tensor = maker.inputs[0]
        maker = edit.producer(tensor)
    return tensor


def _rewrite(model: Model, graph: Graph, node: Node) -> None:
    source, out, keep = node.inputs[0], node.outputs[0], node.attrs.get("keepdims", 1)
    base = node.label
    node.inputs.clear()
    node.outputs.clear()
    last = [out] if keep else 1
    pool = edit.add_node(model, "GlobalAveragePool", [source], base=base, suffix="pool", outputs=last, graph=graph)
    if not keep:
        edit.add_node(
            model, "Flatten", pool.outputs, base=base, suffix="flat", outputs=[out], attrs={"axis": 1}, graph=graph
        )
    edit.remove(model, [node])
