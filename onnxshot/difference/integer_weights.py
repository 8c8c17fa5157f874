"""Find weights that are stored as integers behind a Cast and a Mul, which constant folding would turn into floats."""

from __future__ import annotations

from onnxshot.graph import Constant, Model, edit


def stored_in_integers(model: Model) -> dict[str, str]:
    """Precision of each float op whose weight is stored as integers behind Cast and Mul.

    Returns:
        Node name -> precision, such as "weights int8".
    """
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
