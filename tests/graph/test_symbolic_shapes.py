"""Inferred shapes compared with those of a run in ONNX Runtime, and the symbolic arithmetic behind them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import session
from handmade import HANDMADE
from handmade.core import Feed, model, weight
from handmade.sized import SHAPES, SIZED, feed_of, twin
from onnx import numpy_helper
from pass_checks import with_outputs

import onnxshot
from onnxshot import memory
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import tensor_sizes
from onnxshot.graph.symbolic_dims import Expr, divided, equal, is_size, named, unknown
from onnxshot.graph.symbolic_shapes import propagate
from onnxshot.runtimes.ort_tensor_sizes import sizes_on


def run_shapes(proto: onnx.ModelProto, feed: Feed) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the outermost graph, by running it."""
    names = [name for node in proto.graph.node for name in node.output if name]
    found = session(with_outputs(proto, names)).run(names, feed)
    return {name: np.shape(value) for name, value in zip(names, found, strict=True) if hasattr(value, "shape")}


def shapes_of(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(value) for name, value in feed.items()}


@pytest.mark.parametrize("name", SIZED)
def test_inferred_shapes_are_those_of_a_run(name: str) -> None:
    """torch's exporters write Shape, Slice, Range, Expand and Pad wherever a dimension is free."""
    proto = SIZED[name]()
    for shape in SHAPES[name]:
        feed = feed_of(name, shape)
        found = tensor_sizes(load_model(proto), shapes_of(feed))
        wanted = run_shapes(proto, feed)
        assert {k: found.shapes[k] for k in wanted} == wanted
        assert found.source == "sample"
        assert all(row.exact for row in found.work(load_model(proto)))


@pytest.mark.parametrize("name", SIZED)
def test_fixed_inputs_give_the_same_shapes_without_a_sample(name: str) -> None:
    feed = feed_of(name, SHAPES[name][0])
    frozen, given = tensor_sizes(load_model(twin(name))), tensor_sizes(load_model(SIZED[name]()), shapes_of(feed))
    assert frozen.source == "frozen"
    assert frozen.shapes == given.shapes
    assert tensor_sizes(load_model(SIZED[name]())).source == "inferred"


@pytest.mark.parametrize("name", HANDMADE)
def test_no_inferred_size_is_wrong(name: str) -> None:
    case = HANDMADE[name]()
    if not case.runs or not case.valid or not case.feeds:
        pytest.skip("it does not run")
    ready = load_model(case.model)
    found, proto = tensor_sizes(ready, shapes_of(case.feeds[0]), case.feeds[0]), ready.to_proto()
    wanted = run_shapes(proto, case.feeds[0])
    assert {k: found.shapes[k] for k in wanted if k in found.shapes} == {
        k: shape for k, shape in wanted.items() if k in found.shapes
    }


LOOP = """net (float[N,8] x, int64 n) => (float[N,8] y) {
    y = Loop (n, go, x) <body = b (int64 i, bool c, float[N,8] s) => (bool c, float[N,8] t) { t = MatMul(s, w) }> }"""


def looped() -> onnx.ModelProto:
    return model(LOOP, {"w": weight(8, 8), "go": np.array(True)})


def test_the_body_of_a_loop_counts_as_often_as_it_runs() -> None:
    ready, feed = load_model(looped()), {"x": np.ones((3, 8), np.float32), "n": np.array(5, np.int64)}
    (row,) = sizes_on(ready, feed).work(ready)
    assert (row.macs, row.exact) == (5 * 3 * 64, True)
    (row,) = tensor_sizes(ready, {"x": (3, 8), "n": ()}).work(ready)
    assert (row.macs, row.exact) == (3 * 64, False), "how often is not known, and that is said"


def test_a_loop_that_the_data_end_is_counted_by_a_run() -> None:
    text = """net (float[1,8] x) => (float[1,8] y) {
        y = Loop (most, go, x) <body = b (int64 i, bool c, float[1,8] s) => (bool d, float[1,8] t) {
            t = Add(s, one)  v = MatMul(t, w)  k = ReduceMax<keepdims=0>(t)  d = Less(k, end) }> }"""
    held = {"w": weight(8, 8), "one": np.float32(1), "end": np.float32(3.5), "go": np.array(True),
            "most": np.array(100, np.int64)}  # fmt: skip
    proto = model(text, held)
    for i, node in enumerate(proto.graph.node[0].attribute[0].g.node):
        node.name = f"inner{i}"
    proto.graph.node[0].name = "loop"
    ready = load_model(proto)
    (row,) = sizes_on(ready, {"x": np.zeros((1, 8), np.float32)}).work(ready)
    assert (row.macs, row.exact) == (4 * 64, True)
    (row,) = tensor_sizes(ready, {"x": (1, 8)}).work(ready)
    assert not row.exact


