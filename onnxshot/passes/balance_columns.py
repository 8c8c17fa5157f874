"""Balance unequal columns: x -> x / s in front of products, and their weights' rows times s, with s powers of two.

maths/column_balance.py chooses the factors. The float model's outputs stay the same to the bit, but for the order of
sums. Where the constants of the producer of x can absorb the division, it costs nothing; else a Div of x is added. It
is a Div, because a Mul between int8 nodes would become int8, and round the small columns away before it scales them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.maths.finite import product
from onnxshot.passes.apply_smoothquant import absorb, absorbs, reached
from onnxshot.passes.base import Change

_WEIGHT_AXIS = {"MatMul": -2, "Conv": 1, "LSTM": 2, "GRU": 2, "RNN": 2}
"""Axis of the weight (input 1) that the columns of input 0 are multiplied along; that of a Gemm depends on transB."""


@dataclass(frozen=True, slots=True)
class BalanceColumns:
    """Divide the columns of tensors in front of products, and multiply the rows of the products' weights.

    Edits count the tensors. Nothing is reported as skipped: `products_of` names only what can be balanced; a tensor
    stays as it is if a weight would overflow.

    Attributes:
        factors: tensor name -> factors, float32 [K].
    """

    factors: Mapping[str, NDArray[np.float32]]
    name: str = "balance_columns"

    def run(self, model: Model) -> Change:
        """Divide the tensors and multiply the weights."""
        change = Change()
        for tensor, users in products_of(model).items():
            factors = self.factors.get(tensor.name)
            if factors is None or factors.size != columns(users[0]):
                continue
            rows = {user.inputs[1]: _times(user, factors) for user in users}
            scaled = {weight: product(np.asarray(weights.read(weight)), by) for weight, by in rows.items()}
            made = {w: edit.add_constant(model, w.name, "balanced", v) for w, v in scaled.items() if v is not None}
            if len(made) < len(scaled):
                continue  # a weight would overflow
            _divide(model, tensor, users, factors)
            for user in users:
                user.inputs[1] = made[user.inputs[1]]
            change.edits += 1
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


def products_of(model: Model) -> dict[Tensor, list[Node]]:
    """Tensor -> the nodes that multiply its columns by constant weights, in graph order.

    Columns are indices of the last axis; those of a Conv's input are channels. Left out: subgraphs, tensors whose
    readers disagree on the axis, and those with a reader whose weight another node reads too.
    """
    found: dict[Tensor, list[Node]] = {}
    for node in model.graph.nodes:
        if _multiplies(node) and not isinstance(node.inputs[0], Constant):
            found.setdefault(node.inputs[0], []).append(node)
    return {tensor: users for tensor, users in found.items() if _agree(users)}


def tables(users: list[Node]) -> Iterator[NDArray[np.float32]]:
    """The weights of products that read one tensor as [K, N], each read when it is asked for."""
    for user in users:
        weight = np.asarray(weights.read(user.inputs[1]))
        yield np.moveaxis(weight, _axis(user), 0).reshape(columns(user), -1)


def columns(node: Node) -> int:
    """Number of columns K of a product's input."""
    return int(node.inputs[1].shape[_axis(node)])


def column_axis(node: Node) -> int:
    """Axis of the product's input that its columns lie along."""
    return 1 if node.op == "Conv" else -1


def scaled_with(model: Model, tensor: Tensor, users: list[Node]) -> set[str]:
    """Names of the tensors before this one that are divided with it, as its makers take the factors."""
    alone = set(edit.consumers(tensor)) == set(users) and column_axis(users[0]) == -1
    return reached(tensor) - {tensor.name} if alone and absorbs(model, tensor, columns(users[0])) else set()


