"""Which versions of ONNX Runtime load a file, and run it as quantized, judged by the operators and types in it.

Measured on CPUs with 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.0, 1.22.1, 1.23.2, 1.24.1, 1.25.0, 1.26.0, 1.27.0 and
1.32.0, by the operators of the optimized graph, and weights in blocks by their results and speed too. Forms that are
not listed run as quantized in all of them. Older versions were not tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onnx import TensorProto

from onnxshot.graph import Constant, Model, Node, edit, shape_inference, weights
from onnxshot.graph.float16_types import holds_half
from onnxshot.graph.ops import STANDARD_DOMAINS

Version = tuple[int, int]

OLDEST: Version = (1, 18)
"""The oldest version that was tried."""
UNKNOWN = "unknown"
MOVES_BFLOAT16 = frozenset({
    "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "If", "LayerNormalization", "Loop", "Pad", "QuantizeLinear", "Reshape", "Scan",
    "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that load with bfloat16, or may do so."""
MICROSOFT = "com.microsoft"
_BLOCKED = "com.microsoft.nchwc"
_OPSETS: dict[int, Version] = {22: (1, 21), 23: (1, 23), 24: (1, 24), 25: (1, 24), 26: (1, 25)}
_IRS: dict[int, Version] = {11: (1, 23), 12: (1, 24), 13: (1, 24)}
_BYTES = (TensorProto.INT8, TensorProto.UINT8)
_LARGE_BLOCK = 512
_NIBBLES = (TensorProto.INT4, TensorProto.UINT4)


