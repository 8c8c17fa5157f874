"""How each operator is written in the other layout: one table row per operator.

An operator without a row is left in the layout it has, as Conv, whose channels come first by definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.layout_change import (
    RANKS,
    CannotChange,
    Case,
    LayoutChange,
    nothing,
    put_ints,
    reorder,
    turned_constant,
)
from onnxshot.passes.linear_ops import fixed, has_weight

SHARED_BYTES = 4096
"""A larger constant that others read too is not stored a second time."""
_MOST_ROWS = 1 << 30  # bytes of a weight whose rows are put in another order


def change_of(model: Model, node: Node, label: int) -> LayoutChange | None:
    """How the node, whose tensors are in the other layout, is written in this one; None where it must stay as it is."""
    row = _ROWS.get(node.op) if node.domain in STANDARD_DOMAINS else None
    if row is None or not node.inputs or not node.outputs:
        return None
    try:
        return row(Case(model, node, label))
    except CannotChange:
        return None


def _unary(case: Case) -> LayoutChange:
    """Each value for itself; what else it reads are single numbers."""
    for tensor in case.node.inputs[1:]:
        if tensor.name and (case.rank(tensor) > 1 or (case.rank(tensor) == 1 and case.model.shape(tensor) != (1,))):
            raise CannotChange
    return LayoutChange(case.same_shape(), nothing)


def _quantized(case: Case) -> LayoutChange:
    """QuantizeLinear and DequantizeLinear: a scale along one axis turns with that axis."""
    node = case.node
    if max(case.rank(t) for t in node.inputs[1:] if t.name) == 0:
        return LayoutChange(case.same_shape(), nothing)
    if any(case.rank(t) > 1 for t in node.inputs[1:] if t.name) or node.attrs.get("block_size", 0):
        raise CannotChange
    return _along_axis(1)(case)


def _broadcast(case: Case) -> LayoutChange:
    """Value by value, with numpy's broadcasting."""
    node = case.node
    rank = case.tied_rank(node.outputs[0])
    if "axis" in node.attrs or node.attrs.get("broadcast", 0):
        raise CannotChange  # before opset 7
    tied: list[Tensor] = [node.outputs[0]]
    for tensor in node.inputs:
        if not tensor.name:
            continue
        if fixed(tensor):
            shared = len(edit.consumers(tensor)) > 1 or edit.is_output(case.model, tensor)
            if case.rank(tensor) > rank or (shared and weights.size_bytes(tensor) > SHARED_BYTES):
                raise CannotChange
        elif case.rank(tensor) == rank and not isinstance(tensor, Constant):
            tied.append(tensor)
        elif any(d != 1 for d in case.model.shape(tensor) or ()):
            raise CannotChange

    def write(model: Model, label: int) -> None:
        for slot, tensor in enumerate(node.inputs):
            if tensor.name and fixed(tensor) and math.prod(tensor.shape) != 1:
                node.inputs[slot] = turned_constant(model, node, tensor, rank, label)

    return LayoutChange(tuple(tied), write)


def _along_axis(default: int, *, scans: bool = False, since: int = 1) -> Callable[[Case], LayoutChange]:
    """Operators with an attribute `axis`, whose inputs and outputs all have the same rank."""

    def row(case: Case) -> LayoutChange:
        node = case.node
        if case.model.opset < since:
            raise CannotChange  # it flattened what is behind the axis
        tied = case.same_shape()
        rank = case.tied_rank(tied[0])
        if node.op == "Concat":
            tied = (*tied, *node.inputs[1:])
            if any(case.tied_rank(t) != rank for t in tied):
                raise CannotChange
        given = int(node.attrs.get("axis", default)) % rank
        axis = case.axis(given, rank)

        def write(_model: Model, _label: int) -> None:
            node.attrs["axis"] = axis

        return LayoutChange(tied, write, scans=(axis != rank - 1) - (given != rank - 1) if scans else 0)

    return row


def _kept_order(case: Case, rank: int, removed: Sequence[int]) -> bool:
    """Where axes are removed: True where the rest must turn too, False where it stays in order.

    Raises CannotChange where it is neither.
    """
    gone = {a % rank for a in removed}
    before = [a for a in range(rank) if a not in gone]
    after = [a for a in case.perm(rank) if a not in gone]
    if after == before:
        return False
    if len(before) in RANKS and after == [before[i] for i in case.perm(len(before))]:
        return True
    raise CannotChange


def _removes(case: Case, axes: Sequence[int], write: Callable[[Model, int], None]) -> LayoutChange:
    """A node that takes these axes out of its input."""
    x, outs = case.node.inputs[0], [t for t in case.node.outputs if t.name]
    turns = _kept_order(case, case.tied_rank(x), axes)
    if turns:
        for out in outs:
            case.tied_rank(out)
    return LayoutChange((x, *outs) if turns else (x,), write)


