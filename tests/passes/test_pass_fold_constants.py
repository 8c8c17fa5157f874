import numpy as np
import pytest
from handmade import HANDMADE
from handmade.core import feeds, model, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from pass_checks import loaded, ops, reasons, rewritten, tensor, the

from onnxshot.graph import Constant, weights
from onnxshot.graph.load import load_model
from onnxshot.passes.base import Pass
from onnxshot.passes.drop_overridable import DropOverridable
from onnxshot.passes.fold_constants import FoldConstants

FOLD: Pass = FoldConstants()


@pytest.mark.parametrize("wrapper", ["constant", "identity", "cast", "transpose", "reshape"])
@pytest.mark.parametrize("op", ["conv", "matmul", "gemm"])
def test_weight_behind_a_node_becomes_a_constant(op: str, wrapper: str) -> None:
    """ORT #13358, onnxruntime-inference-examples #363."""
    case = HANDMADE[f"{op}_behind_{wrapper}"]()
    after, change = rewritten(case.model, FOLD, *case.feeds[:1])
    assert change.edits == 1
    node = the(after, {"conv": "Conv", "matmul": "MatMul", "gemm": "Gemm"}[op])
    assert isinstance(node.inputs[1], Constant)


@pytest.mark.parametrize(
    "attr",
    [
        "value_float = 2.0",
        "value_floats = [1.0, 2.0]",
        "value_int = 3",
        "value_ints = [4, 5]",
        'value_string = "s"',
        'value_strings = ["s", "t"]',
    ],
)
def test_every_kind_of_constant_node(attr: str) -> None:
    kind = "string" if "string" in attr else "float" if "float" in attr else "int64"
    proto = model(f"g ({kind}[r] x) => ({kind}[r] y) {{ c = Constant<{attr}>() y = Concat<axis = 0>(x, c) }}")
    expected = ReferenceEvaluator(
        helper.make_graph([proto.graph.node[0]], "g", [], [helper.make_empty_tensor_value_info("c")]),
        opsets={"": 17},
    ).run(None, {})[0]
    after = load_model(proto)
    assert FOLD.run(after).edits == 1
    stored = weights.to_proto(after.graph.nodes[0].inputs[1])
    assert tuple(stored.dims) == np.shape(expected)
    found = numpy_helper.to_array(stored).reshape(-1)
    assert found.astype(str).tolist() == np.reshape(expected, -1).astype(str).tolist()


def test_sparse_constant_node() -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "v"),
        numpy_helper.from_array(np.array([1, 5], np.int64), "i"),
        [2, 3],
    )
    proto = model("g (float[2, 3] x) => (float[2, 3] y) { y = Add(x, c) }", {"c": np.zeros((2, 3), np.float32)})
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    after = loaded(proto)
    assert FOLD.run(after).edits == 1
    np.testing.assert_array_equal(weights.read(tensor(after, "c")), [[0, 2, 0], [0, 0, 3]])


def test_chain_is_folded_in_one_run() -> None:
    text = """g (float[n, 4] x) => (float[n, 6] y) {
        t = Transpose<perm = [1, 0]>(a) s = Slice(t, starts, ends) two = Constant<value_float = 2.0>()
        m = Mul(s, two) w = Concat<axis = 1>(m, b) y = MatMul(x, w)
    }"""
    constants = {"a": weight(5, 8), "b": weight(4, 1), "starts": np.array([0, 0]), "ends": np.array([4, 5])}
    after, change = rewritten(model(text, constants), FOLD, *feeds(1, x=(3, 4)))
    assert change.edits == 5
    assert ops(after) == {"MatMul": 1}
    assert tensor(after, "w").shape == (4, 6)


@settings(max_examples=30)
@given(st.permutations(range(3)), st.sampled_from([[0, 2], [1], [2, 0], [-1]]), st.sampled_from([9, 12, 17]))
def test_moving_ops_match_the_runtime(perm: list[int], axes: list[int], opset: int) -> None:
    """Transpose, Unsqueeze, Squeeze, Reshape and Flatten, with axes as attributes and as inputs."""
    constants = {"w": weight(2, 3, 4), "shape": np.array([0, -1, 2])}
    attribute, slot = "", ", axes"
    if opset < 13:
        attribute, slot = f"<axes = {[abs(a) for a in axes]}>", ""
    else:
        constants["axes"] = np.array(axes)
    text = f"""g (float[2] x) => (float[a, b, c] y, float[d, e] z, float[f, g, h] v) {{
        t = Transpose<perm = {perm}>(w) u = Unsqueeze{attribute}(t{slot}) s = Squeeze{attribute}(u{slot})
        r = Reshape(s, shape) f = Flatten<axis = 2>(u) i = ReduceSum<keepdims = 0>(x)
        y = Add(r, i) z = Add(f, i) v = Add(s, i)
    }}"""
    after, change = rewritten(model(text, constants, opset=opset), FOLD, *feeds(1, x=(2,)))
    assert change.edits == 5
    assert not ops(after)["Transpose"]


