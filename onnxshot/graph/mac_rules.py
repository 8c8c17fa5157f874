"""Multiply-accumulates of one node, from the shapes of its tensors: one rule per operator.

Rules exist for operators of ONNX and com.microsoft that compute sums of products: matrix products, convolutions,
recurrent cells and attention. A rule returns None where a shape that it needs is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from onnxshot.graph.ir import Constant, Node, Tensor
from onnxshot.graph.ops import STANDARD_DOMAINS

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class NodeShapes:
    """A node with the shapes of its inputs and outputs; None for an unknown shape.

    Attributes:
        node: the node.
        x: shape of the first input.
        w: shape of the weight.
        out: shape of the first output.
    """

    def __init__(self, node: Node, shapes: Shapes) -> None:
        self.node, self._shapes = node, shapes
        self.x = self.input(0)
        self.w = self.input(_WEIGHT_SLOT.get(node.op, 1))
        self.out = self.output(0)

    def input(self, slot: int) -> Shape | None:
        """Shape of an input; None where it is unknown or the input is absent."""
        given = slot < len(self.node.inputs) and self.node.inputs[slot].name
        return self._shape(self.node.inputs[slot]) if given else None

    def output(self, slot: int) -> Shape | None:
        """Shape of an output; None where it is unknown or the output is absent."""
        given = slot < len(self.node.outputs) and self.node.outputs[slot].name
        return self._shape(self.node.outputs[slot]) if given else None

    def has(self, slot: int) -> bool:
        """Whether the input is present."""
        return slot < len(self.node.inputs) and bool(self.node.inputs[slot].name)

    def attr(self, name: str, default: int = 0) -> int:
        """An integer attribute, or the default."""
        value = self.node.attrs.get(name, default)
        return value if isinstance(value, int) else default

    def text(self, name: str) -> str:
        """A text attribute; empty where it is absent."""
        value = self.node.attrs.get(name, b"")
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def smallest(self) -> int:
        """A lower bound: the number of elements of the largest weight, which is the work of one output position."""
        held = [i for i in self.node.inputs if isinstance(i, Constant) and len(i.shape) >= 2]
        return max((math.prod(i.shape) for i in held), default=0)

    def _shape(self, tensor: Tensor) -> Shape | None:
        return tuple(tensor.shape) if isinstance(tensor, Constant) else self._shapes.get(tensor.name)


Rule = Callable[[NodeShapes], int | None]


def rules_of(node: Node) -> tuple[Rule | None, Rule | None]:
    """Return (rule for the products of the weights, rule for those always in float); None where there are none."""
    if node.domain in STANDARD_DOMAINS and node.op in _STANDARD_RULES:
        return _STANDARD_RULES[node.op], None
    return _RULES.get(node.op), _BESIDES.get(node.op)


# ---------------------------------------------------------------------- convolutions and matrices


def _conv(at: NodeShapes) -> int | None:
    # w [O, I/g, *k]: every output value sums I/g x k products
    return None if at.out is None or at.w is None else math.prod(at.out) * math.prod(at.w[1:])


def _conv_transpose(at: NodeShapes) -> int | None:
    # w [I, O/g, *k]: every input value is spread over O/g x k outputs
    return None if at.x is None or at.w is None else math.prod(at.x) * math.prod(at.w[1:])


def _matmul(at: NodeShapes) -> int | None:
    inner = _inner(at.x, left=True, transposed=at.attr("transA"), batch=at.attr("transBatchA"))
    if inner is None:
        inner = _inner(at.w, left=False, transposed=at.attr("transB"), batch=at.attr("transBatchB"))
    return None if inner is None or at.out is None else math.prod(at.out) * inner


def _inner(shape: Shape | None, *, left: bool, transposed: int, batch: int) -> int | None:
    """The summed dimension K of an operand: left [.., M, K], right [.., K, N]; batch: axis 0 moves to last but one."""
    if shape is None or not shape:
        return None
    if len(shape) == 1:
        return shape[0]
    if left != bool(transposed):
        return shape[-1]
    return shape[0] if batch else shape[-2]


def _stored_k(at: NodeShapes) -> int | None:
    # com.microsoft MatMulNBits: the weight is packed, attribute K holds the summed dimension
    return None if at.out is None or not at.attr("K") else math.prod(at.out) * at.attr("K")


def _gate_and_up(at: NodeShapes) -> int | None:
    # com.microsoft MatMulNBitsMlp: two products [.., K] x [K, N] of the same input
    return None if at.x is None else 2 * math.prod(at.x) * at.attr("N")


def _query_key_value(at: NodeShapes) -> int | None:
    # com.microsoft MatMulNBitsQkv: three products of the same input
    return None if at.x is None else math.prod(at.x) * (at.attr("Nq") + 2 * at.attr("Nkv"))


def _distances(at: NodeShapes) -> int | None:
    # com.microsoft CDist: x [M, K], y [N, K] -> [M, N]
    return None if at.x is None or at.w is None else math.prod(at.x) * at.w[0]


def _einsum(at: NodeShapes) -> int | None:
    """Einsum-12, evaluated operand by operand: each product runs over all letters of both sides that are still needed.

    An Einsum of one operand only sums and counts 0.
    """
    left, _, right = at.text("equation").replace(" ", "").partition("->")
    terms, sizes = left.split(","), dict[str, int]()
    shapes = [at.input(i) for i in range(len(terms))]
    if any(shape is None for shape in shapes):
        return None
    letters = []
    for term, shape in zip(terms, shapes, strict=True):
        assert shape is not None
        names = _letters(term, len(shape))
        if len(names) != len(shape):
            return None
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
        letters.append(set(names))
    if "->" in at.text("equation"):
        kept = set(right.replace(".", "")) | {name for name in sizes if name.isdigit()}
    else:  # implicit output: the letters that occur once
        kept = {name for name in sizes if name.isdigit() or left.count(name) == 1}
    total, held = 0, letters[0]
    for i, own in enumerate(letters[1:], start=1):
        held = held | own
        total += math.prod(sizes[name] for name in held)
        held &= kept.union(*letters[i + 1 :])
    return total


def _letters(term: str, rank: int) -> list[str]:
    """One name per dimension; dimensions of an ellipsis are numbered from the back."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(str(i) for i in range(hidden, 0, -1)), *after]


