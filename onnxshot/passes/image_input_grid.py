"""Quantize a normalized 8-bit image input without error: Conv(x) -> Conv((x - offset) / step), with codes 0 to 255.

An image of 8 bits per pixel, normalized by a mean and a deviation per channel, has at most 256 equally spaced values
(a grid) in each channel, and another grid in each. One scale for all channels matches none of the grids. One scale and
zero point per channel, whose inverse is folded into the weights of the Conv that reads the input, matches all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Constant, Model, Node, edit
from onnxshot.maths.value_grid import Grid, find_grid
from onnxshot.passes.base import Change
from onnxshot.passes.linear_ops import fold_before, weight_refusal
from onnxshot.planning.plan import Plan

METHOD = "grid"
"""Name in reports of the range method of such an input."""
_MOST_CHANNELS = 16  # an input with more channels is not taken for an image
_TIE = 0.01  # in steps: a zero point this close to a half would round either way


def reader_of(model: Model, name: str) -> Node | None:
    """The Conv that alone reads this input of the model and can absorb a factor per channel; None if there is none."""
    tensor = next((t for t in model.graph.inputs if t.name == name), None)
    reader = edit.only_consumer(model, tensor) if tensor is not None else None
    if reader is None or reader.op != "Conv" or reader.attrs.get("group", 1) != 1 or weight_refusal(model, reader):
        return None
    bias = reader.inputs[2] if len(reader.inputs) > 2 else None
    named = bias is not None and bias.name and not isinstance(bias, Constant)
    padded = reader.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID", b"")
    return None if named or padded else reader


def grids_of(samples: Sequence[NDArray[Any]]) -> list[Grid] | None:
    """Find the grid of every channel of an input.

    Args:
        samples: Calibration samples of the input, float32 [N, C, ...].

    Returns:
        One grid per channel; None if a channel has none, or if one scale for all channels is exact too.
    """
    if any(x.dtype != np.float32 or x.ndim < 3 or x.shape[1] > _MOST_CHANNELS for x in samples):
        return None
    grids = []
    for c in range(samples[0].shape[1]):
        found = find_grid(np.concatenate([x[:, c].reshape(-1) for x in samples]))
        if found is None:
            return None
        grids.append(found)
    return grids if _fit(grids) else None


def _fit(grids: Sequence[Grid]) -> bool:
    """Whether the grids differ between channels and their zero points round safely to integers from 0 to 255."""
    if len({(round(g.offset, 6), round(g.step, 8)) for g in grids}) == 1:
        return False  # one scale for all channels is exact
    zeros = np.asarray([-g.offset / g.step for g in grids])
    return bool((np.abs(zeros % 1.0 - 0.5) > _TIE).all() and (zeros > 0).all() and (np.rint(zeros) < 256).all())


@dataclass(frozen=True, slots=True)
class PutOnGrid:
    """Insert Mul and Add that map inputs of the model to grid codes, and fold the inverse into the Conv after them.

    The float model's outputs stay the same up to rounding. The Conv's padding becomes a Pad of the input in front.

    Edits count the inputs. Nothing is reported as skipped; an input without a suitable Conv is left unchanged.

    Attributes:
        grids: Input name -> the grid of each channel.
        made: Filled by `run`: input name -> name of the tensor of codes.
    """

    grids: Mapping[str, Sequence[Grid]]
    made: dict[str, str] = field(default_factory=dict)
    name: str = "put_on_grid"

    def run(self, model: Model) -> Change:
        """Insert Mul and Add, and a Pad if the Conv has padding."""
        change = Change()
        for name, grids in self.grids.items():
            conv = reader_of(model, name)
            if conv is None:
                continue
            x, rank = conv.inputs[0], len(conv.inputs[1].shape)
            step, offset = (np.asarray(v, np.float64) for v in ([g.step for g in grids], [g.offset for g in grids]))
            pads = list(conv.attrs.get("pads", [0] * 2 * (rank - 2)))
            conv.attrs["pads"] = [0] * len(pads)
            for refusal in (fold_before(model, conv, None, offset), fold_before(model, conv, step, None)):
                assert refusal is None, refusal
            if any(pads):
                half = len(pads) // 2
                sizes = np.asarray([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
                given = [x, edit.add_constant(model, name, "pads", sizes)]
                x = edit.add_node(model, "Pad", given, base=name, suffix="padded").outputs[0]
            for op, values in (("Mul", 1.0 / step), ("Add", -offset / step)):
                constant = edit.add_constant(model, name, "grid", _by_channel(values, rank))
                x = edit.add_node(model, op, [x, constant], base=name, suffix="grid").outputs[0]
            conv.inputs[0] = x
            self.made[name] = x.name
            change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


@dataclass(frozen=True, slots=True)
class QuantizeByChannel:
    """Fold the Mul and Add that `PutOnGrid` inserted into the QuantizeLinear after them, which becomes per-channel.

    Edits count the tensors. Nothing is skipped.

    Attributes:
        plan: The plan; tensors whose range has the method `METHOD` are rewritten.
    """

    plan: Plan
    name: str = "quantize_by_channel"

    def run(self, model: Model) -> Change:
        """Give each QuantizeLinear a scale and a zero point per channel (axis 1)."""
        change, tensors = Change(), model.tensors()
        for name, planned in self.plan.tensors.items():
            if self.plan.ranges[planned.group].method != METHOD:
                continue
            add = edit.producer(tensors[name])
            mul = edit.producer(add.inputs[0]) if add is not None else None
            (q,) = [node for node in edit.consumers(tensors[name]) if node.op == "QuantizeLinear"]
            assert add is not None and mul is not None
            factors, shifts = edit.constant_input(mul, 1), edit.constant_input(add, 1)
            scale, zero = edit.constant_input(q, 1), edit.constant_input(q, 2)
            assert factors is not None and shifts is not None and scale is not None and zero is not None
            scales = (scale / factors.astype(np.float64)).reshape(-1).astype(np.float32)
            zeros = np.rint(int(zero) + shifts / np.float64(scale)).reshape(-1).astype(zero.dtype)
            q.inputs[0] = mul.inputs[0]
            q.inputs[1] = edit.add_constant(model, name, "scales", scales)
            q.inputs[2] = edit.add_constant(model, name, "zero_points", zeros)
            q.attrs["axis"] = 1
            change.edits += 1
        if change.edits:
            edit.remove_unused(model)
        return change


def _by_channel(values: NDArray[np.float64], rank: int) -> NDArray[np.float32]:
    """Values [C] as [1, C, 1, ...]."""
    return values.astype(np.float32).reshape(1, -1, *[1] * (rank - 2))
