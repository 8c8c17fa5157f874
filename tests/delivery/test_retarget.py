"""Models that others have quantized, in the form of each target: the answers stay the same to the bit."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import Feed, feeds, model, vector, weight
from handmade.foreign import STYLES, quantized_elsewhere
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pass_checks import loaded
from planned_models import initializers, maker, nodes_of, run, small, sqnr

import onnxshot
from onnxshot.graph.skip import Skip
from onnxshot.passes.convert_integer_types import ConvertIntegerTypes
from onnxshot.passes.move_qdq import MoveQdq
from onnxshot.passes.qoperator_to_qdq import QOperatorToQdq
from onnxshot.rewriting.retarget import retarget
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.tensorrt_runtime import TensorRt
from onnxshot.targets import target_named

BLOCKS = ("resnet_block", "mbconv_block", "squeeze_excite", "attention_block")


@cache
def foreign(block: str, style: str) -> onnx.ModelProto:
    return quantized_elsewhere(HANDMADE[block](), style)


def retargeted(proto: onnx.ModelProto, target: str) -> tuple[onnx.ModelProto, list[Skip]]:
    """The valid model in the target's form, and what it says of its nodes."""
    found = loaded(proto)
    _, skips = retarget(found, target_named(target))
    made = found.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert list(made.graph.input) == list(proto.graph.input)
    assert list(made.graph.output) == list(proto.graph.output)
    return made, skips


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, given: list[Feed]) -> None:
    """Both give the same bits as they are written, without a runtime's own rewriting."""
    for feed in given:
        for wanted, got in zip(run(before, feed, optimize=False), run(after, feed, optimize=False), strict=True):
            np.testing.assert_array_equal(got, wanted)


