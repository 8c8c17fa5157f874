"""Which layers can be pruned, which cannot and why, and how many weights each of them loses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshot.errors import UsageError
from onnxshot.execution.layer_rows import MatrixForm
from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.graph.ops import OPS, STANDARD_DOMAINS
from onnxshot.graph.skip import Skip
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.maths.sparsity_allocation import erdos_renyi, exact_counts
from onnxshot.passes.base import Change
from onnxshot.passes.undo_large_folds import grew
from onnxshot.planning.name_patterns import match_nodes
from onnxshot.pruning.layerwise_pruning import Prunable


@dataclass(frozen=True, slots=True)
class Tables(Mapping[str, NDArray[np.float32]]):
    """Weights by the name of their layer, each read anew: none is held beside the model."""

    stored: Mapping[str, TensorProto]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return numpy_helper.to_array(self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


_OPS = ("Conv", "Gemm", "MatMul")


def choose_layers(
    model: Model, pattern: Pattern, include: Collection[str], exclude: Collection[str]
) -> tuple[list[str], list[Skip]]:
    """(labels of the nodes to prune, in order; those with weights that are left, with the reason).

    Raises UsageError where a glob matches nothing.
    """
    wanted = match_nodes(model, include, "--include")
    unwanted = match_nodes(model, exclude, "--exclude")
    found, change = [], Change()
    for graph, node in model.walk():
        if node.op not in _OPS or node.domain not in STANDARD_DOMAINS:
            continue
        if not any(isinstance(node.inputs[i], Constant) for i in OPS[node.op].weights if i < len(node.inputs)):
            continue
        reason = "inside a subgraph" if graph is not model.graph else _refused(node, pattern)
        if not reason and grew(model, node.inputs[1]):
            reason = "its weight is stored in fewer bytes, or shared: pruned, the file would be larger"
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
    """Why the node cannot be pruned; empty where it can."""
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


def described(proto: ModelProto, names: Collection[str]) -> list[Prunable]:
    """The layers of these names, in order. A bias that several nodes read, or computed, is none."""
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    readers = Counter(name for node in proto.graph.node for name in node.input)
    chosen, found = set(names), []
    for node in proto.graph.node:
        if node.name not in chosen:
            continue
        form = MatrixForm(node.op_type, {a.name: helper.get_attribute_value(a) for a in node.attribute})
        shape = shapes[node.input[1]]
        groups, outputs, inputs = form.table(np.broadcast_to(np.float32(0), shape)).shape
        kernel = math.prod(shape[2:]) if node.op_type == "Conv" else 1
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias not in shapes or readers[bias] > 1 or math.prod(shapes[bias]) != groups * outputs:
            bias = ""  # a scalar is broadcast
        found.append(
            Prunable(
                node.name, node.op_type, form, node.input[0], node.output[0], node.input[1], bias, shape,
                groups * outputs, inputs, kernel,
            )
        )  # fmt: skip
    return found


def fixed_counts(
    model: Model, layers: Sequence[Prunable], rules: Mapping[str, float], least: Mapping[str, int]
) -> dict[str, int]:
    """Zeros of the layers that --layer names, by name; of several rules for one, the last. Raises UsageError."""
    found = dict[str, int]()
    known = {layer.name: layer for layer in layers}
    for glob, share in rules.items():
        picked = [node.label for node in match_nodes(model, [glob], "--layer") if node.label in known]
        if not picked:
            raise UsageError(f"--layer {glob!r} matches no layer that is pruned", "onnxshot prune --json lists them")
        found |= {label: max(round(share * known[label].size), least[label]) for label in picked}
    return found


def shared_out(
    scope: str,
    layers: Sequence[Prunable],
    tables: Mapping[str, NDArray[np.float32]],
    count: int,
    sparsity: float,
    least: Mapping[str, int],
) -> list[int]:
    """How many zeros each layer gets by a rule that asks no data: `count` together; by layer, each its share."""
    sizes, floor = [layer.size for layer in layers], [least[layer.name] for layer in layers]
    if scope == "layer":
        return [max(round(sparsity * size), low) for size, low in zip(sizes, floor, strict=True)]
    if scope == "erk":
        return erdos_renyi([_dimensions(layer) for layer in layers], count, floor)
    scores = [_lamp(tables[layer.name]) for layer in layers]
    count = min(count, sum(sizes))
    if not count:
        return floor
    limit = np.partition(np.concatenate(scores), count - 1)[count - 1]
    shares = [float((score <= limit).mean()) for score in scores]
    return exact_counts(sizes, shares, count, floor)


def _dimensions(layer: Prunable) -> tuple[int, ...]:
    """[O, I / groups, *kernel], whichever way the weight is stored."""
    return layer.shape if layer.op == "Conv" else (layer.outputs, layer.inputs)


def _lamp(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores that are comparable between layers: w^2 over the sum of all w^2 that are not smaller.

    LAMP: Lee et al. 2021, eq. 5. [n] in rising order.
    """
    squares = np.sort(np.square(weight.reshape(-1), dtype=np.float64))
    left = np.cumsum(squares[::-1])[::-1]
    scores = np.divide(squares, left, out=np.zeros_like(squares), where=left > 0)
    return np.asarray(scores, np.float32)


def nm_counts(layers: Sequence[Prunable], pattern: Pattern) -> list[int]:
    """Zeros that an N:M pattern makes."""
    return [layer.size * (pattern.of - pattern.keep) // pattern.of for layer in layers]


def reachable(layers: Sequence[Prunable], sparsity: float) -> int:
    """How many zeros a sparsity is of all these layers."""
    return round(sparsity * math.fsum(layer.size for layer in layers))
