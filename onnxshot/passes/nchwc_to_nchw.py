"""Convert ONNX Runtime's blocked layout back: ReorderInput, com.microsoft.nchwc.Conv, ReorderOutput -> Conv (NCHW).

ONNX Runtime stores channels in blocks of b = 8 or 16, depending on the vector registers of the CPU, and pads the last
block. A saved file does not state b: ONNX Runtime uses the block size of the machine that it runs on.

Filters: [O, I, h, w] -> [O/b, I/b, h, w, b of I, b of O]. If the input is not blocked, and for depthwise filters, it is
[O/b, I, h, w, b of O]. Source: nchwc_transformer.cc and reorder.cpp of ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.passes.base import Change
from onnxshot.passes.evaluate_constants import CannotEvaluate, evaluate
from onnxshot.passes.linear_ops import fixed
from onnxshot.passes.node_writer import Writer, given
from onnxshot.passes.unfuse_products import ACTIVATIONS, unfuse_conv

DOMAIN = "com.microsoft.nchwc"
_FROM_LAST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_POOLS = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class NchwcToNchw:
    """Replace the operators of com.microsoft.nchwc by standard ones, in subgraphs too.

    All operators of a connected blocked region are replaced, or none.

    Edits count the operators. Skipped, with their region: an operator with an unknown number of channels, without a
    standard form, with computed weights, or written for another block size.
    """

    name: str = "nchwc_to_nchw"

    def run(self, model: Model) -> Change:
        """Replace the operators.

        A second run, after shape inference, may replace operators whose channels were unknown in the first.
        """
        change = Change()
        for graph in list(model.graphs()):
            nodes = [node for node in graph.nodes if node.domain == DOMAIN]
            if not nodes:
                continue
            layout = _Layout(model, graph, _block_size(model, nodes))
            layout.read(change)
            for node in [node for node in nodes if layout.is_known(node)]:
                layout.rewrite(node)
                change.edits += 1
            for tensor in layout.group_of:
                graph.value_infos.pop(tensor.name, None)  # their recorded shapes include the padding
        if change.edits:
            edit.toposort(model)
        return change


def _block_size(model: Model, nodes: list[Node]) -> int:
    """Block size, 8 or 16: the one that fits the filters; if both fit, that of this machine."""
    sizes = [node.inputs[1].shape[0] for node in nodes if node.op == "Conv" and fixed(node.inputs[1])]
    if any(size % 16 for size in sizes):
        return 8
    probe = Constant("probe", np.ones((1, 8, 1, 1), np.float32))
    try:
        (found,) = evaluate(model, Node("ReorderInput", "probe", {}, [probe], [Variable("blocked")], DOMAIN))
    except CannotEvaluate:
        return 16
    finally:
        probe.outputs.clear()
    return int(found.shape[1])


class _Union:
    """Union-find over numbers from 0."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def new(self) -> int:
        self._parent.append(len(self._parent))
        return self._parent[-1]

    def root(self, number: int) -> int:
        while self._parent[number] != number:
            number = self._parent[number]
        return number

    def join(self, kept: int, gone: int) -> None:
        self._parent[self.root(gone)] = self.root(kept)


