"""Q/DQ placement: where the pairs stand, what they share, what ONNX Runtime makes of them, and the numbers."""

from collections import Counter

import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import Feed, vector, weight
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from planned_models import initializers, maker, nodes_of, normalized, planned, quantized, run, small, sqnr, statistics

from onnxshot.maths.bias_quantization import BIAS_QMAX
from onnxshot.passes.insert_qdq import InsertQdq
from onnxshot.passes.strip_qdq import StripQdq
from onnxshot.planning.make_plan import make_plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting import undo_unused_int8
from onnxshot.runtimes.ort_executed import executed
from onnxshot.targets import target_named

BLOCKS = ["resnet_block", "mbconv_block", "squeeze_excite", "opset_9", "two_outputs", "dropout_and_identity_chain"]


def pairs(proto: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Tensor that is quantized -> (its scale, its zero point), every Q being followed by one DQ with the same."""
    found = {}
    for q in nodes_of(proto, "QuantizeLinear"):
        (dq,) = (n for n in proto.graph.node if q.output[0] in n.input)
        assert dq.op_type == "DequantizeLinear"
        assert dq.input[1:] == q.input[1:]
        found[q.input[0]] = (q.input[1], q.input[2])
    return found


def optimized(proto: onnx.ModelProto) -> Counter[str]:
    """Operators of ONNX Runtime's optimized graph."""
    return Counter(executed(proto.SerializeToString()).ops)


@pytest.mark.parametrize("name", BLOCKS)
def test_pairs_stand_exactly_where_the_plan_says(name: str) -> None:
    case = HANDMADE[name]()
    recipe, target = Recipe(), target_named("ort")
    model = normalized(case.model, recipe)
    stats = statistics(model, make_plan(model, target, recipe).observe, case.feeds)
    plan = make_plan(model, target, recipe, stats)
    given = {o.name for o in case.model.graph.output}
    change = InsertQdq(plan).run(model)
    made = model.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert change.skips == []
    constants = sum(n.op_type == "DequantizeLinear" and n.input[0] in initializers(made) for n in made.graph.node)
    assert change.edits == len(plan.tensors) + constants
    assert len(nodes_of(made, "QuantizeLinear")) == len(plan.tensors)
    found = {(name if name in plan.tensors else name.removesuffix("_raw")): v for name, v in pairs(made).items()}
    assert set(found) == set(plan.tensors)
    values = initializers(made)
    for tensor, (scale, zero) in found.items():
        params = plan.params_of(tensor)
        assert values[scale].shape == values[zero].shape == ()
        assert (values[scale], values[zero]) == (params.scale, params.zero_point)
    for one, first in plan.tensors.items():
        for two, second in plan.tensors.items():
            assert (found[one] == found[two]) == (first.group == second.group), "one constant per group"
    assert {o.name for o in made.graph.output} == given
    for name_out in given & set(plan.tensors):
        assert maker(made, name_out).op_type == "DequantizeLinear"


@pytest.mark.parametrize("name", BLOCKS)
def test_taking_the_pairs_out_gives_the_float_graph_back(name: str) -> None:
    """Relu and Clip are never removed."""
    case = HANDMADE[name]()
    result, _ = quantized(case)
    StripQdq().run(result.model)
    back = result.model.to_proto()
    float_graph = normalized(case.model, Recipe()).to_proto()
    assert Counter(n.op_type for n in back.graph.node) == Counter(n.op_type for n in float_graph.graph.node)
    assert sqnr(case, back) > 35, "what is left is the rounding of the weights"


def test_float_readers_of_a_graph_input_keep_the_float_input() -> None:
    case = HANDMADE["resnet_block"]()
    _, made = quantized(case)
    (add,) = nodes_of(made, "Add")
    assert "x" in add.input
    assert maker(made, maker(made, nodes_of(made, "Conv")[0].input[0]).input[0]).input[0] == "x"


def test_readers_of_a_fused_output_all_read_the_dequantized_value() -> None:
    text = """g (float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y, float[n, 8, 6, 6] z) {
        a = Conv(x, w1)
        y = Conv(a, w2)
        z = Erf(a)
    }"""
    case = small(text, {"w1": weight(8, 8, 1, 1), "w2": weight(8, 8, 1, 1, seed=1)}, x=(2, 8, 6, 6))
    _, made = quantized(case)
    (erf,) = nodes_of(made, "Erf")
    assert maker(made, erf.input[0]).op_type == "DequantizeLinear"
    assert optimized(made)["QLinearConv"] == 2


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("resnet_block", {"QLinearConv": 2}),
        ("mbconv_block", {"QLinearConv": 3}),
        ("squeeze_excite", {"QLinearConv": 3, "QLinearSigmoid": 1, "QLinearMul": 1, "QLinearGlobalAveragePool": 1}),
        ("dropout_and_identity_chain", {"QGemm": 2}),
        ("opset_9", {"QLinearConv": 2}),
    ],
)
def test_onnx_runtime_fuses_everything(name: str, fused: dict[str, int]) -> None:
    case = HANDMADE[name]()
    _, made = quantized(case, include=("Gemm",) if "QGemm" in fused else ())
    ran = executed(made.SerializeToString())
    assert {op: ran.ops.get(op, 0) for op in fused} == fused
    assert ran.float_between == ()
    assert not {"Conv", "Relu", "Clip"} & set(ran.ops) or name == "resnet_block"
    assert ran.ops.get("Relu", 0) == (name == "resnet_block"), "only the last one, behind the float Add"
    assert sqnr(case, made) == pytest.approx(sqnr(case, made, optimize=False), abs=0.5)