@dataclass(frozen=True, slots=True)
class Form:
    """A form that a node can have, and the version that it needs.

    Attributes:
        name: Description for people.
        since: First version that runs it as written.
        loads: True if older versions do not load it. False if they run it in float, slower than the float model, or
            less accurately.
        found: Whether a node has this form.
    """

    name: str
    since: Version
    loads: bool
    found: Callable[[Node], bool]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A form in a file that needs a certain version.

    Attributes:
        form: Its description.
        since: First version that supports it.
        nodes: Number of nodes with it.
        loads: True if older versions do not load it.
    """

    form: str
    since: str
    nodes: int
    loads: bool


@dataclass(frozen=True, slots=True)
class VersionNeeds:
    """The versions of ONNX Runtime that a file needs.

    Attributes:
        loads_from: First version that loads it; UNKNOWN if it has operators that one version wrote for itself.
        fused_from: First version that runs all of it as quantized, or UNKNOWN.
        rests_on: Forms that need more than the oldest version, the most demanding first.
    """

    loads_from: str
    fused_from: str
    rests_on: tuple[Requirement, ...] = ()

    def to_text(self) -> str:
        """One line for people."""
        oldest = _text(OLDEST)
        if self.fused_from == UNKNOWN:
            found = ", ".join(f"{r.form} ({r.nodes})" for r in self.rests_on if r.since == UNKNOWN)
            return f"the ONNX Runtime version it needs is unknown: an ONNX Runtime wrote it for itself: {found}"
        tried = " on, the oldest version tried" if self.fused_from == oldest else " on"
        line = f"ONNX Runtime runs it as written from {self.fused_from}{tried}"
        if self.loads_from not in (oldest, self.fused_from):
            line += f", and loads it from {self.loads_from} on"
        most = [r for r in self.rests_on if r.since == self.fused_from]
        return line + (f": {', '.join(f'{r.form} ({r.nodes})' for r in most)}" if most else "")


def needs(model: Model) -> VersionNeeds:
    """The versions of ONNX Runtime that a model needs, judged by the forms in it."""
    found: Counter[Form] = Counter()
    for _, node in model.walk():
        found.update(form for form in FORMS if form.found(node))
    rests = [Requirement(form.name, _text(form.since), count, form.loads) for form, count in found.items()]
    rests += [Requirement(name, _text(since), 1, True) for name, since in _of_file(model)]
    order = sorted(rests, key=lambda r: _version(r.since), reverse=True)
    own = Counter(name for _, node in model.walk() if (name := _private_form(node)))
    if own:
        unreadable = [Requirement(name, UNKNOWN, count, True) for name, count in own.items()]
        return VersionNeeds(UNKNOWN, UNKNOWN, (*unreadable, *order))
    loads = max((_version(r.since) for r in order if r.loads), default=OLDEST)
    fused = max((_version(r.since) for r in order), default=OLDEST)
    return VersionNeeds(_text(loads), _text(fused), tuple(order))


def runs_nowhere(model: Model) -> str:
    """Why no ONNX Runtime runs a model on CPUs, naming a node; empty if nothing is known against it.

    Only the operators in MOVES_BFLOAT16 have kernels for bfloat16, as tried with 1.32.0.
    """
    if not holds_half(model):
        return ""
    shape_inference.infer(model)
    for _, node in model.walk():
        if node.domain in STANDARD_DOMAINS and node.op not in MOVES_BFLOAT16 and _touches(model, node):
            return f"{node.label!r} ({node.op}) computes in bfloat16, which no ONNX Runtime does on CPUs"
    return ""


def _touches(model: Model, node: Node) -> bool:
    """Whether a tensor that the node reads or makes is known to be bfloat16."""
    kinds = (
        weights.elem_type(t) if isinstance(t, Constant) else model.elem_type(t) for t in (*node.inputs, *node.outputs)
    )
    return TensorProto.BFLOAT16 in kinds


def _of_file(model: Model) -> Iterator[tuple[str, Version]]:
    """Requirements of the file itself: its opset and IR version."""
    opset, ir = model.opset, model.envelope.ir_version
    if opset in _OPSETS:
        yield f"opset {opset}", _OPSETS[opset]
    if ir in _IRS:
        yield f"IR version {ir}", _IRS[ir]


def _private_form(node: Node) -> str:
    """A form that ONNX Runtime writes only when it saves an optimized model, for its own version; else empty."""
    if node.domain == _BLOCKED:
        return f"operators of {_BLOCKED}, in blocks of one kind of CPU"
    activation = node.attrs.get("activation", b"") if node.domain == MICROSOFT and node.op == "FusedConv" else b""
    return "FusedConv with HardSwish" if activation in (b"HardSwish", "HardSwish") else ""


def _dequantizer(node: Node, slot: int) -> Node | None:
    maker = edit.producer(node.inputs[slot]) if slot < len(node.inputs) else None
    return maker if maker is not None and maker.op == "DequantizeLinear" else None


def _float_bias(node: Node) -> bool:
    """An int8 Conv or Gemm whose bias is float."""
    if node.op not in ("Conv", "Gemm") or len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    both = _dequantizer(node, 0) is not None and _dequantizer(node, 1) is not None
    return both and _dequantizer(node, 2) is None


def _weights_alone(*types: int) -> Callable[[Node], bool]:
    """A test for products of float activations with a stored matrix of one of these types."""

    def found(node: Node) -> bool:
        weight = _dequantizer(node, 1) if node.op in ("MatMul", "Gemm") and _dequantizer(node, 0) is None else None
        stored = weight.inputs[0] if weight is not None else None
        return isinstance(stored, Constant) and len(stored.shape) == 2 and weights.elem_type(stored) in types

    return found


def _nibbles_per_output(node: Node) -> bool:
    """A product by a matrix of 4-bit integers that have no blocks."""
    weight = _dequantizer(node, 1) if node.op in ("MatMul", "Gemm") else None
    return weight is not None and not weight.attrs.get("block_size", 0) and _weights_alone(*_NIBBLES)(node)


def _by_block(node: Node) -> bool:
    if node.op not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    stored = node.inputs[0]
    return bool(node.attrs.get("block_size", 0)) or (
        isinstance(stored, Constant) and weights.elem_type(stored) in _NIBBLES
    )


def _linear_resize(node: Node) -> bool:
    """A Resize that interpolates, between a DQ and a Q. Before 1.32, its integers are truncated instead of rounded."""
    if node.op not in ("Resize", "Upsample") or node.attrs.get("mode") not in (b"linear", "linear"):
        return False
    users = edit.consumers(node.outputs[0])
    return _dequantizer(node, 0) is not None and bool(users) and all(user.op == "QuantizeLinear" for user in users)


def _nibbles_in_bytes(node: Node) -> bool:
    """A table in which each byte holds two values."""
    stored = node.inputs[0] if _contrib("GatherBlockQuantized", 4)(node) and node.inputs else None
    return isinstance(stored, Constant) and weights.elem_type(stored) in _BYTES


def _large_blocks(node: Node) -> bool:
    """Blocks of 512 inputs or more. Versions from 1.20 to 1.26 multiply by memory that nothing was written to."""
    reads_blocks = node.domain == MICROSOFT and node.op in ("MatMulNBits", "GatherBlockQuantized")
    fused = node.op == "DequantizeLinear" and isinstance(node.inputs[0], Constant)
    return (reads_blocks or fused) and int(node.attrs.get("block_size", 0)) >= _LARGE_BLOCK


def _contrib(op: str, bits: int) -> Callable[[Node], bool]:
    return lambda node: node.op == op and node.domain == MICROSOFT and int(node.attrs.get("bits", 4)) == bits


def _standard(test: Callable[[Node], bool]) -> Callable[[Node], bool]:
    return lambda node: node.domain in STANDARD_DOMAINS and test(node)


FORMS = (
    Form("int8 layers with a float bias", (1, 23), False, _standard(_float_bias)),
    Form("4-bit weights alone with a scale per output", (1, 26), False, _standard(_nibbles_per_output)),
    Form("8-bit weights alone", (1, 25), False, _standard(_weights_alone(*_BYTES))),
    Form("4-bit weights, or a scale for each block", (1, 19), True, _standard(_by_block)),
    # 1.18 multiplies more than one row in float, at 0.9x of the float model
    Form("MatMulNBits with 4 bits", (1, 19), False, _contrib("MatMulNBits", 4)),
    Form("weights in blocks of 512 or more", (1, 27), False, _large_blocks),
    Form("MatMulNBits with 8 bits", (1, 22), True, _contrib("MatMulNBits", 8)),
    Form("MatMulNBits with 2 bits", (1, 24), True, _contrib("MatMulNBits", 2)),
    Form("GatherBlockQuantized with 4 bits", (1, 20), True, _contrib("GatherBlockQuantized", 4)),
    Form("GatherBlockQuantized with 4 bits in bytes", (1, 23), True, _nibbles_in_bytes),
    Form("GatherBlockQuantized with 8 bits", (1, 23), True, _contrib("GatherBlockQuantized", 8)),
    Form("linear Resize between int8 layers", (1, 32), False, _standard(_linear_resize)),
    Form("DeformConv", (1, 26), True, _standard(lambda node: node.op == "DeformConv")),
)


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _version(text: str) -> Version:
    major, minor = text.split(".")
    return int(major), int(minor)
