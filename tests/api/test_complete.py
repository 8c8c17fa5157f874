"""`--complete`: the scales of a quantized input are kept, the rest is quantized."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import fixture, heldout
from handmade import HANDMADE, Case
from handmade.core import Feed, feeds, model, vector, weight
from handmade.quantized import int8
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from planned_models import FAST, PROVEN, initializers, maker, nodes_of, quantized, run

from onnxshot.api.emit import emit
from onnxshot.api.quantize import quantize
from onnxshot.api.sensitivity import sensitivity
from onnxshot.api.tune import tune
from onnxshot.errors import CalibrationError, ModelError, UsageError
from onnxshot.graph.load import load_model
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.passes.strip_qdq import StripQdq
from onnxshot.search.goal import Goal

Pair = tuple[NDArray[Any], NDArray[Any]]


def pair(scale: float, zero: int = 0, kind: type = np.int8) -> Pair:
    return np.array(scale, np.float32), np.array(zero, kind)


def qat(text: str, constants: Feed, pairs: dict[str, Pair], **shapes: tuple[int, ...]) -> Case:
    """A case whose text writes `Q(t)` for the dequantized value of t, where `pairs` has scale and zero point."""
    lines, made = [], set()
    for line in text.splitlines():
        for name in re.findall(r"Q\((\w+)\)", line):
            if name not in made:
                made.add(name)
                axis = "<axis = 0>" if pairs[name][0].ndim else ""
                lines.append(f"{name}_q = QuantizeLinear{axis}({name}, {name}_s, {name}_z)")
                lines.append(f"{name}_dq = DequantizeLinear{axis}({name}_q, {name}_s, {name}_z)")
        lines.append(re.sub(r"Q\((\w+)\)", r"\1_dq", line))
    params = {f"{n}_{k}": v for n in made for k, v in zip("sz", pairs[n], strict=True)}
    return Case(model("\n".join(lines), {**constants, **params}), feeds(4, **shapes))


def per_channel(w: NDArray[np.float32], trained: float = 0.8) -> Pair:
    """Scales per channel of axis 0 that clip: none that statistics of the weight would give."""
    scale = np.abs(w).reshape(len(w), -1).max(axis=1) * np.float32(trained / 127)
    return scale.astype(np.float32), np.zeros(len(w), np.int8)


W1, W2, W3 = weight(8, 4, 3, 3), weight(8, 8, 3, 3, seed=1), weight(10, 8, seed=2)
STORED, STORED_SCALE = int8(W2)

FULL = """g (float[2, 4, 8, 8] x) => (float[2, 10] y) {
    c1 = Conv<pads = [1, 1, 1, 1]>(Q(x), Q(w1), b1)
    r1 = Relu(c1)
    w2_dq = DequantizeLinear<axis = 0>(w2, w2_s, w2_z)
    c2 = Conv<pads = [1, 1, 1, 1]>(Q(r1), w2_dq, b2)
    p = GlobalAveragePool(Q(c2))
    f = Flatten(Q(p))
    g1 = Gemm<transB = 1>(f, Q(w3), b3)
    y = Identity(Q(g1))
}"""


def full(kind: type = np.int8) -> Case:
    """All of it quantized, with scales that no calibration would find."""
    zero = 0 if kind is np.int8 else 128
    stored = {"w2": STORED, "w2_s": STORED_SCALE, "w2_z": np.zeros(8, np.int8)}
    constants = {"w1": W1, "w3": W3, "b1": vector(8), "b2": vector(8, 1), "b3": vector(10, 2), **stored}
    pairs = {name: pair(scale, zero, kind) for name, scale in
             (("x", 0.021), ("r1", 0.043), ("c2", 0.061), ("p", 0.011), ("g1", 0.017))}  # fmt: skip
    pairs |= {"w1": per_channel(W1), "w3": pair(0.013)}
    return qat(FULL, constants, pairs, x=(2, 4, 8, 8))


def completed(case: Case, calib: list[Feed] | None = None, **options: Any) -> tuple[onnx.ModelProto, list[str]]:
    result = quantize(case.model, calib, settings=FAST, **{"effort": "fast", "complete": True, **options})
    return result.model.to_proto(), result.report.notes


def scales(proto: onnx.ModelProto) -> dict[str, tuple[float, int, str]]:
    """Tensor that a QuantizeLinear reads -> scale, zero point and its type."""
    known = initializers(proto)
    found = {}
    for node in nodes_of(proto, "QuantizeLinear"):
        zero = known[node.input[2]]
        found[node.input[0]] = (float(known[node.input[1]]), int(zero), zero.dtype.name)
    return found


def weights_of(proto: onnx.ModelProto) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """First output of a Conv, Gemm or MatMul -> integers and scale of its weight, as they are stored."""
    known = initializers(proto)
    found = {}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            made = [n for n in proto.graph.node if node.input[1] in n.output]
            if made and made[0].op_type == "DequantizeLinear":
                found[node.output[0]] = known[made[0].input[0]], known[made[0].input[1]]
    return found


def biases_of(proto: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """First output of a Conv or Gemm -> its bias as it comes back from int32."""
    known = initializers(proto)
    found = {}
    for node in (*nodes_of(proto, "Conv"), *nodes_of(proto, "Gemm")):
        if len(node.input) < 3:
            continue
        dq = maker(proto, node.input[2])
        found[node.output[0]] = (known[dq.input[0]] * known[dq.input[1]].astype(np.float64)).astype(np.float32)
    return found


def integers(w: NDArray[np.float32], trained: Pair) -> NDArray[np.int8]:
    scale = trained[0].reshape(-1, *[1] * (w.ndim - 1)) if trained[0].ndim else trained[0]
    return np.clip(np.rint(w / scale), -128, 127).astype(np.int8)


# ---------------------------------------------------------------------- everything is known


def test_a_fully_trained_model_needs_no_data_and_keeps_every_integer() -> None:
    case = full()
    made, notes = completed(case)
    found = scales(made)
    assert {name: value for name, value in found.items() if name in ("x", "r1", "c2", "p")} == {
        "x": (pytest.approx(0.021), 128, "uint8"), "r1": (pytest.approx(0.043), 128, "uint8"),
        "c2": (pytest.approx(0.061), 128, "uint8"), "p": (pytest.approx(0.011), 128, "uint8"),
    }  # fmt: skip
    stored = list(weights_of(made).values())
    np.testing.assert_array_equal(stored[0][0], integers(W1, per_channel(W1)))
    np.testing.assert_array_equal(stored[0][1], per_channel(W1)[0])
    np.testing.assert_array_equal(stored[1][0], STORED)
    np.testing.assert_array_equal(stored[1][1], STORED_SCALE)
    np.testing.assert_array_equal(stored[2][0], integers(W3, pair(0.013)))
    np.testing.assert_array_equal(stored[2][1], np.full(10, 0.013, np.float32))
    assert "8 trained scales were kept: 5 of activations, 3 of weights" in notes
    assert "0 scales were completed: 0 of activations, 0 of weights" in notes
    assert not [note for note in notes if "not kept" in note]


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("target", ["ort", "tensorrt"])
def test_the_same_integers_under_another_name_give_the_same_outputs(kind: type, target: str) -> None:
    case = full(kind)
    made, _ = completed(case, case.feeds, target=target)
    assert {zero for _, zero, _ in scales(made).values()} == ({128} if target == "ort" else {0})
    if target == "ort":  # what rounding biases does is not what is looked at here
        for old, new in zip(("b1", "b2", "b3"), biases_of(made).values(), strict=True):
            (tensor,) = (t for t in case.model.graph.initializer if t.name == old)
            np.testing.assert_allclose(new, numpy_helper.to_array(tensor), rtol=0, atol=1e-3)
            tensor.CopyFrom(numpy_helper.from_array(new, old))
    for feed in case.feeds:
        (wanted,), (got,) = run(case.model, feed, optimize=False), run(made, feed, optimize=False)
        if target == "ort":  # TensorRT has no Q on outputs: what is rounded there is not rounded here
            np.testing.assert_allclose(got, wanted, rtol=0, atol=0.0171)
            assert np.mean(got != wanted) < 0.02


def test_a_symmetric_scale_behind_a_relu_does_not_put_its_conv_back_to_float() -> None:
    """The Relu is not what Q does, so that it cannot be dropped: it gets a pair before it as well."""
    case = full()
    result = quantize(case.model, case.feeds, complete=True, settings=PROVEN)
    assert result.report.int8_macs_share == 1.0
    made = result.model.to_proto()
    (relu,) = nodes_of(made, "Relu")
    assert scales(made)["c1"] == scales(made)["r1"]
    assert maker(made, relu.input[0]).op_type == "DequantizeLinear"


def test_a_pair_before_a_relu_stays_where_the_relu_needs_one() -> None:
    case = full()
    for i, values in enumerate((np.array(0.05, np.float32), np.array(0, np.int8))):
        case.model.graph.initializer.append(numpy_helper.from_array(values, f"c1_{'sz'[i]}"))
    relu = maker(case.model, "r1")
    at = list(case.model.graph.node).index(relu)
    q = helper.make_node("QuantizeLinear", ["c1", "c1_s", "c1_z"], ["c1_q"])
    dq = helper.make_node("DequantizeLinear", ["c1_q", "c1_s", "c1_z"], ["c1_dq"])
    relu.input[0] = "c1_dq"
    case.model.graph.node.insert(at, dq)
    case.model.graph.node.insert(at, q)
    made, notes = completed(case)
    assert scales(made)["c1"] == (float(np.float32(0.05)), 128, "uint8")
    assert scales(made)["r1"] == (float(np.float32(0.043)), 128, "uint8")
    assert "9 trained scales were kept: 6 of activations, 3 of weights" in notes


def test_a_lone_trained_scale_behind_a_relu_is_that_of_its_input() -> None:
    text = """g (float[2, 4, 8, 8] x) => (float[2, 8, 8, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(Q(x), Q(w1))
        r = Relu(Q(c))
        d = Conv<pads = [1, 1, 1, 1]>(r, Q(w2))
        y = Identity(Q(d))
    }"""
    pairs = {"x": pair(0.02), "w1": per_channel(W1), "c": pair(0.03), "w2": per_channel(W2), "d": pair(0.04)}
    case = qat(text, {"w1": W1, "w2": W2}, pairs, x=(2, 4, 8, 8))
    made, notes = completed(case)
    assert scales(made)["r"] == (pytest.approx(0.03), 128, "uint8")
    assert "5 trained scales were kept: 3 of activations, 2 of weights" in notes
    for feed in case.feeds:
        (wanted,), (got,) = run(case.model, feed, optimize=False), run(made, feed, optimize=False)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0.0401)


def test_a_weight_is_known_behind_a_transpose_and_scales_in_constant_nodes() -> None:
    """What PyTorch's exporter writes for fake-quantized linear layers on sequences."""
    text = """g (float[2, 5, 8] x) => (float[2, 5, 10] y) {
        t = Transpose<perm = [1, 0]>(Q(w3))
        m = MatMul(Q(x), t)
        y = Identity(Q(m))
    }"""
    trained = per_channel(W3)
    case = qat(text, {"w3": W3}, {"x": pair(0.02), "w3": trained, "m": pair(0.05)}, x=(2, 5, 8))
    graph = case.model.graph
    for tensor in [t for t in graph.initializer if t.name != "w3"]:
        graph.initializer.remove(tensor)
        graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    made, _ = completed(case)
    ((stored, scale),) = weights_of(made).values()
    np.testing.assert_array_equal(stored, integers(W3, trained).T)
    np.testing.assert_array_equal(scale, trained[0])


def test_the_lowest_code_of_a_weight_stays() -> None:
    values = STORED.copy()
    values[0, 0, 0, 0] = -128
    proto = full().model
    next(t for t in proto.graph.initializer if t.name == "w2").CopyFrom(numpy_helper.from_array(values, "w2"))
    made, _ = completed(Case(proto, full().feeds))
    np.testing.assert_array_equal(list(weights_of(made).values())[1][0], values)


def test_dynamic_and_weights_modes_keep_the_scales_of_weights() -> None:
    w = weight(64, 96)
    text = "g (float[2, 96] x) => (float[2, 64] y) { y = Gemm<transB = 1>(x, Q(w)) }".replace("{ ", "{\n")
    case = qat(text, {"w": w}, {"w": per_channel(w)}, x=(2, 96))
    made, notes = completed(case, mode="dynamic")
    (product,) = nodes_of(made, "MatMulInteger")
    np.testing.assert_array_equal(initializers(made)[product.input[1]], integers(w, per_channel(w)).T)
    assert "1 trained scales were kept: 0 of activations, 1 of weights" in notes
    made, _ = completed(case, mode="weights")
    ((stored, _),) = weights_of(made).values()
    np.testing.assert_array_equal(stored, integers(w, per_channel(w)))


# ---------------------------------------------------------------------- partly quantized


PARTLY = """g (float[2, 4, 8, 8] x) => (float[2, 8, 8, 8] y) {
    c1 = Conv<pads = [1, 1, 1, 1]>(Q(x), Q(w1), b1)
    r1 = Relu(c1)
    c2 = Conv<pads = [1, 1, 1, 1]>(Q(r1), w2, b2)
    r2 = Relu(c2)
    y = Conv<pads = [1, 1, 1, 1]>(r2, w3)
}"""


def partly() -> Case:
    constants = {"w1": W1, "w2": W2, "w3": weight(8, 8, 3, 3, seed=5), "b1": vector(8), "b2": vector(8, 1)}
    pairs = {"x": pair(0.021, 130, np.uint8), "r1": pair(0.015, 0, np.uint8), "w1": per_channel(W1)}
    return qat(PARTLY, constants, pairs, x=(2, 4, 8, 8))


def test_the_rest_is_completed_from_statistics() -> None:
    case = partly()
    with pytest.raises(CalibrationError, match=r"2 tensors came without a scale, such as 'r2'.*calib=DATA"):
        completed(case)
    made, notes = completed(case, case.feeds)
    found = scales(made)
    assert found["x"] == (float(np.float32(0.021)), 130, "uint8")
    assert found["r1"] == (float(np.float32(0.015)), 0, "uint8")
    assert "r2" in found
    stored = weights_of(made)
    assert len(stored) == 3
    np.testing.assert_array_equal(next(iter(stored.values()))[0], integers(W1, per_channel(W1)))
    assert "3 trained scales were kept: 2 of activations, 1 of weights" in notes
    assert "4 scales were completed: 2 of activations, 2 of weights" in notes


@pytest.mark.parametrize("effort", ["balanced", "best"])
def test_no_effort_touches_what_was_trained(effort: str) -> None:
    case = partly()
    case.feeds.extend(feeds(24, x=(2, 4, 8, 8)))
    made, notes = completed(case, case.feeds, effort=effort)
    first, second, third = nodes_of(made, "Conv")
    np.testing.assert_array_equal(weights_of(made)[first.output[0]][0], integers(W1, per_channel(W1)))
    step = per_channel(W1)[0].max() * 0.021
    np.testing.assert_allclose(biases_of(made)[first.output[0]], vector(8), rtol=0, atol=0.51 * step)
    assert third.op_type == second.op_type == "Conv"
    assert scales(made)["x"] == (float(np.float32(0.021)), 130, "uint8")
    assert "channels were equalized" not in notes


def test_range_is_kept_where_the_target_has_no_such_scale() -> None:
    case = partly()
    made, notes = completed(case, case.feeds, target="tensorrt")
    scale, zero, kind = scales(made)["r1"]
    assert (zero, kind) == (0, "int8")
    assert scale * 127 == pytest.approx(0.015 * 255)
    (note,) = [n for n in notes if "not kept" in n]
    assert note.startswith("2 trained scales were not kept as they are: int8 has no such scale here, its range is kept")


def test_weights_that_do_not_fit_are_quantized_anew() -> None:
    text = """g (float[2, 4, 8, 8] x) => (float[2, 8, 8, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(Q(x), Q(w1))
        y = Identity(Q(c))
    }"""
    pairs = {"x": pair(0.02), "w1": pair(np.abs(W1).max() / 150, 90, np.uint8), "c": pair(0.03)}
    case = qat(text, {"w1": W1}, pairs, x=(2, 4, 8, 8))
    _, notes = completed(case)
    assert "1 trained scales were not kept as they are: its uint8 integers do not fit symmetric int8: 'w1'" in notes
    pairs["w1"] = pair(np.abs(W1).max() / 127, 128, np.uint8)
    made, _ = completed(qat(text, {"w1": W1}, pairs, x=(2, 4, 8, 8)))
    ((stored, _),) = weights_of(made).values()
    np.testing.assert_array_equal(stored, integers(W1, pair(np.abs(W1).max() / 127)))
    _, notes = completed(case, target="ort-avx2")
    assert any("int7" in note for note in notes)


def test_pairs_that_the_plan_has_no_use_for_are_counted() -> None:
    text = """g (float[2, 4, 8, 8] x) => (float[2, 8, 8, 8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(Q(x), Q(w1))
        t = Tanh(Q(c))
        y = Softmax(Q(t))
    }"""
    pairs = {"x": pair(0.02), "w1": per_channel(W1), "c": pair(0.03), "t": pair(1 / 127)}
    _, notes = completed(qat(text, {"w1": W1}, pairs, x=(2, 4, 8, 8)))
    assert "1 trained scales were not kept as they are: the plan has no Q/DQ pair there: 't'" in notes


def test_inputs_of_a_concat_with_scales_of_their_own_keep_them() -> None:
    text = """g (float[2, 4, 8, 8] x) => (float[2, 8, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(Q(x), Q(w1))
        b = Conv<pads = [1, 1, 1, 1]>(x_dq, Q(w4))
        c = Concat<axis = 1>(Q(a), Q(b))
        d = Conv(Q(c), Q(w5))
        y = Identity(Q(d))
    }"""
    w4, w5 = weight(8, 4, 3, 3, seed=9), weight(8, 16, 1, 1)
    pairs = {"x": pair(0.02), "a": pair(0.03), "b": pair(0.04), "c": pair(0.05), "d": pair(0.06)}
    pairs |= {"w1": per_channel(W1), "w4": per_channel(w4), "w5": per_channel(w5)}
    made, _ = completed(qat(text, {"w1": W1, "w4": w4, "w5": w5}, pairs, x=(2, 4, 8, 8)))
    assert {n: round(s, 4) for n, (s, _, _) in scales(made).items() if n in "abc"} == {"a": 0.03, "b": 0.04, "c": 0.05}


def stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    loaded = load_model(proto)
    StripQdq().run(loaded)
    return loaded.to_proto()


def fidelity(reference: onnx.ModelProto, proto: onnx.ModelProto, given: list[Feed]) -> float:
    total = SqnrSum()
    for feed in given:
        for wanted, got in zip(run(reference, feed, optimize=False), run(proto, feed), strict=True):
            total.add(wanted, got)
    return total.db


def test_half_quantized_by_onnxruntime(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime.quantization")
    given, _ = heldout("digits_resnet")

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(given[:32])

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    emit(fixture("digits_resnet"), output=tmp_path / "float.onnx")  # no BatchNorm, as QAT exports have none
    names = [n.name for n in onnx.load(str(tmp_path / "float.onnx")).graph.node]
    ort.quantize_static(
        str(tmp_path / "float.onnx"), str(tmp_path / "half.onnx"), Reader(), quant_format=ort.QuantFormat.QDQ,
        per_channel=True, nodes_to_exclude=names[len(names) // 2 :],
    )  # fmt: skip
    half = onnx.load(str(tmp_path / "half.onnx"))
    result = quantize(half, given[:64], complete=True, settings=PROVEN)
    made = result.model.to_proto()
    before, after = scales(half), scales(made)
    common = before.keys() & after.keys()
    assert len(common) >= 4
    for name in common:
        (scale, zero, kind), (got, shifted, _) = before[name], after[name]
        assert (got, shifted) == (scale, zero + 128 if kind == "int8" else zero)
    trained = {v[0].tobytes() for v in weights_of(half).values()}
    assert 0 < len(trained) < len(weights_of(made))
    assert trained <= {v[0].tobytes() for v in weights_of(made).values()}
    assert result.report.int8_macs_share is not None
    assert result.report.int8_macs_share > 0.95
    reference = stripped(half)
    judged = given[64:128]
    assert fidelity(reference, made, judged) > fidelity(reference, half, judged) - 6
    assert any(re.match(r"\d+ trained scales were kept", note) for note in result.report.notes)


def test_candidates_of_a_search_keep_the_scales() -> None:
    case = full()
    found = sensitivity(case.model, case.feeds, complete=True, settings=FAST)
    assert {row.op for row in found.nodes} >= {"Conv", "Gemm"}
    partial = partly()
    result = tune(partial.model, partial.feeds, Goal(min_sqnr=1.0), complete=True, settings=PROVEN)
    assert scales(result.model.to_proto())["r1"] == (float(np.float32(0.015)), 0, "uint8")


def test_qoperator_form_of_a_trained_model() -> None:
    case = full()
    made, _ = completed(case, format="qoperator")
    assert len(nodes_of(made, "QLinearConv")) == 2
    for feed in case.feeds:
        (wanted,), (got,) = run(case.model, feed, optimize=False), run(made, feed)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0.0171)


def test_what_the_user_excludes_stays_float() -> None:
    case = full()
    made, notes = completed(case, exclude=("Gemm",))
    assert len(weights_of(made)) == 2
    assert any("its op stays in float" in note and "'w3'" in note for note in notes)


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["x_s", "w1_s"])
def test_a_scale_that_is_no_scale_is_refused(bad: float, name: str) -> None:
    proto = full().model
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[0] = bad
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(ModelError, match="has the scale"):
        completed(Case(proto, []))


def test_halves_that_disagree_are_refused() -> None:
    proto = full().model
    proto.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), "other"))
    maker(proto, "x_dq").input[2] = "other"
    with pytest.raises(ModelError, match=r"quantizes to int8, .* reads uint8"):
        completed(Case(proto, []))
    proto = full().model
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "other"))
    maker(proto, "x_dq").input[1] = "other"
    with pytest.raises(ModelError, match="different scales"):
        completed(Case(proto, []))


