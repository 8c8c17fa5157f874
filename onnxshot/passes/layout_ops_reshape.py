"""Layout changes of operators that depend on the order of all axes: Shape, Size, Reshape and Flatten."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxshot import memory
from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.layout_change import (
    RANKS,
    CannotChange,
    Case,
    LayoutChange,
    nothing,
    reorder,
)
from onnxshot.passes.linear_ops import fixed, has_weight

_ROWS_SHARE = 4  # of the memory budget: the largest weight whose rows are reordered, which copies it


def shape(case: Case) -> LayoutChange:
    """Shape: a Gather after it restores the order of the former layout for its readers."""
    node, model = case.node, case.model
    perm = case.perm(case.layout_rank(node.inputs[0]))
    chosen = list(range(len(perm)))[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    if edit.is_output(model, node.outputs[0]):
        raise CannotChange

    def write(model: Model, _layout: int) -> None:
        out = node.outputs[0]
        node.attrs.pop("start", None)
        node.attrs.pop("end", None)
        node.outputs[0] = type(out)(model.fresh(out.name, "turned"))
        picked = edit.add_constant(model, node.label, "axes", np.array([perm.index(a) for a in chosen], np.int64))
        edit.add_node(
            model, "Gather", [node.outputs[0], picked], base=node.label, suffix="sizes",
            outputs=[out], attrs={"axis": 0}, graph=edit.graph_of(model, node),
        )  # fmt: skip

    return LayoutChange((node.inputs[0],), write)


def size(case: Case) -> LayoutChange:
    """Size: the same in both layouts."""
    case.layout_rank(case.node.inputs[0])
    return LayoutChange((case.node.inputs[0],), nothing)


def reshape(case: Case) -> LayoutChange:
    """Reshape to [N, features], or between shapes with at most one dimension besides the batch that is not 1."""
    node, model = case.node, case.model
    x, out = node.inputs[0], node.outputs[0]
    target, before = edit.constant_input(node, 1), model.shape(x)
    if target is None or before is None or node.attrs.get("allowzero", 0) or not fixed(node.inputs[1]):
        raise CannotChange
    sizes = [int(v) for v in target]
    if 0 in sizes[1:]:
        raise CannotChange  # a 0 copies the size of an axis that moves
    if len(sizes) == 2:
        case.layout_rank(x)
        return _flat(case, sizes[0] == 0 or _same_batch(before[0], sizes[0]) or _whole(before, sizes[1]))
    if _thin(before) and len(sizes) in RANKS and _thin(sizes) and len(sizes) == case.layout_rank(out):
        perm = case.perm(len(sizes))
        return LayoutChange((out,), lambda model, _layout: reorder(model, node, 1, perm))
    raise CannotChange


def flatten(case: Case) -> LayoutChange:
    """Flatten at axis 1."""
    if case.node.attrs.get("axis", 1) != 1:
        raise CannotChange
    case.layout_rank(case.node.inputs[0])
    return _flat(case, keeps_batch=True)


def _flat(case: Case, keeps_batch: bool) -> LayoutChange:
    """Change [N, *S, C] -> [N, features]: features come in another order, and so do the rows of the weight after."""
    node, model = case.node, case.model
    before = model.shape(node.inputs[0]) or ()
    if not keeps_batch:
        raise CannotChange
    if _thin(before):
        return LayoutChange((node.inputs[0],), nothing)
    sizes = [d for d in before[1:] if isinstance(d, int)]
    user = edit.only_consumer(model, node.outputs[0])
    if user is None or len(sizes) < len(before) - 1 or not _takes_rows(user, node.outputs[0]):
        raise CannotChange
    weight, axis = user.inputs[1], int(user.attrs.get("transB", 0)) if user.op == "Gemm" else 0
    alone = len(edit.consumers(weight)) == 1 and len(weight.outputs) == 1 and not edit.is_output(model, weight)
    large = weights.size_bytes(weight) > memory.budget() // _ROWS_SHARE
    if weight.shape[axis] != math.prod(sizes) or not alone or large:
        raise CannotChange
    perm = [i - 1 for i in case.perm(len(before))[1:]]
    rows = np.arange(math.prod(sizes)).reshape(sizes).transpose(perm).reshape(-1)

    def write(model: Model, _layout: int) -> None:
        values = weights.ComputedValues(
            tuple(weight.shape), np.dtype(weight._values.dtype), lambda: np.take(weights.read(source), rows, axis)
        )
        user.inputs[1] = edit.add_constant(model, weight.name, "turned", values)
        edit.rename(model, node, "turned")

    source = Constant(weight.name, weight._values)
    return LayoutChange((node.inputs[0],), write)


def _same_batch(before: int | str | None, size: int) -> bool:
    """Whether the batch is static and keeps its size."""
    return isinstance(before, int) and before == size


def _whole(before: Sequence[int | str | None], size: int) -> bool:
    """Whether `size` features are all values of a sample."""
    known = [d for d in before[1:] if isinstance(d, int)]
    return len(known) == len(before) - 1 and math.prod(known) == size


def _thin(shape: Sequence[int | str | None]) -> bool:
    """Whether at most one dimension besides the batch is not 1, so that both layouts have the values in one order."""
    return sum(d != 1 for d in shape[1:]) <= 1


def _takes_rows(user: Node, read: Tensor) -> bool:
    """Whether the user is a MatMul or Gemm whose weight has one row per column of `read`."""
    linear = user.op in ("MatMul", "Gemm") and user.domain in STANDARD_DOMAINS and user.inputs[0] is read
    return linear and has_weight(user) and len(user.inputs[1].shape) == 2 and not user.attrs.get("transA", 0)
