"""Models that ONNX's checker refuses and ONNX Runtime runs: operators that stand in the default domain there."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade.core import model, vector, weight
from pass_checks import outputs
from planned_models import FAST

from onnxshot import quantize
from onnxshot.errors import ModelError
from onnxshot.graph.load import load_model
from onnxshot.graph.opset_upgrade import raise_opset
from onnxshot.passes.expand_simplified_norm import ExpandSimplifiedNorm


def _mlp(op: str, opset: int) -> onnx.ModelProto:
    bias = ", b" if op == "LayerNormalization" else ""
    norm = f"m = {op}<axis = -1, epsilon = 0.001>(h, g{bias})"
    text = f"g (float[n, 64] x) => (float[n, 96] y) {{ h = MatMul(x, w) {norm}"
    constants = {"w": weight(64, 256), "g": vector(256, 1), "b": vector(256, 2), "v": weight(256, 96)}
    return model(f"{text} y = MatMul(m, v) }}", constants, opset=opset)


@pytest.mark.parametrize(
    ("op", "opset"),
    [("LayerNormalization", 11), ("LayerNormalization", 16), ("SimplifiedLayerNormalization", 13),
     ("SimplifiedLayerNormalization", 20)],
)  # fmt: skip
def test_norms_of_the_runtime_are_read_and_their_neighbours_quantized(op: str, opset: int, tmp_path: Path) -> None:
    proto = _mlp(op, opset)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32)} for i in range(6)]
    result = quantize(proto, feeds, output=tmp_path / "y.onnx", effort="fast", mode="dynamic")
    written = onnx.load(tmp_path / "y.onnx")
    found = [node.op_type for node in written.graph.node]
    assert (found.count("MatMulInteger"), found.count(op), found.count("MatMul")) == (2, 1, 0)
    (expected,), (got,) = outputs(proto, feeds[0]), outputs(written, feeds[0])
    noise = 10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum())
    assert noise == pytest.approx(result.report.sqnr_db, abs=3)


@pytest.mark.parametrize("op", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_raised_by_hand_where_the_converter_does_not_know_them(op: str) -> None:
    proto, feed = _mlp(op, 11), {"x": np.ones((2, 64), np.float32)}
    after = load_model(proto)
    raise_opset(after, 17)
    assert after.opset == 17
    np.testing.assert_allclose(outputs(after.to_proto(), feed)[0], outputs(proto, feed)[0], rtol=1e-5, atol=1e-6)


def test_an_operator_that_no_one_knows_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"No Op registered for Frobnicate"):
        load_model(model("g (float[n] x) => (float[n] y) { y = Frobnicate(x) }"))


def test_domains_that_are_not_imported_are_those_that_the_runtime_knows() -> None:
    text = 'g (float[n, 8] x) => (float[n, 8] y) { y = ai.onnx.ml.Normalizer<norm = "L2">(x) }'
    proto, feed = model(text), {"x": np.arange(16, dtype=np.float32).reshape(2, 8)}
    with pytest.raises(onnx.checker.ValidationError, match="No opset import"):
        onnx.checker.check_model(proto)
    loaded = load_model(proto)
    np.testing.assert_array_equal(outputs(loaded.to_proto(), feed)[0], outputs(proto, feed)[0])
    with pytest.raises(ModelError, match=r"'my\.own'"):
        load_model(model(text.replace('ai.onnx.ml.Normalizer<norm = "L2">', "my.own.Foo")))


def test_what_the_checker_refuses_and_the_runtime_loads_is_read_with_a_note() -> None:
    proto = _mlp("Relu", 17)
    proto.graph.node[1].CopyFrom(onnx.helper.make_node("Relu", ["h"], ["m"]))
    proto.graph.output[0].ClearField("type")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32)} for i in range(4)]
    result = quantize(proto, feeds, effort="fast")
    assert any("ONNX's checker reports" in note for note in result.report.notes)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 25


def test_nodes_in_any_order_are_read_in_theirs() -> None:
    text = """g (float[n, 8] x, bool c) => (float[n, 8] y) {
        y = Relu(z)
        z = If (c) <then_branch = a () => (float p) { p = Exp(b) }, else_branch = e () => (float q) { q = Neg(b) }>
        b = Abs(x)
    }"""
    proto, feed = model(text), {"x": np.ones((1, 8), np.float32), "c": np.array(True)}
    loaded = load_model(proto)
    assert [node.op for node in loaded.graph.nodes] == ["Abs", "If", "Relu"]
    np.testing.assert_array_equal(outputs(loaded.to_proto(), feed)[0], outputs(proto, feed)[0])
    cycle = model("g (float[n, 8] x) => (float[n, 8] y) { y = Add(x, z) z = Abs(y) }")
    with pytest.raises(ModelError, match="form a cycle"):
        load_model(cycle)


@pytest.mark.parametrize("opset", [13, 20])
def test_a_norm_of_the_runtime_alone_is_spelt_out_for_others(opset: int) -> None:
    proto, feed = _mlp("SimplifiedLayerNormalization", opset), {"x": np.ones((2, 64), np.float32)}
    after = load_model(proto)
    assert ExpandSimplifiedNorm().run(after).edits == 1
    made = after.to_proto()
    onnx.checker.check_model(made)
    np.testing.assert_allclose(outputs(made, feed)[0], outputs(proto, feed)[0], rtol=1e-5, atol=1e-6)
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32)} for i in range(4)]
    for target, spelt in (("tensorrt", True), ("ort", False)):
        written = quantize(proto, feeds, target=target, effort="fast", settings=FAST).model
        assert any(node.op == "SimplifiedLayerNormalization" for _, node in written.walk()) != spelt
