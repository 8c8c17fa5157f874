"""Biases of int8 layers as int32: the exact scale, who gets them, what is left float, and the way back."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import Feed, feeds, model, vector, weight
from numpy.typing import NDArray
from onnx import TensorProto
from planned_models import initializers, maker, quantized, run, small, sqnr

import onnxshot
from onnxshot.graph.load import load_model
from onnxshot.passes.store_biases import StoreBiases
from onnxshot.passes.strip_qdq import StripQdq
from onnxshot.rewriting.retarget import retarget
from onnxshot.runtimes.ort_executed import executed
from onnxshot.targets import target_named

NET = """g (float[n, 4, 8, 8] x) => (float[n, 5] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    r = Relu(a)
    c = Conv(r, w2, b2)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    y = Gemm<transB = 1>(f, w3, b3)
}"""
CONSTANTS = {
    "w1": weight(8, 4, 3, 3), "b1": vector(8), "w2": weight(6, 8, 1, 1, seed=1), "b2": vector(6, 1),
    "w3": weight(5, 6, seed=2), "b3": vector(5, 2),
}  # fmt: skip


def net(text: str = NET, **constants: NDArray[Any]) -> Case:
    return small(text, {**CONSTANTS, **constants}, x=(2, 4, 8, 8))


def layers(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm")]


def stored(proto: onnx.ModelProto, layer: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]]:
    """Integers and scale of a layer's bias, which are held against the scales of its input and its weight."""
    known = initializers(proto)
    x, w, b = (maker(proto, name) for name in layer.input)
    assert {x.op_type, w.op_type, b.op_type} == {"DequantizeLinear"}
    assert len(b.input) == 2, "no zero point"
    values, scale = known[b.input[0]], known[b.input[1]]
    assert values.dtype == np.int32
    wanted = np.float32(known[x.input[1]]) * known[w.input[1]]
    assert scale.dtype == np.float32
    assert scale.tobytes() == wanted.astype(np.float32).tobytes(), "the one scale that all runtimes take it to have"
    axis = {a.name: a.i for a in b.attribute}
    assert axis == ({"axis": 0} if scale.ndim else {})
    return values, scale


@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"target": "ort-avx2"}, {"effort": "balanced"}])
def test_every_bias_is_int32_at_the_scale_of_the_products(options: dict[str, Any]) -> None:
    case = net()
    _, made = quantized(case, include=("Gemm",), **options)
    onnx.checker.check_model(made, full_check=True)
    for layer, name in zip(layers(made), ("b1", "b2", "b3"), strict=True):
        values, scale = stored(made, layer)
        if "effort" not in options:  # else it was corrected
            np.testing.assert_array_equal(values, np.rint(CONSTANTS[name] / scale.astype(np.float64)))
    ran = executed(made.SerializeToString())
    assert (ran.ops["QLinearConv"], ran.ops["QGemm"]) == (2, 1)
    assert sqnr(case, made) > 25
    assert sqnr(case, made) == pytest.approx(sqnr(case, made, optimize=False), abs=3)


@pytest.mark.parametrize("target", ["tensorrt", "portable", "openvino"])
def test_other_targets_keep_float_biases(target: str) -> None:
    _, made = quantized(net(), target=target)
    assert TensorProto.INT32 not in {t.data_type for t in made.graph.initializer}
    known = initializers(made)
    assert [known[layer.input[2]].dtype for layer in layers(made)] == [np.float32] * 3


def test_a_bias_that_two_layers_share_gets_the_scale_of_each() -> None:
    text = """g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
        a = Conv(x, w, b)
        y = Conv(a, v, b)
    }"""
    case = net(text, w=weight(4, 4, 1, 1), v=weight(4, 4, 1, 1, seed=5), b=vector(4))
    _, made = quantized(case)
    (one, first), (two, second) = (stored(made, layer) for layer in layers(made))
    assert (first != second).all()
    np.testing.assert_allclose(one * first, two * second, rtol=0, atol=max(first.max(), second.max()))
    assert executed(made.SerializeToString()).ops["QLinearConv"] == 2


def test_a_bias_that_two_layers_share_with_their_scales_is_stored_once() -> None:
    text = """g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y, float[n, 4, 4, 4] z) {
        y = Conv(x, w, b)
        z = Conv<strides = [2, 2]>(x, w, b)
    }"""
    _, made = quantized(net(text, w=weight(4, 4, 1, 1), b=vector(4)))
    assert Counter(t.data_type for t in made.graph.initializer)[TensorProto.INT32] == 1
    for layer in layers(made):
        stored(made, layer)


def test_a_bias_that_does_not_fit_raises_the_scale_of_its_weight() -> None:
    case = net(w1=weight(8, 4, 3, 3) * np.float32(1e-9), b1=vector(8) * 10 + np.float32(20))
    _, made = quantized(case, include=("Gemm",))
    values, _ = stored(made, layers(made)[0])
    assert np.abs(values).max() <= 1 << 30
    assert sqnr(case, made) > 25


