"""What operators of older opsets are in newer ones, where ONNX's version converter gets it wrong: one rule for each.

What an old operator means is what ONNX Runtime computes for it, as far as the specification leaves it open: Upsample
and Resize below opset 11 say nothing of how pixels are matched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxshot.errors import ModelError
from onnxshot.graph import edit, weights
from onnxshot.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxshot.graph.model import Model


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operator is raised.

    Attributes:
        op: its name.
        since, below: the opsets in which it is one that the converter gets wrong; the second is the first in which it
            is what `rewrite` writes.
        wrong: whether the converter gets this node wrong.
        rewrite: brings the node into its newer form, in the graph that it stands in.
    """

    op: str
    since: int
    below: int
    wrong: Callable[[Model, Node], bool]
    rewrite: Callable[[Model, Graph, Node], None]


# ---------------------------------------------------------------------- Upsample and Resize


def _scales(model: Model, node: Node) -> tuple[Tensor, np.ndarray[Any, Any] | None]:
    """The scales of an Upsample or a Resize below opset 11, and their values where they are constant."""
    attrs = node.attrs
    if "height_scale" in attrs:  # Upsample-1
        found = np.array([1, 1, attrs.pop("height_scale"), attrs.pop("width_scale")], np.float32)
    elif "scales" in attrs:  # Upsample-7
        found = np.array(attrs.pop("scales"), np.float32)
    else:
        return node.inputs[1], edit.constant_input(node, 1)
    return edit.add_constant(model, node.label, "scales", found), found


def _resize(model: Model, graph: Graph, node: Node) -> None:
    """Resize with pixels matched as ONNX Runtime does below opset 11: x / scale, without an offset.

    The nearest pixel is then the one below, and above where an axis gets smaller: a node that does both becomes two.
    """
    tensor, scales = _scales(model, node)
    node.op = "Resize"
    node.attrs = {"mode": _text(node, "mode", "nearest"), "coordinate_transformation_mode": "asymmetric"}
    smaller = scales is not None and bool((scales < 1).any())
    if node.attrs["mode"] == "nearest":
        node.attrs["nearest_mode"] = "ceil" if smaller else "floor"
        if smaller and scales is not None and (scales > 1).any():
            up = edit.add_constant(model, node.label, "scales_up", np.maximum(scales, 1).astype(np.float32))
            tensor = edit.add_constant(model, node.label, "scales_down", np.minimum(scales, 1).astype(np.float32))
            first = edit.add_node(
                model, "Resize", _resize_inputs(model, node, up), base=node.label, suffix="up",
                attrs={**node.attrs, "nearest_mode": "floor"}, graph=graph,
            )  # fmt: skip
            node.inputs[0] = first.outputs[0]
    inputs = _resize_inputs(model, node, tensor)
    node.inputs.clear()
    node.inputs.extend(inputs)


def _resize_inputs(model: Model, node: Node, scales: Tensor) -> list[Tensor]:
    """x, roi and scales; roi must be there below opset 13."""
    none = edit.add_constant(model, node.label, "roi", np.zeros(0, np.float32)) if model.opset < 13 else Variable("")
    return [node.inputs[0], none, scales]


def _half_pixel(model: Model, graph: Graph, node: Node) -> None:
    """tf_half_pixel_for_nn, which opset 13 has no more: (x + 1/2) / scale, of which the pixel below is taken.

    That is half_pixel, which subtracts 1/2, with ties rounded up.
    """
    node.attrs |= {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}


def _is_tf_half_pixel(model: Model, node: Node) -> bool:
    """Other modes than this one have no counterpart in newer opsets; ONNX Runtime runs them as they are."""
    names = ("coordinate_transformation_mode", "mode", "nearest_mode")
    found = [_text(node, name, default) for name, default in zip(names, ("", "nearest", ""), strict=True)]
    return found == ["tf_half_pixel_for_nn", "nearest", "floor"]


# ---------------------------------------------------------------------- Hardmax


def _hardmax(model: Model, graph: Graph, node: Node) -> None:
    """Hardmax below opset 13, over all axes from `axis` on as if they were one."""
    data, out = node.inputs[0], node.outputs[0]
    axis = node.attrs.get("axis", 1)
    node.attrs = {"axis": -1}
    shape = edit.add_node(model, "Shape", [data], base=node.label, suffix="shape", graph=graph).outputs[0]
    flat = edit.add_node(model, "Flatten", [data], base=node.label, suffix="flat", attrs={"axis": axis}, graph=graph)
    node.inputs[0] = flat.outputs[0]
    node.outputs[0] = Variable(model.fresh(node.label, "flat_output"))
    flat_out = node.outputs[0]
    edit.add_node(model, "Reshape", [flat_out, shape], base=node.label, suffix="shaped", outputs=[out], graph=graph)


