"""Find channels that must be scaled together, for cross-layer equalization.

Channels of different tensors are tied if they hold the same values (for example before and after a Relu) or are added
to each other. A factor on one of them must be applied to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, Tensor, edit

Ids = NDArray[np.int64]
"""Ids of channels, one per index of axis 1."""

_KEEPS_CHANNELS = frozenset(
    ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Relu")
)
"""Ops f with f(s * x) = s * f(x) for all s > 0, per channel."""
_REDUCES = frozenset(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"))
"""Such ops where they reduce positions alone."""
_CROP = "tf_crop_and_resize"  # puts a constant outside the picture


@dataclass(slots=True)
class Channels:
    """The channels (axis 1) of a CNN's tensors. Each has an id; tied channels share one.

    Attributes:
        of: tensor name -> id of each of its channels, int64 [C].
        fixed: ids that must not be scaled: a graph output, or a reader that is not linear in them.
        made_by: (Conv node, ids of its output channels, int64 [O]).
        read_by: (Conv or Gemm node, ids of its input channels, int64 [I]).
        limits: (tensor name, ids, limit) of each Clip to [0, limit].
        count: number of ids.
    """

    of: dict[str, Ids] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)
    made_by: list[tuple[Node, Ids]] = field(default_factory=list)
    read_by: list[tuple[Node, Ids]] = field(default_factory=list)
    limits: list[tuple[str, Ids, float]] = field(default_factory=list)
    count: int = 0


def channels_of(model: Model) -> Channels:
    """Follow the channels of a normalized model through its top-level graph. The model is not changed."""
    tracker = _Tracker(model)
    for node in model.graph.nodes:
        tracker.follow(node)
    return tracker.result()


class _Tracker:
    """Follows channels from node to node in graph order, with union-find over channel ids."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._found = Channels()
        self._parent: list[int] = []
        self._inner = {t.name for g, n in model.walk() if g is not model.graph for t in n.inputs}

    def follow(self, node: Node) -> None:
        """Give ids to the node's outputs. If it is unknown how they depend on the inputs, fix the inputs' channels."""
        if node.op in ("Shape", "Size") or self._weighted(node):
            return
        out = self._passed_on(node)
        if out is None:
            for tensor in node.inputs:
                self._fix(tensor)
            return
        for tensor, ids in zip(node.outputs, out, strict=True):
            self._found.of[tensor.name] = ids

    def result(self) -> Channels:
        """The channels found, with each id replaced by the one that its tied channels share."""
        for graph in self._model.graphs():
            for tensor in graph.outputs:
                self._fix(tensor)
        for name in self._inner & self._found.of.keys():
            self._found.fixed |= set(self._found.of[name].tolist())
        root = np.asarray([self._root(i) for i in range(len(self._parent))], np.int64)
        found = self._found
        return Channels(
            {name: root[ids] for name, ids in found.of.items()},
            {int(root[i]) for i in found.fixed},
            [(node, root[ids]) for node, ids in found.made_by],
            [(node, root[ids]) for node, ids in found.read_by],
            [(name, root[ids], limit) for name, ids, limit in found.limits],
            len(root),
        )

    def _weighted(self, node: Node) -> bool:
        """Follow a Conv, or a Gemm after one. False for other nodes, and if other nodes read the weight too."""
        x = self._found.of.get(node.inputs[0].name) if node.inputs else None
        if node.op not in ("Conv", "Gemm") or not _own(node.inputs[1]) or not all(_floats(t) for t in node.inputs[2:]):
            return False
        if node.op == "Conv":
            made = self._new(node.inputs[1].shape[0])
            self._found.of[node.outputs[0].name] = made
            self._found.made_by.append((node, made))
        elif x is None or node.attrs.get("transA", 0):
            return False
        if x is not None:
            self._found.read_by.append((node, x))
        return True

    def _passed_on(self, node: Node) -> list[Ids] | None:
        """The ids of the outputs; None if they do not follow from those of the inputs."""
        given = [self._found.of.get(t.name) for t in node.inputs]
        x = given[0] if given else None
        if node.op == "Concat":
            known = [ids for ids in given if ids is not None]
            return [np.concatenate(known)] if len(known) == len(given) and node.attrs.get("axis") == 1 else None
        if node.op == "Add":
            return self._added(given)
        if node.op in ("Mul", "Div"):
            return self._multiplied(node, given)
        if x is None or any(ids is not None for ids in given[1:]):
            return None
        if node.op in _KEEPS_CHANNELS and len(node.outputs) == 1:
            return [x]
        if node.op == "Clip":
            return self._clipped(node, x)
        if node.op == "PRelu":
            return [x] if isinstance(node.inputs[1], Constant) else None
        if node.op in ("Pad", "Resize") or node.op in _REDUCES:
            return self._over_positions(node, x)
        if node.op in ("Flatten", "Reshape", "Squeeze"):
            before, after = (self._model.shape(t) for t in (node.inputs[0], node.outputs[0]))
            if before is None or after is None or any(size != 1 for size in before[2:]):
                return None  # axis 1 would hold positions too: [1, 4, 2, 2] -> [1, 16]
            return [x] if len(after) == 2 and after[1] == len(x) else None
        return self._chosen(node, x)

    def _added(self, given: Sequence[Ids | None]) -> list[Ids] | None:
        """Tie the channels of two tensors that are added."""
        if len(given) != 2 or given[0] is None or given[1] is None or len(given[0]) != len(given[1]):
            return None
        for a, b in zip(given[0].tolist(), given[1].tolist(), strict=True):
            self._parent[self._root(b)] = self._root(a)
        return [given[0]]

    def _multiplied(self, node: Node, given: Sequence[Ids | None]) -> list[Ids] | None:
        """The ids of a tensor that is multiplied, or divided, by one whose channels are not scaled, such as a gate."""
        known = [slot for slot, ids in enumerate(given) if ids is not None]
        if len(given) != 2 or len(known) != 1 or (node.op == "Div" and known != [0]):
            return None
        before, after = (self._model.shape(t) for t in (node.inputs[known[0]], node.outputs[0]))
        ids = given[known[0]]
        if ids is None or before is None or after is None or len(before) != len(after) or after[1] != len(ids):
            return None
        return [ids]

    def _over_positions(self, node: Node, x: Ids) -> list[Ids] | None:
        """The ids of an op that mixes positions of a channel, or appends zeros; None if it mixes channels."""
        shape, after = (self._model.shape(t) for t in (node.inputs[0], node.outputs[0]))
        if shape is None or len(shape) < 3:
            return None
        if node.op == "Resize":
            alone = node.attrs.get("coordinate_transformation_mode", b"") not in (b"tf_crop_and_resize", _CROP)
            return [x] if alone and after is not None and after[1] == len(x) else None
        if node.op == "Pad":
            return self._padded(node, x, len(shape))
        axes = node.attrs.get("axes", None)
        if axes is None and len(node.inputs) > 1:
            axes = edit.constant_input(node, 1)
        if axes is None or not len(axes):
            return None
        return [x] if all(int(axis) % len(shape) >= 2 for axis in axes) else None

    def _padded(self, node: Node, x: Ids, rank: int) -> list[Ids] | None:
        """The ids of a Pad with zeros; channels of zeros have ids of their own."""
        pads = edit.constant_input(node, 1) if len(node.inputs) > 1 else None
        value = edit.constant_input(node, 2) if len(node.inputs) > 2 and node.inputs[2].name else np.zeros(1)
        if pads is None or len(pads) != 2 * rank or (len(node.inputs) > 3 and node.inputs[3].name):
            return None
        mode = node.attrs.get("mode", "constant")
        if mode in ("constant", b"constant") and (value is None or value.any()):
            return None
        first, last = int(pads[1]), int(pads[rank + 1])
        if first == last == 0:
            return [x]
        if mode not in ("constant", b"constant") or first < 0 or last < 0:
            return None
        return [np.concatenate([self._new(first), x, self._new(last)])]

    def _clipped(self, node: Node, x: Ids) -> list[Ids] | None:
        """Pass the ids of a Clip with minimum 0 on, and record its upper limit."""
        low, high = edit.clip_limits(node)
        if low != 0.0 or np.isnan(high):
            return None
        if np.isfinite(high):
            self._found.limits.append((node.outputs[0].name, x, high))
        return [x]

    def _chosen(self, node: Node, x: Ids) -> list[Ids] | None:
        """The ids of the channels that Split, Gather or Slice select; None if unknown."""
        if node.op == "Split" and node.attrs.get("axis", 0) == 1:
            shapes = [self._model.shape(t) for t in node.outputs]
            sizes = [s[1] if s is not None and len(s) > 1 else None for s in shapes]
            known = [size for size in sizes if isinstance(size, int)]
            whole = len(known) == len(sizes) and sum(known) == len(x)
            return np.split(x, np.cumsum(known)[:-1]) if whole else None
        if node.op == "Gather" and node.attrs.get("axis", 0) == 1:
            taken = edit.constant_input(node, 1)
            return [x[taken]] if taken is not None and taken.ndim == 1 else None
        if node.op == "Slice":
            starts, ends, axes = (edit.constant_input(node, i) for i in (1, 2, 3))
            steps = edit.constant_input(node, 4) if len(node.inputs) > 4 else None
            if starts is None or ends is None or axes is None or (steps is not None and (steps != 1).any()):
                return None
            if (axes < 0).any():
                return None
            for axis, start, stop in zip(axes.tolist(), starts.tolist(), ends.tolist(), strict=True):
                x = x[start:stop] if axis == 1 else x
            return [x]
        return None

    def _new(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def _fix(self, tensor: Tensor) -> None:
        if tensor.name in self._found.of:
            self._found.fixed |= set(self._found.of[tensor.name].tolist())


def _own(tensor: Tensor) -> bool:
    """Whether an operand is a float32 constant that no other node reads."""
    return bool(tensor.name) and _floats(tensor) and len(tensor.outputs) == 1


def _floats(tensor: Tensor) -> bool:
    """Whether an operand is absent, or a float32 constant: a bias that others read too is copied when it is scaled."""
    return not tensor.name or (isinstance(tensor, Constant) and tensor._values.dtype == np.float32)
