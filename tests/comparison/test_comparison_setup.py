"""Comparisons exclude random numbers, visible orders of TopK, and copies of inputs."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

import onnxshot
from onnxshot.calibration.readers import Sample, open_data
from onnxshot.comparison.comparison_setup import comparison_setup
from onnxshot.comparison.copied_outputs import copied_outputs
from onnxshot.comparison.pick_overlap import picked_boxes, picked_places, picked_rows
from onnxshot.comparison.random_nodes import random_sources, with_fixed_randomness
from onnxshot.execution.candidate_race import measure_candidates
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.search.goal import Goal, Judge
from onnxshot.verification.compare_models import compare, compare_loaded

PROVEN = onnxshot.Settings(threads=2, bench_seconds=0.01)
Feed = dict[str, NDArray[Any]]


def run(made: ModelProto | Path, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return Runner(made if isinstance(made, Path) else made.SerializeToString(), threads=1).run(feed)


def db(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def samples(count: int, *shape: int, **others: NDArray[Any]) -> list[Sample]:
    rng = np.random.default_rng(3)
    return [Sample(str(i), {"x": rng.normal(size=shape).astype(np.float32), **others}) for i in range(count)]


# ---------------------------------------------------------------------- random numbers

DRAWS = {
    "RandomNormalLike": "y = RandomNormalLike <mean = 1.0, scale = 2.0> (x)",
    "RandomUniformLike": "y = RandomUniformLike <low = -1.0, high = 3.0> (x)",
    "RandomNormal": "y = RandomNormal <shape = [30, 40]> ()",
    "RandomUniform": "y = RandomUniform <shape = [30, 40]> ()",
    "Bernoulli": "p = Sigmoid(x) y = Bernoulli <dtype = 1> (p)",
    "Multinomial": "z = Multinomial <sample_size = 50> (x) y = Cast <to = 1> (z)",
    "Dropout": """t = Constant <value: tensor = bool {1}> ()  r = Constant <value: tensor = float {0.25}> ()
        y = Dropout(x, r, t)""",
}


def drawing(body: str, opset: int = 17) -> ModelProto:
    return model(f"g (float[n, 40] x) => (float[a, b] y) {{ {body} }}", opset=opset)


@pytest.mark.parametrize("op", DRAWS)
def test_random_nodes_draw_fixed_numbers_of_the_same_distribution(op: str) -> None:
    """Two runs of the model differ; two runs of the edited model are equal, with the same mean and deviation."""
    made = drawing(DRAWS[op])
    feed = samples(1, 30, 40)[0].feed
    runner = Runner(made.SerializeToString())
    many = np.stack([runner.run(feed)["y"] for _ in range(20)])
    assert not np.array_equal(many[0], many[1])
    held = with_fixed_randomness(made)
    first, second = run(held, feed)["y"], run(held, feed)["y"]
    np.testing.assert_array_equal(first, second)
    assert first.shape == many.shape[1:]
    assert first.mean() == pytest.approx(float(many.mean()), abs=float(6 * many.std() / first.size**0.5))
    assert first.std() == pytest.approx(float(many.std()), rel=0.1)


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 15, 21])
def test_at_every_opset(opset: int) -> None:
    made = drawing("a = RandomNormalLike(x) y = Add(x, a)", opset)
    result = compare(made.SerializeToString(), made.SerializeToString(), samples(3, 4, 40))
    assert (result.sqnr_db, result.random) == (200.0, (random_sources(made)[0].node,))
    assert "draws random numbers" in result.notes[0]


def test_dropout_outside_training_mode_draws_nothing() -> None:
    rests = DRAWS["Dropout"].replace("bool {1}", "bool {0}")
    assert not random_sources(drawing(rests)) and not random_sources(drawing("y = Dropout(x)"))


def test_in_loops_and_functions() -> None:
    loop = """g (float[2, 8] x) => (float[2, 8] y) {
        n = Constant <value: tensor = int64 {5}> ()  c = Constant <value: tensor = bool {1}> ()
        y = Loop (n, c, x) <body = b (int64 i, bool on, float[2, 8] s) => (bool go, float[2, 8] t) {
            r = RandomUniformLike(s)  t = Add(s, r)  go = Identity(on) }> }"""
    function = """g (float[2, 8] x) => (float[2, 8] y) { y = local.noisy(x) }
        <domain: "local", opset_import: ["": 17]> noisy (s) => (t) { r = RandomNormalLike(s)  t = Add(s, r) }"""
    for made in (model(loop), model(function, imports=', "local": 1')):
        feeds = samples(2, 2, 8)
        runner = Runner(made.SerializeToString())
        assert db(runner.run(feeds[0].feed)["y"], runner.run(feeds[0].feed)["y"]) < 40
        assert compare(made.SerializeToString(), made.SerializeToString(), feeds).sqnr_db == 200.0


def noisy_net(seed: float | None = None) -> ModelProto:
    """Two Convs with random noise between them."""
    text = f"""g (float[1, 8, n] x) => (float[1, 8, n] y) {{
        a = Conv <pads = [1, 1]> (x, w1, b1)  r = Relu(a)
        z = RandomNormalLike {"" if seed is None else f"<seed = {seed}>"} (r)
        m = Add(r, z)  y = Conv <pads = [1, 1]> (m, w2, b2) }}"""
    constants = {"w1": weight(16, 8, 3), "b1": vector(16), "w2": weight(8, 16, 3, seed=1), "b2": vector(8)}
    return model(text, constants)


def seeded(made: ModelProto) -> ModelProto:
    """The same with a fixed seed: two sessions that run the same samples in the same order draw equal numbers."""
    copy = ModelProto.FromString(made.SerializeToString())
    for node in copy.graph.node:
        if node.op_type == "RandomNormalLike":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("seed", 5.0))
    return copy


@pytest.mark.parametrize("seed", [None, 3.0])
def test_a_model_with_random_numbers_is_compared_with_equal_numbers(seed: float | None, tmp_path: Path) -> None:
    """TTS graphs (coqui-ai/TTS #588): the SQNR is that of a common seed, and the written file still draws."""
    source, output = noisy_net(seed), tmp_path / "q.onnx"
    given = samples(48, 1, 8, 40)
    result = onnxshot.quantize(source, [s.feed for s in given], output=output, settings=PROVEN)
    written = onnx.load(str(output))
    sessions = [Runner(seeded(m).SerializeToString(), threads=1) for m in (source, written)]
    outputs = [np.stack([session.run(s.feed)["y"] for s in given]) for session in sessions]
    truth = db(*outputs)
    assert truth > 25
    assert result.report.sqnr_db == pytest.approx(truth, abs=3.0)  # of other numbers, and of fewer samples
    assert list(result.report.judged) == ["random"] and len(result.report.judged["random"]) == 1
    assert [n.op_type for n in written.graph.node].count("RandomNormalLike") == 1
    if seed is None:
        runner = Runner(output)
        assert db(runner.run(given[0].feed)["y"], runner.run(given[0].feed)["y"]) < 20


def test_calibration_with_random_numbers_is_reproducible(tmp_path: Path) -> None:
    """Every process draws equal numbers during calibration, so that a record can be replayed."""
    onnx.save(noisy_net(), str(tmp_path / "net.onnx"))
    np.savez(tmp_path / "data.npz", x=np.concatenate([s.feed["x"] for s in samples(8, 1, 8, 40)])[:, None])
    code = """import sys, onnxshot, numpy as np
from pathlib import Path
home = Path(sys.argv[1])
given = [{"x": x} for x in np.load(home / "data.npz")["x"]]
onnxshot.quantize(home / "net.onnx", given, output=home / sys.argv[2], settings=onnxshot.Settings(use_cache=False))
"""
    for name in ("a.onnx", "b.onnx"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), name], check=True, capture_output=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    scales = [numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "a.onnx")).graph.initializer]
    assert max(float(s.max()) for s in scales if s.dtype == np.float32 and s.ndim == 0) > 2 / 255  # of what noise adds


