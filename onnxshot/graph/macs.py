"""Multiply-accumulates of every node that multiplies: how much of a network's work a decision touches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, TypeProto

from onnxshot.graph.ir import Constant, Node, Tensor
from onnxshot.graph.model import Model
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.graph.shapes import infer_proto

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class NodeMacs:
    """Work of one node in one run. exact: False where a shape was missing and one output position was counted."""

    node: Node
    macs: int
    exact: bool


def macs(model: Model, feed_shapes: Shapes | None = None) -> dict[str, int]:
    """Multiply-accumulates of one run per node label, for the nodes that multiply matrices; nodes of branches once.

    feed_shapes: shapes of the graph inputs; free dimensions that it leaves open count as 1.
    """
    found: dict[str, int] = {}
    for row in count(model, concrete_shapes(model, feed_shapes)):
        found[row.node.label] = found.get(row.node.label, 0) + row.macs
    return found


def count(model: Model, shapes: Shapes) -> list[NodeMacs]:
    """One row per node that multiplies matrices, given the shapes of tensors by name; subgraphs included."""
    rows = []
    for _, node in model.walk():
        rule = _rule(node)
        if rule is None:
            continue
        work = _Work(node, shapes)
        result = rule(work)
        rows.append(NodeMacs(node, work.smallest() if result is None else result, result is not None))
    return rows


def _rule(node: Node) -> Callable[[_Work], int | None] | None:
    standard = _STANDARD_RULES.get(node.op) if node.domain in STANDARD_DOMAINS else None
    return standard or _RULES.get(node.op)


# ---------------------------------------------------------------------- work of one node


class _Work:
    """A node with the shapes of its tensors; a shape that is not known is None."""

    def __init__(self, node: Node, shapes: Shapes) -> None:
        self._node, self._shapes = node, shapes
        self.x = self.input(0)
        self.w = self.input(_WEIGHT_SLOT.get(node.op, 1))
        self.out = self._shape(node.outputs[0]) if node.outputs else None

    def input(self, slot: int) -> Shape | None:
        return self._shape(self._node.inputs[slot]) if slot < len(self._node.inputs) else None

    def attr(self, name: str) -> int:
        value = self._node.attrs.get(name, 0)
        return value if isinstance(value, int) else 0

    def smallest(self) -> int:
        """The elements of the weights: the work of one output position, where there is at least one."""
        held = [i for i in self._node.inputs if isinstance(i, Constant) and len(i.shape) >= 2]
        return max((math.prod(i.shape) for i in held), default=0)

    def _shape(self, tensor: Tensor) -> Shape | None:
        return tuple(tensor.shape) if isinstance(tensor, Constant) else self._shapes.get(tensor.name)


def _conv(work: _Work) -> int | None:
    # w [O, I/g, *k]: every output value sums I/g x k products
    return None if work.out is None or work.w is None else math.prod(work.out) * math.prod(work.w[1:])


def _conv_transpose(work: _Work) -> int | None:
    # w [I, O/g, *k]: every input value is spread over O/g x k outputs
    return None if work.x is None or work.w is None else math.prod(work.x) * math.prod(work.w[1:])


def _matmul(work: _Work) -> int | None:
    inner = _inner(work.x, left=True, transposed=work.attr("transA"), batch=work.attr("transBatchA"))
    if inner is None:
        inner = _inner(work.w, left=False, transposed=work.attr("transB"), batch=work.attr("transBatchB"))
    return None if inner is None or work.out is None else math.prod(work.out) * inner


def _inner(shape: Shape | None, *, left: bool, transposed: int, batch: int) -> int | None:
    """The summed dimension K of one side: left [.., M, K], right [.., K, N]; batch: the first moves to last but one."""
    if shape is None or not shape:
        return None
    if len(shape) == 1:
        return shape[0]
    if left != bool(transposed):
        return shape[-1]
    return shape[0] if batch else shape[-2]


def _stored_k(work: _Work) -> int | None:
    # com.microsoft MatMulNBits: the weight is packed, attribute K holds the summed dimension
    return None if work.out is None or not work.attr("K") else math.prod(work.out) * work.attr("K")


def _recurrent(work: _Work) -> int | None:
    # x [T, B, I], w [D, gates x H, I], r [D, gates x H, H]: all of w and r for each step of each sequence
    r = work.input(2)
    if work.x is None or work.w is None or r is None:
        return None
    return math.prod(work.x[:2]) * (math.prod(work.w) + math.prod(r))


def _projection(work: _Work) -> int | None:
    # com.microsoft Attention: x [B, S, I] times w [I, 3H]; what attends is not counted, it runs in float in any case
    return None if work.x is None or work.w is None else math.prod(work.x) * work.w[-1]


def _attention(work: _Work) -> int | None:
    # q [B, S, H] or [B, heads, S, D], k and v likewise with L steps: q times k', then that times v
    if work.x is None or work.w is None or work.out is None or len(work.w) not in (3, 4):
        return None
    return (math.prod(work.x) + math.prod(work.out)) * work.w[-2]


_RULES: dict[str, Callable[[_Work], int | None]] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "NhwcConv", "QLinearConv", "ConvInteger"), _conv),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _conv_transpose),
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm", "GemmFloat8", "MatMul", "FusedMatMul"), _matmul),
    **dict.fromkeys(("TransposeMatMul", "QLinearMatMul", "MatMulInteger", "MatMulInteger16"), _matmul),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _matmul),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"), _stored_k),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    **dict.fromkeys(("QAttention", "Attention"), _projection),
    "MultiHeadAttention": _attention,
}
_STANDARD_RULES = {"Attention": _attention}  # the name means something else in ONNX than in com.microsoft
_WEIGHT_SLOT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}  # all others: 1


# ---------------------------------------------------------------------- shapes


def concrete_shapes(model: Model, feed_shapes: Shapes | None = None) -> dict[str, Shape]:
    """Shapes of the model's tensors as they are when inputs of these shapes are fed; what cannot be told is left out.

    Shapes that the file states serve where ONNX's inference stops, at custom operators for one.
    """
    proto, lifted = model.skeleton()
    symbols = _symbols(proto.graph, feed_shapes or {}, lifted)
    stated = [*proto.graph.value_info, *proto.graph.output]
    for info in proto.graph.input:
        if info.name not in lifted and info.type.HasField("tensor_type"):
            _pin(info.type.tensor_type, (feed_shapes or {}).get(info.name), symbols)
    # Inference starts from the inputs alone: an exporter's hints hold its example's sizes, not these.
    hints = {info.name: _resolved(info.type.tensor_type, symbols) for info in stated}
    del proto.graph.value_info[:]
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    found: dict[str, Shape] = {}
    try:
        inferred = infer_proto(proto)
        _collect(inferred.graph, found)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        _collect(proto.graph, found)  # no inference: what the file states must do
    for name, shape in hints.items():
        if shape is not None:
            found.setdefault(name, shape)
    return found


def _symbols(graph: GraphProto, feed_shapes: Shapes, lifted: Iterable[str]) -> dict[str, int]:
    """Values of the named dimensions, from the inputs that are fed; 1 for those of inputs that are not."""
    symbols: dict[str, int] = {}
    for info in graph.input:
        shape = feed_shapes.get(info.name)
        dims = info.type.tensor_type.shape.dim
        if shape is not None and len(shape) == len(dims):
            symbols |= {d.dim_param: size for d, size in zip(dims, shape, strict=True) if d.dim_param}
    for info in graph.input:
        if info.name not in lifted:
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param:
                    symbols.setdefault(dim.dim_param, 1)
    return symbols


def _pin(tensor: TypeProto.Tensor, shape: Shape | None, symbols: Mapping[str, int]) -> None:
    """Give an input the fed shape, or 1 for each dimension nothing is known of."""
    if shape is None and not tensor.HasField("shape"):
        return
    if shape is None:
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else symbols.get(d.dim_param, 1) for d in tensor.shape.dim
        )
    tensor.ClearField("shape")
    tensor.shape.SetInParent()
    for size in shape:
        tensor.shape.dim.add(dim_value=size)


def _resolved(tensor: TypeProto.Tensor, symbols: Mapping[str, int]) -> Shape | None:
    """The stated shape with symbols replaced; None where the shape or a dimension is not known."""
    if not tensor.HasField("shape"):
        return None
    sizes = [d.dim_value if d.HasField("dim_value") else symbols.get(d.dim_param, -1) for d in tensor.shape.dim]
    return None if any(size < 0 for size in sizes) else tuple(sizes)


def _collect(graph: GraphProto, found: dict[str, Shape]) -> None:
    for info in (*graph.input, *graph.value_info, *graph.output):
        shape = _resolved(info.type.tensor_type, {})
        if shape is not None:
            found.setdefault(info.name, shape)
    for tensor in graph.initializer:
        found.setdefault(tensor.name, tuple(tensor.dims))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _collect(attribute.g, found)
