from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from handmade import HANDMADE
from handmade.core import feeds, model, weight
from onnx import TensorProto, helper, numpy_helper
from pass_checks import ops, reasons, rewritten
from planned_models import FAST, initializers, quantized, run, sqnr

from onnxshot import memory
from onnxshot.api.quantize import quantize
from onnxshot.graph import Constant, weights
from onnxshot.graph.load import load_model
from onnxshot.graph.weight_pieces import rows
from onnxshot.graph.weights import ComputedValues
from onnxshot.passes.strip_qdq import StripQdq, fits


def stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    loaded = load_model(proto)
    StripQdq().run(loaded)
    made = loaded.to_proto()
    onnx.checker.check_model(made, full_check=True)
    return made


def test_somebody_elses_pairs_come_out() -> None:
    case = HANDMADE["already_qdq"]()
    made = stripped(case.model)
    assert Counter(n.op_type for n in made.graph.node) == {"Conv": 2, "Relu": 1}
    values = initializers(made)
    q, scale = (initializers(case.model)[n] for n in ("w", "w_scale"))
    np.testing.assert_array_equal(values[made.graph.node[0].input[1]], q * scale[:, None, None, None])
    bias = initializers(case.model)
    np.testing.assert_allclose(values[made.graph.node[0].input[2]], bias["b"] * bias["b_scale"], rtol=1e-6)
    assert sqnr(case, made) > 25
    assert list(made.graph.output) == list(case.model.graph.output)


@pytest.mark.parametrize("name", ["resnet_block", "two_outputs", "squeeze_excite", "opset_12"])
def test_our_own_pairs_come_out_and_graph_outputs_keep_their_names(name: str) -> None:
    case = HANDMADE[name]()
    _, made = quantized(case)
    back = stripped(made)
    assert not [n for n in back.graph.node if n.op_type.endswith("QuantizeLinear")]
    assert {o.name for o in back.graph.output} == {o.name for o in case.model.graph.output}
    assert sqnr(case, back) > sqnr(case, made) + 1


@pytest.mark.parametrize(
    ("axis", "scale_shape"), [(0, (6,)), (1, (4,)), (-1, (4,)), (None, ()), (None, (1,)), (0, (1,))]
)
@pytest.mark.parametrize("with_zero", [True, False])
def test_stored_weights_in_numbers(axis: int | None, scale_shape: tuple[int, ...], with_zero: bool) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "q": rng.integers(-128, 127, (6, 4)).astype(np.int8),
        "s": rng.uniform(0.01, 0.1, scale_shape).astype(np.float32),
        "z": rng.integers(-10, 10, scale_shape).astype(np.int8),
    }
    attribute = "" if axis is None else f"<axis = {axis}>"
    zero = ", z" if with_zero else ""
    text = f"g (float[3, 6] x) => (float[3, 4] y) {{ w = DequantizeLinear{attribute}(q, s{zero}) y = MatMul(x, w) }}"
    if scale_shape == (1,) and axis is not None:
        pytest.skip("a scale of one element along an axis of six is not valid")
    proto = model(text, constants if with_zero else {k: v for k, v in constants.items() if k != "z"})
    after, change = rewritten(proto, StripQdq())
    assert change.edits == 1
    assert ops(after) == {"MatMul": 1}
    (feed,) = feeds(1, x=(3, 6))
    # Optimized, ONNX Runtime makes a MatMulNBits of the original, which rounds the activations as well.
    (wanted,), (got,) = (run(m, feed, optimize=False) for m in (proto, after.to_proto()))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [10, 13])
@pytest.mark.parametrize("code", [0, 7])
def test_a_relu_that_a_quantizer_left_out_comes_back(opset: int, code: int) -> None:
    """onnxruntime's quantizer drops Relu and Clip where the pair does their work."""
    text = """g (float[2, 4, 8, 8] x) => (float[2, 4, 8, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        c_q = QuantizeLinear(c, s, z)
        c_dq = DequantizeLinear(c_q, s, z)
        p = MaxPool<kernel_shape = [1, 1]>(c_dq)
        p_q = QuantizeLinear(p, s, z)
        p_dq = DequantizeLinear(p_q, s, z)
        c_dq2 = DequantizeLinear(c_q, s, z)
        y = Sub(p_dq, c_dq2)
    }"""
    constants = {"w": weight(4, 4, 3, 3), "s": np.array(0.02, np.float32), "z": np.array(code, np.uint8)}
    proto = model(text, constants)
    proto.opset_import[0].version = opset
    made = stripped(proto)
    (feed,) = feeds(1, x=(2, 4, 8, 8))
    assert Counter(n.op_type for n in made.graph.node)["Clip"] == (code == 0)
    if code == 0:
        made.graph.output[0].name = next(n.output[0] for n in made.graph.node if n.op_type == "MaxPool")
        proto.graph.output[0].name = "p_dq"
        (wanted,), (got,) = run(proto, feed), run(made, feed)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0.01001)
        assert got.max() == np.float32(0.02) * np.float32(255)


