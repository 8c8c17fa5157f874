"""What a product loses in int8 and in blocks, against ONNX Runtime's DynamicQuantizeLinear and a loop over blocks."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import model, weight
from onnx import helper

from onnxshot.execution.product_errors import Multiplied, product_errors
from onnxshot.graph.load import load_model


def by_runtime(x: np.ndarray) -> np.ndarray:
    """x through DynamicQuantizeLinear and back."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def db(exact: np.ndarray, made: np.ndarray) -> float:
    shares = [np.sum((e - m) ** 2) / np.sum(e**2) for e, m in zip(exact.astype(float), made.astype(float), strict=True)]
    return float(-10 * np.log10(np.mean(shares)))


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
@pytest.mark.parametrize("turned", [False, True])
def test_errors_are_those_of_a_straightforward_computation(bits: int, symmetric: bool, turned: bool) -> None:
    w = weight(40, 24)
    stored = np.ascontiguousarray(w.T) if turned else w
    product = "y = Gemm<transB = 1>(a, w)" if turned else "y = MatMul(a, w)"
    loaded = load_model(model(f"g (float[R, 40] x) => (float[R, 24] y) {{ a = Relu(x) {product} }}", {"w": stored}))
    (constant,) = (c for c in loaded.constants() if c.name == "w")
    feeds = [{"x": np.random.default_rng(s).standard_normal((30, 40), np.float32)} for s in range(2)]
    asked = Multiplied("n", "a", constant, turned, bits, 16, symmetric)
    found = product_errors(loaded, [asked], feeds, 1)["n"]

    scale = np.abs(w).max(0) / 127
    as_int8 = np.rint(w / scale) * scale
    blocks = np.zeros_like(w)
    for column in range(24):
        for first in range(0, 40, 16):
            part = w[first : first + 16, column]
            if symmetric:
                step = np.abs(part).max() / (2 ** (bits - 1) - 1)
                blocks[first : first + 16, column] = np.rint(part / step) * step
            else:
                low, high = min(part.min(), 0), max(part.max(), 0)
                step = (high - low) / (2**bits - 1)
                zero = np.rint(-low / step)
                codes = np.clip(np.rint(part / step) + zero, 0, 2**bits - 1)
                blocks[first : first + 16, column] = (codes - zero) * step
    inputs = [np.maximum(feed["x"], 0) for feed in feeds]
    expected = min(db(x @ w, by_runtime(x) @ as_int8) for x in inputs), min(db(x @ w, x @ blocks) for x in inputs)
    np.testing.assert_allclose(found, expected, atol=0.05)
