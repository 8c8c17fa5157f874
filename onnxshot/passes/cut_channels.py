"""Structured pruning: remove channels from weights, biases and norms, and from the sizes that other nodes state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.graph import Constant, Model, Node, Tensor, edit, shape_inference, weights
from onnxshot.graph.axis_coupling import Axes, Ids, constant_entry, given_axes, normal, shape_parts
from onnxshot.graph.weight_pieces import reads_rows, rows
from onnxshot.passes.base import Change

_Mask = NDArray[np.bool_]
_COMPUTED = 32  # share of `memory.part_bytes()` above which a smaller constant is computed when it is read


@dataclass(frozen=True, eq=False)
class CutChannels:
    """Remove channels from every constant that has them, and update the nodes that state sizes or positions.

    The updated nodes are Conv (`group` of a depthwise one), Gather, Pad, Reshape, Resize, Slice and Split.

    Edits count the constants that became smaller. Nothing is skipped: `axes` holds only channels that can be removed.

    Attributes:
        axes: Which channel each position of each tensor's axes belongs to, found on this model before any edit.
        removed: Ids of the channels to remove, as numbered in `axes`.
    """

    axes: Axes
    removed: frozenset[int]
    name: str = "cut_channels"

    def run(self, model: Model) -> Change:
        """Remove the channels, drop what nothing reads any more, and infer shapes again."""
        change = Change()
        if not self.removed:
            return change
        alive = np.ones(self.axes.count, bool)
        alive[sorted(self.removed)] = False
        for node in model.graph.nodes:  # first: `axes` does not know the names of the constants made below
            sizes = _Sizes(model, self.axes, alive)
            if node.op in _UPDATES and sizes.any_cut(node):
                _UPDATES[node.op](sizes, node)
        change.edits = self._cut_constants(model, alive)
        self._update_value_infos(model, alive)
        edit.remove_unused(model)
        edit.toposort(model)
        shape_inference.infer(model)
        return change

    def _cut_constants(self, model: Model, alive: _Mask) -> int:
        """Remove the channels from the constants; the number of constants that became smaller."""
        smaller: dict[str, Constant] = {}
        for node in model.graph.nodes:
            for slot, tensor in enumerate(node.inputs):
                if not isinstance(tensor, Constant):
                    continue
                masks = {a: alive[ids] for a, ids in self.axes.of.get(tensor.name, {}).items() if not alive[ids].all()}
                if masks and tensor.name not in smaller:
                    smaller[tensor.name] = _smaller(tensor, masks)
                if masks:
                    node.inputs[slot] = smaller[tensor.name]
        return len(smaller)

    def _update_value_infos(self, model: Model, alive: _Mask) -> None:
        """Set the new sizes in the value infos of tensors that became smaller."""
        for name, channels in self.axes.of.items():
            info = model.graph.value_infos.get(name)
            if info is None or all(alive[ids].all() for ids in channels.values()):
                continue
            for axis, ids in channels.items():
                dims = info.type.tensor_type.shape.dim
                if axis < len(dims) and dims[axis].HasField("dim_value"):
                    dims[axis].dim_value = int(np.count_nonzero(alive[ids]))


def _smaller(constant: Constant, masks: Mapping[int, _Mask]) -> Constant:
    """The constant with the positions along some axes that remain. Those of a large one are picked when it is read."""
    held = Constant(constant.name, constant._values)  # passes may refill the constant itself

    def cut(values: NDArray[Any], axes: Mapping[int, _Mask]) -> NDArray[Any]:
        for axis, mask in axes.items():
            values = np.compress(mask, values, axis)
        return np.ascontiguousarray(values)

    def picked() -> NDArray[Any]:
        return cut(weights.read(held), masks)

    def some(start: int, stop: int) -> NDArray[Any]:
        at = np.flatnonzero(masks[0])[start:stop] if 0 in masks else np.arange(start, stop)
        values = rows(held, at[0], at[-1] + 1)[at - at[0]] if len(at) else rows(held, 0, 0)
        return cut(values, {axis: mask for axis, mask in masks.items() if axis})

    shape = tuple(int(masks[i].sum()) if i in masks else size for i, size in enumerate(constant.shape))
    if weights.size_bytes(constant) <= memory.part_bytes() // _COMPUTED:
        return Constant(constant.name, picked())
    lazy = weights.ComputedValues(shape, constant.dtype, picked, some if reads_rows(held) else None)
    return Constant(constant.name, lazy)


@dataclass(frozen=True, eq=False)
class _Sizes:
    """Which positions remain along the axes of a node's tensors."""

    model: Model
    axes: Axes
    alive: _Mask

    def any_cut(self, node: Node) -> bool:
        """Whether any input or output of the node loses channels."""
        tensors = [t for t in (*node.inputs, *node.outputs) if t.name]
        return any(not self.alive[ids].all() for t in tensors for ids in self.axes.of.get(t.name, {}).values())

    def mask(self, tensor: Tensor, axis: int) -> _Mask | None:
        """Boolean mask [size] of the positions that remain along the axis; None if all do."""
        ids: Ids | None = self.axes.of.get(tensor.name, {}).get(axis)
        return None if ids is None or self.alive[ids].all() else self.alive[ids]

    def rank(self, tensor: Tensor) -> int:
        """The tensor's rank; if its shape is unknown, the least rank that its traced axes imply."""
        shape = self.model.shape(tensor)
        return max((*self.axes.of.get(tensor.name, {}), -1)) + 1 if shape is None else len(shape)

    def set(self, node: Node, slot: int, values: NDArray[Any]) -> None:
        """Set an input to a new constant; other nodes may read the old one."""
        while len(node.inputs) <= slot:
            node.inputs.append(edit.add_constant(self.model, node.label, "none", np.zeros(0, np.int64)))
        base = node.inputs[slot].name or node.label
        node.inputs[slot] = edit.add_constant(self.model, base, "cut", values)