def test_what_cannot_be_undone_says_why() -> None:
    text = """g (float[3, 8] x, float s) => (float[3, 4] y, float[3, 8] z) {
        w = DequantizeLinear(q, s)
        y = MatMul(x, w)
        i, i_scale, i_zero = DynamicQuantizeLinear(x)
        z = DequantizeLinear(i, i_scale, i_zero)
    }"""
    after, change = rewritten(model(text, {"q": np.ones((8, 4), np.int8)}), StripQdq())
    assert change.edits == 0
    assert sorted(reasons(change)) == [
        "an integer operator makes its input",
        "its scale is not constant, or does not fit",
    ]
    assert ops(after)["DequantizeLinear"] == 2


@pytest.mark.parametrize(
    ("scales", "zeros", "axis"), [(4, 4, 10), (4, 4, -3), (3, 3, 1), (4, 3, 1), (0, 0, 1), (1, 3, 0)]
)
def test_scales_that_do_not_fit_are_left(scales: int, zeros: int, axis: int) -> None:
    text = f"""g (float[3, 8] x) => (float[3, 4] y) {{
        w = DequantizeLinear<axis = {axis}>(q, s, z)
        y = MatMul(x, w)
    }}"""
    constants = {"q": np.ones((8, 4), np.int8), "s": np.ones(scales, np.float32), "z": np.zeros(zeros, np.int8)}
    loaded = load_model(model(text, constants))
    assert StripQdq().run(loaded).edits == 0
    assert not fits(constants["q"], constants["s"], constants["z"], axis)


def test_scales_that_fit_do() -> None:
    q, one, four = np.ones((8, 4), np.int8), np.ones(1, np.float32), np.ones(4, np.float32)
    assert all(fits(q, scale, zero, axis) for scale, zero, axis in ((one, None, 9), (four, four, 1), (four, None, -1)))


def test_blocks_of_int4_come_back() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=4),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [
            helper.make_tensor("q", TensorProto.INT4, [8, 4], [1, -2] * 16),
            numpy_helper.from_array(np.full((2, 4), 0.5, np.float32), "s"),
        ],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    after, change = rewritten(proto, StripQdq(), *feeds(1, x=(2, 8)))
    assert change.edits == 1
    assert ops(after) == {"MatMul": 1}
    loaded = load_model(proto)
    loaded.graph.nodes[0].attrs["block_size"] = 3
    assert StripQdq().run(loaded).edits == 0


def test_a_quantized_model_can_be_quantized_anew() -> None:
    case = HANDMADE["resnet_block"]()
    _, made = quantized(case)
    again = quantize(made, case.feeds, settings=replace(FAST, requantize=True))
    assert any("were removed" in note for note in again.report.notes)
    twice = again.model.to_proto()
    assert Counter(n.op_type for n in twice.graph.node) == Counter(n.op_type for n in made.graph.node)
    assert sqnr(case, twice) > sqnr(case, made) - 1.5


@pytest.mark.parametrize("axis", [0, 1, -1, None])
@pytest.mark.parametrize("zero", [None, "one", "each"])
def test_large_weights_are_dequantized_when_they_are_read_all_or_by_rows(
    axis: int | None, zero: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(-128, 128, (6, 6)).astype(np.int8)
    scale = rng.uniform(0.1, 1, 6 if axis is not None else ()).astype(np.float32)
    point = rng.integers(-9, 9, {"one": (), "each": scale.shape}[zero]).astype(np.int8) if zero else None
    given = {"q": q, "s": scale} | ({"z": point} if point is not None else {})
    at = f"<axis = {axis}>" if axis is not None else ""
    text = f"g (float[6, 6] x) => (float[6, 6] y) {{ w = DequantizeLinear{at}({', '.join(given)}) y = MatMul(x, w) }}"
    spread = scale.reshape((-1, 1) if axis == 0 else scale.shape)
    column = axis == 0 and point is not None and point.ndim
    shift = np.float32(0) if point is None else point.astype(np.float32).reshape((-1, 1) if column else point.shape)
    wanted = (q.astype(np.float32) - shift) * spread
    monkeypatch.setattr(memory, "part_bytes", lambda: 0)
    ready = load_model(model(text, given))
    StripQdq().run(ready)
    (product,) = ready.graph.nodes
    made = product.inputs[1]
    assert isinstance(made, Constant)
    assert isinstance(made._values, ComputedValues)
    np.testing.assert_array_equal(weights.read(made), wanted)
    np.testing.assert_array_equal(np.concatenate([rows(made, 0, 1), rows(made, 1, 4), rows(made, 4, 6)]), wanted)
