"""Read a model as a list of layers in float form, each with its precision, its weight and its scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnx import TensorProto

from onnxshot.errors import ModelError
from onnxshot.graph import Constant, Model, Node, Tensor, edit, opset_upgrade, shape_inference, weights
from onnxshot.graph.integer_ops import FORMS
from onnxshot.graph.integer_weights import stored_in_integers
from onnxshot.graph.load import load_model
from onnxshot.graph.ops import OPS, data_slots, op_of, weight_slot
from onnxshot.maths.affine import QuantParams
from onnxshot.passes.integer_ops_to_float import IntegerOpsToFloat
from onnxshot.passes.normalize import normalize
from onnxshot.passes.qoperator_to_qdq import OPSET, QOperatorToQdq
from onnxshot.passes.strip_qdq import StripQdq
from onnxshot.planning.trained_scales import NOTHING, Trained, read_pairs
from onnxshot.rewriting.prepare import fold_constants, name_nodes


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One operator in float form.

    Attributes:
        node: The operator. A quantized weight is dequantized.
        names: Names of tensors it is known by: its outputs, the output of an Add of a bias after it, and the output it
            had before other nodes were folded into it, whose name tools that fold often keep.
        precision: What the file asks for: "float32", "float16", "static uint8 x int8", "dynamic ...", "weights int8".
        slot: Index of the weight among its inputs; None if it has none.
        params: Scale and zero point of the weight, if they are per tensor or per channel.
        bias: The Add after it, if there is one.
    """

    node: Node
    names: tuple[str, ...]
    precision: str
    slot: int | None = None
    params: QuantParams | None = None
    bias: Node | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """All layers of a model, in graph order.

    Attributes:
        model: The float form they belong to.
        layers: The layers.
        pairs: Scales of the model's activations.
        notes: What could not be read.
        folded: Name of a tensor that disappeared when other nodes were folded into its maker -> the maker's output now.
    """

    model: Model
    layers: tuple[Layer, ...]
    pairs: Trained
    notes: tuple[str, ...] = ()
    folded: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Quantized:
    """What the Q/DQ pairs of a model ask for, by node name, recorded before they are removed."""

    precision: dict[str, str] = field(default_factory=dict)
    params: dict[str, QuantParams] = field(default_factory=dict)


def read_layers(path: str | Path) -> Layers:
    """Read the layers of a file, whichever tool quantized it.

    The model is normalized, so that files of the same model have the same layers. Scales that contradict each other are
    left out, with a note.

    Args:
        path: The .onnx file.

    Raises:
        ModelError: It is not a model.
    """
    model = load_model(path)
    name_nodes(model)
    stored = stored_in_integers(model)
    fold_constants(model)
    if any(node.op in FORMS for _, node in model.walk()):
        opset_upgrade.raise_opset(model, OPSET)
        QOperatorToQdq().run(model)
    shape_inference.infer(model)
    restore = IntegerOpsToFloat()
    restore.run(model)
    quantized = _Quantized(precision=stored | restore.precision)
    pairs, notes = NOTHING, []
    try:
        pairs = read_pairs(model)
    except ModelError as e:
        notes.append(f"{path}: no scales were compared: {e.message}")
    for _, node in model.walk():
        _record_pairs(node, pairs, quantized)
    notes += [
        f"{path}: {skip.node!r} ({skip.op}) was left unchanged: {skip.reason}" for skip in StripQdq().run(model).skips
    ]
    made = {node: node.outputs[0].name for node in model.graph.nodes if node.outputs}
    normalize(model)
    there = model.tensors()
    now = {node: made[node] for node in model.graph.nodes if node in made and made[node] not in there}
    layers = tuple(_layer(model, node, quantized, now.get(node, "")) for _, node in model.walk())
    folded = {name: node.outputs[0].name for node, name in now.items()}
    return Layers(model, layers, pairs, tuple(notes), folded)


def _record_pairs(node: Node, pairs: Trained, quantized: _Quantized) -> None:
    """Record what the Q/DQ pairs before a node ask for."""
    makers = {i: edit.producer(tensor) for i, tensor in enumerate(node.inputs)}
    reads = {i: maker.inputs[0] for i, maker in makers.items() if maker is not None and maker.op == "DequantizeLinear"}
    stored = [i for i in op_of(node).weights if isinstance(reads.get(i), Constant)] or (
        [0] if node.op == "Gather" and isinstance(reads.get(0), Constant) else []
    )
    slots = [i for i in data_slots(node) if i not in stored]
    integers = [_kind(makers[i]) for i in slots if i in reads] if node.op in OPS else []
    kinds = [_kind(makers[i]) for i in stored]
    if integers and len(integers) == len(slots) and (kinds or weight_slot(node) is None):
        quantized.precision[node.label] = f"static {' x '.join([*dict.fromkeys(integers), *kinds[:1]])}"
    elif kinds:
        quantized.precision[node.label] = f"weights {kinds[0]}"
    for i in stored[:1]:
        params = pairs.weights.get(reads[i].name)
        if params is not None:
            quantized.params[node.label] = params


def _kind(dequantize: Node | None) -> str:
    """Name of the type that a DequantizeLinear reads."""
    assert dequantize is not None
    source, maker = dequantize.inputs[0], edit.producer(dequantize.inputs[0])
    kind = weights.elem_type(source) if isinstance(source, Constant) else int(TensorProto.UINT8)
    for node in (dequantize, maker):
        if node is not None and len(node.inputs) > 2 and isinstance(node.inputs[2], Constant):
            kind = weights.elem_type(node.inputs[2])
            break
    return str(TensorProto.DataType.Name(kind).lower())


def _layer(model: Model, node: Node, quantized: _Quantized, before: str) -> Layer:
    slot = weight_slot(node)
    if slot is None and node.op == "Gather" and _is_table(node.inputs[0]):
        slot = 0
    names, bias = [t.name for t in node.outputs if t.name], _bias(model, node)
    if bias is not None:
        names.append(bias.outputs[0].name)
    names += [before] if before else []
    known = node.inputs[slot] if slot is not None else node.outputs[0] if node.outputs else None
    kind = model.elem_type(known) if known is not None else 0
    name = str(TensorProto.DataType.Name(kind or TensorProto.FLOAT).lower())
    computed = quantized.precision.get(node.label, "float32" if name == "float" else name)
    return Layer(node, tuple(names), computed, slot, quantized.params.get(node.label), bias)


def _is_table(tensor: Tensor) -> bool:
    return isinstance(tensor, Constant) and len(tensor.shape) == 2 and weights.elem_type(tensor) in (
        TensorProto.FLOAT, TensorProto.FLOAT16,
    )  # fmt: skip


def _bias(model: Model, node: Node) -> Node | None:
    """The Add of a constant that is the only reader of a product: the bias of a former Gemm; None if there is none."""
    add = edit.only_consumer(model, node.outputs[0]) if node.op in ("MatMul", "Conv") else None
    if add is None or add.op != "Add" or not any(isinstance(tensor, Constant) for tensor in add.inputs):
        return None
    return add