def pairs(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [*nodes_of(proto, "QuantizeLinear"), *nodes_of(proto, "DequantizeLinear")]


def refused_by_tensorrt(proto: onnx.ModelProto) -> list[str]:
    """Names of pairs with another type than int8, or a zero point other than 0, and of integer operators."""
    values = initializers(proto)
    odd = [n.name for n in proto.graph.node if n.op_type.startswith("QLinear") or n.domain == "com.microsoft"]
    for node in pairs(proto):
        zero = values[node.input[2]] if len(node.input) > 2 else np.zeros((), np.int8)
        stored = values.get(node.input[0], zero)
        typeless = node.op_type == "QuantizeLinear" and len(node.input) < 3
        floats = node.op_type == "QuantizeLinear"
        if typeless or zero.dtype != np.int8 or zero.any() or (stored.dtype != np.int8 and not floats):
            odd.append(node.name)
    return odd


@pytest.mark.parametrize("target", ["ort", "ort-avx2", "openvino", "tensorrt", "portable"])
@pytest.mark.parametrize("style", [style for style in STYLES if style != "integer operators"])
@pytest.mark.parametrize("block", BLOCKS)
def test_answers_stay_the_same(block: str, style: str, target: str) -> None:
    before = foreign(block, style)
    after, _ = retargeted(before, target)
    samples, integers = HANDMADE[block]().feeds[:3], target_named(target).stores_biases
    if integers and style == "tensorrt":
        assert sqnr(Case(before, samples), after, optimize=False) > 40, "its float biases are rounded"
    else:
        assert_same(before, after, samples)
    wanted = np.dtype(target_named(target).activation.dtype.storage)
    values = initializers(after)
    assert {values[q.input[2]].dtype for q in nodes_of(after, "QuantizeLinear")} == {wanted}
    stored = [values[n.input[0]] for n in nodes_of(after, "DequantizeLinear") if n.input[0] in values]
    biased = any(len(n.input) > 2 for op in ("Conv", "Gemm") for n in nodes_of(after, op))
    assert (np.dtype(np.int32) in {value.dtype for value in stored}) == (integers and biased)


@pytest.mark.parametrize("style", ["int8 by int8", "tensorrt"])
@pytest.mark.parametrize("block", BLOCKS)
def test_symmetric_models_obey_tensorrt(block: str, style: str) -> None:
    """Row 38: TensorRT 2774, 4698: what was refused is not any more."""
    after, skips = retargeted(foreign(block, style), "tensorrt")
    assert refused_by_tensorrt(after) == []
    assert not [finding for finding in TensorRt().preflight(loaded(after)) if finding.refused]
    assert not [skip for skip in skips if skip.op in ("QuantizeLinear", "DequantizeLinear")]
    for conv in nodes_of(after, "Conv"):
        dq = maker(after, conv.input[1])
        assert next((a.i for a in dq.attribute if a.name == "axis"), 1) == 0


@pytest.mark.parametrize("style", ["uint8 by int8", "asymmetric int8", "uint8 by uint8", "integer operators"])
def test_what_tensorrt_refuses_is_named_with_a_way_out(style: str) -> None:
    """Row 38: TensorRT 2774, 4698, onnxruntime 14626: 'Non-zero zero point is not supported', and no node."""
    after, skips = retargeted(foreign("resnet_block", style), "tensorrt")
    refused = refused_by_tensorrt(after)
    assert refused
    # A pair is refused whole: its Q is named, and the DQ of a weight.
    named = {skip.node for skip in skips}
    made = {name: node for node in after.graph.node for name in node.output}
    for name in refused:
        node = next(n for n in after.graph.node if n.name == name)
        first = made.get(node.input[0])
        assert name in named or (first is not None and first.name in named)
    for skip in skips:
        assert "tensorrt wants 0" in skip.reason
        assert 'complete=True, for target="tensorrt"' in skip.reason


def test_a_tensorrt_model_runs_in_int8_in_onnx_runtime(tmp_path: Path) -> None:
    """Pairs are put where the answers stay the same: behind the Conv whose Relu is quantized, not before the Add."""
    text = """g (float[1, 8, 16, 16] x) => (float[1, 8, 4, 4] y) {
        xd = Conv(x, w0)
        a = Conv(xd, w1, b)
        r = Relu(a)
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
        c = Conv<strides = [2, 2]>(p, w2)
        y = Relu(c)
    }"""
    constants = {"w0": weight(8, 8, 1, 1, seed=3), "w1": weight(8, 8, 1, 1), "b": vector(8)}
    case = small(text, {**constants, "w2": weight(8, 8, 1, 1, seed=1)}, x=(1, 8, 16, 16))
    before = quantized_elsewhere(case, "tensorrt")
    after, skips = retargeted(before, "ort")
    assert_same(before, after, case.feeds)
    assert [skip.op for skip in skips] == ["Conv"], "the last one, behind which nothing is quantized"
    assert "adding one would change the results" in skips[0].reason
    shares = []
    for name, proto in (("before", before), ("after", after)):
        onnx.save(proto, str(tmp_path / f"{name}.onnx"))
        shares.append(executed(tmp_path / f"{name}.onnx", sample=case.feeds[0], threads=1).share)
    assert shares[1] > 0.7 > shares[0]
    back, _ = retargeted(after, "tensorrt")
    assert_same(before, back, case.feeds)
    assert Counter(n.op_type for n in back.graph.node) == Counter(
        n.op_type for n in retargeted(before, "tensorrt")[0].graph.node
    )


def test_pairs_that_another_scale_follows_stay() -> None:
    text = """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear<axis = 0>(w, ws)
        c = Conv(d, wd)
        cq = QuantizeLinear(c, s, z)
        cd = DequantizeLinear(cq, s, z)
        r = Relu(cd)
        rq = QuantizeLinear(r, s2, z)
        y = DequantizeLinear(rq, s2, z)
    }"""
    constants: dict[str, Any] = {"s": np.float32(0.05), "z": np.int8(0), "s2": np.float32(0.04)}
    constants |= {"w": np.ones((4, 4, 1, 1), np.int8), "ws": np.full(4, 0.01, np.float32)}
    proto = model(text, constants)
    after, skips = retargeted(proto, "tensorrt")
    assert len(nodes_of(after, "QuantizeLinear")) == 3
    (skip,) = skips
    assert skip.op == "Conv"
    assert "removing it would change the results" in skip.reason
    same = model(text, {**constants, "s2": np.float32(0.05)})
    after, skips = retargeted(same, "tensorrt")
    assert (len(nodes_of(after, "QuantizeLinear")), skips) == (2, [])
    assert_same(same, after, feeds(3, x=(1, 4, 6, 6)))


SCALES = st.floats(2.0**-13, 10.0, width=32)


@given(
    scales=st.tuples(SCALES, SCALES), kinds=st.tuples(*[st.sampled_from([np.int8, np.uint8])] * 2),
    zero=st.integers(0, 255), w_zero=st.integers(0, 255), target=st.sampled_from(["ort", "tensorrt"]),
    explicit=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_relabelled_integers_are_the_same_reals(
    scales: tuple[float, float], kinds: tuple[Any, Any], zero: int, w_zero: int, target: str, explicit: bool, seed: int
) -> None:
    """Any scale and zero point, saturation included; zero points of 0 that are left out too."""
    text = """g (float[2, 6] x) => (float[2, 3] y) {
        q = QuantizeLinear(x, s{z})
        d = DequantizeLinear(q, s{z})
        wd = DequantizeLinear(w, ws{wz})
        y = MatMul(d, wd)
    }"""
    rng = np.random.default_rng(seed)
    constants: dict[str, Any] = {"s": np.float32(scales[0]), "ws": np.float32(scales[1])}
    constants["w"] = rng.integers(0, 256, (6, 3)).astype(np.uint8).view(kinds[1])
    kind = kinds[0] if explicit else np.uint8  # what a Q without a zero point makes
    if explicit:
        constants |= {"z": np.uint8(zero).view(kind), "wz": np.uint8(w_zero).view(kinds[1])}
    names = {"{z}": ", z" if explicit else "", "{wz}": ", wz" if explicit else ""}
    for key, value in names.items():
        text = text.replace(key, value)
    proto = model(text, constants)
    after, skips = retargeted(proto, target)
    limit = scales[0] * 400
    given = [{"x": rng.uniform(-limit, limit, (2, 6)).astype(np.float32)} for _ in range(3)]
    assert_same(proto, after, given)
    activation = int(np.uint8(zero).view(kind)) if explicit else 0
    centre = 0 if kind is np.int8 else 128
    refused = [skip for skip in skips if skip.op == "QuantizeLinear"]
    assert bool(refused) == (target == "tensorrt" and activation != centre)
    values = initializers(after)
    assert values[maker(after, nodes_of(after, "MatMul")[0].input[1]).input[0]].dtype == np.int8


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), SCALES), min_size=4, max_size=4))
def test_an_int32_bias_becomes_the_same_float_bias(bias: list[tuple[int, float]]) -> None:
    text = """g (float[1, 4, 3, 3] x) => (float[1, 4, 3, 3] y) {
        wd = DequantizeLinear<axis = 0>(w, ws)
        bd = DequantizeLinear<axis = 0>(b, bs)
        y = Conv(x, wd, bd)
    }"""
    constants: dict[str, Any] = {"w": np.ones((4, 4, 1, 1), np.int8), "ws": np.full(4, 0.01, np.float32)}
    constants["b"] = np.array([b for b, _ in bias], np.int32)
    constants["bs"] = np.array([s for _, s in bias], np.float32)
    proto = model(text, constants)
    after, skips = retargeted(proto, "tensorrt")
    assert not skips
    assert initializers(after)[nodes_of(after, "Conv")[0].input[2]].dtype == np.float32
    assert_same(proto, after, feeds(1, x=(1, 4, 3, 3)))


