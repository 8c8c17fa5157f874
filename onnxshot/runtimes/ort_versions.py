"""From which version of ONNX Runtime on a file loads, and runs as it was told to: facts about the forms in it.

Measured on CPUs with 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.0, 1.22.1, 1.23.2, 1.24.1, 1.25.0, 1.26.0 and 1.32.0, by the
operators of the optimized graph. A form that has no row runs so in all of them. Older ones were not tried.
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
"""The oldest that was tried."""
UNKNOWN = "unknown"
MOVES_BFLOAT16 = frozenset({
    "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "If", "LayerNormalization", "Loop", "Pad", "QuantizeLinear", "Reshape", "Scan",
    "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that load with bfloat16, or of which it is not known that they do not."""
MICROSOFT = "com.microsoft"
_BLOCKED = "com.microsoft.nchwc"
_OPSETS: dict[int, Version] = {22: (1, 21), 23: (1, 23), 24: (1, 24), 25: (1, 24), 26: (1, 25)}
_IRS: dict[int, Version] = {11: (1, 23), 12: (1, 24), 13: (1, 24)}
_BYTES = (TensorProto.INT8, TensorProto.UINT8)
_NIBBLES = (TensorProto.INT4, TensorProto.UINT4)


@dataclass(frozen=True, slots=True)
class Form:
    """Something that a node is, and the version it needs.

    Attributes:
        name: what it is, for people.
        since: the first version that runs it so.
        loads: older ones do not load it; else they run it in float, slower than the float model, or less exactly.
        found: whether a node is it.
    """

    name: str
    since: Version
    loads: bool
    found: Callable[[Node], bool]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One form that a file rests on: its name, the first version for it, in how many nodes, and whether to load it."""

    form: str
    since: str
    nodes: int
    loads: bool


@dataclass(frozen=True, slots=True)
class VersionNeeds:
    """What a file needs of ONNX Runtime.

    Attributes:
        loads_from: the first version that loads it; UNKNOWN where it holds what one version wrote for itself.
        fused_from: the first version that runs all of it as it was told to, or UNKNOWN.
        rests_on: the forms that need more than the oldest version, the one that needs most first.
    """

    loads_from: str
    fused_from: str
    rests_on: tuple[Requirement, ...] = ()

    def to_text(self) -> str:
        """One line for people."""
        oldest = _text(OLDEST)
        if self.fused_from == UNKNOWN:
            found = ", ".join(f"{r.form} ({r.nodes})" for r in self.rests_on if r.since == UNKNOWN)
            return f"from which ONNX Runtime on it runs is unknown: an ONNX Runtime wrote it for itself: {found}"
        tried = " on, the oldest that was tried" if self.fused_from == oldest else " on"
        line = f"ONNX Runtime runs it as told from {self.fused_from}{tried}"
        if self.loads_from not in (oldest, self.fused_from):
            line += f", and loads it from {self.loads_from} on"
        most = [r for r in self.rests_on if r.since == self.fused_from]
        return line + (f": {', '.join(f'{r.form} ({r.nodes})' for r in most)}" if most else "")


def needs(model: Model) -> VersionNeeds:
    """What a model needs of ONNX Runtime, by the forms that are in it."""
    found: Counter[Form] = Counter()
    for _, node in model.walk():
        found.update(form for form in FORMS if form.found(node))
    rests = [Requirement(form.name, _text(form.since), count, form.loads) for form, count in found.items()]
    rests += [Requirement(name, _text(since), 1, True) for name, since in _of_file(model)]
    order = sorted(rests, key=lambda r: _version(r.since), reverse=True)
    own = Counter(name for _, node in model.walk() if (name := _own_form(node)))
    if own:
        unreadable = [Requirement(name, UNKNOWN, count, True) for name, count in own.items()]
        return VersionNeeds(UNKNOWN, UNKNOWN, (*unreadable, *order))
    loads = max((_version(r.since) for r in order if r.loads), default=OLDEST)
    fused = max((_version(r.since) for r in order), default=OLDEST)
    return VersionNeeds(_text(loads), _text(fused), tuple(order))


def runs_nowhere(model: Model) -> str:
    """Why no ONNX Runtime runs a model on CPUs, naming a node; empty where nothing is known against it.

    There is no kernel for bfloat16 but of the operators in MOVES_BFLOAT16: tried with 1.32.0.
    """
    if not holds_half(model):
        return ""
    shape_inference.infer(model)
    for _, node in model.walk():
        if node.domain in STANDARD_DOMAINS and node.op not in MOVES_BFLOAT16 and _touches(model, node):
            return f"{node.label!r} ({node.op}) computes in bfloat16, which no ONNX Runtime does on CPUs"
    return ""


def _touches(model: Model, node: Node) -> bool:
    """Whether a tensor that a node reads or makes is known to be bfloat16."""
    kinds = (
        weights.elem_type(t) if isinstance(t, Constant) else model.elem_type(t) for t in (*node.inputs, *node.outputs)
    )
    return TensorProto.BFLOAT16 in kinds


def _of_file(model: Model) -> Iterator[tuple[str, Version]]:
    """What is not of one node: the opset and the version of the format."""
    opset, ir = model.opset, model.envelope.ir_version
    if opset in _OPSETS:
        yield f"opset {opset}", _OPSETS[opset]
    if ir in _IRS:
        yield f"IR version {ir}", _IRS[ir]


def _own_form(node: Node) -> str:
    """What ONNX Runtime writes for itself when it saves an optimized model, and promises nobody to read again."""
    if node.domain == _BLOCKED:
        return f"operators of {_BLOCKED}, in blocks of one kind of CPU"
    activation = node.attrs.get("activation", b"") if node.domain == MICROSOFT and node.op == "FusedConv" else b""
    return "FusedConv with HardSwish" if activation in (b"HardSwish", "HardSwish") else ""


def _dequantizer(node: Node, slot: int) -> Node | None:
    maker = edit.producer(node.inputs[slot]) if slot < len(node.inputs) else None
    return maker if maker is not None and maker.op == "DequantizeLinear" else None


def _float_bias(node: Node) -> bool:
    """A Conv or Gemm in int8 whose bias is float."""
    if node.op not in ("Conv", "Gemm") or len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    both = _dequantizer(node, 0) is not None and _dequantizer(node, 1) is not None
    return both and _dequantizer(node, 2) is None


def _weights_alone(*types: int) -> Callable[[Node], bool]:
    """A product of floats by a stored matrix of one of these types."""

    def found(node: Node) -> bool:
        weight = _dequantizer(node, 1) if node.op in ("MatMul", "Gemm") and _dequantizer(node, 0) is None else None
        stored = weight.inputs[0] if weight is not None else None
        return isinstance(stored, Constant) and len(stored.shape) == 2 and weights.elem_type(stored) in types

    return found


def _by_block(node: Node) -> bool:
    if node.op not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    stored = node.inputs[0]
    return bool(node.attrs.get("block_size", 0)) or (
        isinstance(stored, Constant) and weights.elem_type(stored) in _NIBBLES
    )


def _linear_resize(node: Node) -> bool:
    """A Resize that mixes values, between a DQ and a Q: its integers are cut off, not rounded, before 1.32."""
    if node.op not in ("Resize", "Upsample") or node.attrs.get("mode") not in (b"linear", "linear"):
        return False
    users = edit.consumers(node.outputs[0])
    return _dequantizer(node, 0) is not None and bool(users) and all(user.op == "QuantizeLinear" for user in users)


def _nibbles_in_bytes(node: Node) -> bool:
    """A table of which each byte holds two values."""
    stored = node.inputs[0] if _contrib("GatherBlockQuantized", 4)(node) and node.inputs else None
    return isinstance(stored, Constant) and weights.elem_type(stored) in _BYTES


def _contrib(op: str, bits: int) -> Callable[[Node], bool]:
    return lambda node: node.op == op and node.domain == MICROSOFT and int(node.attrs.get("bits", 4)) == bits


def _standard(test: Callable[[Node], bool]) -> Callable[[Node], bool]:
    return lambda node: node.domain in STANDARD_DOMAINS and test(node)


FORMS = (
    Form("int8 layers with a float bias", (1, 23), False, _standard(_float_bias)),
    Form("8-bit weights alone", (1, 25), False, _standard(_weights_alone(*_BYTES))),
    Form("4-bit weights, or a scale for each block", (1, 19), True, _standard(_by_block)),
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