def test_stored_values_and_a_zero_point_of_other_types_are_refused() -> None:
    proto = full().model
    tensor = next(t for t in proto.graph.initializer if t.name == "w2_z")
    tensor.CopyFrom(numpy_helper.from_array(np.full(8, 128, np.uint8), "w2_z"))
    with pytest.raises(ModelError, match="int8 values with a uint8 zero point"):
        completed(Case(proto, []))
    proto = full().model
    maker(proto, "w2_dq").attribute[0].i = 7
    with pytest.raises(ModelError, match="along axis 7"):
        completed(Case(proto, []))


def test_integer_operators_with_stored_scales_are_completed() -> None:
    case = HANDMADE["already_qoperator"]()
    made, notes = completed(case, case.feeds)
    assert any("kept" in note for note in notes)
    assert any(node.op_type == "DequantizeLinear" for node in made.graph.node)
    assert not any(node.op_type.startswith("QLinear") for node in made.graph.node)
    given, found = initializers(case.model), initializers(made)
    assert any(np.array_equal(given["w"], values) for values in found.values())


def test_operators_with_scales_of_their_own_stay_beside_what_is_completed() -> None:
    case = HANDMADE["already_dynamic"]()
    made, notes = completed(case, case.feeds)
    assert any("stay as they are" in note for note in notes)
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in case.model.graph.node]