@pytest.mark.parametrize("bad", ["Unsqueeze(w, twice)", "Reshape(w, beyond)", "Squeeze(w, twice)"])
def test_invalid_node_stays_with_a_reason(bad: str) -> None:
    text = f"g (float[2] x) => (float[2] y) {{ a = {bad} b = ReduceSum<keepdims = 0>(a) c = Neg(b) y = Add(x, c) }}"
    constants = {"w": weight(2, 3), "twice": np.array([1, 1]), "beyond": np.array([2, 3, 0])}
    after = load_model(model(text, constants))
    assert "cannot" in reasons(FOLD.run(after))[0]
    assert ops(after)["Add"] == 1


def test_a_large_result_is_not_kept_in_memory() -> None:
    text = """g (float[n, 1024] x) => (float[n, 1024] y) {
        t = Transpose<perm = [1, 0]>(h) w = Cast<to = 1>(t) y = MatMul(x, w)
    }"""
    after, change = rewritten(model(text, {"h": weight(1024, 1024).astype(np.float16)}), FOLD, *feeds(1, x=(1, 1024)))
    assert change.edits == 2
    assert isinstance(tensor(after, "w")._values, weights.ComputedValues)
    assert isinstance(tensor(after, "w")._values.load(), np.ndarray)


def test_half_precision_weight_remembers_its_type() -> None:
    text = """g (float[n, 4] x) => (float[n, 8] y) {
        c = Cast<to = 1>(h) w = Transpose<perm = [1, 0]>(c) m = MatMul(x, w)
        c2 = Cast<to = 1>(h2) v = Mul(c2, c2) y = Add(m, v)
    }"""
    constants = {"h": weight(8, 4).astype(np.float16), "h2": weight(8).astype(np.float16)}
    after, _ = rewritten(model(text, constants), FOLD, *feeds(1, x=(3, 4)))
    assert tensor(after, "w").stored_as == TensorProto.FLOAT16
    assert not getattr(tensor(after, "v"), "stored_as", 0)  # computed values need not be float16


def test_existing_quantization_stays() -> None:
    for name in ("already_qdq", "already_qoperator", "already_dynamic"):
        case = HANDMADE[name]()
        before = ops(loaded(case.model))
        after, change = rewritten(case.model, FOLD, *case.feeds[:1])
        assert change.edits == 0
        assert ops(after) == before


def test_a_result_that_would_grow_the_file_is_not_folded() -> None:
    text = """g (float[1000, 1000] x) => (float[1000, 1000] y) {
        a = Expand(one, shape) b = ConstantOfShape(shape) c = Tile(row, repeats) d = Mul(row, column)
        e = Add(a, b) f = Add(c, d) h = Add(e, f) y = Add(x, h)
    }"""
    constants = {
        "one": np.ones(1, np.float32),
        "shape": np.array([1000, 1000]),
        "row": np.ones((1, 1000), np.float32),
        "column": np.ones((1000, 1), np.float32),
        "repeats": np.array([1000, 1]),
    }
    after, change = rewritten(model(text, constants), FOLD, *feeds(1, x=(1000, 1000)))
    assert change.edits == 0
    assert [s.op for s in change.skips] == ["Expand", "ConstantOfShape", "Tile", "Mul"]
    assert "4000000 bytes" in change.skips[0].reason
    assert FoldConstants(max_growth=1 << 24).run(after).edits == 7


@pytest.mark.parametrize("op", ["RandomNormalLike(c)", "Bernoulli(c)"])
def test_random_numbers_stay(op: str) -> None:
    proto = model(f"g (float[2] x) => (float[2] y) {{ r = {op} y = Add(x, r) }}", {"c": np.zeros(2, np.float32)})
    _, change = rewritten(proto, FOLD)
    assert (change.edits, reasons(change)) == (0, ["it is random"])


def test_custom_op_and_training_dropout_stay() -> None:
    text = """g (float[2] x) => (float[2] y) {
        a = com.microsoft.Gelu(c) b = Dropout(c, ratio, training) d = Add(a, b) y = Add(x, d)
    }"""
    constants = {"c": np.ones(2, np.float32), "ratio": np.asarray(np.float32(0.5)), "training": np.array(True)}
    after, change = rewritten(model(text, constants, imports=', "com.microsoft": 1'), FOLD)
    assert change.edits == 0
    assert reasons(change) == ["operators of other domains are not evaluated"]
    assert ops(after) == {"Gelu": 1, "Dropout": 1, "Add": 2}


def test_constant_output_keeps_its_node_and_name() -> None:
    text = """g (float[2] x) => (float[2] y, float[2] z, float[2] k) {
        z = Neg(c) y = Add(x, z) k = Constant<value_floats = [1.0, 2.0]>()
    }"""
    after, change = rewritten(model(text, {"c": np.ones(2, np.float32)}), FOLD, *feeds(1, x=(2,)))
    assert (change.edits, reasons(change)) == (0, ["it makes an output"])
    assert [o.name for o in after.graph.outputs] == ["y", "z", "k"]