def _conv(sizes: _Sizes, node: Node) -> None:
    """Set `group` of a depthwise Conv to the number of channels that remain."""
    groups, mask = int(node.attrs.get("group", 1)), sizes.mask(node.inputs[0], 1)
    depthwise = groups > 1 and isinstance(node.inputs[1], Constant) and node.inputs[1].shape[1] == 1
    if depthwise and mask is not None and len(mask) == groups:
        node.attrs["group"] = int(np.count_nonzero(mask))


def _split(sizes: _Sizes, node: Node) -> None:
    """Set the sizes of a Split along the cut axis; an input since opset 13, an attribute before."""
    along = normal(int(node.attrs.get("axis", 0)), sizes.rank(node.inputs[0]))
    if sizes.mask(node.inputs[0], along) is None:
        return
    sizes_left = [int(np.count_nonzero(sizes.alive[sizes.axes.of[out.name][along]])) for out in node.outputs]
    if sizes.model.opset < 13:
        node.attrs["split"] = sizes_left
        return
    node.attrs.pop("num_outputs", None)
    sizes.set(node, 1, np.asarray(sizes_left, np.int64))


def _reshape(sizes: _Sizes, node: Node) -> None:
    """Set the constant sizes of a Reshape, also where a Concat joins them with computed ones."""
    out, parts = node.outputs[0], shape_parts(node)
    changed: dict[Tensor, NDArray[Any]] = {}
    for axis, (tensor, place) in enumerate(parts or ()):
        mask, entry = sizes.mask(out, axis), constant_entry((tensor, place))
        if mask is not None and entry is not None and entry > 0:
            if tensor not in changed:
                changed[tensor] = np.array(weights.read(tensor))
            changed[tensor].reshape(-1)[place] = np.count_nonzero(mask)
    if not changed:
        return
    if isinstance(node.inputs[1], Constant):
        sizes.set(node, 1, changed[node.inputs[1]])
        return
    maker = edit.producer(node.inputs[1])
    assert maker is not None
    inputs = [
        edit.add_constant(sizes.model, tensor.name, "cut", changed[tensor]) if tensor in changed else tensor
        for tensor in maker.inputs
    ]
    made = edit.add_node(sizes.model, "Concat", inputs, base=node.label, suffix="shape", attrs={"axis": 0})
    node.inputs[1] = made.outputs[0]


def _slice(sizes: _Sizes, node: Node) -> None:
    """Move the bounds of a Slice along a cut axis to the channels that remain between them."""
    x = node.inputs[0]
    axes = given_axes(node, 3, sizes.rank(x))
    starts, ends = (np.array(edit.constant_input(node, i)) for i in (1, 2))
    assert axes is not None
    cut = False
    for i, axis in enumerate(axes[: len(starts)]):
        mask = sizes.mask(x, axis)
        if mask is not None:
            start, end, _ = slice(int(starts[i]), int(ends[i])).indices(len(mask))
            starts[i], ends[i], cut = np.count_nonzero(mask[:start]), np.count_nonzero(mask[:end]), True
    if cut:
        sizes.set(node, 1, starts)
        sizes.set(node, 2, ends)


def _gather(sizes: _Sizes, node: Node) -> None:
    """Renumber the indices of a Gather along a cut axis, without those of removed channels."""
    mask = sizes.mask(node.inputs[0], normal(int(node.attrs.get("axis", 0)), sizes.rank(node.inputs[0])))
    indices = edit.constant_input(node, 1)
    if mask is not None and indices is not None:
        indices = np.where(indices < 0, indices + len(mask), indices)
        renumbered = np.cumsum(mask) - 1
        sizes.set(node, 1, renumbered[indices[mask[indices]]].astype(indices.dtype))


def _pad(sizes: _Sizes, node: Node) -> None:
    """Reduce the pads of a cut axis to the padded channels that remain."""
    out = node.outputs[0]
    rank = sizes.rank(node.inputs[0])
    axes, given = given_axes(node, 3, rank), node.attrs.get("pads")
    pads = np.array(edit.constant_input(node, 1)) if given is None else np.array(given)
    assert axes is not None
    for i, axis in enumerate(axes):
        mask = sizes.mask(out, axis)
        if mask is not None:
            front, back = int(pads[i]), int(pads[i + len(axes)])
            pads[i] = np.count_nonzero(mask[:front])
            pads[i + len(axes)] = np.count_nonzero(mask[len(mask) - back :])
    if given is None:
        sizes.set(node, 1, pads)
    else:
        node.attrs["pads"] = pads.tolist()


def _resize(sizes: _Sizes, node: Node) -> None:
    """Set the sizes of a Resize along cut axes."""
    given = edit.constant_input(node, 3)
    if given is None or not given.size:
        return
    given = np.array(given)
    for axis in range(len(given)):
        mask = sizes.mask(node.outputs[0], axis)
        if mask is not None:
            given[axis] = np.count_nonzero(mask)
    sizes.set(node, 3, given)


_UPDATES: Mapping[str, Callable[[_Sizes, Node], None]] = {
    "Conv": _conv,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
}
