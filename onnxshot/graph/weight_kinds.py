"""What the weights of a model are for, by operator and by position: tables, attention, feed-forward, head, and others.

A weight belongs to the operator that reads it, directly or through operators on constants alone, such as
DequantizeLinear; so do its scales and zero points. Products are told apart by what stands around them, not by names:

- attention: a product whose result reaches an attention before another product does, and one that reads its result;
- head: a product whose result reaches outputs of the model alone, without norms and without sums of activations;
- feed-forward: the other products.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnxshot.graph import edit, weights
from onnxshot.graph.ir import Constant, Node, Tensor
from onnxshot.graph.model import Model

EMBEDDING, ATTENTION, FEED_FORWARD, HEAD = "embedding", "attention", "feed-forward", "head"
CONVOLUTION, RECURRENT, VECTORS, OTHER = "convolution", "recurrent", "norms and biases", "other"
KINDS = (EMBEDDING, ATTENTION, FEED_FORWARD, HEAD, CONVOLUTION, RECURRENT, VECTORS, OTHER)
"""All kinds. A weight that several operators read has the first of theirs, so a tied table is an embedding."""

_PRODUCTS = {  # operator -> inputs that hold a weight, and what belongs to it
    "MatMul": (0, 1), "Gemm": (0, 1), "Einsum": (0, 1), "FusedMatMul": (0, 1), "FusedGemm": (0, 1),
    "MatMulNBits": (1, 2, 3), "MatMulBnb4": (1, 2), "MatMulInteger": (0, 1, 2, 3), "DynamicQuantizeMatMul": (1, 2, 3),
    "MatMulIntegerToFloat": (1, 3, 5), "QLinearMatMul": (3, 4, 5), "QGemm": (3, 4, 5),
}  # fmt: skip
_TABLES = ("Gather", "GatherBlockQuantized", "EmbedLayerNormalization", "QEmbedLayerNormalization")
_CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv")
_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_CORES = (
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "DecoderMaskedMultiHeadAttention",
)  # fmt: skip
_NORMS = (
    "LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization", "InstanceNormalization", "GroupNormalization", "ReduceMean",
)  # fmt: skip
_SUMS = ("Add", "Sub")
_SIZES = ("Shape", "Size")  # what is computed from sizes is no result
_CORE, _OUT, _MIXED, _PRODUCT = 1, 2, 4, 8  # what a result reaches


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The weights of a kind.

    Attributes:
        kind: one of KINDS.
        bytes: size of the values as they are stored, with scales and zero points; each constant once.
        elements: number of values.
    """

    kind: str
    bytes: int
    elements: int


def weight_kinds(model: Model) -> list[StoredWeights]:
    """The weights of a model by kind, in the order of KINDS; kinds that it lacks are left out."""
    found = {kind: (0, 0) for kind in KINDS}
    for constant, kind in kinds_of(model).items():
        size, count = found[kind]
        found[kind] = size + weights.size_bytes(constant), count + _count(constant)
    return [StoredWeights(kind, *sums) for kind, sums in found.items() if sums[1]]


def kinds_of(model: Model) -> dict[Constant, str]:
    """The kind of every constant."""
    nodes = [node for _, node in model.walk()]
    fixed = _fixed(nodes)
    reach = _reach(model, nodes, fixed)
    from_core = _from_core(nodes, fixed)
    found: dict[Constant, str] = {}
    for constant in model.constants():
        kinds = {_kind(constant, node, slot, fixed, reach, from_core) for node, slot in _readers(constant, fixed)}
        found[constant] = min(kinds or {OTHER}, key=KINDS.index)
    return found


def _count(constant: Constant) -> int:
    total = 1
    for size in constant.shape:
        total *= int(size)
    return total


def _kind(
    constant: Constant, node: Node, slot: int, fixed: set[Node], reach: Mapping[Node, int], from_core: set[Node]
) -> str:
    if node.op in _TABLES:
        return EMBEDDING if slot != 1 or node.op != "Gather" else OTHER
    if node.op in _CONVOLUTIONS:
        return CONVOLUTION if slot > 0 and not _is_bias(node, slot) else VECTORS
    if node.op in _RECURRENT:
        return RECURRENT if slot in (1, 2) or slot > 7 else VECTORS
    if node.op in _CORES:
        return ATTENTION
    if node.op in _PRODUCTS:
        return _of_product(node, fixed, reach, from_core) if slot in _PRODUCTS[node.op] else VECTORS
    sizes = [size for size in constant.shape if size != 1]
    return VECTORS if constant.dtype.kind in "fV" and len(sizes) <= 1 else OTHER