def test_random_numbers_with_external_data(tmp_path: Path) -> None:
    """The written file is compared with the model in memory by its weights: two runs would differ."""
    source = noisy_net()
    convert_model_to_external_data(source, location="net.data", size_threshold=0)
    onnx.save(source, str(tmp_path / "net.onnx"))
    given = [s.feed for s in samples(4, 1, 8, 40)]
    recipe = {"effort": "fast"}
    result = onnxshot.quantize(tmp_path / "net.onnx", given, output=tmp_path / "q.onnx", settings=PROVEN, **recipe)
    assert result.report.sqnr_db is not None and result.report.sqnr_db > 20


def test_a_bundle_records_no_outputs_that_cannot_be_reproduced(tmp_path: Path) -> None:
    onnx.save(noisy_net(), str(tmp_path / "net.onnx"))
    given = [s.feed for s in samples(6, 1, 8, 40)]
    result = onnxshot.quantize(tmp_path / "net.onnx", given, output=tmp_path / "q.onnx", settings=PROVEN)
    onnxshot.bundle(result, tmp_path / "bundle", given)
    found = onnxshot.verify(tmp_path / "bundle")
    assert (found.samples, found.outputs) == (0, ()) and found.files >= 4


def test_a_note_says_if_random_numbers_cannot_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is then compared without edits, and the figures include the noise."""

    def breaking(proto: ModelProto, *_: object) -> None:
        proto.graph.node.append(helper.make_node("NoSuchOp", [], ["nothing"]))

    monkeypatch.setattr("onnxshot.comparison.comparison_setup.fix_randomness", breaking)
    made = noisy_net().SerializeToString()
    result = compare(made, made, samples(2, 1, 8, 40))
    assert result.random == () and any("the figures include random numbers" in note for note in result.notes)


def test_candidates_draw_equal_random_numbers() -> None:
    made = noisy_net().SerializeToString()
    (found,) = measure_candidates(made, [made], samples(4, 1, 8, 40), threads=2)
    assert found.each_db == (100.0,) * 4


# ---------------------------------------------------------------------- orders

HEAD = """
    f = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  r = Relu(f)  s = Conv(r, w2, b2)  heat = Sigmoid(s)
    flat = Reshape(heat, row)  v, i = TopK <axis = 1> (flat, k)
    at = Cast <to = 1> (i)  up = Unsqueeze(at, one)  vu = Unsqueeze(v, one)  dets = Concat <axis = 1> (up, vu)
