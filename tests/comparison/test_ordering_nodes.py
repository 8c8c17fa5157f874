"""Outputs that TopK and similar nodes order are compared in the order of the float model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from compared_models import db, head, run, samples
from handmade.core import model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.comparison_setup import comparison_setup
from onnxshot.comparison.pick_overlap import picked_boxes, picked_places, picked_rows
from onnxshot.execution.candidate_race import measure_candidates
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.verification.compare_models import compare


@pytest.mark.parametrize("opset", [10, 17])
def test_an_ordered_output_is_compared_in_the_order_of_the_float_model(opset: int) -> None:
    """TensorRT #2996: compared element by element, every peak is compared with its neighbour."""
    axes = "axes" if opset < 13 else ""
    reference, other = head(opset=opset, axes=axes), head(noise=0.01, opset=opset, axes=axes)
    given = samples(6, 1, 3, 24, 24)
    result = compare(reference.SerializeToString(), other.SerializeToString(), given)
    values, picks, keys = [], [], []
    for sample in given:
        flats = [np.sort(_flat(m, sample.feed)) for m in (reference, other)]
        maps = [_flat(m, sample.feed) for m in (reference, other)]
        order = [np.argsort(-m, kind="stable")[:20] for m in maps]
        picks.append(len(set(order[0].tolist()) & set(order[1].tolist())) / 20)
        at = order[0].astype(np.float64)
        values.append([np.concatenate([at, maps[0][order[0]]]), np.concatenate([at, maps[1][order[0]]])])
        keys.append(maps)
        assert flats[0].size == 24 * 24
    assert 0.5 < np.mean(picks) < 1
    assert result.ordered == {"dets": pytest.approx(np.mean(picks)), "i": pytest.approx(np.mean(picks))}
    rows = {row.name: row for row in result.outputs}
    assert rows["dets"].sqnr_db == pytest.approx(db(*np.asarray(values).swapaxes(0, 1)), abs=0.05)
    assert rows["dets"].agreement == rows["i"].equal == result.agreement == pytest.approx(np.mean(picks))
    (key,) = (row for name, row in rows.items() if name not in ("dets", "i"))
    assert key.sqnr_db == pytest.approx(db(*np.asarray(keys).swapaxes(0, 1)), abs=0.05)
    assert any("of the picks are the same" in note for note in result.notes)


