from collections import Counter

import numpy as np
import onnx
import pytest
from fixture_data import accuracy, fixture
from handmade import HANDMADE, Case
from handmade.core import Feed, feeds, model, vector, weight
from numpy.typing import NDArray
from planned_models import initializers, nodes_of, planned, quantized, run, small, sqnr

from onnxshot.passes.integer_ops_to_float import IntegerOpsToFloat
from onnxshot.passes.quantize_dynamic import QuantizeDynamically
from onnxshot.runtimes.ort_executed import executed

INTEGER = {"DynamicQuantizeLinear": 1, "MatMulInteger": 1, "Cast": 1, "Mul": 2}


def simulated(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """x [.., K] times w [K, N]: x in 8 bits over its own range with 0 in it, w in int8 per column."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    x_scale = np.float32((high - low) / 255)
    zero = int(np.clip(np.rint(-low / x_scale), 0, 255))
    x_q = np.clip(np.rint(x / x_scale) + zero, 0, 255).astype(np.int64)
    w_scale = (np.abs(w).max(axis=0).astype(np.float64) / 127).astype(np.float32)
    w_q = np.clip(np.rint(w / w_scale), -127, 127).astype(np.int64)
    return ((x_q - zero) @ w_q).astype(np.float32) * x_scale * w_scale


def halves(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x in 8 bits over its own range with 0 in it, and what that leaves."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    near = ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)
    return near, x - near


@pytest.mark.parametrize("body", ["y = MatMul(x, w)", "y = Gemm(x, w, b)"])
def test_inputs_in_two_parts(body: str) -> None:
    w, b = weight(64, 96, channel_axis=1), vector(96)
    constants = {"w": w, "b": b} if "b)" in body else {"w": w}
    case = small(f"g (float[6, 64] x) => (float[6, 96] y) {{ {body} }}", constants, x=(6, 64))
    ready, plan = planned(case, mode="dynamic", layers={"*": {"mode": "dynamic16"}})
    assert [p.twice for p in plan.weights.values()] == [True]
    assert not plan.notes
    assert QuantizeDynamically(plan).run(ready).edits == 1
    made = ready.to_proto()
    onnx.checker.check_model(made, full_check=True)
    stored = [v for v in initializers(made).values() if v.ndim == 2]
    assert [(v.dtype.name, v.shape) for v in stored] == [("int8", (64, 96))]
    fused = executed(made.SerializeToString()).ops
    assert fused.get("DynamicQuantizeMatMul", 0) + fused.get("MatMulIntegerToFloat", 0) == 2
    w_scale = (np.abs(w).max(axis=0).astype(np.float64) / 127).astype(np.float32)
    rounded = np.clip(np.rint(w / w_scale), -127, 127) * w_scale
    for feed in case.feeds:
        near, rest = halves(feed["x"])
        expected = simulated(near, w) + simulated(rest, w) + constants.get("b", np.float32(0))
        (found,) = run(made, feed, optimize=True)
        exact = feed["x"] @ rounded + constants.get("b", np.float32(0))
        largest = float(np.abs(exact).max())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * largest)
        np.testing.assert_allclose(found, exact, atol=2e-4 * largest)  # only the weight has an error of 8 bits
        assert float(np.abs(simulated(feed["x"], w) + constants.get("b", np.float32(0)) - exact).max()) > 1e-3 * largest


@pytest.mark.parametrize("body", ["y = MatMul(x, w)", "y = Gemm(x, w, b)"])
def test_inputs_in_two_parts_are_restored_to_one_product(body: str) -> None:
    w, b = weight(64, 96, channel_axis=1), vector(96)
    case = small(f"g (float[6, 64] x) => (float[6, 96] y) {{ {body} }}",
                 {"w": w, "b": b} if "b)" in body else {"w": w}, x=(6, 64))  # fmt: skip
    ready, plan = planned(case, mode="dynamic", layers={"*": {"mode": "dynamic16"}})
    QuantizeDynamically(plan).run(ready)
    (before,) = run(ready.to_proto(), case.feeds[0])
    IntegerOpsToFloat().run(ready)
    ops = Counter(n.op_type for n in ready.to_proto().graph.node)
    assert ops["MatMul"] + ops["Gemm"] == 1
    assert not {"Sub", "DynamicQuantizeLinear", "MatMulInteger", "DequantizeLinear"} & set(ops)
    (after,) = run(ready.to_proto(), case.feeds[0])
    np.testing.assert_allclose(after, before, atol=2e-4 * float(np.abs(before).max()))


def test_layers_of_one_input_share_its_parts() -> None:
    constants = {"w": weight(64, 96, channel_axis=1), "v": weight(64, 32, channel_axis=1)}
    text = "g (float[6, 64] x) => (float[6, 96] y, float[6, 32] z) { y = MatMul(x, w) z = MatMul(x, v) }"
    case = small(text, constants, x=(6, 64))
    ready, plan = planned(case, mode="dynamic", layers={"*": {"mode": "dynamic16"}})
    QuantizeDynamically(plan).run(ready)
    ops = Counter(n.op_type for n in ready.to_proto().graph.node)
    assert (ops["DynamicQuantizeLinear"], ops["MatMulInteger"], ops["DequantizeLinear"]) == (2, 4, 1)


@pytest.mark.parametrize(
    ("body", "shape", "with_bias"),
    [
        ("y = MatMul(x, w)", (2, 6, 64), False),
        ("y = Gemm(x, w)", (6, 64), False),
        ("y = Gemm(x, w, b)", (6, 64), True),
        ("y = Gemm<transB = 1>(x, wt, b)", (6, 64), True),
        ("y = Gemm<transB = 1, beta = 3.0>(x, wt)", (6, 64), False),
    ],
)
def test_products_in_numbers(body: str, shape: tuple[int, ...], with_bias: bool) -> None:
    w, b = weight(64, 96, channel_axis=1), vector(96)
    dims = ", ".join(map(str, shape))
    constants = {"w": w, "wt": np.ascontiguousarray(w.T), "b": b}
    text = f"g (float[{dims}] x) => (float[{dims.replace('64', '96')}] y) {{ {body} }}"
    case = small(text, {k: v for k, v in constants.items() if f"{k}," in body + "," or f"{k})" in body}, x=shape)
    ready, plan = planned(case, mode="dynamic")
    change = QuantizeDynamically(plan).run(ready)
    assert change.edits == 1
    assert change.skips == []
    made = ready.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert Counter(n.op_type for n in made.graph.node) == INTEGER | ({"Add": 1} if with_bias else {})
    stored = [v for v in initializers(made).values() if v.ndim == 2]
    assert [(v.dtype.name, v.shape) for v in stored] == [("int8", (64, 96))]
    for feed in case.feeds:
        expected = simulated(feed["x"], w) + (b if with_bias else np.float32(0))
        for optimize in (False, True):
            (found,) = run(made, feed, optimize=optimize)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    fused = executed(made.SerializeToString()).ops
    assert fused.get("DynamicQuantizeMatMul", 0) + fused.get("MatMulIntegerToFloat", 0) == 1
    assert sqnr(case, made) > 30


def test_an_input_that_several_read_is_quantized_once() -> None:
    text = """g (float[4, 64] x) => (float[4, 64] y) {
        q = MatMul(x, w1)
        k = MatMul(x, w2)
        s = Add(q, k)
        y = MatMul(s, w1)
    }"""
    case = small(text, {"w1": weight(64, 64), "w2": weight(64, 64, seed=1)}, x=(4, 64))
    result, made = quantized(case, mode="dynamic")
    found = Counter(n.op_type for n in made.graph.node)
    assert found["MatMulInteger"] == 3
    assert found["DynamicQuantizeLinear"] == 2, "x once for two, and s"
    assert sum(v.shape == (64, 64) for v in initializers(made).values()) == 2, "w1 is stored once"
    assert result.plan.labels("dynamic") == {"MatMul_q", "MatMul_k", "MatMul_y"}
    assert sqnr(case, made) > 30


def test_per_tensor_weights() -> None:
    case = small("g (float[4, 64] x) => (float[4, 64] y) { y = MatMul(x, w) }", {"w": weight(64, 64)}, x=(4, 64))
    _, made = quantized(case, mode="dynamic", per_channel=False)
    (product,) = nodes_of(made, "MatMulInteger")
    assert initializers(made)[product.input[3]].shape == ()
    assert sqnr(case, made) > 28


def test_convs_and_small_products_stay_float() -> None:
    for name in ("resnet_block", "conv_transpose", "attention_block"):
        result, made = quantized(HANDMADE[name](), mode="dynamic")
        assert not [n for n in made.graph.node if "Integer" in n.op_type]
        assert all(s.reason for s in result.report.skips)
        assert sqnr(HANDMADE[name](), made) > 38, "large weights of float ops are stored in 8 bits"


def branches() -> Case:
    """An If whose branches share a captured weight, the same weight transposed in one, and a Loop that uses it too."""
    text = """g (float[64, 64] x) => (float[64, 64] y) {
        total = ReduceSum<keepdims = 0>(x)
        positive = Greater(total, zero)
        h = If (positive) <
            then_branch = yes () => (float[64, 64] a) { a = MatMul(x, w) },
            else_branch = no () => (float[64, 64] b) { t = Gemm<transB = 1>(x, w) b = Gemm<transB = 1>(t, w) }
        >
        y = Loop (turns, go, h) <
            body = turn (int64 i, bool going, float[64, 64] s) => (bool still, float[64, 64] next) {
                still = Identity(going)
                m = MatMul(s, w)
                next = Sigmoid(m)
            }
        >
    }"""
    constants: Feed = {"w": weight(64, 64), "zero": np.array(0, np.float32), "turns": np.array(2, np.int64)}
    return small(text, constants | {"go": np.array(True)}, x=(64, 64))


def test_subgraphs_share_their_weights() -> None:
    case = branches()
    _, made = quantized(case, mode="dynamic")
    onnx.checker.check_model(made, full_check=True)
    inside: Counter[str] = Counter()
    for node in made.graph.node:
        for attribute in node.attribute:
            inside.update(n.op_type for n in attribute.g.node)
            assert not attribute.g.initializer
    assert (inside["MatMulInteger"], inside["DynamicQuantizeLinear"]) == (4, 4)
    matrices = [v for v in initializers(made).values() if v.shape == (64, 64)]
    assert [v.dtype.name for v in matrices] == ["int8", "int8"], "w, and w transposed, once each"
    assert sqnr(case, made) > 25


# ---------------------------------------------------------------------- LSTM


def lstm(attributes: str = "", slots: str = "", directions: int = 1, **more: NDArray[np.float32]) -> Case:
    """LSTM of 16 inputs and 24 hidden units; `slots` are the inputs after b."""
    text = f"""g (float[5, 2, 16] x) => (float[5, {directions}, 2, 24] y, float[{directions}, 2, 24] h) {{
        y, h = LSTM<hidden_size = 24{attributes}>(x, w, r, b{slots})
    }}"""
    d = directions
    constants: Feed = {"w": weight(d, 96, 16, channel_axis=1), "r": weight(d, 96, 24, channel_axis=1, seed=1)}
    constants["b"] = np.stack([vector(192, seed=i) for i in range(d)])
    return small(text, constants | more, x=(5, 2, 16))


STATE = {"h0": vector(48).reshape(1, 2, 24), "c0": vector(48, 1).reshape(1, 2, 24)}
LSTMS = {
    "plain": lstm(),
    "no bias": Case(
        model(
            "g (float[5, 2, 16] x) => (float[5, 1, 2, 24] y) { y = LSTM<hidden_size = 24>(x, w, r) }",
            {"w": weight(1, 96, 16, channel_axis=1), "r": weight(1, 96, 24, channel_axis=1)},
        ),
        feeds(4, x=(5, 2, 16)),
    ),
    "reverse": lstm(', direction = "reverse"'),
    "bidirectional": lstm(', direction = "bidirectional"', directions=2),
    "sequence_lens": lstm("", ", lens", lens=np.array([5, 3], np.int32)),  # type: ignore[arg-type]
    "initial states": lstm("", ", , h0, c0", **STATE),
    "peephole": lstm("", ", , h0, c0, p", **STATE, p=vector(72)[None]),
    "everything": lstm(
        ', direction = "bidirectional", clip = 3.0, input_forget = 0', ", lens, h0, c0, p", 2,
        lens=np.array([5, 4], np.int32), p=np.stack([vector(72), vector(72, 1)]),  # type: ignore[arg-type]
        h0=vector(96).reshape(2, 2, 24), c0=vector(96, 1).reshape(2, 2, 24),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LSTMS)
def test_an_lstm_becomes_dynamic_quantize_lstm(name: str) -> None:
    case = LSTMS[name]
    ready, plan = planned(case, mode="dynamic")
    assert QuantizeDynamically(plan).run(ready).edits == 1
    made = ready.to_proto()
    (node,) = nodes_of(made, "DynamicQuantizeLSTM")
    assert node.domain == "com.microsoft"
    assert {e.domain: e.version for e in made.opset_import}["com.microsoft"] == 1
    assert len(node.input) == 12
    values = initializers(made)
    directions = values[node.input[1]].shape[0]
    assert [values[node.input[i]].shape for i in (1, 2)] == [(directions, 16, 96), (directions, 24, 96)]
    assert {values[node.input[i]].dtype.name for i in (1, 2)} == {"int8"}
    assert [values[node.input[i]].shape for i in (8, 9, 10, 11)] == [(directions, 96)] * 4
    assert list(made.graph.output) == list(case.model.graph.output)
    assert sqnr(case, made) > 25


def test_rows_of_one_size_share_a_scale_which_is_quicker() -> None:
    rng = np.random.default_rng(0)
    case = lstm(w=rng.uniform(-0.2, 0.2, (1, 96, 16)).astype(np.float32))
    _, made = quantized(case, mode="dynamic")
    (node,) = nodes_of(made, "DynamicQuantizeLSTM")
    values = initializers(made)
    assert [values[node.input[i]].shape for i in (8, 9, 10, 11)] == [(1,), (1,), (1, 96), (1, 96)]
    _, whole = quantized(case, mode="dynamic", per_channel=False)
    (node,) = nodes_of(whole, "DynamicQuantizeLSTM")
    assert [initializers(whole)[node.input[i]].shape for i in (8, 10)] == [(1,), (1,)]
    assert min(sqnr(case, made), sqnr(case, whole)) > 35


def test_the_layout_that_onnx_runtime_does_not_know_stays_float() -> None:
    """DynamicQuantizeLSTM has no attribute 'layout' (LSTM-14, batch first)."""
    text = """g (float[2, 5, 16] x) => (float[2, 5, 1, 24] y) {
        y = LSTM<hidden_size = 24, layout = 1>(x, w, r)
    }"""
    constants = {"w": weight(1, 96, 16, channel_axis=1), "r": weight(1, 96, 24, channel_axis=1)}
    ready, plan = planned(small(text, constants, x=(2, 5, 16)), mode="dynamic")
    change = QuantizeDynamically(plan).run(ready)
    assert change.edits == 0
    assert [s.reason.partition(";")[0] for s in plan.skips] == ["DynamicQuantizeLSTM has no batch-first layout"]
    assert nodes_of(ready.to_proto(), "LSTM")


def test_an_lstm_with_a_computed_weight_stays_float() -> None:
    text = """g (float[5, 2, 16] x, float[1, 96, 24] r) => (float[5, 1, 2, 24] y) {
        y = LSTM<hidden_size = 24>(x, w, r)
    }"""
    case = small(text, {"w": weight(1, 96, 16, channel_axis=1)}, x=(5, 2, 16), r=(1, 96, 24))
    ready, plan = planned(case, mode="dynamic")
    change = QuantizeDynamically(plan).run(ready)
    assert change.edits == 0
    assert "computed" in plan.skips[0].reason


def test_an_lstm_in_fixtures_keeps_its_answers() -> None:
    ready, plan = planned(Case(onnx.load(str(fixture("licence_lstm"))), []), mode="dynamic")
    assert QuantizeDynamically(plan).run(ready).edits == 1
    made = ready.to_proto()
    assert nodes_of(made, "DynamicQuantizeLSTM")
    assert accuracy("licence_lstm", made.SerializeToString()) >= 0.74 - 0.02
