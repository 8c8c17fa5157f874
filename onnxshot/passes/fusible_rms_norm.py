"""Rewrite RMSNorm so that runtimes fuse it: Mul(x, Reciprocal(Sqrt(m))) -> Div(x, Sqrt(m)), Mul(x, x) -> Pow(x, 2).

RMSNorm is x / sqrt(mean(x^2) + epsilon) * gamma. ONNX Runtime fuses Pow, ReduceMean, Add, Sqrt, Div and Mul into
SimplifiedLayerNormalization. It does not if x is squared by a Mul, or multiplied by a Reciprocal or by Pow(.., -0.5),
as exporters of rsqrt write it: seven kernels run instead of one. Results differ by at most one rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.runtime_fusions import made_by, scalar, with_constant


@dataclass(frozen=True, slots=True)
class FusibleRmsNorm:
    """Rewrite x * rsqrt(mean(x * x) + epsilon), scaled by a constant, as x / Sqrt(mean(Pow(x, 2)) + epsilon).

    Edits count the norms. Nothing is reported as skipped.
    """

    name: str = "fusible_rms_norm"

    def run(self, model: Model) -> Change:
        """Rewrite the norms, in subgraphs too."""
        change = Change()
        for _, node in list(model.walk()):
            found = _norm(model, node)
            if found is None or found.ordered:
                continue
            _write(model, node, found)
            change.edits += 1
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


@dataclass(frozen=True, slots=True)
class _Norm:
    """A matched RMSNorm.

    Attributes:
        x: the input.
        under: mean(x^2) + epsilon, the input of the square root.
        square: the node that squares x.
        ordered: whether runtimes fuse it as it is, or it is not float32.
    """

    x: Tensor
    under: Tensor
    square: Node
    ordered: bool


def _norm(model: Model, node: Node) -> _Norm | None:
    """The RMSNorm that this Div or Mul completes; None if it is none, or if no constant scales it."""
    if node.op not in ("Mul", "Div") or node.domain not in STANDARD_DOMAINS or len(node.inputs) != 2:
        return None
    for slot in (1, 0) if node.op == "Mul" else (1,):
        under = _under_root(node.inputs[slot], inverse=node.op == "Mul")
        square = None if under is None else _square(under)
        x = node.inputs[1 - slot]
        if under is None or square is None or square.inputs[0] is not x or not _is_scaled(model, node):
            continue
        is_float = all(model.elem_type(t) in (0, 1) for t in (x, under))
        ordered = node.op == "Div" and square.op == "Pow" and made_by(node.inputs[1], "Sqrt") is not None
        return _Norm(x, under, square, ordered or not is_float)
    return None


def _under_root(tensor: Tensor, *, inverse: bool) -> Tensor | None:
    """The tensor u with tensor = sqrt(u), or = 1 / sqrt(u) if inverse; None without one."""
    node = made_by(tensor, "Pow", "Sqrt", "Reciprocal", "Div")
    if node is None:
        return None
    if node.op == "Pow":
        return node.inputs[0] if scalar(node.inputs[1]) == (-0.5 if inverse else 0.5) else None
    if node.op == "Sqrt":
        return None if inverse else node.inputs[0]
    if not inverse or (node.op == "Div" and scalar(node.inputs[0]) != 1):
        return None
    return _under_root(node.inputs[-1], inverse=False)


def _square(under: Tensor) -> Node | None:
    """The node that squares in mean(square) + epsilon; None if this is not the form."""
    padded = with_constant(made_by(under, "Add"))
    mean = None if padded is None or scalar(padded[1]) is None else made_by(padded[0], "ReduceMean")
    if mean is None or not mean.attrs.get("keepdims", 1) or not mean.inputs:
        return None
    square = made_by(mean.inputs[0], "Pow", "Mul")
    if square is None:
        return None
    twice = square.inputs[0] is square.inputs[1] if square.op == "Mul" else scalar(square.inputs[1]) == 2
    return square if twice else None


def _is_scaled(model: Model, node: Node) -> bool:
    """Whether the only reader of the norm is a Mul with a constant."""
    user = edit.only_consumer(model, node.outputs[0])
    return user is not None and user.op == "Mul" and with_constant(user) is not None


def _write(model: Model, node: Node, found: _Norm) -> None:
    out, base = node.outputs[0], node.label
    if found.square.op == "Mul":
        found.square.op = "Pow"
        found.square.inputs[1] = edit.add_constant(model, base, "two", np.array(2, np.float32))
    where = edit.graph_of(model, node)
    root = edit.add_node(model, "Sqrt", [found.under], base=base, suffix="root", graph=where)
    node.inputs.clear()
    node.outputs.clear()
    edit.add_node(model, "Div", [found.x, root.outputs[0]], base=base, suffix="normed", outputs=[out], graph=where)
    edit.remove(model, [node])