def test_complete_and_requantize_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="requantize=True"):
        quantize(full().model, complete=True, settings=replace(FAST, requantize=True))


def test_a_float_model_is_quantized_as_ever() -> None:
    case = HANDMADE["conv_relu"]() if "conv_relu" in HANDMADE else partly()
    plain = Case(stripped(case.model), case.feeds)
    result, made = quantized(plain, complete=True)
    _, wanted = quantized(plain)
    assert made.graph.node == wanted.graph.node
    assert any("holds no Q/DQ pairs" in note for note in result.report.notes)


def test_a_bias_stored_as_int32_is_no_trained_scale() -> None:
    case = HANDMADE["already_qdq"]()
    made, notes = completed(case, case.feeds)
    assert len(weights_of(made)) == 2
    assert "3 trained scales were kept: 2 of activations, 1 of weights" in notes
    (theirs,) = (numpy_helper.to_array(t) for t in case.model.graph.initializer if t.data_type == TensorProto.INT32)
    (ours,) = (numpy_helper.to_array(t) for t in made.graph.initializer if t.data_type == TensorProto.INT32)
    np.testing.assert_array_equal(ours, theirs)


# ---------------------------------------------------------------------- weights that stay float


STAYS = """g (float[2, 32, 6, 6] x, int64[5] ids) => (float[2, 16, 6, 6] y, float[5, 48] e) {
    xq = QuantizeLinear(x, x_s, x_z)
    xd = DequantizeLinear(xq, x_s, x_z)
    wd = DequantizeLinear<axis = 1>(w, w_s, w_z)
    t = ConvTranspose<pads = [1, 1, 1, 1]>(xd, wd)
    y = Relu(t)
    td = DequantizeLinear(table, t_s, t_z)
    e = Gather(td, ids)
}"""


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4"])
def test_weights_that_stay_float_are_written_in_the_integers_that_they_came_in(kind: str) -> None:
    """A table and a ConvTranspose of 8 bits became float32: 207 kB were 976."""
    r = np.random.default_rng(7)
    low, high = {"int8": (-127, 127), "uint8": (0, 255), "int4": (-7, 7)}[kind]
    element = TensorProto.DataType.Value(kind.upper())
    zero = 128 if kind == "uint8" else 0
    integers = {"w": r.integers(low, high + 1, (32, 16, 3, 3)), "table": r.integers(low, high + 1, (300, 48))}
    steps = {"w_s": np.linspace(1, 2, 16, dtype="f4") / (high * 20), "t_s": np.float32(1 / high)}
    case = model(STAYS, {**integers, **steps, "x_s": np.float32(0.03), "x_z": np.uint8(128), "w_z": np.int8(0),
                         "t_z": np.int8(0)}, opset=21)  # fmt: skip
    stored = {**integers, "w_z": np.full(16, zero), "t_z": np.array(zero)}
    for tensor in case.graph.initializer:
        if tensor.name in stored:
            values = stored[tensor.name]
            tensor.CopyFrom(helper.make_tensor(tensor.name, element, values.shape, values.reshape(-1).tolist()))
    samples = [{**feed, "ids": r.integers(0, 300, 5)} for feed in feeds(6, x=(2, 32, 6, 6))]
    result = quantize(case, samples, complete=True, effort="fast", settings=FAST)
    made = result.model.to_proto()
    found = {tuple(i.dims): i for i in made.graph.initializer if np.prod(i.dims) > 1000}
    assert {shape: i.data_type for shape, i in found.items()} == dict.fromkeys([(32, 16, 3, 3), (300, 48)], element)
    for name, values in integers.items():
        np.testing.assert_array_equal(numpy_helper.to_array(found[values.shape]).astype(int), values, name)
    assert made.ByteSize() < case.ByteSize() + 2000
    assert "2 weights of float nodes are stored in the integers of the input model" in result.report.notes
    for feed in samples[:2]:
        e = (integers["table"][feed["ids"]] - zero).astype("f4") * steps["t_s"]
        np.testing.assert_array_equal(run(made, feed)[1], e)
        wanted, got = run(case, feed, optimize=False)[0], run(made, feed)[0]
        assert np.square(wanted - got).sum() < 1e-3 * np.square(wanted).sum()


