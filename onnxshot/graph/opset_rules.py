"""Rewrite operators of old opsets for newer ones, where ONNX's version converter is wrong: one rule per operator.

Where the specification of an old operator is ambiguous, it means what ONNX Runtime computes. Upsample and Resize below
opset 11, for example, do not specify their coordinate transformation.
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
    """How one operator is raised to a newer opset.

    Attributes:
        op: the operator.
        since: first opset in which the rule applies.
        below: first opset that has the form which `rewrite` writes.
        wrong: whether ONNX's converter converts this node wrongly.
        rewrite: rewrites the node into its newer form, in the graph that holds it.
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
    """Write an Upsample, or a Resize below opset 11, as Resize with the coordinates of ONNX Runtime: x / scale.

    For "nearest", ONNX Runtime rounds down along axes that grow and up along axes that shrink, so a node with both
    kinds of axes becomes two.
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
    """The inputs x, roi and scales; below opset 13 roi must be present."""
    none = edit.add_constant(model, node.label, "roi", np.zeros(0, np.float32)) if model.opset < 13 else Variable("")
    return [node.inputs[0], none, scales]


def _half_pixel(model: Model, graph: Graph, node: Node) -> None:
    """Replace tf_half_pixel_for_nn with floor, which opset 13 removed: floor((x + 1/2) / scale).

    half_pixel subtracts 1/2, so it gives the same with ties rounded up.
    """
    node.attrs |= {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}


def _is_tf_half_pixel(model: Model, node: Node) -> bool:
    """Whether the node has that mode with floor; with others it has no newer equivalent, but ONNX Runtime runs it."""
    names = ("coordinate_transformation_mode", "mode", "nearest_mode")
    found = [_text(node, name, default) for name, default in zip(names, ("", "nearest", ""), strict=True)]
    return found == ["tf_half_pixel_for_nn", "nearest", "floor"]


# ---------------------------------------------------------------------- Hardmax


def _hardmax(model: Model, graph: Graph, node: Node) -> None:
    """Hardmax below opset 13 treats all axes from `axis` on as one: flatten, apply it along that axis, reshape back."""
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
    """Whether the tensor is not float32, which is the type that the converter gives limits and padding values."""
    return model.elem_type(node.inputs[0]) not in (TensorProto.UNDEFINED, TensorProto.FLOAT)


def _clip_limits_to_inputs(model: Model, graph: Graph, node: Node) -> None:
    """Clip-6: turn its limits into inputs of the tensor's type."""
    low, high = node.attrs.pop("min", None), node.attrs.pop("max", None)
    if low is not None or high is not None:
        node.inputs.append(Variable("") if low is None else _value_input(model, node, low))
    if high is not None:
        node.inputs.append(_value_input(model, node, high))


def _pads_to_inputs(model: Model, graph: Graph, node: Node) -> None:
    """Pad-2: turn its padding and its value into inputs, the value of the tensor's type."""
    node.inputs.append(edit.add_constant(model, node.label, "pads", np.array(node.attrs.pop("pads"), np.int64)))
    value = node.attrs.pop("value", 0.0)
    if _text(node, "mode", "constant") == "constant":
        node.inputs.append(_value_input(model, node, value))


def _value_input(model: Model, node: Node, value: float) -> Constant:
    kind = helper.tensor_dtype_to_np_dtype(model.elem_type(node.inputs[0]))
    return edit.add_constant(model, node.label, "value", np.array(value, kind))


# ---------------------------------------------------------------------- Dropout


def _mask_is_read(model: Model, node: Node) -> bool:
    return len(node.outputs) > 1 and bool(node.outputs[1].name)


def _dropout_below_12(model: Model, graph: Graph, node: Node) -> None:
    """Dropout below opset 12: its mask is zero where nothing is dropped, the newer one is true there. Insert a Not."""
    node.attrs.pop("ratio", None)
    mask, node.outputs[1] = node.outputs[1], Variable(model.fresh(node.label, "kept"))
    edit.add_node(model, "Not", [node.outputs[1]], base=node.label, suffix="dropped", outputs=[mask], graph=graph)


