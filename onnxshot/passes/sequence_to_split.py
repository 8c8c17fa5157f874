"""Write SplitToSequence, read by SequenceAt at constant positions, as one Split.

torch.export writes `torch.chunk` and `torch.split` in that form. A sequence hides its tensors from shape inference,
from quantization, and from every walk over a graph's tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, Variable, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.linear_ops import fixed

_MOST_PARTS = 1 << 12  # outputs of a Split that is written


@dataclass(frozen=True, slots=True)
class SequenceToSplit:
    """Replace SplitToSequence-11 and the SequenceAt-11 that read it by Split (attribute below opset 13, then input).

    A sequence stays that is a graph output, is read by another operator or at a computed position, drops its axis
    (`keepdims` 0), or whose part sizes are not known. Only the top-level graph is rewritten.

    Edits count the sequences. Nothing is reported as skipped.
    """

    name: str = "sequence_to_split"

    def run(self, model: Model) -> Change:
        """Replace the sequences."""
        change = Change()
        for node in list(model.graph.nodes):
            if node.op == "SplitToSequence" and node.domain in STANDARD_DOMAINS:
                sizes, readers = _sizes(model, node), _readers(model, node)
                if sizes and readers and all(-len(sizes) <= at < len(sizes) for at in readers.values()):
                    _write(model, node, sizes, readers)
                    change.edits += 1
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


def _sizes(model: Model, node: Node) -> list[int]:
    """Sizes of the parts along the axis; empty if they are not known, or the axis is dropped."""
    given = len(node.inputs) > 1 and bool(node.inputs[1].name)
    if given and not fixed(node.inputs[1]):
        return []
    values = edit.constant_input(node, 1) if given else None
    if values is not None and values.ndim:
        return [int(size) for size in values]
    if values is None and (given or not node.attrs.get("keepdims", 1)):
        return []
    shape, axis = model.shape(node.inputs[0]), int(node.attrs.get("axis", 0))
    if shape is None or not -len(shape) <= axis < len(shape):
        return []
    whole, size = shape[axis], 1 if values is None else int(values)
    if not isinstance(whole, int) or size < 1 or not 0 < -(-whole // size) <= _MOST_PARTS:
        return []
    return [size] * (whole // size) + ([whole % size] if whole % size else [])


def _readers(model: Model, node: Node) -> dict[Node, int]:
    """The SequenceAt nodes that read the sequence, and their positions; empty if anything else reads it."""
    sequence = node.outputs[0]
    if edit.is_output(model, sequence):
        return {}
    found = {}
    for user in edit.consumers(sequence):
        position = edit.constant_input(user, 1) if user.op == "SequenceAt" and fixed(user.inputs[1]) else None
        if position is None or position.size != 1 or edit.graph_of(model, user) is not model.graph:
            return {}
        found[user] = int(position.reshape(()))
    return found


def _write(model: Model, node: Node, sizes: list[int], readers: dict[Node, int]) -> None:
    """Replace a sequence and its readers by a Split; parts that are read twice get an Identity."""
    base, source, axis = node.label, node.inputs[0], int(node.attrs.get("axis", 0))
    parts: dict[int, Variable] = {}
    copies = []
    for reader, at in readers.items():
        result = reader.outputs[0]
        part = parts.setdefault(at % len(sizes), result)
        if part is not result:
            copies.append((part, result))
    edit.remove(model, [*readers, node])
    outputs = [parts.get(i) or Variable(model.fresh(base, "part")) for i in range(len(sizes))]
    if model.opset < 13:
        edit.add_node(model, "Split", [source], base=base, outputs=outputs, attrs={"axis": axis, "split": sizes})
    else:
        lengths = edit.add_constant(model, base, "sizes", np.asarray(sizes, np.int64))
        edit.add_node(model, "Split", [source, lengths], base=base, outputs=outputs, attrs={"axis": axis})
    for part, result in copies:
        edit.add_node(model, "Identity", [part], base=base, outputs=[result])
