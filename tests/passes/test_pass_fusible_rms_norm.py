import numpy as np
import pytest
from handmade.core import feeds, model, vector
from pass_checks import loaded, ops, rewritten

from onnxshot.passes.fusible_rms_norm import FusibleRmsNorm
from onnxshot.passes.normalize import normalize
from onnxshot.runtimes.ort_executed import executed

SQUARES = {"pow": "p = Pow(x, two)", "mul": "p = Mul(x, x)"}
ROOTS = {
    "div": "r = Sqrt(a) d = Div(x, r)",
    "reciprocal": "r = Sqrt(a) i = Reciprocal(r) d = Mul(x, i)",
    "reciprocal first": "r = Sqrt(a) i = Reciprocal(r) d = Mul(i, x)",
    "one over it": "r = Sqrt(a) i = Div(one, r) d = Mul(x, i)",
    "power": "i = Pow(a, minus_half) d = Mul(x, i)",
    "power of a half": "r = Pow(a, half) d = Div(x, r)",
}
CONSTANTS = {k: np.float32(v) for k, v in {"two": 2, "eps": 1e-6, "one": 1, "half": 0.5, "minus_half": -0.5}.items()}


def norm(square: str, root: str, scale: str = "y = Mul(g, d)", opset: int = 17):
    mean = "m = ReduceMean<axes = [-1]>(p)" if opset < 18 else "m = ReduceMean(p, axes)"
    text = f"g (float[n, t, 8] x) => (float[n, t, 8] y) {{ {square} {mean} a = Add(m, eps) {root} {scale} }}"
    constants = CONSTANTS | {"g": vector(8, low=0.5, high=1.5), "axes": np.array([-1])}
    return model(text, {k: v for k, v in constants.items() if k in text}, opset=opset)


@pytest.mark.parametrize(("square", "root"), [(s, r) for s in SQUARES for r in ROOTS])
def test_every_form_is_one_kernel(square: str, root: str) -> None:
    proto = norm(SQUARES[square], ROOTS[root])
    after, change = rewritten(proto, FusibleRmsNorm(), *feeds(3, x=(2, 3, 8)))
    assert change.edits == ((square, root) != ("pow", "div"))
    assert ops(after) == {"Pow": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Div": 1, "Mul": 1}
    assert FusibleRmsNorm().run(after).edits == 0
    assert executed(after.to_proto().SerializeToString()).ops == {"SimplifiedLayerNormalization": 1}


def test_axes_as_input_and_a_product_behind_it() -> None:
    proto = norm(SQUARES["mul"], ROOTS["power"], "s = Mul(d, g) y = MatMul(s, w)", opset=18)
    from onnx import numpy_helper

    proto.graph.initializer.append(numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"))
    ready = loaded(proto)
    normalize(ready)
    ran = executed(ready.to_proto().SerializeToString()).ops
    assert ran == {"SimplifiedLayerNormalization": 1, "MatMul": 1}


@pytest.mark.parametrize(
    ("square", "root", "scale"),
    [
        ("p = Mul(x, x)", "r = Sqrt(a) i = Reciprocal(r) d = Mul(x, i)", "y = Tanh(d)"),  # nothing scales it
        ("p = Mul(x, x)", "r = Sqrt(a) i = Reciprocal(r) d = Mul(a, i)", "s = Mul(g, d) y = Add(x, s)"),  # not of x
        ("p = Abs(x)", "r = Sqrt(a) i = Reciprocal(r) d = Mul(x, i)", "y = Mul(g, d)"),  # no square
        ("p = Mul(x, x)", "r = Sqrt(a) d = Mul(x, r)", "y = Mul(g, d)"),  # not divided
    ],
)
def test_others_stay(square: str, root: str, scale: str) -> None:
    assert rewritten(norm(square, root, scale), FusibleRmsNorm(), *feeds(1, x=(2, 3, 8)))[1].edits == 0