def test_a_scan_counts_its_steps_and_an_untaken_branch_counts_nothing() -> None:
    text = """net (float[T,8] x) => (float[8] s, float[T,8] y) {
        s, y = Scan <num_scan_inputs=1, body = b (float[8] a, float[8] e) => (float[8] c, float[8] d) {
            m = MatMul(e, w)  c = Add(a, m)  d = Identity(m) }> (start, x) }"""
    ready = load_model(model(text, {"w": weight(8, 8), "start": np.zeros(8, np.float32)}))
    found = tensor_sizes(ready, {"x": (6, 8)})
    (row,) = found.work(ready)
    assert (row.macs, row.exact) == (6 * 64, True)
    assert found.shapes["y"] == (6, 8)
    text = """net (float[N,8] x) => (float[N,8] y) {
        s = Shape(x)  n = Gather(s, i0)  few = Less(n, four)
        y = If (few) <then_branch = t () => (float[N,8] a) { a = MatMul(x, w) },
                      else_branch = e () => (float[N,8] b) { h = MatMul(x, w) b = MatMul(h, w) }> }"""
    held = {"w": weight(8, 8), "i0": np.array(0, np.int64), "four": np.array(4, np.int64)}
    ready = load_model(model(text, held))
    for batch, products in ((3, 1), (5, 2)):
        assert sum(row.macs for row in tensor_sizes(ready, {"x": (batch, 8)}).work(ready)) == products * batch * 64


def test_data_dependent_shapes_are_unknown_without_a_run() -> None:
    text = """net (float[N] x) => (float[M,4] y) {
        z = NonZero(x)  t = Transpose<perm=[1,0]>(z)  f = Cast<to=1>(t)  y = MatMul(f, w) }"""
    proto = model(text, {"w": weight(1, 4)})
    for i, node in enumerate(proto.graph.node):
        node.name = f"n{i}"
    ready, feed = load_model(proto), {"x": np.array([0, 1, 2, 0, 3], np.float32)}
    alone = tensor_sizes(ready, shapes_of(feed))
    (row,) = alone.work(ready)
    assert (row.macs, row.exact) == (4, False)
    assert alone.report_entry([row]) == {"from": "sample", "unknown": ["n3"]}
    measured = sizes_on(ready, feed)
    (row,) = measured.work(ready)
    assert (row.macs, row.exact) == (3 * 4, True)
    assert measured.report_entry([row]) == {"from": "sample", "unknown": []}


def test_inspect_and_reports_say_where_shapes_come_from(tmp_path: Any) -> None:
    proto, feeds = SIZED["view_cnn"](), [feed_of("view_cnn", SHAPES["view_cnn"][0], i) for i in range(4)]
    free, given = onnxshot.inspect(proto), onnxshot.inspect(proto, calib=feeds)
    assert free.sizes == {"from": "inferred", "unknown": []}
    assert "free dimensions as 1: give calib=DATA" in free.to_text()
    assert given.sizes["from"] == "sample"
    assert sum(given.macs.values()) == 16 * 16 * 32 * 27 + 16 * 16 * 32 * 288 + 320
    assert f"{sum(given.macs.values()):,} multiply-accumulates on the first sample" in given.to_text()
    assert onnxshot.inspect(twin("view_cnn")).sizes["from"] == "frozen"


# ---------------------------------------------------------------------- sizes that are not known


def free(proto: onnx.ModelProto) -> dict[str, tuple[Any, ...]]:
    """Shapes that are inferred while the sizes of the inputs are unknown."""
    skeleton, _ = Model(proto).skeleton()
    return propagate(skeleton, {}).shapes


