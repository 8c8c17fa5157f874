"""Rules of `axis_coupling` for operators that move data, such as Reshape, Concat and Slice: one function per operator.

A rule returns None, or the reason why nothing that the node reads can be pruned. Source: ONNX Operators.
"""

from __future__ import annotations

import math

import numpy as np

from onnxshot.graph import Constant, Node, Tensor, edit
from onnxshot.graph.axis_coupling import (
    Ids,
    Rule,
    Shape,
    Tracker,
    constant_entry,
    couple_operands,
    freeze_other_axes,
    given_axes,
    normal,
    shape_parts,
)


def _transpose(t: Tracker, node: Node) -> str | None:
    rank = len(t.sizes(node.inputs[0]))
    order = list(node.attrs.get("perm", range(rank)[::-1]))
    t.pass_on(node.inputs[0], node.outputs[0], {axis: order.index(axis) for axis in range(rank)}, "")
    return None


def _concat(t: Tracker, node: Node) -> str | None:
    out = node.outputs[0]
    rank = len(t.sizes(out))
    along = normal(int(node.attrs["axis"]), rank)
    given = [t.ids(tensor, along) for tensor in node.inputs]
    if any(ids is not None for ids in given):
        reason = f"Concat {node.label!r} concatenates it from inputs that cannot be pruned"
        parts = [
            t.new_numbers(t.sizes(tensor)[along], reason) if ids is None else ids
            for tensor, ids in zip(node.inputs, given, strict=True)
        ]
        t.number(out, along, np.concatenate(parts))
    for tensor, ids in zip(node.inputs, given, strict=True):
        if ids is None:
            t.freeze(tensor, along, f"Concat {node.label!r} concatenates along it")
    for axis in range(rank):
        ids = None if axis == along else couple_operands(t, [(x, axis) for x in node.inputs], f"Concat {node.label!r}")
        if ids is not None:
            t.number(out, axis, ids)
    return None


def _split(t: Tracker, node: Node) -> str | None:
    x = node.inputs[0]
    rank = len(t.sizes(x))
    along = normal(int(node.attrs.get("axis", 0)), rank)
    if len(node.inputs) > 1 and node.inputs[1].name and not isinstance(node.inputs[1], Constant):
        return f"the sizes of Split {node.label!r} are computed"
    ids, start = t.ids(x, along), 0
    for out in node.outputs:
        size = t.sizes(out)[along]
        if ids is not None:
            t.number(out, along, ids[start : start + size])
        start += size
        for axis in t.axes(x):
            others = t.ids(x, axis)
            if axis != along and others is not None:
                t.number(out, axis, others)
    return None


def _slice(t: Tracker, node: Node) -> str | None:
    x, out = node.inputs[0], node.outputs[0]
    rank = len(t.sizes(x))
    starts, ends = (edit.constant_input(node, i) for i in (1, 2))
    if starts is None or ends is None:
        return f"the starts or ends of Slice {node.label!r} are computed"
    axes = given_axes(node, 3, rank)
    steps = edit.constant_input(node, 4) if len(node.inputs) > 4 else np.ones(len(starts), np.int64)
    if axes is None or steps is None:
        return f"the axes or steps of Slice {node.label!r} are computed"
    kept = dict.fromkeys(range(rank))
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps.tolist(), strict=False):
        ids = t.ids(x, axis)
        kept.pop(axis, None)
        if ids is not None and step == 1:
            t.number(out, axis, ids[start:end])
        elif ids is not None:
            t.freeze(x, axis, f"Slice {node.label!r} has step {step} along it")
    for axis in kept:
        ids = t.ids(x, axis)
        if ids is not None:
            t.number(out, axis, ids)
    return None


def _gather(t: Tracker, node: Node) -> str | None:
    x, out = node.inputs[0], node.outputs[0]
    rank, along = len(t.sizes(x)), normal(int(node.attrs.get("axis", 0)), len(t.sizes(node.inputs[0])))
    if isinstance(x, Constant):
        return f"Gather {node.label!r} looks up rows of a constant table"
    ids, taken = t.ids(x, along), edit.constant_input(node, 1)
    width = len(t.sizes(node.inputs[1]))
    if ids is not None and (taken is None or taken.ndim != 1):
        t.freeze(x, along, f"the indices of Gather {node.label!r} are computed, or not a list")
    elif ids is not None and taken is not None:
        t.number(out, along, ids[taken])
    for axis in range(rank):
        others = t.ids(x, axis)
        if axis != along and others is not None:
            t.number(out, axis if axis < along else axis + width - 1, others)
    return None


def _pad(t: Tracker, node: Node) -> str | None:
    x, rank = node.inputs[0], len(t.sizes(node.inputs[0]))
    pads = node.attrs.get("pads")
    if pads is None:
        values = edit.constant_input(node, 1)
        pads = None if values is None else values.tolist()
    axes = given_axes(node, 3, rank)
    if pads is None or axes is None:
        return f"the pads of Pad {node.label!r} are computed"
    for i, axis in enumerate(axes):
        ids, front, back = t.ids(x, axis), int(pads[i]), int(pads[i + len(axes)])
        if ids is None:
            continue
        if front < 0 or back < 0 or ((front or back) and node.attrs.get("mode", b"constant") != b"constant"):
            t.freeze(x, axis, f"Pad {node.label!r} crops it, or does not pad with a constant")
        else:  # padding along a channel axis adds channels, which a later Add may couple with others
            t.number(node.outputs[0], axis, np.concatenate([t.new_numbers(front), ids, t.new_numbers(back)]))
    for axis in set(t.axes(x)).difference(axes):
        ids = t.ids(x, axis)
        if ids is not None:
            t.number(node.outputs[0], axis, ids)
    return None


