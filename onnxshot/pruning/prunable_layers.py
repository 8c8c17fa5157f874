"""Which layers can be pruned, and why others cannot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxshot.execution.layer_rows import MatrixForm
from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.ops import OPS, STANDARD_DOMAINS
from onnxshot.graph.skip import Skip
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.passes.base import Change
from onnxshot.passes.undo_large_folds import grew
from onnxshot.planning.name_patterns import match_nodes
from onnxshot.pruning.layerwise_pruning import PrunableLayer


@dataclass(frozen=True, slots=True)
class Tables(Mapping[str, NDArray[np.float32]]):
    """Weights by layer name, read from the model at each access, so that no copy is held.

    Attributes:
        model: The model.
        stored: Layer name -> name of its weight.
    """

    model: LeanModel
    stored: Mapping[str, str]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.model.array(self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


_OPS = ("Conv", "Gemm", "MatMul")


def choose_layers(
    model: Model, pattern: Pattern, include: Collection[str], exclude: Collection[str]
) -> tuple[list[str], list[Skip]]:
    """Choose the layers to prune.

    Args:
        model: The normalized model.
        pattern: Pattern of the zeros.
        include: Globs; if there are any, only layers they match are pruned.
        exclude: Globs of layers that are not pruned.

    Returns:
        Labels of the layers in graph order, and the other layers with weights, with the reason.

    Raises:
        UsageError: A glob matches nothing.
    """
    wanted = match_nodes(model, include, "[[include]]")
    unwanted = match_nodes(model, exclude, "[[exclude]]")
    found, change = [], Change()
    for graph, node in model.walk():
        if node.op not in _OPS or node.domain not in STANDARD_DOMAINS:
            continue
        if not any(isinstance(node.inputs[i], Constant) for i in OPS[node.op].weights if i < len(node.inputs)):
            continue
        reason = "inside a subgraph" if graph is not model.graph else _refused(node, pattern)
        if not reason and grew(model, node.inputs[1]):
            reason = "its weight is stored in fewer bytes, or shared: the file would grow if it were pruned"
        if node in unwanted:
            reason = f"excluded by {unwanted[node]!r}"
        elif include and node not in wanted:
            reason = "not included"
        if reason:
            change.skip(node, reason)
        else:
            found.append(node.label)
    return found, change.skips


def _refused(node: Node, pattern: Pattern) -> str:
    """Why the node cannot be pruned; empty if it can."""
    weight = node.inputs[1]
    if not isinstance(weight, Constant):
        return "its weight is not the second input"
    if weights.elem_type(weight) != TensorProto.FLOAT:
        return "its weight is not float32"
    if (node.op == "Conv" and len(weight.shape) < 3) or (node.op != "Conv" and len(weight.shape) != 2):
        return f"its weight has {len(weight.shape)} dimensions"
    users = [user for user in edit.consumers(weight) if user is not node]
    if users or list(node.inputs).count(weight) > 1:
        return f"its weight is shared with {users[0].label!r}" if users else "it reads its weight twice"
    if node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0:
        return "transA, alpha or beta is set"
    inputs = weight.shape[1] if node.op == "Conv" or node.attrs.get("transB", 0) else weight.shape[0]
    if 0 in weight.shape:
        return "its weight is empty"
    if not np.isfinite(weights.read(weight)).all():
        return "its weight holds NaN or infinite values"
    if pattern.of and inputs % pattern.of:
        return f"{inputs} inputs are no multiple of {pattern.of}"
    return ""


def layers_named(model: LeanModel, names: Collection[str]) -> list[PrunableLayer]:
    """Describe the layers of these names, in graph order. A bias that is computed or shared is left out."""
    nodes = model.proto.graph.node
    shapes = {name: model.kind_of(name)[1] for name in (*model.weights, *model.initializers)}
    readers = Counter(name for node in nodes for name in node.input)
    chosen, found = set(names), []
    for node in nodes:
        if node.name not in chosen:
            continue
        form = MatrixForm(node.op_type, {a.name: helper.get_attribute_value(a) for a in node.attribute})
        shape = shapes[node.input[1]]
        groups, outputs, inputs = form.table(np.broadcast_to(np.float32(0), shape)).shape
        kernel = math.prod(shape[2:]) if node.op_type == "Conv" else 1
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias not in shapes or readers[bias] > 1 or math.prod(shapes[bias]) != groups * outputs:
            bias = ""  # shared, or a scalar that is broadcast
        found.append(
            PrunableLayer(
                node.name, node.op_type, form, node.input[0], node.output[0], node.input[1], bias, shape,
                groups * outputs, inputs, kernel,
            )
        )  # fmt: skip
    return found
