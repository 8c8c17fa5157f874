"""Weights that are stored as integers behind a Cast and a Mul, which are computed once."""

from __future__ import annotations

from onnxshot.graph import Constant, Model, edit


def stored_in_integers(model: Model) -> dict[str, str]:
    """Name of each op in float whose weight is constant integers behind Cast and Mul -> its precision as words."""
    found = {}
    for _, node in model.walk():
        for tensor in node.inputs:
            scale = edit.producer(tensor)
            if scale is None or scale.op != "Mul" or not any(isinstance(t, Constant) for t in scale.inputs):
                continue
            casts = [maker for t in scale.inputs if (maker := edit.producer(t)) is not None and maker.op == "Cast"]
            values = edit.constant_input(casts[0], 0) if casts else None
            if values is not None and values.dtype.kind in "iu" and values.ndim > 1:
                found[node.label] = f"weights {values.dtype}"
    return found
