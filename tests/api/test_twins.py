"""A model with free dimensions and the same model with frozen ones: the same plan, cuts and outputs.

Folding must not change what a model does at other sizes: every rewrite is held against the model as it was given.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from handmade.core import feeds, model, weight
from handmade.sized import SHAPES, SIZED, feed_of, twin
from pass_checks import check, loaded, ops, rewritten, the
from planned_models import FAST

import onnxshot
from onnxshot.graph import Constant, weights
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import tensor_sizes
from onnxshot.passes.constant_reshape_shapes import ConstantReshapeShapes
from onnxshot.passes.fold_constants import FoldConstants
from onnxshot.passes.normalize import normalize
from onnxshot.passes.sizes_from_inputs import SizesFromInputs
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.plan import Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.prepare import prepare
from onnxshot.targets import TARGETS, target_named


def planned(proto: onnx.ModelProto, target: str, **options: str) -> Plan:
    ready, recipe = load_model(proto), Recipe(target=target, **options)
    prepare(ready, target_named(target), recipe)
    return make_plan(ready, target_named(target), recipe)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SIZED)
def test_a_frozen_twin_has_the_same_plan(name: str, target: str) -> None:
    for mode in ("static", "dynamic") if target == "ort" else ("static",):
        free, frozen = planned(SIZED[name](), target, mode=mode), planned(twin(name), target, mode=mode)
        assert mode == "dynamic" or target != "ort" or any(node.how != "float" for node in free.nodes)
        assert free.nodes == frozen.nodes
        assert free.tensors == frozen.tensors
        assert free.weights == frozen.weights
        assert free.skips == frozen.skips


@pytest.mark.parametrize("name", SIZED)
def test_a_frozen_twin_is_quantized_to_the_same_layers(name: str) -> None:
    data = [feed_of(name, SHAPES[name][0], i) for i in range(8)]
    settings = replace(FAST, verify=True)
    free, frozen = (
        onnxshot.quantize(proto, data, settings=settings, effort="fast") for proto in (SIZED[name](), twin(name))
    )
    asked, given = Counter(n.op for _, n in free.model.walk()), Counter(n.op for _, n in frozen.model.walk())
    for op in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"):
        assert asked[op] == given[op], op
    assert free.report.int8_macs_share == frozen.report.int8_macs_share
    assert [s for s in free.report.skips if s not in frozen.report.skips] == []
    shares = [{row.node: row.macs_share for row in r.report.graph if row.macs_share} for r in (free, frozen)]
    assert shares[0] == shares[1]


@pytest.mark.parametrize("name", SIZED)
def test_normalizing_changes_nothing_at_any_size(name: str) -> None:
    proto = SIZED[name]()
    ready = load_model(proto)
    normalize(ready)
    check(proto, ready, *(feed_of(name, shape) for shape in SHAPES[name]))
    frozen = load_model(twin(name))
    normalize(frozen)
    assert not any(n.op == "Shape" and n.inputs[0] not in ready.graph.inputs for n in ready.graph.nodes) or name in (
        "window_attention",
        "deconv_decoder",
    )


# ---------------------------------------------------------------------- sizes that are known fold


INTS = {"i0": np.array(0), "i1": np.array(1), "i2": np.array(2), "l0": np.array([0]), "l1": np.array([1]),
        "l3": np.array([3]), "l4": np.array([4]), "neg": np.array([-1])}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "edits", "left"),
    [
        ("s = Shape(x)  y = Gather<axis=0>(s, l1)", 0, 1),  # it makes an output
        ("s = Shape(x)  g = Gather<axis=0>(s, i1)  y = Add(g, l1)", 1, 0),
        ("s = Shape(x)  g = Slice(s, l1, l3)  r = ReduceProd<keepdims=1>(g)  y = Add(r, l0)", 2, 0),
        ("s = Shape(x)  n = Gather(s, i0)  m = Mul(n, i2)  d = Div(m, n)  y = Add(d, l0)", 1, 0),
        ("s = Size(x)  t = Shape(x)  n = Gather(t, i0)  d = Div(s, n)  y = Add(d, l0)", 1, 0),
        ("s = Shape(x)  n = Gather(s, i0)  y = Add(n, l0)", 0, 1),  # nobody knows the batch
    ],
)
def test_what_is_read_of_a_shape_folds_where_it_is_known(body: str, edits: int, left: int) -> None:
    proto = model(f"net (float[N,3,4] x) => (int64[M] y) {{ {body} }}", INTS)
    after, change = rewritten(proto, FoldConstants(), *(feeds(1, x=(n, 3, 4))[0] for n in (1, 5)))
    assert change.edits == edits
    assert sum(ops(after)[op] for op in ("Shape", "Size")) == left or edits


def test_two_dimensions_of_one_name_are_not_taken_for_equal() -> None:
    """ONNX Runtime runs inputs whose dimensions of one name differ, and so must the result."""
    text = """net (float[N,4] a, float[N,4] b) => (int64[K] y) {
        s = Shape(a)  t = Shape(b)  n = Gather(s, l0)  m = Gather(t, l0)  y = Sub(n, m) }"""
    proto = model(text, INTS)
    after = load_model(proto)
    normalize(after)
    check(proto, after, {"a": np.ones((2, 4), np.float32), "b": np.ones((3, 4), np.float32)})


@pytest.mark.parametrize(
    ("target", "constant", "batches"),
    [
        ("n = Gather<axis=0>(s, l0)  t = Concat<axis=0>(n, neg)", [0, -1], (1, 5)),
        ("n = Gather<axis=0>(s, l0)  t = Concat<axis=0>(n, l4, l3)", [0, 4, 3], (1, 5, 0)),
        ("n = Gather<axis=0>(s, l0)  m = Mul(n, l4)  t = Concat<axis=0>(m, l3)", [-1, 3], (1, 5, 0)),
        ("n = Gather<axis=0>(s, l0)  t = Concat<axis=0>(l3, n, l4)", [3, -1, 4], (1, 5)),
        ("n = Slice(s, l0, l1)  m = Mul(n, l4)  t = Concat<axis=0>(n, l4, l3)", [0, 4, 3], (1, 5, 0)),
    ],
)
def test_a_shape_for_a_reshape_becomes_a_constant(target: str, constant: list[int], batches: tuple[int, ...]) -> None:
    dims = ",".join("ABC"[: len(constant)])
    proto = model(f"net (float[N,3,4] x) => (float[{dims}] y) {{ s = Shape(x)  {target}  y = Reshape(x, t) }}", INTS)
    after, change = rewritten(proto, ConstantReshapeShapes(), *(feeds(1, x=(n, 3, 4))[0] for n in batches))
    assert change.edits == 1
    shape = the(after, "Reshape").inputs[1]
    assert isinstance(shape, Constant)
    assert weights.read(shape).tolist() == constant


@pytest.mark.parametrize(
    "body",
    [
        # Two sizes that only the run tells: no constant says which.
        "s = Shape(x)  n = Gather<axis=0>(s, l0)  m = Mul(n, l3)  k = Gather<axis=0>(s, l1)  j = Mul(k, l4)"
        "  f = Concat<axis=0>(m, neg, l4)  r = Reshape(x, f)  t = Concat<axis=0>(j, l3, n)  y = Reshape(r, t)",
        # The batch stays in its place, and -1 would be unclear where it is 0.
        "s = Shape(x)  n = Gather<axis=0>(s, l0)  k = Gather<axis=0>(s, l1)  m = Mul(k, l3)"
        "  t = Concat<axis=0>(n, m, l4)  y = Reshape(x, t)",
    ],
)
def test_a_shape_that_no_constant_tells_stays(body: str) -> None:
    proto = model(f"net (float[N,T,12] x) => (float[A,B,C] y) {{ {body} }}", INTS)
    _, change = rewritten(proto, ConstantReshapeShapes())
    assert change.edits == 0


def test_sizes_are_read_off_the_input_that_has_them() -> None:
    """A Conv beside whose Relu a Shape reads is not fused with it, and what a Shape alone reads is not needed."""
    text = """net (float[N,8,H,W] x) => (float[A,B,C,D] y, float[P,Q] z) {
        c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  t = Transpose<perm=[0,2,3,1]>(c)
        s = Shape(t)  n = Gather<axis=0>(s, i0)  h = Slice(s, l1, l3)  u = Unsqueeze(n, l0)
        f = Concat<axis=0>(u, neg)  z = Reshape(c, f)
        e = Concat<axis=0>(u, l1, h)  y = Expand(r, e) }"""
    proto = model(text, {"w": weight(8, 8, 3, 3)} | INTS)
    proto.graph.node[-1].input[1] = "e2"
    proto.graph.node.insert(
        len(proto.graph.node) - 1, onnx.helper.make_node("Concat", ["u", "l8", "h"], ["e2"], axis=0)
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([8]), "l8"))
    after, change = rewritten(proto, SizesFromInputs(), *(feeds(1, x=(n, 8, 5, 6))[0] for n in (1, 3)))
    assert change.edits >= 2
    assert ops(after)["Transpose"] == 0
    assert [n.inputs[0].name for n in after.graph.nodes if n.op == "Shape"] == ["x"]
    again, _ = rewritten(after.to_proto(), SizesFromInputs())
    assert SizesFromInputs().run(again).edits == 0


def test_tensors_have_the_sizes_that_follow_from_the_arithmetic() -> None:
    """Plans ask for sizes that ONNX's own inference loses behind the first Slice of a Shape."""
    ready = loaded(SIZED["window_attention"]())
    assert ready.shape(ready.tensors()["qkv"])[1:] == (16, 384)  # type: ignore[index]
    found = tensor_sizes(load_model(twin("window_attention")))
    frozen = loaded(twin("window_attention"))
    for name in ("p", "win", "ow", "whole", "crop"):
        assert frozen.shape(frozen.tensors()[name]) == found.shapes[name]
