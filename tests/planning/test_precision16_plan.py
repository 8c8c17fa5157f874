"""Which nodes may compute in 16 bits, by rules, by ranges and by constants, each with the reason."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from handmade.core import Feed, feeds, model, weight
from pass_checks import loaded
from tensor_ranges import spans_of

from onnxshot.calibration.readers import Sample
from onnxshot.calibration.stats import Span
from onnxshot.planning.plan import HALF
from onnxshot.planning.precision16_ops import BF16, FLOAT_OPS, FP16, HALF_OPS, HalfType
from onnxshot.planning.precision16_plan import plan_half
from onnxshot.precision16.rounding_noise import rounding_db


def why(proto: onnx.ModelProto, samples: Sequence[Feed] | None = None, kind: HalfType = FP16) -> Mapping[str, str]:
    """Op -> why it stays float32, empty where it does not; of the first such op."""
    plan = plan_half(loaded(proto), kind, None if samples is None else spans_of(proto, samples))
    found: dict[str, str] = {}
    for node in plan.nodes:
        found.setdefault(node.op, node.reason)
        assert (node.how == HALF) == (not node.reason)
    return found


def convolved(text: str, shape: str = "1, 4, 8, 8", out: str = "N", **constants: np.ndarray) -> onnx.ModelProto:
    """c = Conv(x), then the text, which makes y of c."""
    head = f"g (float[{shape}] x) => (float[{out}] y) {{ c = Conv<kernel_shape = [1, 1]>(x, w) {text} }}"
    return model(head, {"w": weight(4, 4, 1, 1), **constants})


X = feeds(3, x=(1, 4, 8, 8))


def scaled(times: float) -> list[Feed]:
    return [{"x": feed["x"] * np.float32(times)} for feed in X]


@pytest.mark.parametrize(("peak", "fits"), [(59_000.0, True), (61_000.0, False)])
def test_a_tensor_beyond_60000_stays_float32(peak: float, fits: bool) -> None:
    proto = convolved("y = Relu(c)", out="1, 4, 8, 8")
    largest = max(span.absmax for span in spans_of(proto, X).values())
    found = why(proto, scaled(peak / largest))
    assert (found["Conv"] == "") == fits
    assert fits or "reaches 6.1e+04, above 6e+04, the limit for fp16" in found["Conv"]


def test_bf16_has_room_for_it() -> None:
    proto = model("g (float[1, 4] x) => (float[1, 4] y) { y = MatMul(x, w) }", {"w": weight(4, 4)}, opset=22, ir=10)
    assert why(proto, [{"x": np.full((1, 4), 1e9, np.float32)}], BF16)["MatMul"] == ""


def test_nothing_that_is_infinite_or_nan_is_in_16_bits() -> None:
    text = "m = Where(b, c, i) y = Relu(m)"
    proto = convolved(text, out="1, 4, 8, 8", b=np.eye(8, dtype=bool), i=np.float32(-np.inf))
    found = why(proto, X)
    assert found["Conv"] == ""
    assert "reaches inf" in found["Where"]


@pytest.mark.parametrize(("times", "fits"), [(1.0, True), (3000.0, False)])
def test_a_mean_stays_float32_where_its_sum_overflows(times: float, fits: bool) -> None:
    """Each value fits, the mean fits, and the sum of 64 values does not."""
    found = why(convolved("y = ReduceMean<axes = [2, 3]>(c)", out="1, 4, 1, 1"), scaled(times))
    assert found["Conv"] == ""
    assert (found["ReduceMean"] == "") == fits
    assert fits or "inside" in found["ReduceMean"]


def test_a_sum_of_squares_stays_float32_up_to_its_root() -> None:
    text = """s = Mul(c, c) m = ReduceMean<axes = [1]>(s) e = Add(m, eps) r = Sqrt(e) y = Div(c, r)"""
    proto = convolved(text, out="1, 4, 8, 8", eps=np.float32(0.5))
    found = why(proto, X)
    assert found["Conv"] == found["Div"] == ""
    assert all("squares" in found[op] for op in ("Mul", "ReduceMean", "Add", "Sqrt"))


def test_a_divisor_that_may_round_to_zero_stays_float32() -> None:
    text = "r = Relu(c) e = Add(r, small) y = Div(r, e)"
    assert "round to 0" in why(convolved(text, out="1, 4, 8, 8", small=np.float32(1e-6)), X)["Div"]
    assert "round to 0" in why(convolved("y = Div(c, t)", out="1, 4, 8, 8", t=np.float32(1e-7)), scaled(1e-4))["Div"]
    assert why(convolved("y = Div(c, t)", out="1, 4, 8, 8", t=np.float32(2.0)), X)["Div"] == ""


@pytest.mark.parametrize("value", [1e5, 1e-9, 1e-6])
def test_a_constant_that_16_bits_do_not_hold_stays_float32(value: float) -> None:
    found = why(convolved("y = Add(c, k)", out="1, 4, 8, 8", k=np.full((4, 1, 1), value, np.float32)), None)
    assert found["Conv"] == ""
    assert "constant 'k'" in found["Add"]


def test_a_limit_that_is_never_met_is_no_obstacle() -> None:
    limits = {"low": np.float32(0), "high": np.finfo(np.float32).max}
    assert why(convolved("y = Clip(c, low, high)", out="1, 4, 8, 8", **limits), X)["Clip"] == ""


def test_weights_that_vanish_stay_float32() -> None:
    proto = model("g (float[1, 8] x) => (float[1, 8] y) { y = MatMul(x, w) }", {"w": weight(8, 8) * np.float32(1e-7)})
    assert "so small" in why(proto, feeds(2, x=(1, 8)))["MatMul"]


@pytest.mark.parametrize(("top", "fits"), [(2048, True), (2049, False)])
def test_integers_are_cast_where_they_are_exact(top: int, fits: bool) -> None:
    text = "g (int64[1, 4] i) => (float[1, 4] y) { x = Cast<to = 1>(i) y = MatMul(x, w) }"
    found = why(model(text, {"w": weight(4, 4)}), [{"i": np.full((1, 4), top, np.int64)}])
    assert (found["Cast"] == "") == fits
    assert found["MatMul"] == ""


def test_without_a_product_or_a_weight_nothing_is_gained() -> None:
    text = "g (float[1, 4] x) => (float[1, 4] y) { s = Softmax(x) r = Relu(s) t = Neg(r) y = Softmax(t) }"
    found = why(model(text), feeds(2, x=(1, 4)))
    assert "its Casts would cost more" in found["Relu"]
    assert "its Casts would cost more" in found["Neg"]
    assert "exponential" in found["Softmax"]


def test_without_data_sums_and_divisions_stay_float32() -> None:
    found = why(convolved("m = ReduceMean<axes = [2, 3]>(c) y = Div(c, m)", out="1, 4, 8, 8"))
    assert found["Conv"] == ""
    assert "unknown without samples" in found["ReduceMean"]
    assert "round to 0" in found["Div"]


def test_an_opset_without_the_type_is_told() -> None:
    proto = convolved("y = Relu(c)", out="1, 4, 8, 8")
    assert why(proto, X, BF16)["Conv"] == "Conv of opset 17 has no bf16"


TURNED = """g (float[2, 3, 4] x) => (float[N, M, 5] y) { h = Add(x, x)  t = Transpose<perm = [1, 0, 2]>(h) BODY }"""


@pytest.mark.parametrize(
    ("body", "half"),
    [("y = MatMul(t, w)", False), ("y0 = MatMul(t, w)  y = Relu(y0)", False), ("r = Relu(t)  y = MatMul(r, w)", True)],
)
def test_a_turned_input_of_a_product_stays_float32(body: str, half: bool) -> None:
    proto = model(TURNED.replace("BODY", body), {"w": weight(4, 5)})
    found = why(proto, feeds(2, x=(2, 3, 4)))
    assert (found["Transpose"] == "") == half
    assert half or "crashes" in found["Transpose"]
    assert found["MatMul"] == ""


def test_every_op_has_one_rule_and_exists() -> None:
    assert not HALF_OPS.keys() & FLOAT_OPS.keys()
    for op in (*HALF_OPS, *FLOAT_OPS):
        assert onnx.defs.has(op), op


def test_noise_of_rounded_constants_is_what_numpy_says() -> None:
    """A kernel that cancels over a channel that hardly varies loses more than its weights do."""
    kernel = np.array([[7.003, -7.001], [3.7, -0.3]], np.float32)
    x = np.array([[100.0, 100.0]], np.float32) + feeds(1, x=(64, 2))[0]["x"] * np.float32(0.01)
    proto = model("g (float[64, 2] x) => (float[64, 2] y) { y = MatMul(x, w) }", {"w": kernel.T.copy()})
    made = loaded(proto)
    node = next(n for _, n in made.walk())
    node.name = "product"
    found = rounding_db(made, {"product"}, FP16, [Sample("", {"x": x})], threads=1)
    exact, rounded = (x.astype(np.float64) @ w.T for w in (kernel, kernel.astype(np.float16)))
    wanted = 10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum())
    assert found["product"] == pytest.approx(wanted, abs=0.1)
    assert wanted < 75


def test_extremes_tell_what_is_not_finite() -> None:
    proto = model("g (float[4] x) => (float[4] y) { a = Log(x) y = Relu(a) }")
    found = spans_of(proto, [{"x": np.array([1, 2, 3, 4], np.float32)}, {"x": np.array([0, 1, 2, 3], np.float32)}])
    assert found["x"] == Span(0.0, 4.0, 4)
    assert found["a"].absmax == np.inf
    nan = spans_of(proto, [{"x": np.array([-1, 1, 2, 3], np.float32)}])
    assert nan["a"].absmax == np.inf