"""


def head(*, noise: float = 0.0, opset: int = 17, axes: str = "") -> ModelProto:
    """A heat map with its 20 highest places and values. `noise` is added to the weight of the last Conv."""
    rng = np.random.default_rng(9)
    body = HEAD if not axes else HEAD.replace("Unsqueeze(at, one)", "Unsqueeze <axes = [1]> (at)").replace(
        "Unsqueeze(v, one)", "Unsqueeze <axes = [1]> (v)")
    last = weight(1, 8, 1, 1, seed=1)
    constants = {
        "w1": weight(8, 3, 3, 3), "b1": vector(8), "w2": last + noise * rng.normal(size=last.shape).astype(np.float32),
        "b2": vector(1), "row": np.int64([0, -1]), "k": np.int64([20]), "one": np.int64([1]),
    }  # fmt: skip
    if axes:
        del constants["one"]
    text = f"g (float[n, 3, 24, 24] x) => (float[n, 2, 20] dets, int64[n, 20] i) {{ {body} }}"
    return model(text, constants, opset=opset)


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


# ---------------------------------------------------------------------- copies of inputs

CACHE = """g (float[1, 4] x, float[1, 2, p, 4] past) => (float[1, 2, t, 4] present, float[1, 8] y) {{
    k = MatMul(x, w)  new = Reshape(k, shape)  moved = {moved}
    present = {join}  y = MatMul(x, w) }}"""


def cache(join: str, noise: float = 0.0, moved: str = "Identity(past)") -> ModelProto:
    w = weight(4, 8)
    w = w + noise * np.random.default_rng(4).normal(size=w.shape).astype(np.float32)
    constants = {"w": w, "shape": np.int64([1, 2, 1, 4]), "at": np.int64([0]), "scale": np.float32(0.05)}
    constants |= {"where": np.int64([[[[0] * 4], [[0] * 4]]])}
    return model(CACHE.format(join=join, moved=moved), constants)


@pytest.mark.parametrize("join", ["Concat <axis = 2> (moved, new)", "ScatterElements <axis = 2> (moved, where, new)"])
def test_only_the_computed_part_is_compared(join: str) -> None:
    """49 of 50 steps of a cache are copies: they turned 3 dB into 20."""
    past = 10 * np.random.default_rng(5).normal(size=(1, 2, 50, 4)).astype(np.float32)
    given = samples(3, 1, 4, past=past)
    reference, other = cache(join), cache(join, noise=0.1)
    new = [[run(m, s.feed)["y"] for s in given] for m in (reference, other)]
    result = compare(reference.SerializeToString(), other.SerializeToString(), given)
    rows = {row.name: row for row in result.outputs}
    assert set(rows) == {"present", "y"} and result.copied == ("present",)
    assert rows["present"].sqnr_db == pytest.approx(db(*np.asarray(new)), abs=0.01)
    assert result.sqnr_db == pytest.approx(db(*np.asarray(new)), abs=0.01)
    (found,) = measure_candidates(reference.SerializeToString(), [other.SerializeToString()], given, threads=1)
    assert found.total.db == pytest.approx(result.sqnr_db, abs=0.01)


INSIDE = {
    "Attention": ("Attention(q, k, v, , pk, pv)", (1, 2, 1, 4), 4, {"opset": 23}),
    "MultiHeadAttention": (
        "com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, , , , pk, pv)", (1, 1, 8), 8,
        {"imports": ', "com.microsoft": 1'},
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", INSIDE)
def test_the_past_of_a_fused_attention_is_not_compared(op: str) -> None:
    """Only the last of 51 key steps is computed. The values are inputs; new values are not copies of the past."""
    body, shape, width, how = INSIDE[op]
    given = {name: ", ".join(map(str, shape)) for name in "qxv"}
    ports = ", ".join(f"float[{dims}] {name}" for name, dims in given.items())
    text = f"""g ({ports}, float[1, 2, p, 4] pk, float[1, 2, p, 4] pv) =>
        (float[a, b, c] y, float[1, 2, t, 4] keys, float[1, 2, t, 4] values) {{
        k = MatMul(x, w)  z, keys, values = {body}  y = Reshape(z, flat) }}"""
    w, flat = weight(width, width), np.int64([1, 1, -1])
    reference = model(text, {"w": w, "flat": flat}, ir=10, **how).SerializeToString()
    other = model(text, {"w": 1.1 * w, "flat": flat}, ir=10, **how).SerializeToString()
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=shape).astype(np.float32) for name in "qxv"}
    feed |= {name: 10 * rng.normal(size=(1, 2, 50, 4)).astype(np.float32) for name in ("pk", "pv")}
    result = compare(reference, other, [Sample("a", feed)])
    assert result.copied == ("keys", "values")
    assert next(row for row in result.outputs if row.name == "keys").sqnr_db == pytest.approx(20, abs=0.01)


def test_a_rounded_past_is_not_a_copy() -> None:
    """A candidate that quantizes the past is compared on all of it."""
    join = "Concat <axis = 2> (moved, new)"
    reference = cache(join)
    other = cache(join, moved="DequantizeLinear(q, scale)")
    node = helper.make_node("QuantizeLinear", ["past", "scale"], ["q"])
    other.graph.node.insert(0, node)
    past = np.random.default_rng(5).uniform(0, 12, size=(1, 2, 50, 4)).astype(np.float32)
    given = samples(1, 1, 4, past=past)
    wanted, got = (run(m, given[0].feed)["present"] for m in (reference, other))
    rows = {r.name: r for r in compare(reference.SerializeToString(), other.SerializeToString(), given).outputs}
    assert rows["present"].sqnr_db == pytest.approx(db(wanted, got), abs=0.05)


def test_an_output_that_only_copies_is_not_compared() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] same, float[n, 4] y) { same = Identity(x) y = MatMul(x, w) }"
    w = weight(4, 4)
    reference, other = model(text, {"w": w}), model(text, {"w": 1.1 * w})
    result = compare(reference.SerializeToString(), other.SerializeToString(), samples(2, 3, 4))
    assert [row.name for row in result.outputs] == ["y"]
    assert result.sqnr_db == pytest.approx(20, abs=0.01)
    only = model("g (float[n, 4] x) => (float[4, n] y) { y = Transpose(x) }")
    assert compare(only.SerializeToString(), only.SerializeToString(), samples(1, 3, 4)).sqnr_db == 200.0


def test_an_addition_to_an_input_is_computed() -> None:
    text = """g (float[4] x) => (float[4] y) { y = ScatterElements <reduction = "add"> (x, i, u) }"""
    constants = {"i": np.int64([1]), "u": np.float32([2])}
    assert copied_outputs(model(text, constants, opset=18)) == ()


def test_a_plain_model_is_run_as_it_is() -> None:
    made = model("g (float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w) }", {"w": weight(4, 4)}).SerializeToString()
    how = comparison_setup(made, samples(1, 3, 4)[0].feed)
    assert how.plain and how.reference is made and how.prepared(made) is made and how.notes == ()


def test_compared_models_are_not_changed() -> None:
    for made in (noisy_net(), head(), cache("Concat <axis = 2> (moved, new)")):
        before = made.SerializeToString()
        dims = made.graph.input[0].type.tensor_type.shape.dim
        feed: Feed = {"x": np.zeros([d.dim_value or 3 for d in dims], np.float32)}
        feed["past"] = np.ones((1, 2, 3, 4), np.float32)
        comparison_setup(before, feed).prepared(before)
        assert made.SerializeToString() == before
        assert all(not i.name.startswith("onnxshot.judged") for i in made.graph.initializer)
        assert numpy_helper.to_array(made.graph.initializer[0]).dtype == np.float32
        assert made.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_outputs_that_cannot_be_made_comparable_are_left_out_in_other_runtimes() -> None:
    """An artifact cannot be edited: it draws other numbers, and picks by itself."""
    past = {"x": (1, 4), "past": (1, 2, 5, 4)}
    cases = (
        (noisy_net(), {"x": (1, 8, 40)}, []),
        (head(), {"x": (1, 3, 24, 24)}, []),
        (cache("Concat <axis = 2> (moved, new)"), past, ["y"]),
    )
    for made, shapes, left in cases:
        source, rng = made.SerializeToString(), np.random.default_rng(0)
        given = [{k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()} for _ in range(3)]
        with open_data(given, Runner(source).inputs) as data:
            found = compare_loaded(source, Runner(source), data)
        assert [row.name for row in found.outputs] == left
        assert (found.sqnr_db is None) == (not left)
        assert found.notes[0].startswith("not compared in this runtime: ")


def test_goals_are_measured_with_fixed_random_numbers(tmp_path: Path) -> None:
    onnx.save(noisy_net(), str(tmp_path / "net.onnx"))
    given = [s.feed for s in samples(3, 1, 8, 40)]
    with open_data(given, Runner(tmp_path / "net.onnx").inputs) as data:
        judge = Judge(Goal(min_sqnr=20), tmp_path / "net.onnx", data, PROVEN)
        assert judge.measure(tmp_path / "net.onnx", ()).sqnr_db == 200.0
