from collections import Counter

import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import Feed, feeds, model, vector, weight
from planned_models import initializers, maker, nodes_of, planned, quantized, run, sqnr

from onnxshot.passes.weight_only import QuantizeWeightsOnly
from onnxshot.planning.plan import WEIGHTS

# Case, slot and channel axis of the weight of its first weighted node.
FORMS = {
    "resnet_block": (1, 0),
    "mbconv_block": (1, 0),
    "conv_transpose": (1, 1),
    "conv_transpose_grouped": (1, 1),
    "conv_1d_and_3d": (1, 0),
    "matmul_weight_on_the_left": (0, 0),
    "matmul_batched_weight": (1, (0, 2)),
    "gemm_trans_b_0": (1, 1),
    "gemm_trans_b_1": (1, 0),
    "gemm_trans_a": (1, 1),
    "lstm": (1, (0, 1)),
    "gru": (1, (0, 1)),
}


def restored(proto: onnx.ModelProto, name: str) -> np.ndarray:
    """The weight a DequantizeLinear gives, by the formula of ONNX, or a Cast and a Mul."""
    dq = maker(proto, name)
    if dq.op_type == "Mul":
        cast = maker(proto, dq.input[0])
        assert cast.op_type == "Cast"
        return initializers(proto)[cast.input[0]].astype(np.float32) * initializers(proto)[dq.input[1]]
    assert dq.op_type == "DequantizeLinear"
    q, scale, zero = (initializers(proto)[n] for n in dq.input)
    shape = [1] * q.ndim
    if scale.ndim:
        shape[dq.attribute[0].i] = -1
    return (q.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.astype(np.float32).reshape(shape)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_every_op_with_a_weight(name: str, per_channel: bool) -> None:
    case = HANDMADE[name]()
    slot, axis = FORMS[name]
    ready, plan = planned(case, mode="weights", per_channel=per_channel, format="qdq")
    before = {t.name: onnx.numpy_helper.to_array(t) for t in ready.to_proto().graph.initializer}
    order = [n.op for n in ready.graph.nodes]
    change = QuantizeWeightsOnly(plan).run(ready)
    made = ready.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert change.edits == len(plan.labels(WEIGHTS)) > 0
    restoring = [n for n in made.graph.node if n.op_type in ("DequantizeLinear", "Cast", "Mul")]
    assert [n.op_type for n in made.graph.node if n not in restoring or n.op_type in order] == order
    node = next(n for n in made.graph.node if n.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU"))
    slots = (1, 2) if node.op_type in ("LSTM", "GRU") else (slot,)
    for i in slots:
        dq = maker(made, node.input[i])
        if dq.op_type == "Mul":  # no kernel reads these integers: they become floats once, when they are loaded
            stored = maker(made, dq.input[0]).input[0]
            q, scale = initializers(made)[stored], initializers(made)[dq.input[1]]
        else:
            assert node.op_type in ("MatMul", "Gemm")
            assert i == 1
            stored = dq.input[0]
            q, scale, zero = (initializers(made)[n] for n in dq.input)
            assert zero.dtype == np.int8
            assert not zero.any()
        assert q.dtype == np.int8
        source = before[stored.removesuffix("_quantized").removesuffix("_stored")]
        axes = (axis if isinstance(axis, tuple) else (axis,)) if per_channel else ()
        summed = tuple(k for k in range(q.ndim) if k not in axes)
        wanted = np.abs(source).max(axis=summed, keepdims=True) / 127
        np.testing.assert_allclose(scale.reshape(-1), wanted.reshape(-1), rtol=1e-6)
        step = scale.reshape(wanted.shape)
        assert (np.abs(restored(made, node.input[i]) - source) <= 0.5001 * step).all(), "within half a step"
    assert sqnr(case, made) > 30
    assert list(made.graph.output) == list(case.model.graph.output)


def test_a_weight_that_two_ops_share_is_stored_once() -> None:
    _, made = quantized(HANDMADE["shared_by_two_convs"](), mode="weights")
    assert [v.dtype.name for v in initializers(made).values() if v.ndim == 4 and v.size > v.shape[0]] == ["int8"]
    assert len(nodes_of(made, "Cast")) == 1
    case = HANDMADE["shared_by_matmul_and_gemm"]()
    _, made = quantized(case, mode="weights", per_channel=False)
    assert len([v for v in initializers(made).values() if v.shape == (16, 16)]) == 1
    assert sqnr(case, made) > 30


def test_a_weight_that_is_given_out_too_stays_as_it_is_there() -> None:
    case = HANDMADE["shared_with_output"]()
    _, made = quantized(case, mode="weights")
    for feed in case.feeds[:2]:
        np.testing.assert_array_equal(run(case.model, feed)[1], run(made, feed)[1])


def test_weights_of_subgraphs_are_stored_once_in_the_outer_graph() -> None:
    case = HANDMADE["if_captures_weights"]()
    _, made = quantized(case, mode="weights", format="qdq")
    stored = [v for v in initializers(made).values() if v.shape == (16, 16)]
    assert Counter(v.dtype.name for v in stored) == {"int8": 3}
    assert all(not a.g.initializer for n in made.graph.node for a in n.attribute)
    assert sqnr(case, made) > 30


def table(kind: type = np.float32, rows: int = 1000, opset: int = 17) -> Case:
    """Token ids, negative ones too, into a table whose rows differ in size by 8 times."""
    name = {np.float32: "float", np.float16: "float16"}[kind]
    text = f"g (int64[2, T] ids) => ({name}[2, T, 32] y) {{ y = Gather(table, ids) }}"
    rng = np.random.default_rng(3)
    given: list[Feed] = [{"ids": rng.integers(-rows, rows, (2, n))} for n in (1, 4, 9)]
    return Case(model(text, {"table": weight(rows, 32).astype(kind)}, opset=opset), given)


@pytest.mark.parametrize("weight_type", ["int8", "uint8", "int16"])
def test_an_embedding_dequantizes_only_the_rows_it_needs(weight_type: str) -> None:
    case = table()
    _, made = quantized(case, mode="weights", weight_type=weight_type)
    assert Counter(n.op_type for n in made.graph.node) == {"Gather": 2, "Cast": 1, "Mul": 1}
    values = initializers(made)
    assert sorted(v.shape for v in values.values()) == [(1000, 1), (1000, 32)]
    steps = {"int8": 127, "uint8": 127, "int16": 32767}[weight_type]
    source = onnx.numpy_helper.to_array(case.model.graph.initializer[0])
    for feed in case.feeds:
        (got,) = run(made, feed)
        limit = 0.5001 * np.abs(source).max(axis=1, keepdims=True)[feed["ids"]] / steps
        assert (np.abs(got - source[feed["ids"]]) <= limit).all()


def test_a_small_table_stays_as_it_is() -> None:
    result, made = quantized(table(rows=100), mode="weights")
    assert Counter(n.op_type for n in made.graph.node) == {"Gather": 1}
    assert result.plan.weights == result.plan.stored == {}


@pytest.mark.parametrize(("target", "opset", "scale"), [("ort", 17, np.float32), ("tensorrt", 19, np.float16)])
def test_float16_models_get_scales_of_the_type_they_are_computed_in(target: str, opset: int, scale: type) -> None:
    case = HANDMADE["half_precision_model"]()
    _, made = quantized(case, mode="weights", target=target, format="qdq")
    assert next(e.version for e in made.opset_import if not e.domain) == opset
    values = initializers(made)
    casts = [n for n in nodes_of(made, "Cast") if n.input[0] in values]
    rescales = [n for n in nodes_of(made, "Mul") if n.input[0] in [cast.output[0] for cast in casts]]
    restoring = nodes_of(made, "DequantizeLinear")
    assert {values[node.input[0]].dtype.name for node in (*restoring, *casts)} == {"int8"}
    assert {values[node.input[1]].dtype for node in (*restoring, *rescales)} == {np.dtype(scale)}
    assert len(restoring) + len(casts) == 2
    assert sqnr(case, made) > 28
    assert sqnr(case, made, optimize=False) > 28


def test_sixteen_bit_weights_need_opset_21() -> None:
    case = HANDMADE["resnet_block"]()
    _, made = quantized(case, mode="weights", weight_type="int16")
    assert next(e.version for e in made.opset_import if not e.domain) == 21
    assert sqnr(case, made) > 75


def test_the_file_is_a_quarter_and_the_scales_are_little() -> None:
    text = "g (float[4, 512] x) => (float[4, 512] y) { h = MatMul(x, w) y = Gemm(h, v, b) }"
    constants = {"w": weight(512, 512), "v": weight(512, 512, seed=1), "b": vector(512)}
    case = Case(model(text, constants), feeds(4, x=(4, 512)))
    _, made = quantized(case, mode="weights")
    assert made.ByteSize() < 0.27 * case.model.ByteSize()
    assert sqnr(case, made) > 35


def test_weights_of_other_types_say_why_they_stay() -> None:
    text = "g (double[4, 8] x) => (double[4, 8] y) { y = MatMul(x, w) }"
    case = Case(model(text, {"w": weight(8, 8).astype(np.float64)}), [])
    _, plan = planned(case, mode="weights")
    assert [s.reason for s in plan.skips if s.op == "MatMul"] == ["its weight is double, not float or float16"]


def test_tensorrt_has_no_int8_gather_so_the_table_is_dequantized_in_front_of_it() -> None:
    case = table()
    _, made = quantized(case, target="tensorrt", mode="weights")
    assert [n.op_type for n in made.graph.node] == ["DequantizeLinear", "Gather"]
    values = next(iter(initializers(case.model).values()))
    scale = np.abs(values).max(axis=1) / 127
    for feed in case.feeds:
        rows = feed["ids"]
        error = np.abs(run(made, feed)[0] - values[rows])
        assert (error <= scale[rows][..., None] / 2 * 1.001).all()
