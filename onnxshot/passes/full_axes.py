"""Rewrite Pad and Resize over some axes as Pad and Resize over all axes, and CenterCropPad as Slice and Pad.

Since opset 18, Pad and Resize may list the axes that they work on. When ONNX Runtime moves Transposes past them to
change the layout of int8 Convs, it permutes their pads and sizes as if there were one for every axis, and the model
does not load. CenterCropPad is an ONNX function with such a Pad inside. Sources: ONNX operator schemas Pad-18,
Resize-18, Resize-19, CenterCropPad-18; ONNX Runtime pull request 21954.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.linear_ops import fixed

_PLAIN = (b"", b"stretch")


@dataclass(frozen=True, slots=True)
class FullAxes:
    """Give Pad and Resize a value for every axis, and decompose CenterCropPad, in the top-level graph.

    A cubic Resize, and one whose sizes cannot be written for all axes, get a Reshape to the same shape in front, which
    keeps ONNX Runtime from moving a Transpose past them.

    Edits count the nodes. Nothing is reported as skipped; nodes whose rank or axes are not known stay.
    """

    name: str = "full_axes"

    def run(self, model: Model) -> Change:
        """Rewrite the nodes."""
        change = Change()
        for node in list(model.graph.nodes):
            rule = _RULES.get(node.op) if node.domain in STANDARD_DOMAINS else None
            shape = model.shape(node.inputs[0]) if rule is not None and node.inputs else None
            if rule is not None and shape is not None:
                change.edits += rule(_Write(model, node, shape))
        if change.edits:
            edit.toposort(model)
        return change


@dataclass(frozen=True, slots=True)
class _Write:
    """A node to rewrite, and the shape of its first input."""

    model: Model
    node: Node
    shape: tuple[int | str | None, ...]

    def axes(self, given: Sequence[int] | NDArray[Any]) -> list[int]:
        """The axes as non-negative numbers."""
        return [int(a) % len(self.shape) for a in given]

    def given(self, slot: int) -> Tensor | None:
        """An input; None if it is left out or a constant without elements."""
        tensor = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        if tensor is None or not tensor.name or (fixed(tensor) and 0 in tensor.shape):
            return None
        return tensor

    def put(self, slot: int, tensor: Tensor | None) -> None:
        """Set an input, or leave it out with None."""
        while len(self.node.inputs) <= slot:
            self.node.inputs.append(_none(self.node))
        self.node.inputs[slot] = _none(self.node) if tensor is None else tensor

    def add(self, op: str, *inputs: Tensor, **attrs: Any) -> Tensor:
        """Add a node; its output."""
        made = edit.add_node(self.model, op, list(inputs), base=self.node.label, suffix=op.lower(), attrs=attrs)
        return made.outputs[0]

    def constant(self, values: Sequence[int] | NDArray[Any], what: str) -> Constant:
        """Add a constant; lists become int64."""
        values = np.array(values, np.int64) if not isinstance(values, np.ndarray) else values
        return edit.add_constant(self.model, self.node.label, what, values)

    def spread(self, numbers: Tensor, places: Sequence[int], base: NDArray[Any] | Tensor, what: str) -> Tensor:
        """`base` with `numbers` at these places; a constant if both are constant, else computed by ScatterElements."""
        if fixed(numbers) and not isinstance(base, Tensor):
            full = base.copy()
            full[list(places)] = weights.read(numbers)
            return self.constant(full, what)
        into = base if isinstance(base, Tensor) else self.constant(base, f"{what}_elsewhere")
        return self.add("ScatterElements", into, self.constant(list(places), "places"), numbers, axis=0)


def _none(node: Node) -> Tensor:
    """A tensor without a name, which stands for an input that is left out."""
    return type(node.outputs[0])("")


def _pad(write: _Write) -> bool:
    """Pad-18 with `axes`: pads of 0 for the other axes."""
    node, axes = write.node, edit.constant_input(write.node, 3)
    pads = write.given(1)
    if axes is None or pads is None or not fixed(node.inputs[3]):
        return False
    rank = len(write.shape)
    places = write.axes(axes)
    write.put(1, write.spread(pads, [*places, *(rank + a for a in places)], np.zeros(2 * rank, np.int64), "pads"))
    del node.inputs[3]
    return True


def _resize(write: _Write) -> bool:
    """Resize-18 with `axes` or an aspect ratio policy: one scale or size for every axis."""
    node = write.node
    if node.attrs.get("keep_aspect_ratio_policy", b"stretch") not in _PLAIN and write.given(2) is None:
        return _keep_aspect(write)
    if "axes" not in node.attrs:
        return _guard_cubic(write)
    _write_sizes(write)
    del node.attrs["axes"]
    _guard_cubic(write)
    return True


def _write_sizes(write: _Write) -> None:
    """Write scales, sizes and the region of interest for all axes."""
    node = write.node
    rank, places = len(write.shape), write.axes(node.attrs["axes"])
    scales, sizes, roi = write.given(2), write.given(3), write.given(1)
    if roi is not None and node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        whole = np.repeat(np.array([0, 1], _dtype(roi)), rank)
        write.put(1, write.spread(roi, [*places, *(rank + a for a in places)], whole, "roi"))
    elif roi is not None:
        write.put(1, None)
    if scales is not None:
        write.put(2, write.spread(scales, places, np.ones(rank, np.float32), "scales"))
    elif sizes is not None:
        _put_sizes(write, sizes, places)


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    """The numpy type of a constant; float32 for computed tensors."""
    return np.dtype(tensor._values.dtype) if isinstance(tensor, Constant) else np.dtype(np.float32)


def _put_sizes(write: _Write, sizes: Tensor, places: list[int]) -> None:
    """Write sizes for all axes: as constants, as scales that give those sizes, or completed by a Shape at run time."""
    known = [d if isinstance(d, int) else None for d in write.shape]
    wanted = weights.read(sizes) if fixed(sizes) else None
    if all(known[a] is not None or a in places for a in range(len(known))):
        write.put(3, write.spread(sizes, places, np.array([d or 0 for d in known], np.int64), "sizes"))
        return
    scales = np.ones(len(known), np.float32)
    if wanted is not None and all(known[a] for a in places):
        for a, size in zip(places, wanted.tolist(), strict=True):
            scales[a] = np.float32(size) / np.float32(known[a] or 1)
        given = [int(np.floor(np.float32(known[a] or 1) * scales[a])) for a in places]
        if given == wanted.tolist():
            write.put(2, write.constant(scales, "scales"))
            write.put(3, None)
            return
    write.put(3, write.spread(sizes, places, write.add("Shape", write.node.inputs[0]), "sizes"))


def _keep_aspect(write: _Write) -> bool:
    """Replace `keep_aspect_ratio_policy` by the scale that it implies: the least or greatest that the sizes ask for.

    Resize-18 computes sizes as round(scale * size) under a policy, and as floor(scale * size) from given scales. If the
    two differ, the node stays, behind a Reshape if it has `axes`.
    """
    node, sizes = write.node, write.given(3)
    places = write.axes(node.attrs.get("axes", range(len(write.shape))))
    have = [write.shape[a] for a in places]
    if sizes is None or not fixed(sizes) or not all(isinstance(size, int) and size for size in have):
        return False
    before = np.array(have, np.float32)
    ratios = weights.read(sizes).astype(np.float32) / before
    smallest = node.attrs["keep_aspect_ratio_policy"] == b"not_larger"
    scale = np.float32(ratios.min() if smallest else ratios.max())
    if (np.floor(scale * before) != np.floor(scale * before + np.float32(0.5))).any():
        return "axes" in node.attrs and _guard(write)
    scales = np.ones(len(write.shape), np.float32)
    scales[places] = scale
    write.put(2, write.constant(scales, "scales"))
    del node.inputs[3]
    del node.attrs["keep_aspect_ratio_policy"]
    node.attrs.pop("axes", None)
    _guard_cubic(write)
    return True


def _guard_cubic(write: _Write) -> bool:
    """Guard a cubic Resize: ONNX Runtime has cubic kernels for NCHW only, but may move a Transpose past one."""
    return write.node.attrs.get("mode") == b"cubic" and _guard(write)


def _guard(write: _Write) -> bool:
    """Add a Reshape to the same shape in front, past which no Transpose is moved; False if there is one already."""
    x = write.node.inputs[0]
    maker = edit.producer(x)
    if maker is not None and maker.op == "Reshape":
        return False
    write.put(0, write.add("Reshape", x, write.constant([0] * len(write.shape), "same")))
    return True


def _center_crop_pad(write: _Write) -> bool:
    """CenterCropPad-18: Slice axes that are too long and Pad those that are too short; odd remainders go to the end."""
    node, model = write.node, write.model
    x, wanted = node.inputs[0], node.inputs[1]
    rank = len(write.shape)
    places = write.axes(node.attrs.get("axes", range(rank)))
    base = node.label
    axes, zero, two = write.constant(places, "axes"), write.constant([0], "zero"), write.constant([2], "two")
    have = write.add("Gather", write.add("Shape", x), axes, axis=0)
    begin = write.add("Div", write.add("Max", write.add("Sub", have, wanted), zero), two)
    end = write.add("Add", begin, write.add("Min", have, wanted))
    cut = write.add("Slice", x, begin, end, axes)
    missing = write.add("Max", write.add("Sub", wanted, have), zero)
    before = write.add("Div", missing, two)
    both = write.add("Concat", before, write.add("Sub", missing, before), axis=0)
    pads = write.spread(both, [*places, *(rank + a for a in places)], np.zeros(2 * rank, np.int64), "pads")
    outputs = list(node.outputs)
    edit.remove(model, [node])
    edit.add_node(model, "Pad", [cut, pads], base=base, suffix="pad", outputs=outputs)
    return True


_RULES = {"Pad": _pad, "Resize": _resize, "CenterCropPad": _center_crop_pad}
