"""Fold a Pad into the `pads` of the Conv, MaxPool or AveragePool after it: Pad, Conv -> Conv.

Keras and TensorFlow export asymmetric padding="same" as a separate Pad. In int8, such a Pad copies the whole tensor; a
Pad before MaxPool, filled with minus infinity, cannot be quantized at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Constant, Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.linear_ops import fixed

_KEEP_SIGN = ("MaxPool", "AveragePool", "Transpose", "Reshape", "Concat", "GlobalAveragePool")
_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
_OWN_PADS = (b"NOTSET", b"VALID", b"")


@dataclass(frozen=True, slots=True)
class FoldPad:
    """Fold a constant Pad of spatial axes into all nodes that read it, in subgraphs too.

    A Pad is folded only if every reader can take it. Conv and AveragePool take padding with 0. MaxPool takes the lowest
    value, or one <= 0 if the input is never negative, and only if every window covers at least one unpadded value.

    Edits count the removed Pads. Nothing is reported as skipped.
    """

    name: str = "fold_pad"

    def run(self, model: Model) -> Change:
        """Fold the Pads."""
        change = Change()
        for graph, node in list(model.walk()):
            if node.op != "Pad" or node.domain not in STANDARD_DOMAINS:
                continue
            pads, value = _pads(node), _value(node)
            users = edit.consumers(node.outputs[0])
            if pads is None or value is None or not users or edit.is_output(model, node.outputs[0]):
                continue
            if all(user in graph.nodes and _takes(user, node, pads, value) for user in users):
                for user in users:
                    _absorb(user, node.inputs[0], pads)
                edit.remove(model, [node])
                change.edits += 1
        return change


def _pads(node: Node) -> list[int] | None:
    """Begins and ends of the spatial axes; None if they are unknown or negative, or if other axes are padded."""
    if node.attrs.get("mode", b"constant") != b"constant" or (len(node.inputs) > 3 and node.inputs[3].name):
        return None
    pads = node.attrs.get("pads", node.attrs.get("paddings"))
    if pads is None:
        found = edit.constant_input(node, 1) if len(node.inputs) > 1 and fixed(node.inputs[1]) else None
        pads = None if found is None else found.reshape(-1).tolist()
    if pads is None or len(pads) % 2:
        return None
    rank = len(pads) // 2
    if rank < 3 or min(pads) < 0 or any(pads[i] for i in (0, 1, rank, rank + 1)):
        return None
    return [*pads[2:rank], *pads[rank + 2 :]]


def _value(node: Node) -> float | None:
    """The fill value; None if it is computed."""
    if len(node.inputs) > 2 and node.inputs[2].name:
        value = edit.constant_input(node, 2) if fixed(node.inputs[2]) else None
        return float(value.reshape(())) if value is not None and value.size == 1 else None
    return float(node.attrs.get("value", 0.0))


def _takes(user: Node, pad: Node, pads: Sequence[int], value: float) -> bool:
    """Whether the user, with these pads added to its own, computes the same as after the Pad."""
    own = user.attrs.get("pads", [0] * len(pads))
    if user.domain not in STANDARD_DOMAINS or user.inputs[0] is not pad.outputs[0] or len(own) != len(pads):
        return False
    if user.attrs.get("auto_pad", b"NOTSET") not in _OWN_PADS or any(t is pad.outputs[0] for t in user.inputs[1:]):
        return False
    if user.op == "Conv":
        weight = user.inputs[1]
        return value == 0 and isinstance(weight, Constant) and len(weight.shape) == len(pads) // 2 + 2
    kernel = user.attrs.get("kernel_shape", ())
    if 2 * len(kernel) != len(pads) or user.attrs.get("ceil_mode", 0):
        return False
    if user.op == "AveragePool":
        return value == 0 and (not any(own) or bool(user.attrs.get("count_include_pad", 0)))
    if user.op != "MaxPool" or len([t for t in user.outputs if t.name]) > 1:
        return False
    # Every window covers at least one value that is not padding, so the maximum is never the fill value alone.
    narrow = all(a + b < k for a, b, k in zip(own, pads, [*kernel, *kernel], strict=True))
    lowest = value == -np.inf or value <= float(np.finfo(np.float32).min)
    return narrow and (lowest or (value <= 0 and _not_negative(pad.inputs[0])))


def _not_negative(tensor: Tensor) -> bool:
    """Whether the op that makes the tensor, up to ops that keep signs, never gives negative values."""
    maker = edit.producer(tensor)
    while maker is not None and maker.op in _KEEP_SIGN and len(maker.inputs) == 1:
        maker = edit.producer(maker.inputs[0])
    if maker is None or maker.domain not in STANDARD_DOMAINS:
        return False
    return maker.op in _POSITIVE or (maker.op == "Clip" and edit.clip_limits(maker)[0] >= 0)


def _absorb(user: Node, source: Tensor, pads: Sequence[int]) -> None:
    """Add the pads to the user's own, and let it read what the Pad read."""
    own = user.attrs.get("pads", [0] * len(pads))
    user.attrs["pads"] = [a + b for a, b in zip(own, pads, strict=True)]
    user.attrs.pop("auto_pad", None)
    if user.op == "AveragePool":
        user.attrs["count_include_pad"] = 1
    user.inputs[0] = source
