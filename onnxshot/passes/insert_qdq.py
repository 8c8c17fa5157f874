"""Insert Q/DQ pairs as planned: x -> QuantizeLinear -> DequantizeLinear -> op; int8 weight -> DequantizeLinear -> op.

Removing all pairs restores the float graph. ONNX QuantizeLinear-13: y = saturate(round(x / scale) + zero_point). Biases
stay float here: runtimes quantize them with the scale x_scale * w_scale. A bias stored with another scale would give
wrong results without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import OPS, data_slots
from onnxshot.maths.affine import QuantParams, QuantScheme, params_from_range
from onnxshot.passes.base import Change
from onnxshot.passes.quantized_weights import QuantizedWeights, with_room_for_bias
from onnxshot.planning.plan import STATIC, Plan


@dataclass(frozen=True, slots=True)
class InsertQdq:
    """Quantize the tensors and weights of the plan's static nodes.

    Edits count the tensors, weights and constant operands that get a pair. Skipped: nodes whose kept weight scale had
    to be raised, as the bias would not fit int32.

    Attributes:
        plan: the plan, with scales.
    """

    plan: Plan
    name: str = "insert_qdq"

    def run(self, model: Model) -> Change:
        """Insert the pairs."""
        change = Change()
        static = self.plan.labels(STATIC)
        nodes = [n for n in model.graph.nodes if n.label in static]
        quantized = QuantizedWeights(model, self.plan.kept.weights)
        weighted = [n for n in nodes if n.label in self.plan.weights]
        self._quantize_weights(model, weighted, quantized, change)
        for node in nodes:
            if node.label in self.plan.weights:
                if node.op == "MatMul" and node.outputs[0].name not in self.plan.tensors:
                    _keep_apart(model, node)
                change.edits += 1
            elif node.op in OPS and OPS[node.op].data is None:
                change.edits += self._quantize_constants(model, node)
        shared: dict[str, tuple[Constant, Constant]] = {}
        zeros: dict[bytes, Constant] = {}
        readers = set(nodes)
        tensors = model.tensors()
        for name, planned in self.plan.tensors.items():
            if planned.group not in shared:
                params = self.plan.params_of(name)
                scale, zero = edit.add_constant(model, planned.group, "scale", params.scale), params.zero_point
                key = f"{zero.dtype} {zero.shape}".encode() + zero.tobytes()
                if key not in zeros:  # shared: one per tensor would add 1 % to the file of a small network
                    zeros[key] = edit.add_constant(model, "zero_point", f"{zero}" if not zero.ndim else "", zero)
                shared[planned.group] = scale, zeros[key]
            also = {n for n in model.graph.nodes if n.label in planned.also} if planned.also else set()
            insert_pair(model, tensors[name], shared[planned.group], None if planned.all_readers else readers | also)
            change.edits += 1
        edit.toposort(model)
        return change

    def _quantize_weights(
        self, model: Model, nodes: Sequence[Node], quantized: QuantizedWeights, change: Change
    ) -> None:
        """Quantize the weights. A weight that several nodes share gets one scale, large enough for all their biases."""
        params: dict[tuple[Constant, QuantScheme, str], QuantParams] = {}
        for node in nodes:
            key = self._key(node)
            given = params.get(key) or quantized.params(*key)
            params[key] = with_room_for_bias(given, self._x_scale(node), _bias(model, node))
        for node in nodes:
            key = self._key(node)
            kept = self.plan.kept.weights.get(key[0].name)
            if kept is not None and not np.array_equal(quantized.params(*key).scale, params[key].scale):
                change.skip(node, "the trained scale of its weight was raised, as its bias does not fit int32")
            quantized.dequantized(node, self.plan.weights[node.label].slot, params[key])

    def _key(self, node: Node) -> tuple[Constant, QuantScheme, str]:
        planned = self.plan.weights[node.label]
        return node.inputs[planned.slot], planned.scheme, planned.method

    def _x_scale(self, node: Node) -> NDArray[Any]:
        return self.plan.params_of(node.inputs[data_slots(node)[0]].name).scale

    def _quantize_constants(self, model: Model, node: Node) -> int:
        """Quantize constant operands (of Add, Mul, Concat) per tensor in the scheme of activations; count them."""
        scheme = next(iter(self.plan.tensors.values())).scheme
        count = 0
        for slot, tensor in enumerate(node.inputs):
            if not isinstance(tensor, Constant):
                continue
            values = weights.read(tensor)
            kept = self.plan.kept.weights.get(tensor.name)
            params: QuantParams = kept or params_from_range(values.min(initial=0), values.max(initial=0), scheme)
            QuantizedWeights(model).dequantized(node, slot, params)
            count += 1
        return count


def _bias(model: Model, node: Node) -> NDArray[Any] | None:
    """The values of a constant bias; None without one. The bias of a Gemm is reshaped to a vector, as fusion needs."""
    slot, weight = OPS[node.op].bias, node.inputs[1]
    bias = edit.constant_input(node, slot) if slot is not None else None
    if bias is None or slot is None or node.op != "Gemm":
        return bias
    return _as_vector(model, node, slot, bias, weight.shape[0 if node.attrs.get("transB", 0) else 1])


def _as_vector(model: Model, node: Node, slot: int, bias: NDArray[Any], channels: int) -> NDArray[Any]:
    """Reshape a Gemm's bias to [N], the only shape that ONNX Runtime fuses. A bias that differs by row is kept."""
    if (bias.ndim == 1 and bias.size == channels) or any(size != 1 for size in bias.shape[:-1]):
        return bias
    vector = np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (channels,)))
    node.inputs[slot] = edit.add_constant(model, node.inputs[slot].name, "vector", vector)
    return vector