def test_channels_whose_weights_are_dead() -> None:
    """All zero, and so small that x_scale * w_scale would be subnormal."""
    w = weight(8, 4, 3, 3)
    w[2], w[5] = 0, w[5] * np.float32(1e-37)
    case = net(w1=w)
    _, made = quantized(case)
    values, scale = stored(made, layers(made)[0])
    assert (scale >= np.finfo(np.float32).tiny).all()
    np.testing.assert_allclose(values[[2, 5]] * scale[[2, 5]], CONSTANTS["b1"][[2, 5]], rtol=1e-6)
    assert sqnr(case, made) > 25


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5)])
def test_every_bias_that_a_gemm_broadcasts(shape: tuple[int, ...]) -> None:
    bias = vector(5, 2).reshape(shape) if 5 in shape else np.full(shape, 0.7, np.float32)
    case = net(b3=bias)
    _, made = quantized(case, include=("Gemm",))
    values, scale = stored(made, layers(made)[-1])
    wanted = np.broadcast_to(bias.reshape(-1), (5,))
    np.testing.assert_allclose(values * scale.astype(np.float64), wanted, rtol=0, atol=scale.max())
    assert executed(made.SerializeToString()).ops["QGemm"] == 1


@pytest.mark.parametrize("attrs", ["alpha = 0.5", "beta = 2.0", "alpha = 2.0, beta = 0.25"])
def test_a_gemm_that_scales_its_bias_answers_right(attrs: str) -> None:
    case = net(NET.replace("transB = 1", f"transB = 1, {attrs}"))
    _, made = quantized(case, include=("Gemm",))
    assert sqnr(case, made) > 25


@pytest.mark.parametrize("how", ["Identity", "Constant"])
def test_a_bias_behind_nodes_that_make_it(how: str) -> None:
    constant = "Constant<value = float[8] {1, -1, 0.5, 0.25, 0, 2, -0.125, 3}>()"
    text = NET.replace("a = Conv", f"b0 = {'Identity(b1)' if how == 'Identity' else constant}\n a = Conv")
    case = net(text.replace("(x, w1, b1)", "(x, w1, b0)"))
    _, made = quantized(case)
    stored(made, layers(made)[0])
    assert sqnr(case, made) > 25


def test_a_bias_that_is_computed_stays_float() -> None:
    text = NET.replace("a = Conv", "m = ReduceMean<axes = [0, 2, 3], keepdims = 0>(x)\n a = Conv").replace("b1)", "m)")
    _, made = quantized(small(text, {**CONSTANTS, "w1": weight(4, 4, 3, 3), "w2": weight(6, 4, 1, 1)}, x=(2, 4, 8, 8)))
    assert maker(made, layers(made)[0].input[2]).op_type == "ReduceMean"
    stored(made, layers(made)[1])


def test_layers_that_stay_float_keep_their_biases() -> None:
    _, made = quantized(net(), exclude=("a",))
    known = initializers(made)
    first, second, _ = layers(made)
    np.testing.assert_array_equal(known[first.input[2]], CONSTANTS["b1"])
    stored(made, second)


def test_a_bias_beyond_int32_is_left_and_named() -> None:
    text = """g (float[1, 4, 3, 3] x) => (float[1, 4, 3, 3] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear<axis = 0>(w, ws)
        y = Conv(d, wd, b)
    }"""
    constants: Feed = {"s": np.array(1e-3, np.float32), "z": np.array(3, np.uint8), "ws": np.full(4, 1e-4, np.float32)}
    constants |= {"w": np.ones((4, 4, 1, 1), np.int8), "b": np.array([1, 2, 3, 200], np.float32)}
    given = load_model(model(text, constants))
    change = StoreBiases().run(given)
    assert change.edits == 0
    (skip,) = change.skips
    assert "does not fit int32" in skip.reason
    assert given.to_proto().SerializeToString() == load_model(model(text, constants)).to_proto().SerializeToString()


def test_a_scale_by_input_channel_is_none_that_a_bias_can_have() -> None:
    text = """g (float[1, 4, 3, 3] x) => (float[1, 4, 3, 3] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear<axis = 1>(w, ws)
        y = Conv(d, wd, b)
    }"""
    constants: Feed = {"s": np.array(1e-2, np.float32), "z": np.array(3, np.uint8), "ws": vector(4, 0, 0.1, 0.2)}
    constants |= {"w": np.ones((4, 4, 1, 1), np.int8), "b": vector(4)}
    assert StoreBiases().run(load_model(model(text, constants))).edits == 0


def test_the_float_biases_come_back_when_the_pairs_are_taken_out() -> None:
    case = net()
    result, made = quantized(case, include=("Gemm",))
    scales = [stored(made, layer)[1] for layer in layers(made)]
    assert not StripQdq().run(result.model).skips
    back = result.model.to_proto()
    known = initializers(back)
    for layer, scale, name in zip(layers(back), scales, ("b1", "b2", "b3"), strict=True):
        off = np.abs(known[layer.input[2]] - CONSTANTS[name])
        assert (off <= scale * 0.5001).all()


