from dataclasses import replace

import numpy as np
import pytest
from fixture_data import session
from handmade.core import weight
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_checks import outputs
from planned_models import planned, small

from onnxshot.maths.smoothquant import smoothing_factors
from onnxshot.maths.sqnr import sqnr_db
from onnxshot.passes.apply_smoothquant import ApplySmoothQuant
from onnxshot.passes.quantize_dynamic import QuantizeDynamically
from onnxshot.planning.plan import DYNAMIC

PRODUCTS = {
    "matmul": ("y = MatMul(x, w)", {"w": weight(64, 64)}),
    "gemm": ("y = Gemm<transB = 1>(x, w, b)", {"w": weight(64, 64), "b": np.ones(64, np.float32)}),
    "two readers and a residual": (
        "p = MatMul(x, w) q = MatMul(x, v) s = Add(p, q) y = Add(s, x)",
        {"w": weight(64, 64), "v": weight(64, 64, seed=1)},
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_smoothing_keeps_the_function_and_helps_int8(name: str) -> None:
    body, constants = PRODUCTS[name]
    case = small(f"g (float[n, 64] x) => (float[n, 64] y) {{ {body} }}", constants, x=(8, 64))
    loud = np.where(np.arange(64) % 16 == 3, np.float32(80), np.float32(1))
    case = replace(case, feeds=[{"x": feed["x"] * loud} for feed in case.feeds])
    ready, plan = planned(case, calibrate=True)
    plain, _ = planned(case)
    assert list(plan.smoothing) == ["x"]
    assert ApplySmoothQuant(plan.smoothing, plan.labels(DYNAMIC)).run(ready).edits == 1
    (inserted,) = [n for n in ready.graph.nodes if n.op == "Mul"]
    readers = [n for n in ready.graph.nodes if n.op in ("MatMul", "Gemm")]
    assert all(n.inputs[0] is inserted.outputs[0] for n in readers)
    expected = outputs(case.model, case.feeds[0])[0]
    np.testing.assert_allclose(outputs(ready.to_proto(), case.feeds[0])[0], expected, rtol=1e-3, atol=1e-3)
    gains = []
    for model in (plain, ready):
        QuantizeDynamically(plan).run(model)
        found = session(model.to_proto().SerializeToString()).run(None, case.feeds[0])[0]
        gains.append(sqnr_db(expected, found))
    assert gains[1] > gains[0] + 1


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_factors_are_positive_bounded_and_follow_the_paper(channels: int, seed: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.lognormal(0, 1, channels).astype(np.float32)
    w = rng.lognormal(0, 1, channels).astype(np.float32)
    factors = smoothing_factors(x, w, strength)
    assert factors.dtype == np.float32
    assert np.isfinite(factors).all()
    assert ((factors >= 1 / 64) & (factors <= 64)).all()
    ratio = x.astype(np.float64) ** strength / w.astype(np.float64) ** (1 - strength)  # SmoothQuant eq. 4
    inside = (factors > 1 / 64) & (factors < 64) & (x > 0.011 * x.mean()) & (w > 0.011 * w.mean())
    np.testing.assert_allclose(np.diff(np.log(factors[inside])), np.diff(np.log(ratio[inside])), atol=1e-3)


def test_a_silent_channel_does_not_blow_up() -> None:
    x = np.array([0, 1, 1, 1], np.float32)
    assert 1 / smoothing_factors(x, np.ones(4, np.float32)).min() < 64.1
    assert np.isfinite(smoothing_factors(np.zeros(4, np.float32), np.zeros(4, np.float32))).all()