def test_a_product_of_sizes_divides_by_any_of_them() -> None:
    b, t = named("b"), named("t")
    assert (b * 12 * t) // b == t * 12
    assert divided(b * t + b * 6, b) == t + 6
    assert divided(b * 3, t) is None
    assert b * t == t * b
    assert b + 1 - b == 1
    assert is_size(b * t + 2) and not is_size(b - 1) and not is_size(unknown())
    assert equal(b, -1) is False and equal(b, 1) is None and equal(b * 2, b + b) is True
    assert isinstance((b + 1) // 2, Expr) and (b + 1) // 2 == (b + 1) // 2


@pytest.mark.parametrize(
    ("name", "tensor", "known"),
    [
        ("view_cnn", "v", {1: 32}),
        ("window_attention", "qkv", {1: 16, 2: 384}),
        ("window_attention", "ow", {1: 16, 2: 128}),
        ("window_attention", "whole", {3: 128}),
        ("recurrent", "zero", {0: 1, 2: 24}),
        ("masked_decoder", "oj", {2: 128}),
    ],
)
def test_sizes_that_do_not_depend_on_free_dimensions_are_known(name: str, tensor: str, known: dict[int, int]) -> None:
    shapes = free(SIZED[name]())
    assert {axis: shapes[tensor][axis] for axis in known} == known


def by_reference(text: str, feed: Feed, held: dict[str, Any]) -> Sequence[Any]:
    proto = model(text, held)
    return session(proto.SerializeToString()).run(None, feed)


@pytest.mark.parametrize(
    "body",
    [
        "y = Slice(s, l3, minus9, l0, minus1)",
        "a = Div(s, minus2)  y = Neg(a)",
        "a = Cast<to=1>(s)  b = Mul(a, half)  c = Floor(b)  y = Cast<to=7>(c)",
        "a = Gather(s, minus1)  b = Range(i0, i3, i1)  y = Add(a, b)",
        "e = Equal(s, l3)  y = Where(e, s, l0)",
        "a, b = Split<axis=0>(s, twos)  m = Max(a, b)  n = Min(a, b)  y = Concat<axis=0>(m, n)",
        "a = ReduceProd<keepdims=1>(s)  b = ConstantOfShape<value = int64[1] {7}>(l4)  y = Mul(a, b)",
        "z = NonZero(s)  q = Squeeze(z, l0)  t = Tile(q, l2)  y = Mod(t, l3)",
        "u = Unsqueeze(s, l0)  t = Transpose(u)  e = Expand(t, ones)  y = Reshape(e, minus1)",
    ],
)
def test_computed_values_are_those_of_the_runtime(body: str) -> None:
    held = {f"l{n}": np.array([n], np.int64) for n in (0, 2, 3, 4)} | {
        f"minus{n}": np.array([-n], np.int64) for n in (1, 2, 9)
    }
    held |= {"i0": np.array(0), "i1": np.array(1), "i3": np.array(3), "half": np.float32(0.6)}
    held |= {"twos": np.array([2, 2]), "ones": np.array([2, 1, 1])}
    text = f"net (float[A,B,C,D] x) => (int64[Q] y) {{ s = Shape(x)  {body} }}"
    feed = {"x": np.zeros((5, 3, 2, 7), np.float32)}
    (wanted,) = by_reference(text, feed, held)
    skeleton, _ = Model(model(text, held)).skeleton()
    found = propagate(skeleton, {"x": (5, 3, 2, 7)}).values["y"]
    assert found.tolist() == wanted.tolist()


def test_values_of_large_tensors_are_not_computed() -> None:
    proto = model("net (int64[N] x) => (int64[N] y) { y = Add(x, t) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1 << 14, np.int64), "t"))
    skeleton, _ = Model(proto).skeleton()
    assert "y" not in propagate(skeleton, {"x": (1 << 14,)}).values


def test_a_deprecated_operator_does_not_stop_inference() -> None:
    """GroupNormalization has no successor from opset 18 to 20: exporters write it, ONNX Runtime runs it."""
    text = """g (float[n, 4, h] x) => (float[n, 4, h] y, float[n, 4, h] z) {
        y = GroupNormalization<num_groups = 2>(x, s, s)
        z = Relu(x)
    }"""
    found = tensor_sizes(load_model(model(text, {"s": np.ones(2, np.float32)}, opset=18)), {"x": (2, 4, 6)})
    assert found.shapes["z"] == (2, 4, 6)


def test_sizes_that_the_values_decide_are_measured_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """net (float[N,48] x) => (float[M,48] y) {
        a = MatMul(x, w0)  s = ReduceSum<keepdims = 0>(a, axes)  k = Greater(s, zero)  c = Compress<axis = 0>(a, k)
        b = MatMul(c, w1)  y = MatMul(b, w2) }"""
    constants = {f"w{i}": weight(48, 48, seed=i) for i in range(3)}
    small = {"axes": np.array([1]), "zero": np.float32(0)}
    feed = {"x": np.random.default_rng(0).standard_normal((9, 48)).astype(np.float32)}
    left = int(((feed["x"] @ constants["w0"]).sum(axis=1) > 0).sum())
    assert 0 < left < 9
    proto = model(text, constants | small)
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    ready = load_model(proto)
    whole = sizes_on(ready, feed)
    monkeypatch.setattr(memory, "part_bytes", lambda: 4 * 48 * 48)
    parted = sizes_on(ready, feed)
    assert [row.macs for row in parted.work(ready)] == [9 * 48 * 48, left * 48 * 48, left * 48 * 48]
    assert [row.macs for row in whole.work(ready)] == [row.macs for row in parted.work(ready)]
    assert all(row.exact for row in parted.work(ready))