def test_a_bias_of_another_scale_no_longer_goes_wrong_in_onnx_runtime() -> None:
    """ONNX Runtime takes every int32 bias of a Gemm to have the scale x_scale * w_scale, and says nothing."""
    text = """g (float[2, 8] x) => (float[2, 4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear(w, s, wz)
        bd = DequantizeLinear(b, bs, bz)
        g = Gemm(d, wd, bd)
        gq = QuantizeLinear(g, s, z)
        y = DequantizeLinear(gq, s, z)
    }"""
    constants: dict[str, Any] = {"s": np.float32(0.05), "z": np.uint8(128), "bs": np.float32(0.02)}
    constants |= {"wz": np.int8(0), "bz": np.int32(0)}
    constants |= {"w": np.eye(8, 4, dtype=np.int8), "b": np.array([100, -50, 20, 0], np.int32)}
    proto = model(text, constants)
    (feed,) = feeds(1, x=(2, 8))
    after, _ = retargeted(proto, "ort")
    (plain,) = run(proto, feed, optimize=False)
    (wrong,), (right,) = run(proto, feed), run(after, feed)
    assert np.abs(wrong - plain).max() > 1
    np.testing.assert_allclose(right, plain, atol=0.051)


@pytest.mark.parametrize("block", BLOCKS)
def test_integer_operators_become_pairs(block: str) -> None:
    before = foreign(block, "integer operators")
    after, _ = retargeted(before, "ort")
    found = Counter(n.op_type for n in after.graph.node)
    assert not [op for op in found if op.startswith("QLinear") or op == "QGemm"]
    given = HANDMADE[block]().feeds[:3]
    for feed in given:
        for wanted, got in zip(run(before, feed, optimize=False), run(after, feed, optimize=False), strict=True):
            np.testing.assert_allclose(got, wanted, atol=0.02 * float(np.abs(wanted).max()))