def _multiplies(node: Node) -> bool:
    if node.domain not in STANDARD_DOMAINS or node.op not in (*_WEIGHT_AXIS, "Gemm") or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    if not isinstance(weight, Constant) or getattr(weight, "overridable", False) or weight._values.dtype != np.float32:
        return False
    if node.attrs.get("transA", 0) or node.attrs.get("group", 1) != 1:
        return False
    return len(weight.shape) >= (3 if node.op in ("Conv", "LSTM", "GRU", "RNN") else 2) and 0 not in weight.shape


def _agree(users: list[Node]) -> bool:
    own = all(user in users for node in users for user in edit.consumers(node.inputs[1]))
    alike = len({(column_axis(node), len(node.inputs[1].shape) if node.op == "Conv" else 0) for node in users}) == 1
    same = len({columns(node) for node in users}) == 1
    axes = len({(node.inputs[1].name, _axis(node)) for node in users}) == len({node.inputs[1].name for node in users})
    return own and alike and same and axes


def _axis(node: Node) -> int:
    if node.op == "Gemm":
        return 1 if node.attrs.get("transB", 0) else 0
    return _WEIGHT_AXIS[node.op]


def _times(node: Node, factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The factors in a shape that broadcasts over the node's weight."""
    shape = [1] * len(node.inputs[1].shape)
    shape[_axis(node)] = factors.size
    return factors.reshape(shape)


def _divide(model: Model, tensor: Tensor, users: list[Node], factors: NDArray[np.float32]) -> None:
    """Let the users read the tensor's columns divided by the factors."""
    axis = column_axis(users[0])
    rank = len(users[0].inputs[1].shape) if users[0].op == "Conv" else None
    alone = set(edit.consumers(tensor)) == set(users)
    divided = _divided(model, tensor, factors, axis, rank, alone=alone)
    if divided is not tensor:
        for user in users:
            user.inputs[0] = divided


def _divided(
    model: Model, tensor: Tensor, factors: NDArray[np.float32], axis: int, rank: int | None, *, alone: bool
) -> Tensor:
    """The tensor divided by the factors: itself, where its maker takes them, or what a new Div gives.

    A Concat of the columns hands its parts theirs, so that an int8 Concat joins parts of one size.

    Args:
        model: the model.
        tensor: the tensor.
        factors: of its columns.
        axis: 1 or -1: where the columns lie.
        rank: of the tensor, where that matters: where the axis is 1.
        alone: whether only those read the tensor who want it divided.
    """
    maker = edit.producer(tensor)
    if (factors == 1.0).all():
        return tensor
    if alone and axis == -1 and absorbs(model, tensor, factors.size):
        absorb(model, tensor, (1.0 / factors).astype(np.float32))
        return tensor
    parts = _parts(model, maker, axis, factors.size) if maker is not None and alone else None
    if maker is not None and parts is not None and not edit.is_output(model, tensor):
        for i, part in enumerate(np.split(factors, np.cumsum(parts)[:-1])):
            own = edit.only_consumer(model, maker.inputs[i]) is maker and maker.inputs.count(maker.inputs[i]) == 1
            maker.inputs[i] = _divided(model, maker.inputs[i], part, axis, rank, alone=own)
        return tensor
    divisor: NDArray[Any] = factors.reshape(-1, *[1] * (rank - 2 if rank is not None else 0))
    sizes = edit.add_constant(model, tensor.name, "sizes", divisor)
    return edit.add_node(model, "Div", [tensor, sizes], base=tensor.name, suffix="balanced").outputs[0]


def _parts(model: Model, maker: Node, axis: int, count: int) -> list[int] | None:
    """Columns of each input of a Concat along the columns; None for another node or where they are not known."""
    if maker.op != "Concat":
        return None
    shapes = [model.shape(t) for t in maker.inputs]
    if any(shape is None for shape in shapes):
        return None
    along = maker.attrs.get("axis", 0)
    if any(shape is None or along % len(shape) != axis % len(shape) for shape in shapes):
        return None
    sizes = [shape[along] for shape in shapes if shape is not None]
    whole = [size for size in sizes if isinstance(size, int)]
    return whole if len(whole) == len(sizes) and sum(whole) == count else None