def _flat(made: ModelProto, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    return _exposed(made, ("flat",), feed)["flat"][0]


def _exposed(made: ModelProto, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    copy = ModelProto.FromString(made.SerializeToString())
    for name in names:
        copy.graph.output.add(name=name)
    return run(copy, feed)


def test_candidates_pick_in_the_order_of_the_float_model() -> None:
    """The candidate with less noise is the better one, whichever elements change places."""
    reference = head()
    candidates = [head(noise=noise).SerializeToString() for noise in (0.03, 0.003)]
    found = list(measure_candidates(reference.SerializeToString(), candidates, samples(6, 1, 3, 24, 24), threads=2))
    assert found[1].typical_db - found[0].typical_db == pytest.approx(20, abs=3)


def test_an_order_that_is_not_visible_in_outputs_is_left_alone() -> None:
    """A mixture of experts picks by TopK and sums: another expert is an error, not another order."""
    text = """g (float[n, 8] x) => (float[n, 8] y) {
        gate = MatMul(x, g)  v, i = TopK <axis = 1> (gate, k)  p = Softmax <axis = 1> (v)
        e = Gather <axis = 0> (experts, i)  xs = Unsqueeze(x, two)  ys = MatMul(e, xs)
        ps = Unsqueeze(p, both)  w = Mul(ys, ps)  sums = ReduceSum <keepdims = 0> (w, one)  y = Squeeze(sums, last) }"""
    constants = {
        "g": weight(8, 4), "experts": weight(4, 8, 8), "k": np.int64([2]), "two": np.int64([1, 3]),
        "both": np.int64([2, 3]), "one": np.int64([1]), "last": np.int64([2]),
    }  # fmt: skip
    reference = model(text, constants)
    sample = samples(1, 5, 8)[0]
    how = comparison_setup(reference.SerializeToString(), sample.feed)
    assert how.plain and how.orders == ()


def test_nonzero_in_shape_arithmetic_of_pytorch_is_no_order() -> None:
    """NonZero of a constant or a shape enumerates indices: it sorts no computed values."""
    text = """g (float[n, 8] x) => (float[m] y) {
        h = MatMul(x, w)  s = Shape(h)  o = ConstantOfShape(s)  i = NonZero(o)  t = Transpose <perm = [1, 0]> (i)
        y = GatherND(h, t) }"""
    assert comparison_setup(model(text, {"w": weight(8, 8)}).SerializeToString(), samples(1, 5, 8)[0].feed).plain


def filtered(noise: float = 0.0) -> ModelProto:
    """The rows with a score above 0.5: their number depends on values."""
    text = """g (float[n, 8] x) => (float[m, 8] y) {
        h = MatMul(x, w)  r = Relu(h)  s = MatMul(r, v)  p = Sigmoid(s)  c = Greater(p, half)  f = Squeeze(c, one)
        i = NonZero(f)  t = Squeeze(i, zero)  y = Gather(h, t) }"""
    constants = {
        "w": weight(8, 8), "v": weight(8, 1, seed=1) - np.float32(noise), "half": np.float32([0.5]),
        "one": np.int64([1]), "zero": np.int64([0]),
    }  # fmt: skip
    return model(text, constants)


def test_filtered_rows_are_those_the_float_model_selects() -> None:
    reference, other = filtered(), filtered(0.3)
    given = samples(4, 60, 8)
    outputs = [[run(m, s.feed)["y"] for m in (reference, other)] for s in given]
    assert any(len(a) != len(b) for a, b in outputs)
    result = compare(reference.SerializeToString(), other.SerializeToString(), given)
    rows = {row.name: row for row in result.outputs}
    assert rows["y"].sqnr_db == 200.0 and rows["y"].other_shape == 0  # h itself is the same in both
    both = sum(len({x.tobytes() for x in a} & {x.tobytes() for x in b}) for a, b in outputs)
    assert result.ordered["y"] == pytest.approx(both / sum(max(len(a), len(b)) for a, b in outputs), abs=0.02)
    key = next(row for name, row in rows.items() if name != "y")
    assert key.sqnr_db is not None and key.sqnr_db < 60


def test_detections_are_matched_by_class_and_overlap() -> None:
    boxes = np.float64([[[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [0, 30, 10, 40]]])
    wanted = np.int64([[0, 0, 0], [0, 1, 2]])
    assert picked_boxes(wanted, np.int64([[0, 0, 1], [0, 1, 2]]), (boxes, boxes), centres=False) == (2, 2)
    assert picked_boxes(wanted, np.int64([[0, 1, 1], [0, 1, 2]]), (boxes, boxes), centres=False) == (1, 2)
    assert picked_boxes(wanted, np.int64([[0, 0, 3]]), (boxes, boxes), centres=False) == (0, 2)
    assert picked_boxes(wanted[:1], np.int64([[0, 0, 0], [0, 0, 1]]), (boxes, boxes), centres=False) == (1, 2)
    centres = np.float64([[[5, 5, 10, 10], [6, 5, 10, 10]]])
    assert picked_boxes(wanted[:1], np.int64([[0, 0, 1]]), (centres, centres), centres=True) == (1, 1)


def test_picks_of_a_row_are_a_set() -> None:
    assert picked_rows(np.int64([[1, 2, 3], [4, 5, 6]]), np.int64([[3, 2, 9], [6, 5, 4]]), -1) == (5, 6)
    assert picked_rows(np.int64([[1], [2]]), np.int64([[2], [1]]), 0) == (2, 2)
    assert picked_places(np.int64([[0, 1], [2, 3]]), np.int64([[1], [3]])) == (1, 2)


NMS = """g (float[1, 3, 32, 32] x) => (float[m, 4] found, float[m] scores) {
    f = Conv <strides = [4, 4]> (x, w1, b1)  r = Relu(f)  raw = Conv(r, w2, b2)
    rows = Reshape(raw, shape)  cols = Transpose <perm = [0, 2, 1]> (rows)
    d, s = Split <axis = 2> (cols, parts)  size = Exp(d)  low, high = Split <axis = 2> (size, halves)
    a = Sub(grid, low)  b = Add(grid, high)  boxes = Concat <axis = 2> (a, b)
    p = Sigmoid(s)  chances = Transpose <perm = [0, 2, 1]> (p)
    picks = NonMaxSuppression(boxes, chances, most, iou, least)
    at = Gather <axis = 1> (picks, two)  flat = Squeeze(boxes, zero)  found = Gather(flat, at)
    line = Reshape(p, all)  scores = Gather(line, at) }"""


def detector(noise: float = 0.0) -> ModelProto:
    last = weight(5, 16, 1, 1, seed=1)
    last = last + noise * np.random.default_rng(2).normal(size=last.shape).astype(np.float32)
    places = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), -1).reshape(1, 64, 2).astype(np.float32) * 2
    constants = {
        "w1": weight(16, 3, 4, 4), "b1": vector(16), "w2": last, "b2": np.float32([0.3, 0.3, 0.3, 0.3, 0.0]),
        "shape": np.int64([1, 5, 64]), "parts": np.int64([4, 1]), "halves": np.int64([2, 2]), "grid": places,
        "most": np.int64([20]), "iou": np.float32([0.4]), "least": np.float32([0.5]), "two": np.int64(2),
        "zero": np.int64([0]), "all": np.int64([-1]),
    }  # fmt: skip
    return model(NMS, constants)


def test_detections_after_non_maximum_suppression() -> None:
    reference, other = detector(), detector(0.04)
    given = samples(6, 1, 3, 32, 32)
    place_by_place = [[run(m, s.feed)["found"] for m in (reference, other)] for s in given]
    assert any(len(a) != len(b) or db(a, b) < 20 for a, b in place_by_place)
    result = compare(reference.SerializeToString(), other.SerializeToString(), given)
    rows = {row.name: row for row in result.outputs}
    assert set(result.ordered) == {"found", "scores"}
    assert 0.5 < result.ordered["found"] < 1
    wanted, got = [], []
    for sample in given:
        a, b = (_exposed(m, ("flat", "at"), sample.feed) for m in (reference, other))
        wanted.append(a["flat"][a["at"]])
        got.append(b["flat"][a["at"]])
    assert rows["found"].sqnr_db == pytest.approx(db(np.concatenate(wanted), np.concatenate(got)), abs=0.05)
    same = compare(reference.SerializeToString(), reference.SerializeToString(), given)
    assert (same.sqnr_db, same.agreement) == (200.0, 1.0)


def in_branch(made: ModelProto) -> ModelProto:
    """A detector as torchvision exports it: suppression in a branch that guards the case without boxes."""
    copy = ModelProto.FromString(made.SerializeToString())
    at = next(i for i, node in enumerate(copy.graph.node) if node.op_type == "NonMaxSuppression")
    node = copy.graph.node[at]
    inner = helper.make_node("NonMaxSuppression", list(node.input), ["picked"], name="suppress")
    picks = helper.make_tensor_value_info("picked", TensorProto.INT64, None)
    nothing = helper.make_node("Constant", [], ["none"], value=numpy_helper.from_array(np.zeros((0, 3), np.int64)))
    empty = helper.make_tensor_value_info("none", TensorProto.INT64, None)
    some = helper.make_graph([inner], "some", [], [picks])
    none = helper.make_graph([nothing], "none", [], [empty])
    nodes = [
        helper.make_node("Constant", [], ["floor"], value=numpy_helper.from_array(np.float32(0.1))),
        helper.make_node("ReduceMax", ["chances"], ["highest"], keepdims=0),
        helper.make_node("Greater", ["highest", "floor"], ["any"]),
        helper.make_node("If", ["any"], ["picks"], then_branch=some, else_branch=none),
    ]
    kept = [*copy.graph.node[:at], *nodes, *copy.graph.node[at + 1 :]]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def test_suppression_in_a_branch_is_matched() -> None:
    given = samples(6, 1, 3, 32, 32)
    plain, inner = (
        compare(a.SerializeToString(), b.SerializeToString(), given)
        for a, b in ((detector(), detector(0.04)), (in_branch(detector()), in_branch(detector(0.04))))
    )
    assert inner.ordered == plain.ordered and 0.5 < inner.ordered["found"] < 1
    assert {r.name: r.sqnr_db for r in inner.outputs if r.name in ("found", "scores")} == {
        r.name: r.sqnr_db for r in plain.outputs if r.name in ("found", "scores")
    }
    quiet = [Sample("quiet", {"x": np.zeros((1, 3, 32, 32), np.float32)}), *given]
    assert compare(in_branch(detector()).SerializeToString(), in_branch(detector()).SerializeToString(), quiet).sqnr_db


def test_a_candidate_picks_for_itself_if_imposed_picks_do_not_fit() -> None:
    """The number of picks depends on values: the scores above 0.5."""
    text = """g (float[1, 40] x) => (float[1, m] v, float[m, 40] rows) {
        h = MatMul(x, w)  c = Greater(h, half)  n = Cast <to = 7> (c)  k = ReduceSum <keepdims = 0> (n, axes)
        kk = Reshape(k, one)  v, i = TopK <axis = 1> (h, kk)  shape = Concat <axis = 0> (kk, wide)
        t = Reshape(i, shape1)  e = Cast <to = 1> (t)  full = Expand(zero, shape)  rows = Add(full, e) }"""
    constants = {
        "half": np.float32(0.5), "axes": np.int64([0, 1]), "one": np.int64([1]), "wide": np.int64([40]),
        "shape1": np.int64([-1, 1]), "zero": np.float32([[0]]),
    }  # fmt: skip
    w = weight(40, 40)
    reference = model(text, {**constants, "w": w}).SerializeToString()
    other = model(text, {**constants, "w": w + 0.1 * weight(40, 40, seed=5)}).SerializeToString()
    given = samples(8, 1, 40)
    counts = [[Runner(m).run(s.feed)["v"].shape[1] for m in (reference, other)] for s in given]
    assert any(a != b for a, b in counts)
    result = compare(reference, other, given)
    assert result.sqnr_db is not None and result.samples == 8
    assert result.outputs[0].other_shape + result.outputs[1].other_shape > 0
    (found,) = measure_candidates(reference, [other], given, threads=1)
    assert len(found.samples) == 8 and found.typical_db < 60


def test_a_candidate_without_the_node_is_compared_element_by_element() -> None:
    text = "g (float[n, 8] x) => (float[n, 3] v) { h = MatMul(x, w) v, i = TopK(h, k) }"
    other = "g (float[n, 8] x) => (float[n, 3] v) { h = MatMul(x, w) v = Slice(h, z, k, a) }"
    constants = {"w": weight(8, 8), "k": np.int64([3])}
    reference = model(text, constants).SerializeToString()
    candidate = model(other, {**constants, "z": np.int64([0]), "a": np.int64([1])}).SerializeToString()
    result = compare(reference, candidate, samples(2, 4, 8))
    assert any("the candidate lacks TopK" in note for note in result.notes)
    assert result.ordered == {} and result.sqnr_db is not None and result.sqnr_db < 10
