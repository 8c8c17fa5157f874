"""Apply SmoothQuant factors: MatMul(x, W) -> MatMul(x / s, s W), with one factor s per input channel.

Source: Xiao et al., SmoothQuant, eq. 3. If a normalization or another product makes x for these products alone, its
constants are divided. Otherwise a Mul is added, as often a residual branch reads x too. planning/scales.py chooses the
factors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.maths.finite import product
from onnxshot.passes.base import Change
from onnxshot.planning.smoothable import PRODUCTS

_HOMOGENEOUS = ("Relu", "LeakyRelu")  # f(x / s) = f(x) / s for every s > 0


@dataclass(frozen=True, slots=True)
class ApplySmoothQuant:
    """Divide tensors by their factors before the given products, and multiply the rows of the weights by them.

    Edits count the tensors. Skipped: products whose weight would become infinite, or whose weight would have to be
    copied, as other nodes read it too.

    Attributes:
        factors: tensor name -> factors, float32 [K], all above 0.
        products: labels of the products. Only MatMul and Gemm with a constant matrix as input 1, without transA, count.
        fixed: labels of nodes whose weights must stay as they are.
    """

    factors: Mapping[str, NDArray[np.float32]]
    products: Collection[str]
    fixed: Collection[str] = ()
    name: str = "apply_smoothquant"

    def run(self, model: Model) -> Change:
        """Divide the tensors and multiply the weights."""
        change = Change()
        products = self._products(model, change)
        scaled: dict[tuple[int, bool], Constant] = {}  # products that share a weight still share one
        inverses: dict[bytes, Constant] = {}
        for tensor, users in products.items():
            factors = self.factors[tensor.name]
            inverse = (1.0 / factors).astype(np.float32)
            if set(edit.consumers(tensor)) == set(users) and absorbs(model, tensor, factors.size, self.fixed):
                absorb(model, tensor, inverse)
            else:
                key = inverse.tobytes()
                if key not in inverses:
                    inverses[key] = edit.add_constant(model, tensor.name, "smoothing", inverse)
                divided = edit.add_node(
                    model, "Mul", [tensor, inverses[key]], base=tensor.name, suffix="smooth"
                ).outputs[0]
                for user in users:
                    user.inputs[0] = divided
            for user in users:
                weight, turned = user.inputs[1], bool(user.attrs.get("transB", 0))
                if (id(weight), turned) not in scaled:
                    scaled[id(weight), turned] = _scaled(model, weight, factors if turned else factors[:, None])
                user.inputs[1] = scaled[id(weight), turned]
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change

    def _products(self, model: Model, change: Change) -> dict[Tensor, list[Node]]:
        """Tensor to divide -> the products that read it. Tensors that would need a copy of a weight are left out."""
        tensors, found = model.tensors(), dict[Tensor, list[Node]]()
        for name, factors in self.factors.items():
            users = [u for u in edit.consumers(tensors[name]) if u.op in PRODUCTS and u.label in self.products]
            users = [u for u in users if u.inputs[0] is tensors[name]]
            if any(_overflows(u.inputs[1], factors if u.attrs.get("transB", 0) else factors[:, None]) for u in users):
                change.skip(users[0], "smoothing would make its weight infinite")
            elif users:
                found[tensors[name]] = users
        while alone := [tensor for tensor in found if self._copies(tensor, found)]:
            for tensor in alone:
                change.skip(found.pop(tensor)[0], "other nodes read its weight too: smoothing would have to copy it")
        return found

    def _copies(self, tensor: Tensor, found: Mapping[Tensor, list[Node]]) -> bool:
        """Whether a weight of its products has another reader, whose input is not divided by the same factors."""
        factors = self.factors[tensor.name].tobytes()
        for user in found[tensor]:
            for other in edit.consumers(user.inputs[1]):
                alike = other.inputs[0] in found and other in found[other.inputs[0]]
                turned = [bool(n.attrs.get("transB", 0)) for n in (user, other)]
                if not alike or self.factors[other.inputs[0].name].tobytes() != factors or turned[0] != turned[1]:
                    return True
        return False


def absorbs(model: Model, tensor: Tensor, channels: int, fixed: Collection[str] = ()) -> bool:
    """Whether the constants of the tensor's producer can absorb a division of its channels (last axis).

    True for LayerNormalization, for Mul by a vector, for MatMul and Gemm with a matrix of their own, and for Relu,
    LeakyRelu and Add of a vector behind such a node that nothing else reads.

    Args:
        model: the model.
        tensor: the tensor to divide.
        channels: size of its last axis.
        fixed: labels of nodes whose weights must stay as they are.
    """
    maker = edit.producer(tensor)
    if maker is None or edit.is_output(model, tensor):
        return False
    if maker.op == "LayerNormalization" and tensor is maker.outputs[0]:
        return all(_is_vector(t, channels) for t in maker.inputs[1:] if t.name)
    if maker.op in _HOMOGENEOUS:
        return edit.only_consumer(model, maker.inputs[0]) is maker and absorbs(model, maker.inputs[0], channels, fixed)
    if maker.op in PRODUCTS:
        return maker.label not in fixed and _owns_matrix(maker, channels)
    slot = _vector_slot(maker, channels)
    if maker.op == "Mul":
        return slot is not None
    if maker.op != "Add" or slot is None:
        return False
    other = maker.inputs[1 - slot]
    return edit.only_consumer(model, other) is maker and absorbs(model, other, channels, fixed)


def reached(tensor: Tensor) -> set[str]:
    """Names of all tensors whose values change if the producer absorbs the division of this one."""
    maker = edit.producer(tensor)
    if maker is None or maker.op not in ("Add", *_HOMOGENEOUS):
        return {tensor.name}
    return {tensor.name}.union(*(reached(t) for t in maker.inputs if not isinstance(t, Constant)))


def absorb(model: Model, tensor: Tensor, inverse: NDArray[np.float32]) -> None:
    """Multiply the tensor by `inverse`, float32 [K], by changing the constants of its producer."""
    maker = edit.producer(tensor)
    assert maker is not None
    slots = [i for i, t in enumerate(maker.inputs) if i > 0 and t.name]
    if maker.op in _HOMOGENEOUS:
        absorb(model, maker.inputs[0], inverse)
        return
    if maker.op not in ("LayerNormalization", *PRODUCTS):
        slot = _vector_slot(maker, inverse.size)
        assert slot is not None
        slots = [slot]
        if maker.op == "Add":
            absorb(model, maker.inputs[1 - slot], inverse)
    for i in slots:
        by_row = i == 1 and maker.attrs.get("transB", 0)
        maker.inputs[i] = _scaled(model, maker.inputs[i], inverse[:, None] if by_row else inverse)


def _owns_matrix(product: Node, channels: int) -> bool:
    """Whether a MatMul or Gemm multiplies by a matrix, and adds a vector, that no other node reads."""
    weight = product.inputs[1]
    if not isinstance(weight, Constant) or len(weight.shape) != 2 or weight._values.dtype != np.float32:
        return False
    outs = weight.shape[0 if product.attrs.get("transB", 0) else 1]
    own = all(len(t.outputs) == 1 for t in product.inputs[1:] if t.name)
    return own and outs == channels and all(_is_vector(t, channels) for t in product.inputs[2:] if t.name)


def _vector_slot(node: Node, channels: int) -> int | None:
    """Index of the input that is a vector along the last axis, if the node has two inputs and one such; else None."""
    found = [i for i, t in enumerate(node.inputs) if _is_vector(t, channels)]
    return found[0] if len(found) == 1 and len(node.inputs) == 2 else None


def _is_vector(tensor: Tensor, channels: int) -> bool:
    if not isinstance(tensor, Constant) or not tensor.shape or tensor._values.dtype != np.float32:
        return False
    return tensor.shape[-1] == channels and all(size == 1 for size in tensor.shape[:-1])


def _overflows(weight: Constant, rows: NDArray[np.float32]) -> bool:
    values = np.asarray(weights.read(weight))
    return not np.isfinite(rows).all() or product(values, rows) is None


def _scaled(model: Model, weight: Constant, rows: NDArray[np.float32]) -> Constant:
    def compute() -> NDArray[Any]:
        return np.asarray(weights.read(weight)) * rows

    values = weights.ComputedValues(tuple(weight.shape), weight._values.dtype, compute)
    return edit.add_constant(model, weight.name, "smoothed", values)