def _is_bias(node: Node, slot: int) -> bool:
    return slot == 2 and node.op in ("Conv", "ConvTranspose", "FusedConv", "NhwcConv")


def _of_product(node: Node, fixed: set[Node], reach: Mapping[Node, int], from_core: set[Node]) -> str:
    reached = reach.get(node, 0)
    if reached & _CORE or any(maker in from_core for maker in _makers(node)):
        return ATTENTION
    return HEAD if reached == _OUT else FEED_FORWARD


def _fixed(nodes: Iterable[Node]) -> set[Node]:
    """Nodes that compute from constants alone, in topological order of their graph."""
    found = set[Node]()
    for node in nodes:
        given = [tensor for tensor in node.inputs if tensor.name]
        if given and all(isinstance(t, Constant) or edit.producer(t) in found for t in given):
            found.add(node)
    return found


def _readers(constant: Constant, fixed: set[Node]) -> list[tuple[Node, int]]:
    """The operators that read a constant, through operators on constants alone, and the inputs they read it at."""
    found, waiting, seen = list[tuple[Node, int]](), list[Tensor]([constant]), set[int]()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        for node in edit.consumers(tensor):
            if node in fixed:
                waiting.extend(node.outputs)
            else:
                found += [(node, slot) for slot, read in enumerate(node.inputs) if read is tensor]
    return found


def _is_weighted(node: Node, fixed: set[Node]) -> bool:
    """Whether a node is a product by a constant."""
    slots = _PRODUCTS.get(node.op, ())
    given = (node.inputs[slot] for slot in slots if slot < len(node.inputs))
    return any(isinstance(t, Constant) or edit.producer(t) in fixed for t in given)


def _is_core(node: Node, fixed: set[Node]) -> bool:
    """Whether a node is an attention, or a product of two activations, of which an attention consists."""
    return node.op in _CORES or (node.op in ("MatMul", "FusedMatMul", "Einsum") and not _is_weighted(node, fixed))


def _reach(model: Model, nodes: list[Node], fixed: set[Node]) -> dict[Node, int]:
    """What the result of each node reaches before it reaches another product by a weight."""
    ends = {id(tensor) for graph in model.graphs() for tensor in graph.outputs}
    found: dict[Node, int] = {}
    for node in reversed(nodes):
        flags = 0
        # The scale of a quantized activation goes around the product that it is quantized for.
        for tensor in node.outputs[:1] if node.op == "DynamicQuantizeLinear" else node.outputs:
            flags |= _OUT if id(tensor) in ends else 0
            for reader in edit.consumers(tensor):
                if _is_weighted(reader, fixed):
                    flags |= _PRODUCT
                elif _is_core(reader, fixed):
                    flags |= _CORE
                elif reader.op not in _SIZES:
                    flags |= found.get(reader, 0) | (_MIXED if _mixes(reader, fixed) else 0)
        found[node] = flags
    return found


def _mixes(node: Node, fixed: set[Node]) -> bool:
    """Whether a node is a norm or a sum of activations."""
    if node.op in _NORMS:
        return True
    return node.op in _SUMS and not any(isinstance(t, Constant) or edit.producer(t) in fixed for t in node.inputs)


def _from_core(nodes: list[Node], fixed: set[Node]) -> set[Node]:
    """Nodes whose result comes from an attention without a product by a weight, a norm or a sum in between."""
    found = set[Node]()
    for node in nodes:
        passes = node.op not in _SIZES and not _is_weighted(node, fixed) and not _mixes(node, fixed)
        if _is_core(node, fixed) or (passes and any(maker in found for maker in _makers(node))):
            found.add(node)
    return found


def _makers(node: Node) -> list[Node]:
    return [maker for tensor in node.inputs if (maker := edit.producer(tensor)) is not None]
