"""Find weights that are stored as integers behind a Cast and a Mul, which constant folding would turn into floats."""

from __future__ import annotations

from collections.abc import Iterator

from onnxshot.graph import edit
from onnxshot.graph.ir import Constant, Node, Tensor
from onnxshot.graph.model import Model
from onnxshot.graph.ops import op_of

_TABLES = {"Gather": 0}  # operators whose weight is a table, and its slot


def stored_in_integers(model: Model) -> dict[str, str]:
    """Precision of each float op that reads integers behind Cast and Mul.

    Returns:
        Node name -> precision, such as "weights int8".
    """
    return {node.label: f"weights {values.dtype}" for node, _, values in _stored(model)}


def weights_in_bytes(model: Model) -> list[str]:
    """Names of the weights that are stored in 8 or 4 bits behind Cast and Mul, each once."""
    found = dict.fromkeys(
        values.name
        for node, slot, values in _stored(model)
        if values.dtype.itemsize == 1 and (slot in op_of(node).weights or _TABLES.get(node.op) == slot)
    )
    return list(found)


def _stored(model: Model) -> Iterator[tuple[Node, int, Constant]]:
    """(a node, an input slot, the integers that the input is computed from)."""
    for _, node in model.walk():
        for slot, tensor in enumerate(node.inputs):
            values = _integers(tensor)
            if values is not None and values.dtype.kind in "iu" and len(values.shape) > 1:
                yield node, slot, values


def _integers(tensor: Tensor) -> Constant | None:
    """The constant behind Mul and Cast; None where there is none."""
    scale = edit.producer(tensor)
    if scale is None or scale.op != "Mul" or not any(isinstance(t, Constant) for t in scale.inputs):
        return None
    casts = [maker for t in scale.inputs if (maker := edit.producer(t)) is not None and maker.op == "Cast"]
    values = casts[0].inputs[0] if casts else None
    return values if isinstance(values, Constant) else None
