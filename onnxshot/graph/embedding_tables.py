"""Find the tables that token ids index, to know how many tokens a model has."""

from __future__ import annotations

from collections.abc import Iterable

from onnxshot.graph.ir import Constant, Tensor
from onnxshot.graph.model import Model

_SAME_IDS = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"}
_SAME_ROWS = {"Cast", "Identity", "DequantizeLinear"}
_TABLES = {"Gather": (0, 1), "GatherBlockQuantized": (0, 1), "EmbedLayerNormalization": (2, 0)}  # (table, ids)


def table_rows(model: Model, inputs: Iterable[str]) -> list[int]:
    """The numbers of rows of the tables whose rows are gathered by the ids of these inputs.

    Args:
        model: the model.
        inputs: names of inputs that take token ids.
    """
    names, found = set(inputs), list[int]()
    waiting = [tensor for tensor in model.graph.inputs if tensor.name in names]
    seen = set[Tensor](waiting)
    while waiting:
        ids = waiting.pop()
        for node in ids.outputs:
            if node.op in _SAME_IDS and node.inputs and node.inputs[0] is ids:
                waiting += [tensor for tensor in node.outputs if tensor not in seen]
                seen.update(node.outputs)
            table, index = _TABLES.get(node.op, (0, 0))
            if node.op in _TABLES and len(node.inputs) > max(table, index) and node.inputs[index] is ids:
                axis = int(node.attrs.get("axis", node.attrs.get("gather_axis", 0)))
                rows = _rows(node.inputs[table]) if axis == 0 else None
                found += [rows] if rows is not None else []
    return found


def _rows(tensor: Tensor) -> int | None:
    """The rows of a stored table of rank 2 that only casts and dequantization stand behind; None for others."""
    while not isinstance(tensor, Constant):
        if len(tensor.inputs) != 1 or tensor.inputs[0].op not in _SAME_ROWS:
            return None
        tensor = tensor.inputs[0].inputs[0]
    return int(tensor.shape[0]) if len(tensor.shape) == 2 else None