@pytest.mark.parametrize("name", ["resnet_block", "mbconv_block", "squeeze_excite", "concat_of_different_ranges"])
def test_int8_activations_are_the_same_integers_relabelled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the pass writes them, before layers that ONNX Runtime does not fuse get their float weights back."""
    monkeypatch.setattr(undo_unused_int8, "dequantized_weights", lambda _: set())
    case = HANDMADE[name]()
    _, unsigned = quantized(case)
    _, signed = quantized(case, activation_type="int8")
    kinds = {t.data_type for t in signed.graph.initializer if "zero_point" in t.name}
    assert kinds == {onnx.TensorProto.INT8}
    for feed in case.feeds:
        for optimize in (False, True):
            pairs_of = zip(run(unsigned, feed, optimize=optimize), run(signed, feed, optimize=optimize), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs_of)


def test_constant_operands_become_quantized_constants() -> None:
    text = """g (float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y) {
        a = Conv(x, w1)
        s = Mul(a, gain)
        t = Add(s, shift)
        y = Conv(t, w2)
    }"""
    constants: Feed = {"w1": weight(8, 8, 1, 1), "w2": weight(8, 8, 1, 1, seed=1), "gain": np.array(3.5, np.float32)}
    constants["shift"] = vector(8)[:, None, None]
    case = small(text, constants, x=(2, 8, 6, 6))
    _, made = quantized(case)
    for op in ("Mul", "Add"):
        for node in nodes_of(made, op):
            assert [maker(made, name).op_type for name in node.input] == ["DequantizeLinear"] * 2
    assert executed(made.SerializeToString()).float_between == ()
    assert sqnr(case, made) > 28


def gemm(bias: NDArray[np.float32]) -> Case:
    text = """g (float[4, 64] x) => (float[4, 64] y) {
        a = Gemm<transB = 1>(x, w, c)
        r = Relu(a)
        y = Gemm(r, w2)
    }"""
    return small(text, {"w": weight(64, 64), "w2": weight(64, 64, channel_axis=1), "c": bias}, x=(4, 64))


@pytest.mark.parametrize("shape", [(64,), (1,), (1, 64), (4, 64), (4, 1), (1, 1)])
def test_a_gemm_takes_a_bias_of_any_shape(shape: tuple[int, ...]) -> None:
    """C of Gemm is anything that broadcasts to [M, N]."""
    bias = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    case = gemm(bias)
    _, made = quantized(case, include=("Gemm",))
    assert nodes_of(made, "Gemm")
    assert nodes_of(made, "QuantizeLinear")
    onnx.checker.check_model(made, full_check=True)
    assert sqnr(case, made) > 20
    assert sqnr(case, made) == pytest.approx(sqnr(case, made, optimize=False), abs=0.5)


@pytest.mark.parametrize("shape", [(1,), (1, 64), (4, 64)])
def test_no_gemm_is_left_in_float_between_its_pairs(shape: tuple[int, ...]) -> None:
    """ONNX Runtime fuses a bias [N] and no other: one row is made a vector, one with more rows goes dynamic."""
    case = gemm(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    _, made = quantized(case, include=("Gemm",))
    ran = executed(made.SerializeToString())
    assert ran.float_between == ()
    assert ran.share == 1.0


def test_no_conv_is_left_in_float_between_its_pairs() -> None:
    """Its bias is computed at run time, which no int8 kernel takes."""
    text = """g (float[1, 8, 6, 6] x, float[8] c) => (float[1, 8, 6, 6] y) {
        a = Conv(x, w1)
        y = Conv(a, w2, c)
    }"""
    case = small(text, {"w1": weight(8, 8, 1, 1), "w2": weight(8, 8, 1, 1, seed=1)}, x=(1, 8, 6, 6), c=(8,))
    result, made = quantized(case)
    assert executed(made.SerializeToString()).float_between == ()
    assert [s.node for s in result.report.skips] == ["Conv_y"]


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_never_overflows_int32(per_channel: bool) -> None:
    """A channel of tiny weights and a large bias: bias / (x_scale * w_scale) would pass 2**31 and wrap around."""
    w, b = weight(8, 4, 3, 3), vector(8)
    w[2] *= np.float32(1e-9)
    b[2] = 300
    text = "g (float[n, 4, 8, 8] x) => (float[n, 8, 6, 6] y) { y = Conv(x, w, b) }"
    case = small(text, {"w": w, "b": b}, x=(2, 4, 8, 8))
    _, made = quantized(case, per_channel=per_channel)
    values = initializers(made)
    (conv,) = nodes_of(made, "Conv")
    w_scale = values[maker(made, conv.input[1]).input[1]]
    x_scale = values[maker(made, conv.input[0]).input[1]]
    steps = np.abs(b / (x_scale.astype(np.float64) * w_scale))
    assert w_scale.shape == ((8,) if per_channel else ())
    assert steps.max() <= BIAS_QMAX
    assert optimized(made)["QLinearConv"] == 1
    for feed in case.feeds:
        (wanted,), (got,) = run(case.model, feed), run(made, feed)
        np.testing.assert_allclose(got[:, 2], wanted[:, 2], rtol=0.01)


def conv_net() -> Case:
    """Conv, Relu, depthwise Conv, Clip, pool, Conv, with biases."""
    text = """g (float[2, 4, 8, 8] x) => (float[2, 6, 4, 4] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        r = Relu(a)
        d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, w2, b2)
        k = Clip(d, zero, six)
        m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(k)
        y = Conv(m, w3, b3)
    }"""
    constants = {"w1": weight(8, 4, 3, 3), "w2": weight(8, 1, 3, 3), "w3": weight(6, 8, 1, 1)}
    constants |= {"b1": vector(8), "b2": vector(8, 1), "b3": vector(6)}
    constants |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    return small(text, constants, x=(2, 4, 8, 8))


def fake(x: NDArray[np.float32], scale: float, zero: int, low: int, high: int) -> NDArray[np.float32]:
    steps = np.clip(np.rint(x / np.float32(scale)) + zero, low, high)
    return ((steps - zero) * np.float32(scale)).astype(np.float32)


def test_numbers_are_those_of_a_simulation_in_numpy() -> None:
    """The float graph with every planned tensor and weight rounded by hand, run by onnx.reference."""
    case = conv_net()
    result, made = quantized(case)
    plan = result.plan
    ready, _ = planned(case)
    proto = ready.to_proto()
    for tensor in proto.graph.initializer:
        w = onnx.numpy_helper.to_array(tensor)
        if w.ndim == 4:
            scale = np.abs(w).max(axis=(1, 2, 3)).astype(np.float64) / 127
            rounded = [fake(c, s, 0, -127, 127) for c, s in zip(w, scale.astype(np.float32), strict=True)]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.stack(rounded), tensor.name))
    hold = {o.name for o in proto.graph.output}
    simulated: NDArray[np.float32]
    for feed in case.feeds:
        values: Feed = dict(feed)

        def rounded_by_plan(name: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
            if name not in plan.tensors:
                return value
            params = plan.params_of(name)
            return fake(value, float(params.scale), int(params.zero_point), 0, 255)

        values |= {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        values["x"] = rounded_by_plan("x", values["x"])
        for node in proto.graph.node:
            graph = onnx.helper.make_graph(
                [node], "one",
                [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in node.input if n],
                [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)],
            )  # fmt: skip
            single = onnx.helper.make_model(graph, opset_imports=proto.opset_import)
            (out,) = ReferenceEvaluator(single).run(None, {n: values[n] for n in node.input if n})
            values[node.output[0]] = rounded_by_plan(node.output[0], out)
        (simulated,) = (values[name] for name in hold)
        (found,) = run(made, feed, optimize=False)
        step = float(plan.params_of("y").scale)
        off = np.abs(found - simulated)
        assert off.max() < 2.5 * step, "a tie that rounds the other way moves an output by a step or two"
        assert np.mean(off > 0.5 * step) < 0.03