# ---------------------------------------------------------------------- attributes that were float32 for any tensor


def _not_float32(model: Model, node: Node) -> bool:
    """Whether the limits or the padding of a node must be of another type than the converter writes."""
    return model.elem_type(node.inputs[0]) not in (TensorProto.UNDEFINED, TensorProto.FLOAT)


def _clip(model: Model, graph: Graph, node: Node) -> None:
    """Clip-6 with its limits as inputs, in the type of the tensor."""
    low, high = node.attrs.pop("min", None), node.attrs.pop("max", None)
    if low is not None or high is not None:
        node.inputs.append(Variable("") if low is None else _scalar(model, node, low))
    if high is not None:
        node.inputs.append(_scalar(model, node, high))


def _pad(model: Model, graph: Graph, node: Node) -> None:
    """Pad-2 with its padding as inputs, in the type of the tensor."""
    node.inputs.append(edit.add_constant(model, node.label, "pads", np.array(node.attrs.pop("pads"), np.int64)))
    value = node.attrs.pop("value", 0.0)
    if _text(node, "mode", "constant") == "constant":
        node.inputs.append(_scalar(model, node, value))


def _scalar(model: Model, node: Node, value: float) -> Constant:
    kind = helper.tensor_dtype_to_np_dtype(model.elem_type(node.inputs[0]))
    return edit.add_constant(model, node.label, "value", np.array(value, kind))


# ---------------------------------------------------------------------- Dropout


def _mask_is_read(model: Model, node: Node) -> bool:
    return len(node.outputs) > 1 and bool(node.outputs[1].name)


def _dropout(model: Model, graph: Graph, node: Node) -> None:
    """Dropout below opset 12, whose mask is of zeros where nothing is dropped: ONNX Runtime has ones there since."""
    node.attrs.pop("ratio", None)
    mask, node.outputs[1] = node.outputs[1], Variable(model.fresh(node.label, "kept"))
    edit.add_node(model, "Not", [node.outputs[1]], base=node.label, suffix="dropped", outputs=[mask], graph=graph)


def _dropout_7(model: Model, graph: Graph, node: Node) -> None:
    """Dropout below opset 10, whose mask is of the type of the tensor too."""
    mask, node.outputs[1] = node.outputs[1], Variable(model.fresh(node.label, "mask"))
    kind = model.elem_type(node.inputs[0]) or TensorProto.FLOAT
    edit.add_node(
        model, "Cast", [node.outputs[1]], base=node.label, suffix="cast", outputs=[mask], attrs={"to": kind},
        graph=graph,
    )  # fmt: skip
    _dropout(model, graph, node)


# ---------------------------------------------------------------------- BatchNormalization


def _by_activation(model: Model, node: Node) -> bool:
    if node.attrs.get("spatial", 1):
        return False
    if any(edit.constant_input(node, slot) is None for slot in range(1, 5)):
        raise ModelError(
            f"node {node.label!r} (BatchNormalization) has no counterpart in opset 9 and newer: spatial is 0",
            "export the model again with opset 9 or newer",
        )
    return True


def _affine(model: Model, graph: Graph, node: Node) -> None:
    """BatchNormalization with spatial = 0: each activation [C, H, W] has a scale and an offset of its own."""
    scale, bias, mean, variance = (weights.read(node.inputs[slot]) for slot in range(1, 5))
    factor = scale / np.sqrt(variance + np.asarray(node.attrs.get("epsilon", 1e-5), variance.dtype))
    (data, *_), out = list(node.inputs), node.outputs[0]
    node.op, node.attrs = "Mul", {}
    node.inputs.clear()
    node.inputs.extend([data, edit.add_constant(model, node.label, "factor", factor)])
    node.outputs.clear()
    node.outputs.append(Variable(model.fresh(node.label, "scaled")))
    offset = edit.add_constant(model, node.label, "offset", bias - mean * factor)
    edit.add_node(model, "Add", [node.outputs[0], offset], base=node.label, suffix="add", outputs=[out], graph=graph)


# ---------------------------------------------------------------------- broadcasting below opset 7


