"""Weights of ops in float are stored in 8 bits at no cost of time: they are float once the file is loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import Feed, feeds, model, vector, weight
from numpy.typing import NDArray
from planned_models import FAST, PROVEN, initializers, maker, nodes_of, planned, run, small, sqnr

import onnxshot
from onnxshot.maths.affine import INT8
from onnxshot.maths.multi_axis_scales import scales_along
from onnxshot.runtimes.ort_executed import executed

X = (4, 2, 24)
ROWS: dict[str, tuple[str, Feed, tuple[int, ...], tuple[int, ...]]] = {  # body, constants, shape of x, axes with scales
    "ConvTranspose": (
        "y = ConvTranspose<strides = [2, 2]>(x, w)", {"w": weight(16, 16, 3, 3)}, (1, 16, 6, 6), (1,)
    ),
    "ConvTranspose in 1 dimension": ("y = ConvTranspose(x, w)", {"w": weight(16, 16, 8)}, (1, 16, 9), (1,)),
    "grouped ConvTranspose": ("y = ConvTranspose<group = 2>(x, w)", {"w": weight(16, 8, 3, 3)}, (1, 16, 6, 6), (1,)),
    "GRU": ("y = GRU<hidden_size = 32>(x, w, r)", {"w": weight(1, 96, 24), "r": weight(1, 96, 32)}, X, (0, 1)),
    "GRU, two directions": (
        'y = GRU<hidden_size = 32, direction = "bidirectional", linear_before_reset = 1>(x, w, r)',
        {"w": weight(2, 96, 24), "r": weight(2, 96, 32)}, X, (0, 1),
    ),
    "RNN": ("y = RNN<hidden_size = 64>(x, w, r)", {"w": weight(1, 64, 24), "r": weight(1, 64, 64)}, X, (0, 1)),
    "a small product": ("y = MatMul(x, w)", {"w": weight(24, 48)}, X, (1,)),
    "a table read along its columns": (
        "y = Gather<axis = 1>(w, i) z = Add(x, one)", {"w": weight(64, 256)}, (2,), (0,)
    ),
}  # fmt: skip


def net(body: str, constants: Feed, shape: tuple[int, ...], **more: Any) -> onnx.ModelProto:
    inputs = f"float[{', '.join(map(str, shape))}] x" + (", int64[2] i" if "Gather" in body else "")
    extra = {"one": np.ones(1, np.float32)} if "one" in body else {}
    proto = model(f"g ({inputs}) => (float y) {{ {body} }}", constants | extra, **more)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def data(body: str, shape: tuple[int, ...], count: int = 6) -> list[Feed]:
    given = feeds(count, x=shape)
    return [feed | {"i": np.array([3, 7])} if "Gather" in body else feed for feed in given]


@pytest.mark.parametrize("name", ROWS)
def test_what_stays_float_is_stored_in_8_bits(name: str) -> None:
    body, constants, shape, axes = ROWS[name]
    proto, given = net(body, constants, shape), data(body, shape)
    result = onnxshot.quantize(proto, given, settings=FAST)
    made, values = result.model.to_proto(), initializers(result.model.to_proto())
    (op,) = (n for n in made.graph.node if n.op_type in ("ConvTranspose", "GRU", "RNN", "MatMul", "Gather"))
    slots = [i for i, name in enumerate(op.input) if name not in ("x", "i")]
    for slot, source in zip(slots, constants.values(), strict=True):
        scale = maker(made, op.input[slot])
        cast = maker(made, scale.input[0])
        assert (scale.op_type, cast.op_type) == ("Mul", "Cast")
        summed = tuple(i for i in range(source.ndim) if i not in axes)
        wanted = np.abs(source).max(axis=summed, keepdims=True) / 127
        np.testing.assert_allclose(values[scale.input[1]], wanted, rtol=1e-6)
        assert values[cast.input[0]].dtype == np.int8
        np.testing.assert_array_equal(values[cast.input[0]], np.rint(source / wanted.astype(np.float32)))
    reasons = {s.op: s.reason for s in result.report.skips}
    assert reasons[op.op_type].endswith("its weight is stored in 8 bits")
    assert made.ByteSize() < 0.65 * proto.ByteSize()
    ran = executed(made.SerializeToString()).ops
    assert not {"Cast", "DequantizeLinear"} & set(ran), "ONNX Runtime computes them when it loads the file"
    for feed in given[:2]:
        (a,), (b,) = run(proto, feed), run(made, feed)
        assert np.square(a - b).sum() < 10**-3.5 * np.square(a).sum()
        np.testing.assert_allclose(b, run(made, feed, optimize=False)[0], rtol=1e-4, atol=1e-4)


def test_a_transposed_convolution_between_int8_ops_runs_in_float() -> None:
    """It is no float initializer, so that nothing between DQ and Q gives ONNX Runtime a reason to quantize it."""
    text = """g (float[1, 16, 8, 8] x) => (float[1, 16, 16, 16] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) r = Relu(a)
        t = ConvTranspose<strides = [2, 2], kernel_shape = [2, 2]>(r, w2, b2) s = Relu(t)
        y = Conv<pads = [1, 1, 1, 1]>(s, w3, b3)
    }"""
    constants = {"w1": weight(16, 16, 3, 3), "w2": weight(16, 16, 2, 2), "w3": weight(16, 16, 3, 3, seed=1)}
    case = small(text, constants | {f"b{i}": vector(16) for i in (1, 2, 3)}, x=(1, 16, 8, 8))
    result = onnxshot.quantize(case.model, case.feeds, settings=PROVEN, effort="fast")
    made = result.model.to_proto()
    assert result.report.int8_unplanned == []
    ran = executed(made.SerializeToString()).ops
    assert (ran["QLinearConv"], ran["ConvTranspose"]) == (2, 1)
    assert result.report.float_weights == []
    assert sqnr(case, made) > 25


def shared(readers: str) -> onnx.ModelProto:
    text = f"""g (float[4, 2, 24] x) => (float[4, 1, 2, 32] y, float[4, 1, 2, 32] z) {{
        [first] y = GRU<hidden_size = 32>(x, w, r) {readers}
    }}"""
    return model(text, {"w": weight(1, 96, 24), "r": weight(1, 96, 32)})


@pytest.mark.parametrize("name", ["ConvTranspose", "GRU", "RNN", "a small product"])
def test_fixed_sizes_leave_weights_in_8_bits(name: str) -> None:
    body, constants, shape, _ = ROWS[name]
    proto, given = net(body, constants, shape), data(body, shape)
    free = onnx.ModelProto()
    free.CopyFrom(proto)
    free.graph.input[0].type.tensor_type.shape.dim[-2].dim_param = "N"
    for source, shapes in ((proto, {}), (free, {"x": shape})):
        result = onnxshot.quantize(source, given, settings=FAST, shapes=shapes)
        made = result.model.to_proto()
        floats = {t.name: t for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
        largest = max(np.prod(t.dims) for t in floats.values())
        assert largest < min(values.size for values in constants.values()), "no weight is stored in float"
        (a,), (b,) = run(proto, given[0]), run(made, given[0])
        assert np.square(a - b).sum() < 10**-3.5 * np.square(a).sum()


def test_a_weight_that_two_read_is_stored_once() -> None:
    proto = shared("[second] n = Neg(x) z = GRU<hidden_size = 32>(n, w, r)")
    result = onnxshot.quantize(proto, feeds(4, x=X), settings=FAST)
    kinds = [v.dtype.name for v in initializers(result.model.to_proto()).values() if v.size >= 1024]
    assert sorted(kinds) == ["int8", "int8"]


def test_a_weight_that_is_kept_in_float_for_another_is_not_stored_twice() -> None:
    proto = shared("[second] n = Neg(x) z = GRU<hidden_size = 32>(n, w, r)")
    result = onnxshot.quantize(proto, feeds(4, x=X), exclude=("GRU_z",), settings=FAST)
    kinds = [v.dtype.name for v in initializers(result.model.to_proto()).values() if v.size >= 1024]
    assert sorted(kinds) == ["float32", "float32"]
    assert not any("stored in 8 bits" in s.reason for s in result.report.skips)


def test_a_weight_that_is_given_out_stays() -> None:
    text = """g (float[4, 2, 24] x) => (float[4, 1, 2, 32] y, float[1, 96, 24] w) {
        y = GRU<hidden_size = 32>(x, w, r)
    }"""
    proto = model(text, {"w": weight(1, 96, 24), "r": weight(1, 96, 32)})
    result = onnxshot.quantize(proto, feeds(4, x=X), settings=FAST)
    feed = feeds(1, x=X)[0]
    np.testing.assert_array_equal(run(proto, feed)[1], run(result.model.to_proto(), feed)[1])


@pytest.mark.parametrize("options", [{"exclude": ("GRU",)}, {"precision": "int8+fp16"}, {"target": "tensorrt"}])
def test_what_was_left_out_or_goes_elsewhere_is_not_stored(options: dict[str, Any]) -> None:
    body, constants, shape, _ = ROWS["GRU"]
    ready, plan = planned(small(f"g (float[4, 2, 24] x) => (float[4, 1, 2, 32] y) {{ {body} }}", constants, x=shape),
                          **options)  # fmt: skip
    assert plan.stored == {}
    assert ready.graph.nodes


def test_weights_inside_a_branch_are_folded_in_the_outer_graph() -> None:
    text = """g (float[4, 2, 24] x, bool c) => (float[4, 1, 2, 32] y) {
        y = If (c) <
            then_branch = yes () => (float[4, 1, 2, 32] a) { a = GRU<hidden_size = 32>(x, w, r) },
            else_branch = no () => (float[4, 1, 2, 32] b) { b = GRU<hidden_size = 32>(x, w2, r) }
        >
    }"""
    constants = {"w": weight(1, 96, 24), "r": weight(1, 96, 32), "w2": weight(1, 96, 24, seed=1)}
    proto = model(text, constants)
    given = [feed | {"c": np.array(c)} for feed, c in zip(feeds(4, x=X), (True, False) * 2, strict=True)]
    made = onnxshot.quantize(proto, given, settings=FAST).model.to_proto()
    assert [n.op_type for n in made.graph.node].count("Cast") == 3
    assert not any(a.g.initializer for n in made.graph.node for a in n.attribute)
    for feed in given:
        (a,), (b,) = run(proto, feed), run(made, feed)
        assert np.square(a - b).sum() < 10**-3.5 * np.square(a).sum()


def test_convolutions_that_a_dynamic_run_leaves_in_float_make_the_file_a_quarter() -> None:
    text = """g (float[1, 32, 8, 8] x) => (float[1, 64, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1) r = Relu(a) y = Conv<pads = [1, 1, 1, 1]>(r, w2)
    }"""
    case = small(text, {"w1": weight(64, 32, 3, 3), "w2": weight(64, 64, 3, 3)}, x=(1, 32, 8, 8))
    result = onnxshot.quantize(case.model, mode="dynamic", settings=FAST)
    assert result.model.to_proto().ByteSize() < 0.27 * case.model.ByteSize()
    assert not any("nothing was quantized" in note for note in result.report.notes)
    assert {row.how for row in result.report.graph if row.op == "Conv"} == {"weights"}
    assert "nothing was quantized" not in result.report.verdict.reasons
    assert sqnr(case, result.model.to_proto()) > 38


def test_openvino_reads_them() -> None:
    openvino = pytest.importorskip("openvino")
    body, constants, shape, _ = ROWS["GRU"]
    proto, given = net(body, constants, shape), data(body, shape)
    proto.graph.output[0].type.tensor_type.shape.SetInParent()
    made = onnxshot.quantize(proto, given, target="openvino", settings=FAST).model.to_proto()
    assert [n.op_type for n in made.graph.node].count("Cast") == 2
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(made.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for feed in given[:2]:
        (a,) = run(proto, feed)
        assert np.square(a - compiled(feed)[0]).sum() < 10**-3.5 * np.square(a).sum()


@pytest.mark.parametrize("axes", [(), (0,), (2,), (0, 2), (0, 1)])
def test_scales_along_several_axes(axes: tuple[int, ...]) -> None:
    w: NDArray[np.float32] = weight(3, 5, 7, channel_axis=2)
    w[1] = 0
    found = scales_along(w, axes, INT8)
    summed = tuple(i for i in range(3) if i not in axes)
    assert found.scale.shape == tuple(1 if i in summed else n for i, n in enumerate(w.shape))
    restored = found.quantize(w).astype(np.float32) * found.scale
    assert (np.abs(restored - w) <= 0.5001 * found.scale).all()
    largest = np.abs(w).max(axis=summed, keepdims=True)
    np.testing.assert_allclose(found.scale[largest > 0], largest[largest > 0] / 127, rtol=1e-6)


def test_diff_says_how_they_are_stored(tmp_path: Path) -> None:
    body, constants, shape, _ = ROWS["GRU"]
    onnx.save(net(body, constants, shape), tmp_path / "a.onnx")
    onnxshot.quantize(tmp_path / "a.onnx", data(body, shape), output=tmp_path / "b.onnx", settings=FAST)
    found = onnxshot.diff(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert {row.op: row.after for row in found.layers} == {"GRU": "weights int8"}
    assert nodes_of(onnx.load(tmp_path / "b.onnx"), "Mul")