def _reduce(case: Case) -> LayoutChange:
    node = case.node
    rank = case.tied_rank(node.inputs[0])
    axes = case.ints(1, "axes")
    if not axes:
        if not node.attrs.get("keepdims", 1):
            raise CannotChange
        return LayoutChange(case.same_shape(), nothing)
    turned = [case.axis(a, rank) for a in axes]

    def write(model: Model, _label: int) -> None:
        put_ints(model, node, 1, "axes", sorted(turned))

    if node.attrs.get("keepdims", 1):
        return LayoutChange(case.same_shape(), write)
    return _removes(case, axes, write)


def _arg_reduce(case: Case) -> LayoutChange:
    node = case.node
    rank, given = case.tied_rank(node.inputs[0]), int(node.attrs.get("axis", 0))
    axis = case.axis(given, rank)

    def write(_model: Model, _label: int) -> None:
        node.attrs["axis"] = axis

    return LayoutChange(case.same_shape(), write) if node.attrs.get("keepdims", 1) else _removes(case, [given], write)


def _gather(case: Case) -> LayoutChange:
    node = case.node
    rank, given, width = case.tied_rank(node.inputs[0]), int(node.attrs.get("axis", 0)), case.rank(node.inputs[1])
    axis = case.axis(given, rank)

    def write(_model: Model, _label: int) -> None:
        node.attrs["axis"] = axis

    if width > 1:
        raise CannotChange
    return LayoutChange(case.same_shape(), write) if width == 1 else _removes(case, [given], write)


def _squeeze(case: Case) -> LayoutChange:
    node = case.node
    rank, axes = case.tied_rank(node.inputs[0]), case.ints(1, "axes")
    if axes is None:
        raise CannotChange  # which axes have size 1 is seen at run time
    turned = sorted(case.axis(a, rank) for a in axes)
    return _removes(case, axes, lambda model, _label: put_ints(model, node, 1, "axes", turned))


def _unsqueeze(case: Case) -> LayoutChange:
    node = case.node
    rank, axes = case.tied_rank(node.outputs[0]), case.ints(1, "axes")
    if axes is None:
        raise CannotChange
    turns = _kept_order(case, rank, axes)
    if turns:
        case.tied_rank(node.inputs[0])
    turned = sorted(case.axis(a, rank) for a in axes)

    def write(model: Model, _label: int) -> None:
        put_ints(model, node, 1, "axes", turned)

    return LayoutChange((node.inputs[0], node.outputs[0]) if turns else (node.outputs[0],), write)


def _pad(case: Case) -> LayoutChange:
    node = case.node
    tied = case.same_shape()
    rank = case.tied_rank(tied[0])
    axes = case.ints(3, "")
    if axes is not None:
        turned = [case.axis(a, rank) for a in axes]
        return LayoutChange(tied, lambda model, _label: put_ints(model, node, 3, "", turned))
    order = [*case.perm(rank), *(rank + i for i in case.perm(rank))]

    def write(model: Model, _label: int) -> None:
        for name in ("pads", "paddings"):  # Pad-1 and Pad-2
            if name in node.attrs:
                node.attrs[name] = [node.attrs[name][i] for i in order]
        reorder(model, node, 1, order)

    return LayoutChange(tied, write)


def _slice(case: Case) -> LayoutChange:
    node = case.node
    tied = case.same_shape()
    rank = case.tied_rank(tied[0])
    axes = case.ints(3, "axes")
    if axes is None:
        starts = case.ints(1, "starts")
        axes = list(range(len(starts or ())))
    turned = [case.axis(a, rank) for a in axes]

    def write(model: Model, _label: int) -> None:
        if "starts" in node.attrs:  # Slice-1
            node.attrs["axes"] = turned
        else:
            put_ints(model, node, 3, "axes", turned)

    return LayoutChange(tied, write)


def _resize(case: Case) -> LayoutChange:
    node = case.node
    tied = case.same_shape()
    perm = case.perm(case.tied_rank(tied[0]))

    def write(model: Model, _label: int) -> None:
        if "axes" in node.attrs:
            node.attrs["axes"] = [perm.index(a % len(perm)) for a in node.attrs["axes"]]
            return
        if "scales" in node.attrs:  # Upsample-7
            node.attrs["scales"] = [node.attrs["scales"][i] for i in perm]
        if model.opset < 11:
            reorder(model, node, 1, perm)
            return
        if node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
            reorder(model, node, 1, [*perm, *(len(perm) + i for i in perm)])
        reorder(model, node, 2, perm)
        reorder(model, node, 3, perm)

    return LayoutChange(tied, write, needs_first=True)


def _tile(case: Case) -> LayoutChange:
    if case.model.opset < 6:
        raise CannotChange
    tied = case.same_shape()
    perm = case.perm(case.tied_rank(tied[0]))
    return LayoutChange(tied, lambda model, _label: reorder(model, case.node, 1, perm))