# ---------------------------------------------------------------------- recurrent cells and experts


def _recurrent(at: NodeShapes) -> int | None:
    # x [T, B, I], w [D, gates x H, I], r [D, gates x H, H]: all of w and r for each step of each sequence
    r = at.input(2)
    if at.x is None or at.w is None or r is None:
        return None
    return math.prod(at.x[:2]) * (math.prod(at.w) + math.prod(r))


def _experts(*slots: int) -> Rule:
    # com.microsoft MoE: x [.., H], w [experts, a, b]: every row goes through the weights of k experts
    def rule(at: NodeShapes) -> int | None:
        held = [at.input(slot) for slot in slots if at.has(slot)]
        if at.x is None or any(w is None for w in held):
            return None
        each = sum(math.prod(w[1:]) for w in held if w is not None)
        packed = 8 // max(1, at.attr("expert_weight_bits", 4)) if at.node.op == "QMoE" else 1
        return math.prod(at.x[:-1]) * at.attr("k", 1) * each * packed

    return rule


# ---------------------------------------------------------------------- attention


def _projection(at: NodeShapes) -> int | None:
    # com.microsoft Attention: x [B, S, I] times w [I, Q + K + V]
    return None if at.x is None or at.w is None else math.prod(at.x) * at.w[-1]