def test_a_file_of_several_times_the_input_is_refused() -> None:
    """Of 2 bits 8 would be made: nothing is written unless that is asked for by name."""
    r = np.random.default_rng(0)
    text = """g (float[n, 512] x) => (float[n, 512] y) {
        y = com.microsoft.MatMulNBits<K = 512, N = 512, bits = 2, block_size = 64>(x, q, s) }"""
    stored = {"q": r.integers(0, 256, (512, 8, 16)).astype("u1"), "s": np.full((512, 8), 0.02, np.float32)}
    given, samples = model(text, stored, imports=', "com.microsoft": 1'), feeds(4, x=(3, 512))
    again = replace(FAST, requantize=True)
    with pytest.raises(UsageError, match=r"would take \d+ bytes, the input takes \d+.*with include="):
        quantize(given, samples, effort="fast", settings=again)
    made = quantize(given, samples, effort="fast", settings=again, include=("MatMul",)).model.to_proto()
    assert made.ByteSize() > 2 * given.ByteSize()


def test_integer_operators_that_came_with_the_model_are_no_fault() -> None:
    """PAINS 45 is of what the runtime rounds by itself; these were in the file."""
    from onnxruntime.quantization import quantize_dynamic  # with the files of onnxruntime itself

    text = "g (float[4, 2, 8] x) => (float[4, 1, 2, 16] y) { y = LSTM<hidden_size = 16>(x, w, r) }"
    given = model(text, {"w": weight(1, 64, 8), "r": weight(1, 64, 16)})
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "net.onnx", Path(folder) / "int8.onnx"
        onnx.save(given, source)
        quantize_dynamic(source, made, op_types_to_quantize=["LSTM"])
        assert [n.op_type for n in onnx.load(made).graph.node] == ["DynamicQuantizeLSTM"]
        report = quantize(made, feeds(6, x=(4, 2, 8)), complete=True, settings=PROVEN).report
    assert report.int8_unplanned == []
    assert not any("runs nodes in int8 that are float" in note for note in report.notes)