def _expand(case: Case) -> LayoutChange:
    tied = case.same_shape()
    perm = case.perm(case.tied_rank(tied[0]))
    if case.model.shape(case.node.inputs[1]) != (len(perm),):
        raise CannotChange
    return LayoutChange(tied, lambda model, _label: reorder(model, case.node, 1, perm))


def _shape(case: Case) -> LayoutChange:
    """Shape gives the sizes in the order of the layout that was: it picks them out of those of the other one."""
    node, model = case.node, case.model
    perm = case.perm(case.tied_rank(node.inputs[0]))
    chosen = list(range(len(perm)))[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    if edit.is_output(model, node.outputs[0]):
        raise CannotChange

    def write(model: Model, _label: int) -> None:
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


def _size(case: Case) -> LayoutChange:
    case.tied_rank(case.node.inputs[0])
    return LayoutChange((case.node.inputs[0],), nothing)


def _thin(shape: Sequence[int | str | None]) -> bool:
    """True where at most one dimension behind the batch is not 1: the values are in the same order in both layouts."""
    return sum(d != 1 for d in shape[1:]) <= 1


def _reshape(case: Case) -> LayoutChange:
    """To [N, features], or from these, or from pictures of one pixel, to [N, 1, 1, features]."""
    node, model = case.node, case.model
    x, out = node.inputs[0], node.outputs[0]
    target, before = edit.constant_input(node, 1), model.shape(x)
    if target is None or before is None or node.attrs.get("allowzero", 0) or not fixed(node.inputs[1]):
        raise CannotChange
    sizes = [int(v) for v in target]
    if 0 in sizes[1:]:
        raise CannotChange  # it copies a size from a place that turns
    if len(sizes) == 2:
        case.tied_rank(x)
        return _flat(case, sizes[0] == 0 or _same_batch(before[0], sizes[0]) or _whole(before, sizes[1]))
    if _thin(before) and len(sizes) in RANKS and _thin(sizes) and len(sizes) == case.tied_rank(out):
        perm = case.perm(len(sizes))
        return LayoutChange((out,), lambda model, _label: reorder(model, node, 1, perm))
    raise CannotChange


def _same_batch(before: int | str | None, size: int) -> bool:
    return isinstance(before, int) and before == size


def _whole(before: Sequence[int | str | None], size: int) -> bool:
    """True where so many features are all of a sample's values."""
    known = [d for d in before[1:] if isinstance(d, int)]
    return len(known) == len(before) - 1 and math.prod(known) == size


def _flatten(case: Case) -> LayoutChange:
    if case.node.attrs.get("axis", 1) != 1:
        raise CannotChange
    case.tied_rank(case.node.inputs[0])
    return _flat(case, keeps_batch=True)


def _flat(case: Case, keeps_batch: bool) -> LayoutChange:
    """[N, *S, C] to [N, features]: these come in another order, so that the product behind changes its rows."""
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
    if weight.shape[axis] != math.prod(sizes) or not alone or weights.size_bytes(weight) > _MOST_ROWS:
        raise CannotChange
    perm = [i - 1 for i in case.perm(len(before))[1:]]
    rows = np.arange(math.prod(sizes)).reshape(sizes).transpose(perm).reshape(-1)

    def write(model: Model, _label: int) -> None:
        values = weights.ComputedValues(
            tuple(weight.shape), np.dtype(weight._values.dtype), lambda: np.take(weights.read(source), rows, axis)
        )
        user.inputs[1] = edit.add_constant(model, weight.name, "turned", values)
        edit.rename(model, node, "turned")

    source = Constant(weight.name, weight._values)
    return LayoutChange((node.inputs[0],), write)


def _takes_rows(user: Node, read: Tensor) -> bool:
    linear = user.op in ("MatMul", "Gemm") and user.domain in STANDARD_DOMAINS and user.inputs[0] is read
    return linear and has_weight(user) and len(user.inputs[1].shape) == 2 and not user.attrs.get("transA", 0)


_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "BitwiseNot",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub",
    "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCE = (
    "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare",
)  # fmt: skip

_ROWS: dict[str, Callable[[Case], LayoutChange]] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **{f"Reduce{name}": _reduce for name in _REDUCE},
    "ArgMax": _arg_reduce,
    "ArgMin": _arg_reduce,
    "Concat": _along_axis(1),
    "DequantizeLinear": _quantized,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Hardmax": _along_axis(-1, scans=True, since=13),
    "LogSoftmax": _along_axis(-1, scans=True, since=13),
    "LpNormalization": _along_axis(-1),
    "Pad": _pad,
    "QuantizeLinear": _quantized,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Softmax": _along_axis(-1, scans=True, since=13),
    "Split": _along_axis(0),
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