def _self_attention(past: int) -> Rule:
    # com.microsoft Attention: what x attends to; past [2, B, heads, P, D], present likewise with all steps
    def rule(at: NodeShapes) -> int | None:
        if at.x is None or at.w is None or at.out is None:
            return None
        present, before = at.output(1), at.input(past)
        if present is None and at.has(past) and before is None:
            return None
        steps = present[3] if present is not None else at.x[1] + (before[3] if before is not None else 0)
        values = at.out[-1]
        return math.prod(at.x[:2]) * steps * ((at.w[-1] - values) // 2 + values)

    return rule


def _packed_self_attention(at: NodeShapes) -> int | None:
    # com.microsoft PackedAttention: token_offset [B, S]
    spread = at.input(3)
    if spread is None or at.w is None or at.out is None:
        return None
    values = at.out[-1]
    return math.prod(spread) * spread[1] * ((at.w[-1] - values) // 2 + values)


def _attention(past: int) -> Rule:
    """Attention: Q K^T, then the result times V. q [B, S, H] or [B, heads, S, D]; k and v likewise, or packed into q.

    past: slot of the past keys [B, heads, P, D]. Where the node has the output of present keys, those cover all steps.
    """

    def rule(at: NodeShapes) -> int | None:
        if at.x is None or at.out is None:
            return None
        present, before = at.output(1), at.input(past)
        if present is not None and len(present) == 4:
            steps = present[2]
        elif at.has(past) and before is None:
            return None
        else:
            keys = at.w if at.has(1) else at.x  # [B, S, heads, 3, D] where all three are one tensor
            if keys is None or len(keys) not in (3, 4, 5):
                return None
            steps = (keys[2] if len(keys) == 4 else keys[1]) + (before[2] if before is not None else 0)
        # Queries are as wide as the output, unless values and keys differ in width.
        queries = math.prod(at.x) if at.has(1) else math.prod(at.out)
        return (queries + math.prod(at.out)) * steps

    return rule


def _linear_attention(at: NodeShapes) -> int | None:
    # LinearAttention: each step adds k x v to a state [B, heads, Dk, Dv] and reads it; a delta rule reads it twice
    heads, state = at.attr("q_num_heads"), at.output(1) or at.input(3)
    if at.x is None or len(at.x) < 3:
        return None
    if state is None and at.out is not None and heads and len(at.x) == 3:
        state = (at.x[0], heads, at.x[2] // heads, at.out[2] // heads)
    if state is None:
        return None
    return at.x[-2] * math.prod(state) * (3 if "delta" in at.text("update_rule") else 2)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "NhwcConv", "QLinearConv", "ConvInteger"), _conv),
    **dict.fromkeys(("DeformConv", "CausalConvWithState"), _conv),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _conv_transpose),
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm", "GemmFloat8", "GemmFastGelu", "MatMul", "FusedMatMul"), _matmul),
    **dict.fromkeys(("TransposeMatMul", "QLinearMatMul", "MatMulInteger", "MatMulInteger16"), _matmul),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FusedMatMulActivation"), _matmul),
    **dict.fromkeys(("SparseToDenseMatMul", "QOrderedMatMul"), _matmul),
    **dict.fromkeys(("MatMulBlockQuantizedFp4Weight", "MatMulBlockQuantizedFp8Weight"), _matmul),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "MatMulNBitsQLoRA"), _stored_k),
    "MatMulNBitsMlp": _gate_and_up,
    "MatMulNBitsQkv": _query_key_value,
    "CDist": _distances,
    "Einsum": _einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    "MoE": _experts(2, 4, 6),
    "QMoE": _experts(2, 5, 8),
    **dict.fromkeys(("Attention", "QAttention", "DecoderMaskedSelfAttention", "PackedAttention"), _projection),
    "MultiHeadAttention": _attention(6),
    "DecoderMaskedMultiHeadAttention": _attention(5),
    **dict.fromkeys(("GroupQueryAttention", "SparseAttention"), _attention(3)),
    "LinearAttention": _linear_attention,
}
_STANDARD_RULES = {"Attention": _attention(4)}  # the name means something else in ONNX than in com.microsoft
_BESIDES: dict[str, Rule] = {
    **dict.fromkeys(("Attention", "DecoderMaskedSelfAttention"), _self_attention(4)),
    "QAttention": _self_attention(8),
    "PackedAttention": _packed_self_attention,
}
_WEIGHT_SLOT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}  # all others: 1