def test_only_static_sizes_are_folded() -> None:
    text = """g (float[n, 3, 4] x, float[2, 3] s) => (int64[1] a, int64[3] b, int64[2] c, int64 d, int64[3] e) {
        p = Relu(x) a0 = Shape<start = 1, end = 2>(p) b = Shape(p) c0 = Shape(s) d0 = Size(s) e0 = Shape(w)
        i = ReduceSum<keepdims = 0>(b) z = Sub(i, i) a = Add(a0, z) c = Add(c0, z) d = Add(d0, z) e = Add(e0, z)
    }"""
    proto = model(text, {"w": weight(2, 3, 4)})
    after, change = rewritten(proto, FOLD, *feeds(1, x=(2, 3, 4), s=(2, 3)))
    assert change.edits == 5, "what is taken from itself is 0 too"
    assert ops(after)["Shape"] == 1


def test_a_shape_that_only_value_info_states_is_ignored() -> None:
    """onnxsim #101, #213: exporters leave the example's batch size in value_info."""
    proto = model("g (float[n, 4] x) => (int64[2] y) <float[1, 4] h> { h = Relu(x) s = Shape(h) y = Neg(s) }")
    after, change = rewritten(proto, FOLD, *feeds(1, x=(5, 4)))
    assert change.edits == 0
    assert ops(after)["Shape"] == 1


@pytest.mark.parametrize("name", ["if_captures_weights", "loop_body", "scan_body", "nested_if"])
def test_handmade_subgraphs_survive(name: str) -> None:
    case = HANDMADE[name]()
    rewritten(case.model, FOLD, *case.feeds[:2])


def test_constants_in_branches_of_the_same_name() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] p) { k = Constant<value_float = 2.0>() m = Mul(w, k) p = Mul(x, m) },
            else_branch = e () => (float[2] q) { k = Constant<value_float = 3.0>() m = Mul(w, k) q = Add(x, m) }
        >
    }"""
    x = np.array([1, 2], np.float32)
    proto = model(text, {"w": np.array([5, 7], np.float32)})
    after, change = rewritten(proto, FOLD, *({"x": x, "c": np.array(c)} for c in (True, False)))
    assert change.edits == 4
    assert ops(after) == {"If": 1, "Mul": 1, "Add": 1}


def test_weight_shared_by_folded_and_kept_nodes() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { t = Transpose<perm = [1, 0]>(w) a = MatMul(x, w) y = MatMul(a, t) }"
    after, change = rewritten(model(text, {"w": weight(4, 4)}), FOLD, *feeds(1, x=(3, 4)))
    assert change.edits == 1
    np.testing.assert_array_equal(weights.read(tensor(after, "t")), weights.read(tensor(after, "w")).T)


def test_equal_results_in_two_branches_are_stored_once() -> None:
    """Both LSTMs of a voice detector, one per branch, unsqueeze the same weights: the file must not hold them twice."""
    text = """g (float[n, 4] x, bool c) => (float[n, 4] y) {
        y = If (c) <
            then_branch = t () => (float[n, 4] p) { a = Transpose<perm = [1, 0]>(w) p = MatMul(x, a) },
            else_branch = e () => (float[n, 4] q) {
                b = Transpose<perm = [1, 0]>(w) d = Transpose<perm = [0, 1]>(w) r = MatMul(x, b) q = MatMul(r, d)
            }
        >
    }"""
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    cases = ({"x": x, "c": np.array(c)} for c in (True, False))
    after, change = rewritten(model(text, {"w": weight(4, 4)}), FOLD, *cases)
    assert change.edits == 3
    read = [node.inputs[1] for _, node in after.walk() if node.op == "MatMul"]
    assert len(read) == 3
    assert len(set(map(id, read))) == 2, "the one of other axes is another"


def test_axes_that_are_constants_of_their_own_make_no_difference() -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        k = Constant<value_ints = [4, 4]>() a = Reshape(w, k) l = Constant<value_ints = [4, 4]>() b = Reshape(w, l)
        m = Constant<value_ints = [-1, 4]>() d = Reshape(w, m) p = MatMul(x, a) q = MatMul(p, b) y = MatMul(q, d)
    }"""
    after, _ = rewritten(model(text, {"w": weight(16)}), FOLD, *feeds(1, x=(3, 4)))
    first, second, third = (node.inputs[1] for _, node in after.walk())
    assert first is second
    assert third is not first


def test_overridable_weight_stays() -> None:
    text = "g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }"
    proto = model(text, {"w": weight(4, 4)})
    after = loaded(proto)
    DropOverridable(keep=True).run(after)
    assert FOLD.run(after).edits == 0


def test_multiple_outputs_are_folded() -> None:
    text = "g (float[n, 2] x) => (float[n, 2] y) { a, b = Split<axis = 0>(w) c = MatMul(x, a) y = MatMul(c, b) }"
    after, change = rewritten(model(text, {"w": weight(4, 2)}, opset=13), FOLD, *feeds(1, x=(3, 2)))
    assert change.edits == 1
    assert tensor(after, "b").shape == (2, 2)
