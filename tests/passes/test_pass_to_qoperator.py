from collections import Counter

import numpy as np
import onnx
import pytest
from handmade import HANDMADE
from handmade.core import vector, weight
from planned_models import initializers, nodes_of, quantized, run, small, sqnr

from onnxshot.graph.load import load_model
from onnxshot.passes.to_qoperator import ToQOperator


@pytest.mark.parametrize(
    ("name", "fused", "gone"),
    [
        ("resnet_block", 2, {"Conv"}),
        ("mbconv_block", 3, {"Conv", "Clip"}),
        ("squeeze_excite", 3, {"Conv", "Relu"}),
        ("shared_by_two_convs", 2, {"Conv", "Relu"}),
        ("opset_9", 2, {"Conv", "Clip"}),
    ],
)
def test_convs_become_qlinear_convs(name: str, fused: int, gone: set[str]) -> None:
    case = HANDMADE[name]()
    _, qdq = quantized(case)
    result, made = quantized(case, format="qoperator")
    onnx.checker.check_model(made, full_check=True)
    found = Counter(n.op_type for n in made.graph.node)
    assert found["QLinearConv"] == fused
    assert not gone & set(found)
    assert result.report.recipe["format"] == "qoperator"
    assert list(made.graph.output) == list(qdq.graph.output)
    for feed in case.feeds[:3]:
        for a, b in zip(run(qdq, feed), run(made, feed), strict=True):
            np.testing.assert_allclose(a, b, atol=0.02 * float(np.abs(a).max()))
    assert sqnr(case, made) > 25
    assert sqnr(case, made, optimize=False) == pytest.approx(sqnr(case, qdq, optimize=False), abs=1)


def test_the_bias_is_int32_at_the_scale_of_the_products() -> None:
    case = HANDMADE["resnet_block"]()
    _, made = quantized(case, format="qoperator")
    values = initializers(made)
    for node, name in zip(nodes_of(made, "QLinearConv"), ("b1", "b2"), strict=True):
        x_scale, w_scale = values[node.input[1]], values[node.input[4]]
        assert values[node.input[8]].dtype == np.int32
        source = initializers(case.model)[name]
        real = values[node.input[8]] * (x_scale.astype(np.float64) * w_scale)
        np.testing.assert_allclose(real, source, atol=float((x_scale * w_scale).max()))


def test_a_static_matmul_becomes_qlinear_matmul() -> None:
    text = "g (float[4, 64] x) => (float[4, 64] y) { h = MatMul(x, w) y = MatMul(h, v) }"
    case = small(text, {"w": weight(64, 64), "v": weight(64, 64, seed=1)}, x=(4, 64))
    _, made = quantized(case, format="qoperator", include=("MatMul",))
    assert Counter(n.op_type for n in made.graph.node) == {
        "QuantizeLinear": 1, "QLinearMatMul": 2, "DequantizeLinear": 1,
    }  # fmt: skip
    assert sqnr(case, made) > 28


def test_what_cannot_be_fused_keeps_its_pairs_and_says_why() -> None:
    """Two readers of the Conv's own output: its Relu is no longer part of the Q."""
    text = """g (float[1, 8, 6, 6] x, float[8] c) => (float[1, 8, 6, 6] y) {
        a = Conv(x, w1)
        y = Conv(a, w2, c)
    }"""
    case = small(text, {"w1": weight(8, 8, 1, 1), "w2": weight(8, 8, 1, 1, seed=1)}, x=(1, 8, 6, 6), c=(8,))
    result, made = quantized(case, format="qoperator")
    assert len(nodes_of(made, "QLinearConv")) == 1
    assert len(nodes_of(made, "Conv")) == 1
    (why,) = (s.reason for s in result.report.skips if s.op == "Conv")
    assert why.startswith("its bias is computed at run time")
    assert sqnr(case, made) > 24


def test_a_clip_the_quantization_does_not_repeat_stays() -> None:
    text = """g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) {
        a = Conv(x, w1, b)
        r = Clip(a, low, high)
        y = Conv(r, w2)
    }"""
    constants = {"w1": weight(8, 8, 1, 1), "w2": weight(8, 8, 1, 1, seed=1), "b": vector(8)}
    constants |= {"low": np.array(-0.25, np.float32), "high": np.array(0.25, np.float32)}
    case = small(text, constants, x=(1, 8, 6, 6))
    result, made = quantized(case, format="qoperator")
    assert len(nodes_of(made, "Clip")) == 1
    assert sqnr(case, made) > 25
    assert result.report.skips


def test_a_float_model_is_left_alone() -> None:
    for name in ("resnet_block", "attention_block"):
        loaded = load_model(HANDMADE[name]().model)
        before = loaded.to_proto()
        assert ToQOperator().run(loaded).edits == 0
        assert loaded.to_proto() == before
