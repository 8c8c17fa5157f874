"""Dynamic quantization: MatMul, Gemm -> DynamicQuantizeLinear, MatMulInteger; LSTM -> DynamicQuantizeLSTM.

Weights are int8, and the scales of activations are computed at run time:

    x -> DynamicQuantizeLinear-11 (uint8) -> MatMulInteger-10 -> Cast -> Mul(x_scale * w_scale) [-> Add(bias)]

ONNX Runtime fuses this chain into one kernel. Conv is not rewritten: ConvInteger runs at 0.2x to 0.4x of float.

Where the plan says `twice`, the input has 16 bits: what rounding it to 8 bits leaves is quantized to 8 bits too, by
x - DequantizeLinear(x_q), and a second product with the same integers of the weight is added. A product of K = 384 or
more runs at 1.2x to 2.0x of float then, where one 8-bit product runs at 2.4x to 4x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.maths.affine import PerChannel, PerTensor
from onnxshot.passes.base import Change
from onnxshot.passes.quantized_weights import QuantizedWeights
from onnxshot.planning.plan import DYNAMIC, Plan, WeightPlan

_LSTM_ATTRS = ("direction", "activations", "activation_alpha", "activation_beta", "clip", "hidden_size", "input_forget")
"""Attributes of DynamicQuantizeLSTM. An LSTM may also have `layout` and, in old opsets, `output_sequence`."""
_ROWS_DB = 3.0  # an LSTM weight gets per-row scales if they reduce its quantization noise by this much


@dataclass(frozen=True, slots=True)
class QuantizeDynamically:
    """Rewrite the nodes that the plan quantizes dynamically, in subgraphs too.

    Quantized weights are stored once, in the top-level graph.

    Edits count the nodes. Nothing is skipped: the plan holds only nodes that can be rewritten.

    Attributes:
        plan: The plan, with the scheme and range method of each node's weight.
    """

    plan: Plan
    name: str = "quantize_dynamically"

    def run(self, model: Model) -> Change:
        """Rewrite the nodes."""
        change = Change()
        chosen = self.plan.labels(DYNAMIC)
        nodes = [(g, n) for g, n in model.walk() if n.label in chosen]
        quantized = QuantizedWeights(model, self.plan.kept.weights)
        inputs: dict[tuple[int, Tensor], Node] = {}
        for graph, node in nodes:
            planned = self.plan.weights[node.label]
            if node.op == "LSTM":
                _rewrite_lstm(model, node, quantized, planned)
            else:
                _rewrite_product(model, graph, node, quantized, planned, inputs)
            change.edits += 1
        if nodes:
            edit.toposort(model)
        return change


def _rewrite_product(
    model: Model,
    graph: Graph,
    node: Node,
    quantized: QuantizedWeights,
    planned: WeightPlan,
    inputs: dict[tuple[int, Tensor], Node],
) -> None:
    """Rewrite a MatMul or Gemm; `inputs` holds the DynamicQuantizeLinear of each tensor in each graph."""
    x, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    out = node.outputs[0]
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        weight = quantized.transposed(weight, (1, 0))
    w, w_scale, w_zero = _integers(model, quantized, weight, planned)
    key = (id(graph), x)
    if key not in inputs:
        inputs[key] = edit.add_node(
            model, "DynamicQuantizeLinear", [x], base=x.name, suffix="quantize", outputs=3, graph=graph
        )
    base = node.label
    node.inputs.clear()
    node.outputs.clear()

    def multiplied(quantize: Node, outputs: list[Tensor] | int, part: str = "") -> Tensor:
        """The product of one quantized input, without the bias."""
        x_q, x_scale, x_zero = quantize.outputs
        factors = [x_q, w, x_zero, w_zero]
        product = edit.add_node(model, "MatMulInteger", factors, base=base, suffix=f"{part}integer", graph=graph)
        cast = edit.add_node(
            model, "Cast", product.outputs, base=base, suffix=f"{part}cast", attrs={"to": TensorProto.FLOAT},
            graph=graph,
        )  # fmt: skip
        scale = edit.add_node(model, "Mul", [x_scale, w_scale], base=base, suffix=f"{part}scale", graph=graph)
        both = [cast.outputs[0], scale.outputs[0]]
        return edit.add_node(
            model, "Mul", both, base=base, suffix=f"{part}rescale", outputs=outputs, graph=graph
        ).outputs[0]

    last: list[Tensor] | int = 1 if planned.twice else [out]
    result = multiplied(inputs[key], last if bias is None else 1)
    if bias is not None:
        added = edit.add_node(model, "Add", [result, bias], base=base, suffix="bias", outputs=last, graph=graph)
        result = added.outputs[0]
    if planned.twice:
        rest = (id(graph), inputs[key].outputs[0])
        if rest not in inputs:
            inputs[rest] = _quantized_rest(model, graph, x, inputs[key])
        both = [result, multiplied(inputs[rest], 1, "rest_")]
        edit.add_node(model, "Add", both, base=base, suffix="sum", outputs=[out], graph=graph)
    edit.remove(model, [node])


def _quantized_rest(model: Model, graph: Graph, x: Tensor, quantize: Node) -> Node:
    """The DynamicQuantizeLinear of what the rounding of x leaves."""
    near = edit.add_node(model, "DequantizeLinear", quantize.outputs, base=x.name, suffix="near", graph=graph)
    rest = edit.add_node(model, "Sub", [x, near.outputs[0]], base=x.name, suffix="rest", graph=graph)
    return edit.add_node(
        model, "DynamicQuantizeLinear", rest.outputs, base=x.name, suffix="quantize_rest", outputs=3, graph=graph
    )


def _integers(
    model: Model, quantized: QuantizedWeights, weight: Constant, planned: WeightPlan
) -> tuple[Constant, Constant, Constant]:
    """Integers, scale and zero point of a weight [..., K, N]; per-channel means one scale per column of each matrix."""
    per_channel, rank = isinstance(planned.scheme.granularity, PerChannel), len(weight.shape)
    if rank == 2:
        scheme = replace(planned.scheme, granularity=PerChannel(1) if per_channel else PerTensor())
        return quantized.constants(weight, quantized.params(weight, scheme, planned.method))
    axes = (*range(rank - 2), rank - 1) if per_channel else ()
    values, scale = quantized.along(weight, axes, planned.scheme.dtype, planned.method)
    zero = np.zeros((), planned.scheme.dtype.storage)
    return (
        values,
        edit.add_constant(model, weight.name, "scale", scale if per_channel else scale.reshape(())),
        edit.add_constant(model, weight.name, "zero_point", zero),
    )


def _rewrite_lstm(model: Model, node: Node, quantized: QuantizedWeights, planned: WeightPlan) -> None:
    """Rewrite an LSTM as com.microsoft.DynamicQuantizeLSTM, with W and R transposed to [directions, in, 4H].

    Scales are [directions, 4H] if that reduces the noise by `_ROWS_DB`, because kernels are up to 10 % slower with
    them. Otherwise they are [directions].
    """
    ins: list[Tensor | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    packed: list[Tensor] = []
    scales: list[Tensor] = []
    rows = isinstance(planned.scheme.granularity, PerChannel)
    for slot in (1, 2):
        weight = ins[slot]
        assert weight is not None
        moved = quantized.transposed(weight, (0, 2, 1))
        q, scale = _by_row_or_direction(quantized, moved, planned, rows=rows)
        zero = np.zeros(scale.shape, planned.scheme.dtype.storage)
        packed.append(q)
        scales += [edit.add_constant(model, weight.name, "scale", scale)]
        scales += [edit.add_constant(model, weight.name, "zero_point", zero)]
    model.require_domain("com.microsoft")
    node.op, node.domain = "DynamicQuantizeLSTM", "com.microsoft"
    for name in node.attrs.keys() - set(_LSTM_ATTRS):
        del node.attrs[name]
    x, rest = ins[0], [t if t is not None else Variable("") for t in ins[3:8]]
    node.inputs.clear()
    node.inputs.extend([x, *packed, *rest, *scales])


def _by_row_or_direction(
    quantized: QuantizedWeights, weight: Constant, planned: WeightPlan, *, rows: bool
) -> tuple[Constant, NDArray[np.float32]]:
    """(integers, scale) of a weight [directions, in, 4H]; `rows` allows one scale per row of 4H."""
    values = np.abs(np.asarray(weights.read(weight)))
    largest = values.max(axis=1).astype(np.float64)  # [directions, 4H]; a row's noise is proportional to its square
    with np.errstate(invalid="ignore"):  # quantized.along refuses NaN and infinity
        gain = 10 * np.log10(np.square(largest.max(axis=1)).sum() / max(np.square(largest).mean(axis=1).sum(), 1e-300))
    dtype, method = planned.scheme.dtype, planned.method
    if rows and gain >= _ROWS_DB:
        q, scale = quantized.along(weight, (0, 2), dtype, method)
        return q, scale[:, 0]
    q, scale = quantized.along(weight, (0,), dtype, method)
    return q, scale[:, 0, 0]
