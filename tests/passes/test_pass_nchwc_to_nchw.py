"""Files that ONNX Runtime saved after optimizing, in the layout of this machine's CPU, against their sources."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import feeds, model, vector, weight
from pass_checks import ops, outputs

from onnxshot import quantize
from onnxshot.graph.load import load_model
from onnxshot.passes.nchwc_to_nchw import DOMAIN, NchwcToNchw
from onnxshot.passes.normalize import normalize
from onnxshot.settings import Settings

_RESIDUAL = """g (float[n, 3, 32, 32] x) => (float[n, 12, 8, 8] y) {
    a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0, b0) r = Relu(a)
    d = Conv<pads = [1, 1, 1, 1], group = 24>(r, w1, b1) c = Clip(d, zero, six)
    p = Conv(c, w2, b2) s = Add(r, p) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(s)
    e = Conv<pads = [1, 1, 1, 1]>(m, w3) f = Sigmoid(e)
    v = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(f) y = Conv(v, w4)
}"""
_CONCAT = """g (float[n, 16, 8, 8] x) => (float[n, 20, 32, 32] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w0) r = Relu(a) c = Conv(x, w1) k = Concat<axis = 1>(r, c)
    d = Conv(k, w2) u = Resize<mode = "nearest", nearest_mode = "floor",
        coordinate_transformation_mode = "asymmetric">(d, empty, twice)
    e = Conv(u, w3) z = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(e, empty, twice)
    y = Conv(z, w4)
}"""
_LAST = """g (float[n, 16, 16, 3] x) => (float[n, 12, 12, 20] y) {
    t = Transpose<perm = [0, 3, 1, 2]>(x) a = Conv(t, w0) r = Relu(a) b = Conv(r, w1)
    l = LeakyRelu<alpha = 0.2>(b) y = Transpose<perm = [0, 2, 3, 1]>(l)
}"""
MODELS = {
    "residual": (
        _RESIDUAL,
        {
            "w0": weight(24, 3, 3, 3), "b0": vector(24, 1), "w1": weight(24, 1, 3, 3), "b1": vector(24, 2),
            "w2": weight(24, 24, 1, 1), "b2": vector(24, 3), "w3": weight(40, 24, 3, 3), "w4": weight(12, 40, 1, 1),
            "zero": np.zeros((), np.float32), "six": np.array(6, np.float32),
        },
        (2, 3, 32, 32),
    ),
    "concat": (
        _CONCAT,
        {
            "w0": weight(32, 16, 3, 3), "w1": weight(16, 16, 1, 1), "w2": weight(64, 48, 1, 1),
            "w3": weight(32, 64, 1, 1), "w4": weight(20, 32, 1, 1), "empty": np.zeros(0, np.float32),
            "twice": np.array([1, 1, 2, 2], np.float32),
        },
        (1, 16, 8, 8),
    ),
    "channels last": (_LAST, {"w0": weight(20, 3, 3, 3), "w1": weight(20, 20, 3, 3)}, (1, 16, 16, 3)),
}  # fmt: skip


def _saved(proto: onnx.ModelProto, place: Path) -> onnx.ModelProto:
    """What ONNX Runtime writes of a model after all its optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(place)
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    saved = onnx.load(place)
    if all(node.domain != DOMAIN for node in saved.graph.node):
        pytest.skip("this machine has no blocked layout")
    return saved


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", MODELS)
def test_what_was_blocked_is_what_it_was(name: str, opset: int, tmp_path: Path) -> None:
    text, constants, shape = MODELS[name]
    proto = model(text, constants, opset=opset)
    saved = _saved(proto, tmp_path / "saved.onnx")
    before, after = load_model(proto), load_model(saved)
    normalize(before)
    normalize(after)
    assert ops(after) == ops(before)
    assert after.weight_bytes() - before.weight_bytes() <= 16  # scales that two share, of which now each has its own
    for feed in feeds(2, x=shape):
        found = outputs(after.to_proto(), feed)[0]
        np.testing.assert_allclose(found, outputs(saved, feed)[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found, outputs(proto, feed)[0], rtol=1e-5, atol=1e-5)


def test_filters_are_unblocked_by_either_size(tmp_path: Path) -> None:
    text = "g (float[1, 32, 4, 4] x) => (float[1, 48, 4, 4] y) { y = Conv(x, w) }"
    w = weight(48, 32, 1, 1)
    saved = _saved(model(text, {"w": w}), tmp_path / "saved.onnx")
    after = load_model(saved)
    normalize(after)
    (conv,) = (node for _, node in after.walk() if node.op == "Conv")
    np.testing.assert_array_equal(conv.inputs[1].values, w)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("activation", ["Tanh", "Sigmoid"])
def test_a_blocked_conv_with_an_activation(activation: str, opset: int, tmp_path: Path) -> None:
    text = """g (float[1, 16, 6, 6] x) => (float[1, 20, 6, 6] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w0) r = Relu(a) d = Conv<group = 24, pads = [1, 1, 1, 1]>(r, w1) s = Relu(d)
        y = Conv(s, w2) }"""
    constants = {"w0": weight(24, 16, 3, 3), "w1": weight(24, 1, 3, 3), "w2": weight(20, 24, 1, 1)}
    saved = _saved(model(text, constants, opset=opset), tmp_path / "saved.onnx")
    changed = [a for n in saved.graph.node for a in n.attribute if a.name == "activation" and a.s == b"Relu"]
    for attribute in changed:
        attribute.s = activation.encode()
    assert len(changed) == 2
    after = load_model(saved)
    normalize(after)
    assert all(node.domain != DOMAIN for _, node in after.walk())
    feed = {"x": 4 * feeds(1, x=(1, 16, 6, 6))[0]["x"]}
    np.testing.assert_allclose(outputs(after.to_proto(), feed)[0], outputs(saved, feed)[0], rtol=1e-5, atol=1e-5)


def test_an_activation_that_is_not_known_is_named() -> None:
    text = """g (float[1, 16, 4, 4] x) => (float[1, 16, 4, 4] y) {
        b = com.microsoft.nchwc.ReorderInput(x) c = com.microsoft.nchwc.Conv<activation = "Wavy">(b, w)
        y = com.microsoft.nchwc.ReorderOutput<channels = 16>(c)
    }"""
    after = load_model(model(text, {"w": weight(16, 16, 1, 1)}, imports=f', "{DOMAIN}": 1'))
    change = NchwcToNchw().run(after)
    assert change.edits == 0
    assert [skip.reason for skip in change.skips] == ["its activation 'Wavy' has no standard form here"]


def test_what_is_not_understood_stays_with_its_neighbours() -> None:
    text = """g (float[1, 16, 4, 4] x) => (float[1, 16, 4, 4] y) {
        b = com.microsoft.nchwc.ReorderInput(x) c = com.microsoft.nchwc.Conv(b, w) t = Softmax(c)
        y = com.microsoft.nchwc.ReorderOutput<channels = 16>(t)
    }""".replace("t = Softmax(c)", "t, u = Dropout(c)")
    proto = model(text, {"w": weight(16, 16, 1, 1)}, imports=f', "{DOMAIN}": 1')
    after = load_model(proto)
    change = NchwcToNchw().run(after)
    assert change.edits == 0
    assert "it reads a blocked tensor" in change.skips[0].reason
    assert sum(node.domain == DOMAIN for _, node in after.walk()) == 3


@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_an_optimized_file_is_quantized_like_its_source(level: str, tmp_path: Path) -> None:
    text, constants, shape = MODELS["residual"]
    proto = model(text, constants)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "saved.onnx")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    calib = feeds(4, x=shape)
    untimed = Settings(search_seconds=0)  # no other result is taken, by how fast it is
    done = quantize(tmp_path / "saved.onnx", calib, output=tmp_path / "q.onnx", effort="fast", settings=untimed).report
    same = quantize(proto, calib, output=tmp_path / "same.onnx", effort="fast", settings=untimed).report
    assert done.sqnr_db == pytest.approx(same.sqnr_db, abs=1)
    found, expected = (
        Counter(node.op_type for node in onnx.load(tmp_path / name).graph.node) for name in ("q.onnx", "same.onnx")
    )
    assert found == expected