@dataclass(slots=True)
class _Layout:
    """The blocked tensors of one graph and their numbers of channels.

    Attributes:
        model: the model.
        graph: the graph.
        block: block size.
        group_of: blocked tensor -> number of its group. Tensors of a group have the same channels.
        groups: joins groups.
        regions: joins groups that one operator connects. A region is replaced as a whole.
        stated: group -> channel counts that the file states.
        read_by: group -> last channel, plus 1, for which a reader has a weight other than 0.
        padded: groups that keep the padding channels.
        refused: regions that cannot be replaced.
    """

    model: Model
    graph: Graph
    block: int
    group_of: dict[Tensor, int] = field(default_factory=dict)
    groups: _Union = field(default_factory=_Union)
    regions: _Union = field(default_factory=_Union)
    stated: dict[int, set[int]] = field(default_factory=dict)
    read_by: dict[int, int] = field(default_factory=dict)
    padded: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def read(self, change: Change) -> None:
        """Find groups, regions and channels. Operators that cannot be replaced are skipped with their regions."""
        for node in self.graph.nodes:
            reason = self._read(node)
            if not reason:
                continue
            change.skip(node, reason)
            blocked = [t for t in (*node.inputs, *node.outputs) if t in self.group_of]
            if node.domain == DOMAIN and not any(t in self.group_of for t in node.outputs):
                self._new(node.outputs[0])
                blocked.append(node.outputs[0])
            self.refused |= {self.group_of[t] for t in blocked}
        self.refused |= {root for root, counts in self.stated.items() if len(counts) > 1}
        self.refused = {self.regions.root(group) for group in self.refused}

    def is_known(self, node: Node) -> bool:
        """Whether the node can be replaced."""
        tensor = node.inputs[0] if node.op == "ReorderOutput" else node.outputs[0]
        return self.regions.root(self.group_of[tensor]) not in self.refused

    def channels(self, tensor: Tensor) -> int | None:
        """Number of channels of a blocked tensor without padding; None if it keeps the padding."""
        root = self._root(tensor)
        if root in self.padded:
            return None
        stated = self.stated.get(root)
        return next(iter(stated)) if stated else self.read_by.get(root)

    # ------------------------------------------------------------------ reading

    def _read(self, node: Node) -> str:
        if node.domain != DOMAIN:
            return self._read_other(node)
        x, y = node.inputs[0], node.outputs[0]
        if node.op == "ReorderInput":
            shape = self.model.shape(x)
            channels = None if shape is None or len(shape) != 4 else shape[3 if node.attrs.get("channels_last") else 1]
            if not isinstance(channels, int):
                return "its number of channels is unknown"
            self._new(y)
            self._state_channels(y, channels)
        elif node.op == "ReorderOutput":
            self._state_channels(x, int(node.attrs.get("channels", 0)))
        elif node.op == "Conv":
            return self._read_conv(node)
        elif node.op in (*_POOLS, "Upsample"):
            if len(node.outputs) > 1 or x not in self.group_of:
                return "its form is not supported"
            self._join(x, y)
        else:
            return "it has no standard counterpart"
        return ""

    def _read_conv(self, node: Node) -> str:
        x, weight, bias, z = node.inputs[0], node.inputs[1], given(node, 2), given(node, 3)
        activation = node.attrs.get("activation", b"")
        name = activation.decode() if isinstance(activation, bytes) else str(activation)
        if not fixed(weight) or (bias is not None and not fixed(bias)):
            return f"its {'bias' if fixed(weight) else 'weight'} is not constant"
        # Nets with HardSwish also have unknown sizes. Replacing a part of one gave wrong results.
        if name and (name not in ACTIVATIONS or name == "HardSwish"):
            return f"its activation {name!r} has no standard form here"
        outputs, inputs = weight.shape[:2]
        if outputs % self.block or (x in self.group_of and not self._depthwise(node) and inputs % self.block):
            return f"it was written for a CPU with another block size than {self.block}"
        if x in self.group_of and self._depthwise(node):
            self._join(x, node.outputs[0])
        else:
            self._new(node.outputs[0])
            if x in self.group_of:
                self._note_reader(node)
        if z is not None:
            if z not in self.group_of:
                return "the tensor that it adds is not blocked"
            self._join(z, node.outputs[0])
        return ""

    def _note_reader(self, node: Node) -> None:
        """Record the channels that a Conv reads. Channels after the last one with a weight other than 0 are padding."""
        root = self._root(node.inputs[0])
        self._connect(node.inputs[0], node.outputs[0])
        if node.attrs.get("group", 1) != 1:
            self.padded |= {root, self._root(node.outputs[0])}
            return
        used = np.flatnonzero(self.filter(node).any(axis=(0, 2, 3)))
        self.read_by[root] = max(self.read_by.get(root, 1), int(used[-1]) + 1 if len(used) else 1)

    def _read_other(self, node: Node) -> str:
        """Handle standard operators on blocked tensors: elementwise ones, and Concat of full blocks."""
        blocked = [t for t in node.inputs if t in self.group_of]
        if not blocked:
            return ""
        if node.op == "Concat" or len(node.outputs) != 1:
            self._new(node.outputs[0])
            for tensor in blocked:
                self._connect(tensor, node.outputs[0])
            self.padded |= {self._root(t) for t in (*blocked, node.outputs[0])}
            return "" if node.op == "Concat" and node.attrs.get("axis") == 1 else "it reads a blocked tensor"
        if any(t not in self.group_of and not (fixed(t) and np.prod(t.shape) == 1) for t in node.inputs if t.name):
            return "it reads a blocked and an unblocked tensor"
        for tensor in (*blocked[1:], node.outputs[0]):
            self._join(blocked[0], tensor)
        return ""

    # ------------------------------------------------------------------ groups

    def _new(self, tensor: Tensor) -> int:
        self.group_of[tensor] = self.groups.new()
        return self.regions.new()

    def _root(self, tensor: Tensor) -> int:
        return self.groups.root(self.group_of[tensor])

    def _connect(self, a: Tensor, b: Tensor) -> None:
        """Record that one operator connects these blocked tensors."""
        self.regions.join(self.group_of[a], self.group_of[b])

    def _join(self, a: Tensor, b: Tensor) -> None:
        """Record that these tensors have the same channels."""
        if b not in self.group_of:
            self.group_of[b] = self.group_of[a]
            return
        self._connect(a, b)
        kept, gone = self._root(a), self._root(b)
        if kept == gone:
            return
        self.groups.join(kept, gone)
        if gone in self.stated:
            self.stated[kept] = self.stated.pop(gone) | self.stated.get(kept, set())
        if gone in self.read_by:
            self.read_by[kept] = max(self.read_by.pop(gone), self.read_by.get(kept, 1))
        if gone in self.padded:
            self.padded.add(kept)

    def _state_channels(self, x: Tensor, channels: int) -> None:
        self.stated[self._root(x)] = self.stated.get(self._root(x), set()) | {channels}

    # ------------------------------------------------------------------ writing

    def _depthwise(self, node: Node) -> bool:
        outputs, inputs = node.inputs[1].shape[:2]
        return bool(inputs == 1 and outputs == node.attrs.get("group", 1))

    def filter(self, node: Node) -> Array:
        """The filter of a Conv as [O, I, h, w], with padding channels."""
        stored, b = weights.read(node.inputs[1]), self.block
        outputs, inputs, *kernel = stored.shape
        if node.inputs[0] in self.group_of and not self._depthwise(node):
            parts = stored.reshape(outputs // b, inputs // b, *kernel, b, b)
            return np.ascontiguousarray(parts.transpose(0, 5, 1, 4, 2, 3)).reshape(stored.shape)
        parts = stored.reshape(outputs // b, inputs, *kernel, b)
        return np.ascontiguousarray(parts.transpose(0, 4, 1, 2, 3)).reshape(stored.shape)

    def rewrite(self, node: Node) -> None:
        """Replace a node by a standard one."""
        if node.op == "Conv":
            self._rewrite_conv(node)
        elif node.op == "Upsample":
            self._rewrite_upsample(node)
        elif node.op in _POOLS:
            node.domain = None
            if all(size == 1 for size in node.attrs.get("dilations", ())):
                node.attrs.pop("dilations", None)
        else:
            last = node.attrs.get("channels_last", 0)
            perm = _FROM_LAST if node.op == "ReorderInput" else _TO_LAST
            x, channels = node.inputs[0], int(node.attrs.get("channels", 0))
            keeps_padding = node.op == "ReorderOutput" and self.channels(x) is None and channels % self.block
            node.op, node.domain = ("Transpose" if last else "Identity"), None
            node.attrs.clear()
            if last:
                node.attrs["perm"] = perm
            if keeps_padding:
                write = Writer(self.model, self.graph, node)
                ends = [write.ints(name, value) for name, value in (("start", 0), ("end", channels), ("axis", 1))]
                node.inputs[0] = write.op("Slice", x, *ends)

    def _rewrite_conv(self, node: Node) -> None:
        padded_filter, x = self.filter(node), node.inputs[0]
        outputs = self.channels(node.outputs[0]) or len(padded_filter)
        inputs = padded_filter.shape[1]
        if self._depthwise(node):
            node.attrs["group"] = outputs
        elif x in self.group_of:
            inputs = self.channels(x) or inputs
        write = Writer(self.model, self.graph, node)
        node.inputs[1] = write.constant("weight", np.ascontiguousarray(padded_filter[:outputs, :inputs]))
        bias = given(node, 2)
        if bias is not None:
            node.inputs[2] = write.constant("bias", weights.read(bias)[:outputs])
        unfuse_conv(self.model, self.graph, node)

    def _rewrite_upsample(self, node: Node) -> None:
        write, mode = Writer(self.model, self.graph, node), node.attrs.get("mode", b"nearest")
        matched = node.attrs.get("coordinate_transformation_mode", b"asymmetric")
        scales = write.constant("scales", np.array(node.attrs["scales"], np.float32))
        how = {"mode": mode, "coordinate_transformation_mode": matched}
        if mode in (b"nearest", "nearest"):
            how["nearest_mode"] = b"floor"
        # Resize-11 requires a roi input, which it does not read.
        roi = Variable("") if self.model.opset >= 13 else write.constant("roi", np.zeros(0, np.float32))
        write.op("Resize", node.inputs[0], roi, scales, out=node.outputs[0], **how)
        write.done()
