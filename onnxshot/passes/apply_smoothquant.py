"""Divide the input of products by a factor per channel, and multiply the rows of the weights by it: SmoothQuant eq. 3.

Where a normalization makes the tensor for these products alone, its scale and bias take the division. Elsewhere it is a
Mul of its own: often a residual branch reads the tensor as well.
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


@dataclass(frozen=True, slots=True)
class ApplySmoothQuant:
    """Divide tensors by their factors, float32 [K] by name, in front of those of the products that read them.

    products: names of the nodes; of them MatMul and Gemm count, with a constant matrix at input 1 and no transA.
    """

    factors: Mapping[str, NDArray[np.float32]]
    products: Collection[str]
    name: str = "apply_smoothquant"

    def run(self, model: Model) -> Change:
        """Divide the tensors and scale the weights; edits counts the tensors."""
        change = Change()
        products = self._products(model, change)
        scaled: dict[tuple[int, bool], Constant] = {}  # products that share a weight go on sharing one
        inverses: dict[bytes, Constant] = {}
        for tensor, users in products.items():
            factors = self.factors[tensor.name]
            inverse = (1.0 / factors).astype(np.float32)
            if set(edit.consumers(tensor)) == set(users) and absorbs(model, tensor, factors.size):
                _absorb(model, tensor, inverse)
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
        """The tensors to divide, and the products that read them; none of those that would need a copy of a weight."""
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
                change.skip(found.pop(tensor)[0], "its weight is read in other ways too: smoothing would copy it")
        return found

    def _copies(self, tensor: Tensor, found: Mapping[Tensor, list[Node]]) -> bool:
        """Whether a weight behind the tensor has a reader whose input is not divided by the same factors."""
        factors = self.factors[tensor.name].tobytes()
        for user in found[tensor]:
            for other in edit.consumers(user.inputs[1]):
                alike = other.inputs[0] in found and other in found[other.inputs[0]]
                turned = [bool(n.attrs.get("transB", 0)) for n in (user, other)]
                if not alike or self.factors[other.inputs[0].name].tobytes() != factors or turned[0] != turned[1]:
                    return True
        return False


def absorbs(model: Model, tensor: Tensor, channels: int) -> bool:
    """Whether what makes the tensor can divide its channels, those of the last axis, by changing constants alone.

    True for LayerNormalization, a Mul by a vector, and an Add of a vector to what such a node makes for it alone.
    """
    maker = edit.producer(tensor)
    if maker is None or edit.is_output(model, tensor):
        return False
    if maker.op == "LayerNormalization" and tensor is maker.outputs[0]:
        return all(_is_vector(t, channels) for t in maker.inputs[1:] if t.name)
    slot = _vector_slot(maker, channels)
    if maker.op == "Mul":
        return slot is not None
    if maker.op != "Add" or slot is None:
        return False
    other = maker.inputs[1 - slot]
    return edit.only_consumer(model, other) is maker and absorbs(model, other, channels)


def reached(tensor: Tensor) -> set[str]:
    """Names of all tensors that may have other values once the channels of this one were divided."""
    maker = edit.producer(tensor)
    if maker is None or maker.op != "Add":
        return {tensor.name}
    return {tensor.name}.union(*(reached(t) for t in maker.inputs if not isinstance(t, Constant)))


def _absorb(model: Model, tensor: Tensor, inverse: NDArray[np.float32]) -> None:
    """Multiply the tensor by `inverse` in the constants of what makes it."""
    maker = edit.producer(tensor)
    assert maker is not None
    if maker.op == "LayerNormalization":
        slots = [i for i, t in enumerate(maker.inputs) if i > 0 and t.name]
    else:
        slot = _vector_slot(maker, inverse.size)
        assert slot is not None
        slots = [slot]
        if maker.op == "Add":
            _absorb(model, maker.inputs[1 - slot], inverse)
    for i in slots:
        values = np.asarray(weights.read(maker.inputs[i])) * inverse
        maker.inputs[i] = edit.add_constant(model, maker.inputs[i].name, "smoothed", values)


def _vector_slot(node: Node, channels: int) -> int | None:
    """The input that is a vector of the last axis, where the other one is computed."""
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