def _resize(t: Tracker, node: Node) -> str | None:
    x, out = node.inputs[0], node.outputs[0]
    if node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        return f"Resize {node.label!r} crops"
    if len(node.inputs) > 3 and node.inputs[3].name and not isinstance(node.inputs[3], Constant):
        return f"the sizes of Resize {node.label!r} are computed"
    if "axes" in node.attrs and any(axis in t.axes(x) for axis in node.attrs["axes"]):
        return f"Resize {node.label!r} resizes it"
    same = {i: i for i, (a, b) in enumerate(zip(t.sizes(x), t.sizes(out), strict=True)) if a == b}
    t.pass_on(x, out, same, f"Resize {node.label!r} resizes it")
    return None


def _shape(t: Tracker, node: Node) -> str | None:
    """Shape: freeze the axes whose sizes are read."""
    x, out = node.inputs[0], node.outputs[0]
    rank = len(t.sizes(x))
    places = list(range(rank))[slice(node.attrs.get("start", 0), node.attrs.get("end", rank))]
    read: set[int] = set()
    for reader in edit.consumers(out):
        taken = edit.constant_input(reader, 1)
        if reader.op == "Gather" and taken is not None and reader.inputs[0] is out:
            read |= {places[int(i)] for i in taken.reshape(-1)}
            continue
        ends = edit.constant_input(reader, 2)
        if reader.op == "Slice" and taken is not None and ends is not None and len(reader.inputs) < 5:
            read |= set(places[int(taken.reshape(-1)[0]) : int(ends.reshape(-1)[0])])
            continue
        read |= set(places)
    for axis in read if not edit.is_output(t.model, out) else places:
        t.freeze(x, axis, f"its size is read by Shape {node.label!r}")
    return None


def _reshape(t: Tracker, node: Node) -> str | None:
    """Reshape, Flatten, Squeeze and Unsqueeze: the sizes before and after show which axes are merged or split."""
    x, out = node.inputs[0], node.outputs[0]
    before, after = t.sizes(x), t.sizes(out)
    if not t.axes(x) or math.prod(before) == 0:
        return None
    parts = shape_parts(node) if node.op == "Reshape" else None
    for old, new in _segments(before, after):
        numbered = [axis for axis in old if t.ids(x, axis) is not None]
        if not numbered:
            continue
        reason = f"{node.op} {node.label!r} mixes it with other axes"
        wide = [axis for axis in new if after[axis] > 1]
        if len(numbered) > 1 or not wide:
            for axis in numbered:
                t.freeze(x, axis, reason)
            continue
        flat = _merged_numbers(t, x, numbered[0], old, before)
        split = flat.reshape([after[axis] for axis in wide])
        at = _prunable_axis(t, split, last=wide[-1] == len(after) - 1)
        entry = None if parts is None or len(parts) != len(after) else constant_entry(parts[wide[at]])
        if node.op == "Reshape" and entry is None:
            t.freeze(x, numbered[0], f"its size after Reshape {node.label!r} is computed")
            continue
        if entry == 0 and wide[at] < len(before) and wide[at] != numbered[0]:
            t.freeze(x, numbered[0], reason)  # 0 copies the size of the axis at the same index, which is another axis
            continue
        rows = np.moveaxis(split, at, 0).reshape(split.shape[at], -1)
        for column in rows.T[1:]:
            t.couple(rows[:, 0], column)
        t.number(out, wide[at], rows[:, 0])
    return None


def _merged_numbers(t: Tracker, x: Tensor, axis: int, old: list[int], before: Shape) -> Ids:
    """Numbers of the positions of merged axes: those of the one numbered axis, repeated along the others."""
    ids = t.ids(x, axis)
    assert ids is not None
    shape = [before[i] if i == axis else 1 for i in old]
    return np.broadcast_to(ids.reshape(shape), [before[i] for i in old]).reshape(-1)


def _prunable_axis(t: Tracker, split: Ids, *, last: bool) -> int:
    """Choose which of the new axes carries the prunable positions.

    It is the axis for which no further positions must be coupled. Where there is none, it is the last but one where
    the last axis is split, as in [B, T, C] to [B, T, heads, D]; else the last of the new axes, as in [N, C, H, W] to
    [N, groups, C / groups, H, W].
    """
    roots = t.representatives(split)
    for at in range(split.ndim):
        rows = np.moveaxis(roots, at, 0).reshape(split.shape[at], -1)
        if (rows == rows[:, :1]).all():
            return at
    return split.ndim - 2 if last else split.ndim - 1


def _segments(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest sets of axes before and after that hold the same elements; axes of size 1 may be in any set."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(old), j + len(new)
        a, b = (math.prod(before[k] for k in old), math.prod(after[k] for k in new))
        while a != b:
            if a < b:
                old.append(i)
                a, i = a * before[i], i + 1
            else:
                new.append(j)
                b, j = b * after[j], j + 1
        found.append((old, new))
    return found


def _depth_space(t: Tracker, node: Node) -> str | None:
    """DepthToSpace merges blocksize**2 channels into one, SpaceToDepth splits one into blocksize**2."""
    x, out = node.inputs[0], node.outputs[0]
    ids, area = t.ids(x, 1), int(node.attrs["blocksize"]) ** 2
    freeze_other_axes(t, node)
    if ids is None:
        return None
    if node.op == "SpaceToDepth":
        t.number(out, 1, np.tile(ids, area))
        return None
    rows = ids.reshape(-1, area) if node.attrs.get("mode", b"DCR") == b"CRD" else ids.reshape(area, -1).T
    for column in rows.T[1:]:
        t.couple(rows[:, 0], column)
    t.number(out, 1, rows[:, 0].copy())
    return None


MOVES: dict[str, Rule] = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _depth_space),
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