def _keep_apart(model: Model, product: Node) -> None:
    """Reshape the bias that is added to a MatMul without Q to [1, N], so that ONNX Runtime does not fuse both.

    Its MatMulAddFusion turns MatMul, Add of a vector [N] into a Gemm in float if all sizes are known. Only done for
    results with three axes or more.
    """
    shape, add = model.shape(product.outputs[0]), edit.only_consumer(model, product.outputs[0])
    if add is None or add.op != "Add" or not shape or not all(isinstance(size, int) for size in shape):
        return
    for slot, tensor in enumerate(add.inputs):
        if isinstance(tensor, Constant) and len(shape) > 2 and tuple(tensor.shape) == shape[-1:]:
            values = np.asarray(weights.read(tensor)).reshape(1, -1)
            add.inputs[slot] = edit.add_constant(model, tensor.name, "row", values)


def insert_pair(model: Model, tensor: Tensor, params: tuple[Constant, Constant], readers: set[Node] | None) -> None:
    """Insert QuantizeLinear and DequantizeLinear after a tensor.

    Args:
        model: the model.
        tensor: the tensor to quantize.
        params: scale and zero point constants.
        readers: nodes that read the dequantized value afterwards; None for all readers, and the graph output.
    """
    users = [u for u in edit.consumers(tensor) if readers is None or u in readers]
    given_out = readers is None and edit.is_output(model, tensor)
    source = tensor
    if given_out:
        # A graph output must keep its name: the dequantized value takes it over.
        maker = edit.producer(tensor)
        assert maker is not None
        source = Variable(model.fresh(tensor.name, "raw"))
        maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is tensor)] = source
    q = edit.add_node(model, "QuantizeLinear", [source, *params], base=tensor.name, suffix="quantize")
    dq = edit.add_node(
        model,
        "DequantizeLinear",
        [q.outputs[0], *params],
        base=tensor.name,
        suffix="dequantize",
        outputs=[tensor] if given_out else 1,
    )
    for user in users:
        for i, t in enumerate(user.inputs):
            if t is tensor and user is not q:
                user.inputs[i] = dq.outputs[0]