def test_integer_operators_in_numbers() -> None:
    """Scales that are powers of two: sums in float are exact, and so are the answers."""
    proto = model(
        """g (float[1, 4, 6, 6] x) => (float[1, 4, 3, 3] y) {
        q = QuantizeLinear(x, s, z)
        c = QLinearConv(q, s, z, w, ws, wz, s, z, b)
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
        t = Transpose<perm = [0, 1, 3, 2]>(p)
        y = DequantizeLinear(t, s, z)
    }""",
        {
            "s": np.float32(2**-5), "z": np.uint8(120), "w": weight(4, 4, 1, 1).view(np.int8)[..., :1],
            "ws": np.array([2**-6, 2**-7, 2**-8, 2**-6], np.float32), "wz": np.zeros(4, np.int8),
            "b": np.array([100, -3000, 7, 0], np.int32),
        },
    )  # fmt: skip
    after, skips = retargeted(proto, "ort")
    assert not skips
    assert Counter(n.op_type for n in after.graph.node) == {
        "QuantizeLinear": 4, "DequantizeLinear": 6, "Conv": 1, "MaxPool": 1, "Transpose": 1,
    }  # fmt: skip
    bias, scale = (initializers(after)[name] for name in maker(after, nodes_of(after, "Conv")[0].input[2]).input)
    np.testing.assert_array_equal(bias, [100, -3000, 7, 0])
    np.testing.assert_array_equal(scale, np.array([2**-11, 2**-12, 2**-13, 2**-11], np.float32))
    assert_same(proto, after, feeds(4, x=(1, 4, 6, 6)))


def test_float_weights_behind_a_q_are_stored_as_integers() -> None:
    values = np.array([[0.5, -0.26, 9.0], [-9.0, 0.25, 0.75]], np.float32)  # ties and saturation
    text = """g (float[1, 2] x) => (float[1, 3] y) {
        wq = QuantizeLinear(w, s, z)
        wd = DequantizeLinear(wq, s, z)
        y = MatMul(x, wd)
    }"""
    proto = model(text, {"w": values, "s": np.float32(0.5), "z": np.int8(0)})
    after, _ = retargeted(proto, "tensorrt")
    (dq,) = pairs(after)
    np.testing.assert_array_equal(initializers(after)[dq.input[0]], [[1, -1, 18], [-18, 0, 2]])
    assert_same(proto, after, feeds(3, x=(1, 2)))


def test_a_weight_of_seven_bits_is_told_apart() -> None:
    _, skips = retargeted(foreign("resnet_block", "uint8 by int8"), "ort-avx2")
    assert {skip.reason.partition(":")[0] for skip in skips if skip.op == "DequantizeLinear"} == {
        "its weights are -127..127, and ort-avx2 wants -64..63"
    }


def test_types_that_a_target_does_not_know_are_named() -> None:
    text = """g (float[2, 8] x, uint8[2, 8] u) => (float[2, 8] y, float[2, 8] v, uint8[2, 8] i, float[2, 8] k) {
        q = QuantizeLinear(x, s, z16)
        y = DequantizeLinear(q, s, z16)
        v = DequantizeLinear(u, s, z8)
        i = QuantizeLinear(x, s, z8)
        dq, ds, dz = DynamicQuantizeLinear(x)
        k = DequantizeLinear(dq, ds, dz)
    }"""
    constants = {"s": np.float32(0.1), "z16": np.uint16(0), "z8": np.uint8(128)}
    proto = model(text, constants, opset=21, ir=10)
    after, skips = retargeted(proto, "tensorrt")
    reasons = {skip.op: skip.reason for skip in skips if "other nodes read" not in skip.reason}
    assert reasons["QuantizeLinear"].startswith("TensorRT has no 16-bit integers")
    assert "computed at run time" in reasons["DynamicQuantizeLinear"]
    assert sum("other nodes read" in skip.reason for skip in skips) == 1
    assert {o.type.tensor_type.elem_type for o in after.graph.output} == {TensorProto.FLOAT, TensorProto.UINT8}


def test_a_scale_per_channel_of_an_input_is_named_where_it_is_not_known() -> None:
    text = """g (float[1, 3, 4, 4] x) => (float[1, 3, 4, 4] y) {
        q = QuantizeLinear<axis = 1>(x, s, z)
        y = DequantizeLinear(q, s1, z1)
    }"""
    constants = {"s": np.full(3, 0.1, np.float32), "z": np.array([0, 5, 9], np.uint8)}
    proto = model(text, {**constants, "s1": np.float32(0.1), "z1": np.uint8(5)})
    assert retargeted(proto, "ort")[1] == []
    after, skips = retargeted(proto, "tensorrt")
    assert any("one scale for all channels" in skip.reason for skip in skips)
    assert_same(proto, after, feeds(2, x=(1, 3, 4, 4)))


