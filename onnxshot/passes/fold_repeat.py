"""Fold Unsqueeze, Expand or Tile, Reshape, which repeat rows or columns, into one nearest-neighbour Resize.

Keras' UpSampling2D and torch's repeat_interleave are exported in that form. Its tensor of five dimensions is one that
no runtime keeps in int8, and no Transpose can be moved past it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change
from onnxshot.passes.linear_ops import fixed
from onnxshot.passes.runtime_fusions import made_by

_ATTRS = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@dataclass(frozen=True, slots=True)
class FoldRepeat:
    """Fold repetitions of tensors of four dimensions into Resize-11, and two Resizes, of height and width, into one.

    Only the top-level graph is rewritten, and only from opset 11 on.

    Edits count the repetitions folded and the pairs of Resizes joined. Nothing is reported as skipped.
    """

    name: str = "fold_repeat"

    def run(self, model: Model) -> Change:
        """Fold the repetitions."""
        change = Change()
        if model.opset < 11:
            return change
        for node in list(model.graph.nodes):
            if node.op == "Reshape" and node.domain in STANDARD_DOMAINS:
                found = _repeated(model, node)
                if found is not None:
                    _write(model, node, *found)
                    change.edits += 1
        for node in list(model.graph.nodes):
            change.edits += _joined(model, node)
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


def _repeated(model: Model, reshape: Node) -> tuple[Tensor, int, int] | None:
    """(tensor, axis, number of repetitions) of a repetition that ends in this Reshape; None if there is none."""
    spread = made_by(reshape.inputs[0], "Expand", "Tile")
    widened = None if spread is None else made_by(spread.inputs[0], "Unsqueeze")
    if spread is None or widened is None:
        return None
    before, after = model.shape(widened.inputs[0]), model.shape(reshape.outputs[0])
    counts, axes = _constant(spread, 1), widened.attrs.get("axes", _constant(widened, 1))
    if before is None or after is None or len(before) != 4 or len(after) != 4 or not counts or not axes:
        return None
    if len(axes) != 1 or len(counts) != 5:
        return None
    added = axes[0] % 5
    axis, times = added - 1, counts[added]
    kept = [*before[:added], 1, *before[added:]]
    others = [(c, kept[i]) for i, c in enumerate(counts) if i != added]
    if axis not in (1, 2, 3) or times < 2 or any(c != 1 and (spread.op == "Tile" or c != d) for c, d in others):
        return None
    size = before[axis]
    wanted = [*before[:axis], size * times if isinstance(size, int) else None, *before[axis + 1 :]]
    if not isinstance(size, int) or not all(isinstance(d, int) for d in before[1:]):
        return None
    return (widened.inputs[0], axis, times) if list(after[1:]) == wanted[1:] else None


def _constant(node: Node, slot: int) -> list[int] | None:
    """Values of a constant input; None if it is missing or computed."""
    if slot >= len(node.inputs) or not fixed(node.inputs[slot]):
        return None
    values = edit.constant_input(node, slot)
    return None if values is None else values.reshape(-1).tolist()


def _write(model: Model, reshape: Node, source: Tensor, axis: int, times: int) -> None:
    """Replace a repetition by a Resize."""
    scales = np.ones(4, np.float32)
    scales[axis] = times
    base, outputs = reshape.label, list(reshape.outputs)
    edit.remove(model, [reshape])
    _resize(model, base, source, scales, outputs)


def _resize(model: Model, base: str, source: Tensor, scales: np.ndarray, outputs: list[Tensor]) -> None:
    """Add a nearest-neighbour Resize with these scales; its region of interest is an empty constant before opset 13."""
    none = type(outputs[0])("")
    region = none if model.opset >= 13 else edit.add_constant(model, base, "region", np.zeros(0, np.float32))
    factors = edit.add_constant(model, base, "scales", scales)
    edit.add_node(
        model, "Resize", [source, region, factors], base=base, suffix="repeated", outputs=outputs, attrs=dict(_ATTRS)
    )


def _joined(model: Model, second: Node) -> bool:
    """Join two Resizes in a row into one; whether there were two."""
    first = made_by(second.inputs[0], "Resize") if second.op == "Resize" and second.inputs else None
    if first is None or edit.only_consumer(model, first.outputs[0]) is not second:
        return False
    scales = []
    for node in (first, second):
        values = edit.constant_input(node, 2) if len(node.inputs) == 3 and fixed(node.inputs[2]) else None
        attrs = {k: v.decode() if isinstance(v, bytes) else v for k, v in node.attrs.items()}
        if values is None or values.size != 4 or attrs != _ATTRS or (values != np.round(values)).any():
            return False
        scales.append(values)
    source, base, outputs = first.inputs[0], second.label, list(second.outputs)
    edit.remove(model, [first, second])
    _resize(model, base, source, np.asarray(scales[0] * scales[1], np.float32), outputs)
    return True
