"""Probes: reductions inside the graph equal numpy's outside it, to the bit."""

import numpy as np
import onnx
import onnxruntime
import pytest
from fixture_data import FIXTURES, facts, fixture
from handmade import HANDMADE
from handmade.core import model, weight
from numpy.typing import NDArray
from onnx import TensorProto
from planned_models import normalized

from onnxshot.calibration.observers import Glimpse, glimpse
from onnxshot.calibration.readers import open_data
from onnxshot.execution.instrumented_model import InsideProbe, OutsideProbe, probe
from onnxshot.graph import Model, shape_inference
from onnxshot.graph.load import load_model
from onnxshot.planning.make_plan import make_plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.model_inputs import input_specs, resolve_preset
from onnxshot.targets import target_named

MIXED = """g (float[N,C,H,W] x, float[M] v) => (float[N,C,H,W] y, float s) {
    a = Relu(x)  b = Neg(a)  y = Add(b, c)
    k = Constant<value_ints = [0, 1]>()  t = ReduceMean<keepdims = 0>(x)  s = Mul(t, t)
    n = Constant<value_ints = [-1]>()  f = Reshape(x, n)
    e = Greater(v, zero)  picked = Compress(v, e)  z = Relu(picked)
}"""


def same(a: Glimpse, b: Glimpse) -> None:
    for name in ("sizes", "picked", "rows", "picks", "bottoms", "tops"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.absmax.keys() == b.absmax.keys()
    for i in a.absmax:
        np.testing.assert_array_equal(a.absmax[i], b.absmax[i])


def outside_truth(ready: Model, names: list[str], feed: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The whole tensors, from ONNX Runtime without onnxshot."""
    proto = ready.to_proto()
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    run = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(x) for x in run.run(None, feed)]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_all_ranks_sizes_and_lengths(opset: int) -> None:
    proto = model(MIXED, {"c": np.float32(2.0), "zero": np.float32(0.0)}, opset=opset)
    ready = load_model(proto)
    shape_inference.infer(ready)
    names, rng = ["x", "a", "b", "y", "s", "f", "v", "z"], np.random.default_rng(0)
    inside = InsideProbe(ready, names, ["a"], threads=1)
    for shape, length in (((1, 3, 40, 50), 7), ((2, 3, 5, 4), 1), ((1, 7, 64, 64), 9000), ((1, 1, 1, 1), 4096)):
        feed = {"x": rng.standard_normal(shape).astype(np.float32), "v": rng.standard_normal(length).astype(np.float32)}
        seen = inside.observe(feed)
        same(seen, glimpse(outside_truth(ready, names, feed), [1]))
        same(seen, OutsideProbe(ready, names, ["a"], threads=1).observe(feed))
    feed["v"] = -np.ones(3, np.float32)  # z is empty
    seen = inside.observe(feed)
    same(seen, glimpse(outside_truth(ready, names, feed), [1]))
    assert seen.sizes[-1] == 0
    assert seen.finite


@pytest.mark.parametrize("name", facts())
def test_real_models(name: str) -> None:
    recipe = Recipe()
    ready = normalized(onnx.load(str(fixture(name))), recipe)
    plan = make_plan(ready, target_named("ort"), recipe)
    names = list(plan.observe)
    if not names:
        pytest.skip("nothing is observed in it")
    calib = FIXTURES / facts()[name]["calib"]
    preset = facts()[name]["preset"]
    preset = preset if preset == "none" else str(FIXTURES / preset)
    data = open_data(str(calib), input_specs(ready), resolve_preset(preset))
    found = probe(ready, names, plan.watched, threads=1)
    assert isinstance(found, InsideProbe)
    for i in range(3):
        channels = [j for j, n in enumerate(names) if n in plan.watched]
        same(found.observe(data[i].feed), glimpse(outside_truth(ready, names, data[i].feed), channels))


def test_handmade_graphs() -> None:
    checked = 0
    for case in sorted(HANDMADE):
        made, recipe = HANDMADE[case](), Recipe()
        ready = normalized(made.model, recipe)
        plan = make_plan(ready, target_named("ort"), recipe)
        names = list(plan.observe)
        if not names or not made.feeds or case == "custom_domain":  # which ONNX Runtime does not run
            continue
        found = probe(ready, names, plan.watched, threads=1)
        for feed in made.feeds[:2]:
            seen = found.observe(feed)
            expected = glimpse(outside_truth(ready, names, feed))
            for part in ("sizes", "picks", "lows", "highs"):
                np.testing.assert_array_equal(getattr(seen, part), getattr(expected, part), err_msg=f"{case} {part}")
        checked += 1
    assert checked >= 25


def test_other_types_are_observed_as_float32() -> None:
    proto = model("g (double[N] x) => (double[N] y) { y = Neg(x) }", {})
    found = InsideProbe(load_model(proto), ["x", "y"], (), threads=1)
    x = np.asarray([1.0, 2.5, -1e-50])
    seen = found.observe({"x": x})
    assert seen.picks.dtype == np.float32
    assert seen.lows.tolist() == [0.0, -2.5]
    assert seen.highs.tolist() == [2.5, 0.0]


def test_wrong_shapes_in_the_model_do_no_harm() -> None:
    """Tensors of the same stated shape share a stride: a wrong shape must not shift values into another tensor."""
    proto = model("g (float[N] x) => (float[M] y) { r = Relu(x)  y = Concat<axis = 0>(r, r, r) }", {})
    for name in ("r", "y"):
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["K"]))
    ready = load_model(proto)
    ready.graph.value_infos["y"] = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["K"])
    found = InsideProbe(ready, ["r", "y"], (), threads=1)
    feed = {"x": np.random.default_rng(0).standard_normal(5000).astype(np.float32)}
    same(found.observe(feed), glimpse([np.maximum(feed["x"], 0), np.tile(np.maximum(feed["x"], 0), 3)]))


def test_a_tensor_of_unknown_rank_counts_as_one_row() -> None:
    ready = load_model(model("g (float[N,C,H,W] x) => (float[N,C,H,W] y) { a = Relu(x)  y = Neg(a) }", {}))
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 7)).astype(np.float32)
    seen = InsideProbe(ready, ["a"], (), threads=1).observe({"x": x})
    assert seen.rows.tolist() == [1]
    assert (seen.lows[0], seen.highs[0]) == (np.maximum(x, 0).min(), np.maximum(x, 0).max())


def test_below_opset_13_whole_tensors_are_returned() -> None:
    proto = model("g (float[N, 64] x) => (float[N, 8] y) { y = MatMul(x, w) }", {"w": weight(64, 8)}, opset=11)
    assert isinstance(probe(load_model(proto), ["x", "y"], (), threads=1), OutsideProbe)