def test_embedding_tables_take_the_type_of_activations() -> None:
    """ONNX Runtime dequantizes the whole of an int8 table."""
    text = """g (int64[1, 5] x) => (float[1, 5, 8] y) {
        d = DequantizeLinear(table, s, z)
        y = Gather(d, x)
    }"""
    table = np.arange(-128, 128, dtype=np.int16).astype(np.int8).reshape(32, 8)
    proto = model(text, {"table": table, "s": np.float32(0.1), "z": np.int8(0)})
    after, _ = retargeted(proto, "ort")
    assert initializers(after)[nodes_of(after, "DequantizeLinear")[0].input[0]].dtype == np.uint8
    assert_same(proto, after, feeds(1, dtype=np.int64, x=(1, 5)))


def test_a_float_model_is_left_alone() -> None:
    proto = HANDMADE["attention_block"]().model
    found = loaded(proto)
    before = found.to_proto()
    for step in (QOperatorToQdq(), ConvertIntegerTypes(target_named("tensorrt")), MoveQdq(target_named("ort"))):
        change = step.run(found)
        assert (change.edits, change.skips) == (0, [])
    assert found.to_proto() == before


# ---------------------------------------------------------------------- emit


def test_emit_brings_a_model_into_the_form_of_a_target(tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    before = foreign("resnet_block", "int8 by int8")
    report = onnxshot.emit(before, target="tensorrt", output=tmp_path / "t.onnx", calib=case.feeds)
    after = onnx.load(str(tmp_path / "t.onnx"))
    assert refused_by_tensorrt(after) == []
    assert_same(before, after, case.feeds[:3])
    assert report.outputs[0].target == "tensorrt"
    assert report.sqnr_unoptimized_db is not None
    assert report.sqnr_unoptimized_db > 100
    assert any("brought it into the form of tensorrt" in note for note in report.notes)
    default = onnxshot.emit(before, output=tmp_path / "o.onnx")
    values = initializers(onnx.load(str(tmp_path / "o.onnx")))
    assert all(v.dtype != np.int8 or v.ndim for v in values.values()), "activations of ort are uint8"
    assert not default.skips


def test_emit_says_what_the_target_does_not_take(tmp_path: Path) -> None:
    report = onnxshot.emit(
        foreign("resnet_block", "uint8 by int8"), target="tensorrt", output=tmp_path / "t.onnx",
        settings=onnxshot.Settings(verify=False),
    )  # fmt: skip
    assert report.skips
    assert all("wants 0" in skip.reason for skip in report.skips)


def dequantized(proto: onnx.ModelProto, name: str) -> NDArray[Any]:
    """A weight as its DequantizeLinear gives it."""
    dq, values = maker(proto, name), initializers(proto)
    return values[dq.input[0]].astype(np.float32) * values[dq.input[1]]


def test_shared_weights_are_relabelled_once() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], [f"w{i}"]) for i in range(2)
    ] + [helper.make_node("MatMul", ["x", "w0"], ["a"]), helper.make_node("MatMul", ["a", "w1"], ["y"])]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    constants = {"w": np.arange(16, dtype=np.uint8).reshape(4, 4), "s": np.float32(1), "z": np.uint8(128)}
    for name, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    after, _ = retargeted(proto, "tensorrt")
    assert len([v for v in initializers(after).values() if v.shape == (4, 4)]) == 1
    np.testing.assert_array_equal(dequantized(after, "w0"), np.arange(16).reshape(4, 4) - 128)
    assert_same(proto, after, feeds(2, x=(2, 4)))


def test_a_bias_of_another_width_than_its_scales_is_left() -> None:
    text = """g (uint8[1, 4, 6, 6] x) => (uint8[1, 8, 6, 6] y) {
        y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b)
    }"""
    constants = {
        "xs": np.float32(0.1), "xz": np.uint8(0), "w": np.ones((8, 4, 1, 1), np.int8), "ws": np.ones(3, np.float32),
        "wz": np.zeros(3, np.int8), "ys": np.float32(0.1), "yz": np.uint8(0), "b": np.ones(8, np.int32),
    }  # fmt: skip
    given = loaded(model(text, {name: np.asarray(value) for name, value in constants.items()}))
    change = QOperatorToQdq().run(given)
    assert change.edits == 0
    assert [skip.reason for skip in change.skips] == ["its numbers of scales and of bias values differ"]