def _dropout_below_10(model: Model, graph: Graph, node: Node) -> None:
    """Dropout below opset 10: its mask also has the type of the tensor. Insert a Cast and a Not."""
    mask, node.outputs[1] = node.outputs[1], Variable(model.fresh(node.label, "mask"))
    kind = model.elem_type(node.inputs[0]) or TensorProto.FLOAT
    edit.add_node(
        model, "Cast", [node.outputs[1]], base=node.label, suffix="cast", outputs=[mask], attrs={"to": kind},
        graph=graph,
    )  # fmt: skip
    _dropout_below_12(model, graph, node)


# ---------------------------------------------------------------------- BatchNormalization


def _is_per_element(model: Model, node: Node) -> bool:
    if node.attrs.get("spatial", 1):
        return False
    if any(edit.constant_input(node, slot) is None for slot in range(1, 5)):
        raise ModelError(
            f"node {node.label!r} (BatchNormalization) has no counterpart in opset 9 and newer: spatial is 0",
            "export the model again with opset 9 or newer",
        )
    return True


def _batchnorm_to_mul_add(model: Model, graph: Graph, node: Node) -> None:
    """BatchNormalization with spatial = 0 has a scale and an offset per element [C, H, W]: write it as Mul and Add."""
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


def _has_axis(model: Model, node: Node) -> bool:
    """Whether attribute `axis` aligns the second input with other axes of the first than the last ones."""
    return bool(node.attrs.get("broadcast", 0)) and "axis" in node.attrs and _axes_behind(model, node) > 0


def _has_slopes(model: Model, node: Node) -> bool:
    """Whether a PRelu has one slope per channel, and the channel axis is not the last."""
    shape = model.shape(node.inputs[1])
    return shape is not None and len(shape) == 1 and shape[0] != 1 and _axes_behind(model, node) > 0


def _axes_behind(model: Model, node: Node) -> int:
    """Number of axes of the first input behind those that the second is aligned with."""
    first, second = (model.shape(tensor) for tensor in node.inputs[:2])
    if first is None or second is None:
        raise ModelError(
            f"node {node.label!r} ({node.op}) has no counterpart in opset 7 and newer: the shapes of its inputs are "
            "not known",
            "export the model again with opset 7 or newer",
        )
    axis = 1 if node.op == "PRelu" else int(node.attrs["axis"])
    return len(first) - (axis + len(first) if axis < 0 else axis) - len(second)


def _append_axes(model: Model, graph: Graph, node: Node) -> None:
    """Arithmetic below opset 7 with attribute `axis`: append axes of size 1 to the second input."""
    second = node.inputs[1]
    rank, behind = len(model.shape(second) or ()), _axes_behind(model, node)
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
    """Number of channels per group; 0 where it is unknown."""
    shape = model.shape(node.inputs[0])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    return channels // int(node.attrs["num_groups"]) if isinstance(channels, int) else 0


def _is_per_group(model: Model, node: Node) -> bool:
    if not _channels(model, node):
        raise ModelError(
            f"node {node.label!r} (GroupNormalization) has no counterpart in opset 21 and newer: how many channels its "
            "input has is not known",
            "export the model again with opset 21 or newer",
        )
    return True


def _group_norm(model: Model, graph: Graph, node: Node) -> None:
    """GroupNormalization below opset 21 has one scale and bias per group, the newer one per channel: repeat them."""
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
    *(Rule(op, 1, 7, _has_axis, _append_axes) for op in _ARITHMETIC),
    Rule("PRelu", 1, 7, _has_slopes, _append_axes),
    Rule("Upsample", 1, 10, _always, _resize),
    Rule("Resize", 10, 11, _always, _resize),
    Rule("Resize", 11, 13, _is_tf_half_pixel, _half_pixel),
    Rule("Hardmax", 1, 13, _always, _hardmax),
    Rule("Clip", 6, 11, _not_float32, _clip_limits_to_inputs),
    Rule("Pad", 2, 11, _not_float32, _pads_to_inputs),
    Rule("Dropout", 7, 12, _mask_is_read, _dropout_below_10),
    Rule("Dropout", 10, 12, _mask_is_read, _dropout_below_12),
    Rule("BatchNormalization", 7, 9, _is_per_element, _batchnorm_to_mul_add),
    Rule("GroupNormalization", 18, 21, _is_per_group, _group_norm),
)