def test_completing_what_was_quantized_gives_the_same_integers() -> None:
    case = net()
    _, made = quantized(case, include=("Gemm",))
    again = onnxshot.quantize(made, complete=True, effort="fast", include=("Gemm",)).model.to_proto()
    for before, after in zip(layers(made), layers(again), strict=True):
        for a, b in zip(stored(made, before), stored(again, after), strict=True):
            np.testing.assert_array_equal(a, b)


def test_for_tensorrt_they_become_float_again_and_int32_again_for_onnx_runtime() -> None:
    case = net()
    _, made = quantized(case, include=("Gemm",), activation_type="int8")
    there = load_model(made)
    retarget(there, target_named("tensorrt"))
    moved = there.to_proto()
    assert TensorProto.INT32 not in {t.data_type for t in moved.graph.initializer}
    assert [initializers(moved)[layer.input[2]].dtype for layer in layers(moved)] == [np.float32] * 3
    retarget(there, target_named("ort"))
    back = there.to_proto()
    for before, after in zip(layers(made), layers(back), strict=True):
        for a, b in zip(stored(made, before), stored(back, after), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_foreign_bias_of_another_scale_gets_the_right_one() -> None:
    """QGemm takes every int32 bias to have the scale x_scale * w_scale, and answers wrongly without a word."""
    text = """g (float[2, 8] x) => (float[2, 4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear(w, s, wz)
        bd = DequantizeLinear(b, bs)
        g = Gemm(d, wd, bd)
        gq = QuantizeLinear(g, s, z)
        y = DequantizeLinear(gq, s, z)
    }"""
    constants: dict[str, Any] = {"s": np.float32(0.05), "z": np.uint8(128), "bs": np.float32(0.02), "wz": np.int8(0)}
    constants |= {"w": np.eye(8, 4, dtype=np.int8), "b": np.array([100, -50, 20, 0], np.int32)}
    proto = model(text, constants)
    given = load_model(proto)
    retarget(given, target_named("ort"))
    made = given.to_proto()
    values, _ = stored(made, layers(made)[0])
    np.testing.assert_array_equal(values, [800, -400, 160, 0])
    (feed,) = feeds(1, x=(2, 8))
    np.testing.assert_allclose(run(made, feed)[0], run(proto, feed, optimize=False)[0], atol=0.051)


def test_zero_points_that_say_nothing_are_left_out_of_convs_alone() -> None:
    """A QGemm whose weight has none fails when it runs, up to ONNX Runtime 1.26."""
    _, made = quantized(net(), include=("Gemm",))
    assert [len(maker(made, layer.input[1]).input) for layer in layers(made)] == [2, 2, 3]
    _, unsigned = quantized(net(), include=("Gemm",), weight_type="uint8")
    assert [len(maker(unsigned, layer.input[1]).input) for layer in layers(unsigned)] == [3, 3, 3]


def test_a_zero_point_is_stored_once() -> None:
    _, made = quantized(net(), include=("Gemm",), activation_type="int8")
    zeros = [t for t in made.graph.initializer if "zero_point" in t.name and not t.dims]
    assert len({(t.data_type, t.raw_data) for t in zeros}) == len(zeros)


def test_the_files_names_stay_unique_where_a_node_has_the_name_of_a_bias() -> None:
    case = net()
    case.model.graph.node[1].name = "b1"
    _, made = quantized(case)
    names = [node.name for node in made.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    stored(made, layers(made)[0])


def test_the_report_of_a_difference_and_a_comparison_take_such_a_file(tmp_path: Path) -> None:
    case = net()
    result, made = quantized(case, include=("Gemm",))
    given, written = tmp_path / "net.onnx", result.save(tmp_path / "net.int8.onnx")
    onnx.save(case.model, given)
    rows = onnxshot.diff(given, written).to_dict()["layers"]
    assert {row["node"] for row in rows} >= {layer.name for layer in layers(made)}
    found = onnxshot.compare(given, written, case.feeds).to_dict()
    assert found["sqnr_db"] > 25


@pytest.mark.parametrize("readers", [1, 2])
def test_a_bias_that_the_model_gives_out_keeps_its_name_and_its_floats(readers: int) -> None:
    second = "c = Conv<pads = [1, 1, 1, 1]>(a, v, b)" if readers == 2 else "c = Relu(a)"
    text = f"""g (float[n, 8, 6, 6] x) => (float[n, 4, 6, 6] y, float[8] b) {{
        a = Conv(x, w, b) {second} y = Conv(c, u)
    }}"""
    constants = {"w": weight(8, 8, 1, 1), "v": weight(8, 8, 3, 3, seed=1), "u": weight(4, 8, 1, 1), "b": vector(8)}
    case = small(text, constants, x=(1, 8, 6, 6))
    _, proto = quantized(case)
    assert executed(proto.SerializeToString()).ops["QLinearConv"] == 1 + readers
    y, b = run(proto, case.feeds[0])
    assert np.array_equal(b, constants["b"])
    _, alone = quantized(small(text.replace(", float[8] b", ""), constants, x=(1, 8, 6, 6)))
    assert np.array_equal(y, run(alone, case.feeds[0])[0])
    assert sqnr(case, proto) > 25
    for layer in layers(proto):
        if len(layer.input) > 2:
            stored(proto, layer)
