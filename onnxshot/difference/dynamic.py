"""Integer forms without a scale in the file, given their float form back: dynamic quantization and int8 embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.passes.strip_qdq import dequantized, fits

_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_SCALES = 8  # input slot of DynamicQuantizeLSTM: scale and zero point of W, then of R


def restore_floats(model: Model) -> dict[str, str]:
    """Put float operators in the place of integer ones; name of each -> its precision as words.

    Known are what `onnxshot quantize` and onnxruntime's `quantize_dynamic` write: MatMulInteger and ConvInteger between
    DynamicQuantizeLinear and a rescaling, DynamicQuantizeLSTM, and a Gather of integer rows times one of their scales.
    What is built otherwise stays as it is.
    """
    found = {}
    for _, node in list(model.walk()):
        if node.op in _PRODUCTS:
            made = _product(model, node)
        elif node.op == "DynamicQuantizeLSTM":
            made = _lstm(model, node)
        else:
            made = _embedding(model, node) if node.op == "Gather" else None
        if made is not None:
            found[made[0].label] = made[1]
    if found:
        edit.remove_unused(model)
        edit.toposort(model)
    return found


def _product(model: Model, node: Node) -> tuple[Node, str] | None:
    """x -> DynamicQuantizeLinear -> product -> Cast -> Mul(x_scale * w_scale)."""
    source = edit.producer(node.inputs[0])
    rescale = _behind_cast(model, node)
    stored = edit.constant_input(node, 1)
    if source is None or source.op != "DynamicQuantizeLinear" or rescale is None or stored is None:
        return None
    makers = [edit.producer(tensor) for tensor in rescale.inputs]
    scale = next((m for m in makers if m is not None and m.op == "Mul" and source.outputs[1] in m.inputs), None)
    values = None if scale is None else _other(scale, source.outputs[1])
    if values is None or (node.op == "ConvInteger" and values.size > 1):
        return None
    factors, zero, axis = values.reshape(-1), edit.constant_input(node, 3), stored.ndim - 1
    if not fits(stored, factors, zero, axis):
        return None
    real = dequantized(stored, factors, zero, axis)
    weight = edit.add_constant(model, node.inputs[1].name, "float", real)
    graph, attrs, out = edit.graph_of(model, node), dict(node.attrs), rescale.outputs[0]
    edit.remove(model, [rescale])
    x, op = source.inputs[0], _PRODUCTS[node.op]
    made = edit.add_node(model, op, [x, weight], base=node.label, outputs=[out], attrs=attrs, graph=graph)
    return made, f"dynamic uint8 x {stored.dtype}"


def _lstm(model: Model, node: Node) -> tuple[Node, str] | None:
    """DynamicQuantizeLSTM has W and R as [directions, inputs, 4H], LSTM as [directions, 4H, inputs]."""
    x, rest = node.inputs[0], node.inputs[3:_SCALES]
    real: list[Tensor] = []
    kind = ""
    for slot, first in ((1, _SCALES), (2, _SCALES + 2)):
        stored, scale, zero = (edit.constant_input(node, i) for i in (slot, first, first + 1))
        if stored is None or scale is None:
            return None
        centred = stored.astype(np.float32) - _by_direction(0 if zero is None else zero)
        turned = np.ascontiguousarray((centred * _by_direction(scale)).transpose(0, 2, 1))
        real.append(edit.add_constant(model, node.inputs[slot].name, "float", turned))
        kind = str(stored.dtype)
    node.inputs.clear()
    node.inputs.extend([x, *real, *rest])
    node.op, node.domain = "LSTM", None
    return node, f"dynamic uint8 x {kind}"


def _by_direction(values: Any) -> NDArray[np.float32]:
    """Scales or zero points [], [1], [directions] or [directions, 4H], to be held against [directions, inputs, 4H]."""
    found = np.asarray(values, np.float32)
    return found.reshape(-1, 1, found.shape[1] if found.ndim > 1 else 1)


def _embedding(model: Model, node: Node) -> tuple[Node, str] | None:
    """Gather(q [V, D], ids) -> Cast -> Mul(Gather(scale [V, 1], ids))."""
    stored, rescale = edit.constant_input(node, 0), _behind_cast(model, node)
    if stored is None or stored.dtype.kind not in "iu" or rescale is None:
        return None
    makers = [edit.producer(tensor) for tensor in rescale.inputs]
    others = [m for m in makers if m is not None and m.op == "Gather" and m is not node]
    column = edit.constant_input(others[0], 0) if others else None
    if column is None or column.dtype.kind != "f" or others[0].inputs[1] is not node.inputs[1]:
        return None
    table = edit.add_constant(model, node.inputs[0].name, "float", (stored * column).astype(column.dtype))
    graph, attrs, out = edit.graph_of(model, node), dict(node.attrs), rescale.outputs[0]
    edit.remove(model, [rescale])
    inputs = [table, node.inputs[1]]
    made = edit.add_node(model, "Gather", inputs, base=node.label, outputs=[out], attrs=attrs, graph=graph)
    return made, f"weights {stored.dtype}"


def _behind_cast(model: Model, node: Node) -> Node | None:
    """The Mul that alone reads what a Cast makes of the node's integers."""
    cast = edit.only_consumer(model, node.outputs[0])
    rescale = edit.only_consumer(model, cast.outputs[0]) if cast is not None and cast.op == "Cast" else None
    return rescale if rescale is not None and rescale.op == "Mul" else None


def _other(node: Node, tensor: Tensor) -> NDArray[Any] | None:
    """Values of the other of two inputs, where they are constant."""
    return edit.constant_input(node, 1 - node.inputs.index(tensor))