def _has_place(model: Model, node: Node) -> bool:
    """Whether the second tensor stands at axes of the first that are not its last ones."""
    return bool(node.attrs.get("broadcast", 0)) and "axis" in node.attrs and _behind(model, node) > 0


def _has_slopes(model: Model, node: Node) -> bool:
    """Whether the slopes of a PRelu are one per channel, of a tensor that has axes behind them."""
    shape = model.shape(node.inputs[1])
    return shape is not None and len(shape) == 1 and shape[0] != 1 and _behind(model, node) > 0


def _behind(model: Model, node: Node) -> int:
    """Axes of the first tensor behind those of the second."""
    first, second = (model.shape(tensor) for tensor in node.inputs[:2])
    if first is None or second is None:
        raise ModelError(
            f"node {node.label!r} ({node.op}) has no counterpart in opset 7 and newer: the shapes of its inputs are "
            "not known",
            "export the model again with opset 7 or newer",
        )
    axis = 1 if node.op == "PRelu" else int(node.attrs["axis"])
    return len(first) - (axis + len(first) if axis < 0 else axis) - len(second)


def _aligned(model: Model, graph: Graph, node: Node) -> None:
    """Arithmetic with the second tensor at axes of its own: it gets axes of 1 behind them."""
    second = node.inputs[1]
    rank, behind = len(model.shape(second) or ()), _behind(model, node)
    node.attrs = {}
    axes = list(range(rank, rank + behind))
    if model.opset < 13:
        inputs, attrs = [second], {"axes": axes}
    else:
        inputs, attrs = [second, edit.add_constant(model, node.label, "axes", np.array(axes, np.int64))], {}
    node.inputs[1] = edit.add_node(
        model, "Unsqueeze", inputs, base=node.label, suffix="unsqueezed", attrs=attrs, graph=graph
    ).outputs[0]


# ---------------------------------------------------------------------- GroupNormalization


def _channels(model: Model, node: Node) -> int:
    """Channels of each group; 0 where they are not known."""
    shape = model.shape(node.inputs[0])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    return channels // int(node.attrs["num_groups"]) if isinstance(channels, int) else 0


def _by_group(model: Model, node: Node) -> bool:
    if not _channels(model, node):
        raise ModelError(
            f"node {node.label!r} (GroupNormalization) has no counterpart in opset 21 and newer: how many channels its "
            "input has is not known",
            "export the model again with opset 21 or newer",
        )
    return True


def _group_norm(model: Model, graph: Graph, node: Node) -> None:
    """GroupNormalization below opset 21, whose scale and bias are one per group; since, one per channel."""
    times = _channels(model, node)
    for slot, what in ((1, "scale"), (2, "bias")):
        known = edit.constant_input(node, slot)
        if known is not None:
            node.inputs[slot] = edit.add_constant(model, node.label, what, np.repeat(known, times))
            continue
        column, row, flat = (
            edit.add_constant(model, node.label, name, np.array(shape, np.int64))
            for name, shape in ((f"{what}_column", [-1, 1]), (f"{what}_row", [1, times]), (f"{what}_flat", [-1]))
        )
        tensor = node.inputs[slot]
        for op, shape in (("Reshape", column), ("Expand", row), ("Reshape", flat)):
            tensor = edit.add_node(model, op, [tensor, shape], base=node.label, suffix=what, graph=graph).outputs[0]
        node.inputs[slot] = tensor


def _text(node: Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _always(model: Model, node: Node) -> bool:
    return True


_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")

RULES = (
    *(Rule(op, 1, 7, _has_place, _aligned) for op in _ARITHMETIC),
    Rule("PRelu", 1, 7, _has_slopes, _aligned),
    Rule("Upsample", 1, 10, _always, _resize),
    Rule("Resize", 10, 11, _always, _resize),
    Rule("Resize", 11, 13, _is_tf_half_pixel, _half_pixel),
    Rule("Hardmax", 1, 13, _always, _hardmax),
    Rule("Clip", 6, 11, _not_float32, _clip),
    Rule("Pad", 2, 11, _not_float32, _pad),
    Rule("Dropout", 7, 12, _mask_is_read, _dropout_7),
    Rule("Dropout", 10, 12, _mask_is_read, _dropout),
    Rule("BatchNormalization", 7, 9, _by_activation, _affine),
    Rule("GroupNormalization", 18, 21, _by_group, _group_norm),
)
