import numpy as np
import pytest
from handmade.core import feeds, model, vector
from pass_checks import ops, reasons, rewritten, the

from onnxshot.passes.fuse_layer_norm import FuseLayerNorm

TEXT = """g (float[n, t, 8] x) => (float[n, t, 8] y) {
    m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>(q) e = Add(v, eps)
    r = Sqrt(e) z = Div(d, r) s = Mul(z, gamma) y = Add(s, beta)
}"""
VARIANTS = {
    "plain": TEXT,
    "positive axis": TEXT.replace("[-1]", "[2]"),
    "squared by Mul": TEXT.replace("Pow(d, two)", "Mul(d, d)"),
    "two Subs": TEXT.replace("q = Pow(d, two)", "d2 = Sub(x, m) q = Pow(d2, two)"),
    "operands swapped": TEXT.replace("Mul(z, gamma)", "Mul(gamma, z)").replace("Add(v, eps)", "Add(eps, v)"),
}


def constants(text: str, size: int = 8) -> dict[str, np.ndarray]:
    found = {"eps": np.array(1e-5, np.float32), "gamma": vector(size, 1), "beta": vector(size, 2)}
    if "two" in text:
        found["two"] = np.array(2, np.float32)
    return found


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fused(variant: str, opset: int) -> None:
    text, stored = VARIANTS[variant], constants(VARIANTS[variant])
    if opset >= 18:
        axes = "2" if "[2]" in text else "-1"
        text = text.replace(f"ReduceMean<axes = [{axes}]>(x)", "ReduceMean(x, axes)")
        text = text.replace(f"ReduceMean<axes = [{axes}]>(q)", "ReduceMean(q, axes)")
        stored["axes"] = np.array([int(axes)])
    after, change = rewritten(model(text, stored, opset=opset), FuseLayerNorm(), *feeds(1, x=(2, 3, 8)))
    assert (change.edits, ops(after)) == (1, {"LayerNormalization": 1})
    assert the(after, "LayerNormalization").attrs["epsilon"] == pytest.approx(1e-5)


def test_left_to_the_runtime_below_opset_17() -> None:
    _, change = rewritten(model(TEXT, constants(TEXT), opset=13), FuseLayerNorm(), *feeds(1, x=(2, 3, 8)))
    assert (change.edits, change.skips) == (0, [])


def test_unknown_size_stays() -> None:
    text = TEXT.replace("float[n, t, 8]", "float[n, t, c]")
    _, change = rewritten(model(text, constants(text, 1)), FuseLayerNorm(), *feeds(1, x=(2, 3, 8)))
    assert change.edits == 0
    assert "not known to have one value per element of the last axis" in reasons(change)[0]


def test_intermediate_output_stays() -> None:
    text = TEXT.replace("(float[n, t, 8] y)", "(float[n, t, 8] y, float[n, t, 1] v)")
    _, change = rewritten(model(text, constants(text)), FuseLayerNorm(), *feeds(1, x=(2, 3, 8)))
    assert change.edits == 0
    assert "read elsewhere too" in reasons(change)[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [("Sub(x, m)", "Sub(m, x)"), ("axes = [-1]>(q)", "axes = [1]>(q)"), ("Pow(d, two)", "Pow(d, eps)")],
)
def test_other_patterns_stay(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    _, change = rewritten(model(text, constants(text)), FuseLayerNorm())
    assert change.edits == 0
