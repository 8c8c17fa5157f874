"""Results are compared with the model as it was given. A normalized model that computes something else is refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser
from parted import held_out

import onnxshot
from onnxshot.calibration.readers import Sample
from onnxshot.errors import CalibrationError, ModelError
from onnxshot.graph import Model, opset_upgrade
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import load_model
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.passes.normalize import normalize
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.settings import Settings
from onnxshot.verification import proof
from onnxshot.verification.compare_models import compare
from onnxshot.verification.normalization_check import check_same_outputs
from onnxshot.verification.reference import reference_of

RNG = np.random.default_rng(0)
SAMPLES = [{"x": RNG.normal(size=(1, 8, 10, 10)).astype(np.float32)} for _ in range(16)]


def net(middle: str, opset: int = 13, **constants: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """Conv, then `middle` from t to u, then Conv."""
    model = parser.parse_model(
        f"""<ir_version: 7, opset_import: ["": {opset}]>
        g (float[1,8,10,10] x) => (float y) {{
            t = Conv<pads = [1,1,1,1]>(x, first)
            {middle}
            y = Conv(u, second)
        }}"""
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.shape.dim.extend(
        onnx.TensorShapeProto.Dimension(dim_param=d) for d in ("n", "c", "h", "w")
    )
    rng = np.random.default_rng(1)
    weights = {"first": rng.normal(size=(16, 8, 3, 3)), "second": rng.normal(size=(8, 16, 1, 1))}
    stored = {name: w.astype(np.float32) for name, w in weights.items()} | constants
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in stored.items())
    return model


def db(given: Path | bytes, made: Path | bytes, feeds: list[dict[str, Any]]) -> float:
    """SQNR in dB by ONNX Runtime alone."""
    sums = SqnrSum()
    first, second = (
        onnxruntime.InferenceSession(m if isinstance(m, bytes) else str(m), providers=["CPUExecutionProvider"])
        for m in (given, made)
    )
    for feed in feeds:
        for a, b in zip(first.run(None, feed), second.run(None, feed), strict=True):
            sums.add(a, b)
    return sums.db


def check(given: onnx.ModelProto, normal: onnx.ModelProto, feed: dict[str, Any]) -> None:
    wanted = Runner(given.SerializeToString()).run(feed)
    check_same_outputs(LeanModel.of(given), LeanModel.of(normal), Sample("one", feed), wanted, threads=1)


def test_a_normalized_model_with_another_meaning_is_refused_naming_the_node() -> None:
    given = net("u = LeakyRelu<alpha: float = 0.1>(t)")
    given.graph.node[1].name = "middle"
    other = onnx.ModelProto.FromString(given.SerializeToString())
    other.graph.node[1].attribute[0].f = 0.11
    with pytest.raises(ModelError, match=r"node 'middle' \(LeakyRelu\)"):
        check(given, other, SAMPLES[0])


def test_a_choice_that_rounding_decides_is_accepted() -> None:
    """ArgMax of values that are equal up to rounding: both models are right, whatever follows."""
    middle = "s = Add(t, tiny) i = ArgMax<axis = 1, keepdims = 1>(s) f = Cast<to = 1>(i) u = Mul(t, f)"
    tie = np.zeros((1, 16, 1, 1), np.float32)
    given = net(middle, tiny=tie)
    first = onnx.numpy_helper.to_array(given.graph.initializer[0]).copy()
    first[:] = first[:1]  # every channel is the same
    given.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(first, "first"))
    other = onnx.ModelProto.FromString(given.SerializeToString())
    first[3] *= np.float32(1 + 1e-6)
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(first, "first"))
    assert db(given.SerializeToString(), other.SerializeToString(), SAMPLES[:1]) < 20
    check(given, other, SAMPLES[0])


def test_random_numbers_are_accepted() -> None:
    given = net("r = RandomNormalLike(t) u = Add(t, r)")
    check(given, given, SAMPLES[0])


def test_outputs_are_compared_with_the_given_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A conversion that halves a slope: the report shows the user's SQNR. With the check it is refused earlier."""
    real = opset_upgrade.raise_opset

    def wrong(model: Model, version: int) -> None:
        real(model, version)
        for _, node in model.walk():
            if node.op == "LeakyRelu":
                node.attrs["alpha"] *= 0.5

    monkeypatch.setattr(opset_upgrade, "raise_opset", wrong)
    path = tmp_path / "given.onnx"
    onnx.save(net("u = LeakyRelu<alpha: float = 0.4>(t)", opset=11), path)
    with pytest.raises(ModelError, match=r"\(LeakyRelu\)"):
        onnxshot.quantize(path, SAMPLES)
    monkeypatch.setattr("onnxshot.verification.reference.check_same_outputs", lambda *_, **__: None)
    result = onnxshot.quantize(path, SAMPLES, output=tmp_path / "made.onnx", effort="fast")
    truth = db(path, tmp_path / "made.onnx", held_out(SAMPLES))
    assert result.report.sqnr_db == pytest.approx(truth, abs=0.5)
    assert truth < 16


def test_a_path_stays_a_path_and_external_data_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "given.onnx"
    onnx.save(net("u = Relu(t)"), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = load_model(path)
    normalize(model)
    found = reference_of(path, model, None, check=True)
    assert found.model == path
    assert found.at(tmp_path / "unused") == path
    assert not found.note


@pytest.mark.parametrize(
    ("middle", "opset", "constants"),
    [
        ('u = Upsample<mode = "linear">(t, s)', 9, {"s": np.array([1, 1, 2, 2], np.float32)}),
        ("u = Resize(t, s)", 10, {"s": np.array([1, 1, 0.4, 1.7], np.float32)}),
        ("h = Hardmax<axis = 2>(t) u = Add(t, h)", 11, {}),
    ],
)
def test_every_verb_compares_its_file_with_the_given_model(
    middle: str, opset: int, constants: dict[str, Any], tmp_path: Path
) -> None:
    """8 dB were reported as 34: the proof compared the result with the model that the converter had changed."""
    path, made = tmp_path / "given.onnx", tmp_path / "made.onnx"
    onnx.save(net(middle, opset, **constants), path)
    report = onnxshot.quantize(path, SAMPLES, output=made, effort="fast").report
    unseen = held_out(SAMPLES)
    assert report.samples["held_out"] == len(unseen)
    assert report.sqnr_db == pytest.approx(db(path, made, unseen), abs=0.5)
    assert report.sqnr_db > 25
    stages = onnxshot.compress(path, SAMPLES, sparsity=0.1, output=made, effort="fast").report.stages
    truth = db(path, made, unseen)
    assert stages[-1].sqnr_db == pytest.approx(truth, abs=0.5)
    assert truth > stages[1].sqnr_db - 6  # int8 costs less than the zeros, and nothing else costs anything


def test_a_model_that_onnx_runtime_refuses_is_compared_as_normalized_with_a_note() -> None:
    """A custom operator that no runtime has, used only in a dead branch."""
    given = net("u = Relu(t) dead = Relu(t)")
    given.graph.node[2].domain = "nowhere"
    given.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    result = onnxshot.quantize(given, SAMPLES, effort="fast")
    assert result.report.sqnr_db is not None
    assert any("compared with the normalized model" in note for note in result.report.notes)


@pytest.mark.parametrize("verify", [True, False])
def test_a_sample_that_no_form_of_the_model_runs_on_is_an_error(verify: bool) -> None:
    """Two samples where a kernel spans five: as a clip of sound that is too short."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1,1,N] x) => (float[1,4,M] y) { y = Conv(x, w) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 1, 5), np.float32), "w"))
    short = [{"x": np.ones((1, 1, 2), np.float32)}] * 2
    with pytest.raises(CalibrationError, match="fails on sample") as caught:
        onnxshot.quantize(model, short, mode="weights", effort="fast", settings=Settings(verify=verify))
    assert "'x' is float32 [1, 1, 2]: it may be too short" in caught.value.hint


def test_the_truth_benchmark_finds_a_false_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(net("u = Relu(t)", opset=11), tmp_path / "one.onnx")
    (tmp_path / "d").mkdir()
    for i, sample in enumerate(SAMPLES):
        np.save(tmp_path / "d" / f"{i:02}.npy", sample["x"])
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    truth = importlib.import_module("truth")
    monkeypatch.setattr("sys.argv", ["truth.py", str(tmp_path), "--effort", "fast"])
    with pytest.raises(SystemExit) as ended:
        truth.main()
    assert ended.value.code == 0
    assert "1 within" in capsys.readouterr().out
    real = proof.record_comparison

    def lie(report: Any, found: Any, **rest: Any) -> None:
        real(report, found, **rest)
        report.sqnr_db += 3

    monkeypatch.setattr(proof, "record_comparison", lie)
    with pytest.raises(SystemExit) as ended:
        truth.main()
    assert ended.value.code == 1
    assert "| 3.00 ! |" in capsys.readouterr().out


def test_an_inner_sequence_is_not_compared() -> None:
    four = np.array([4, 4, 8], np.int64)
    given = net("s = SplitToSequence<axis = 1>(t, four) u = ConcatFromSequence<axis = 1>(s)", four=four)
    report = onnxshot.quantize(given, SAMPLES, effort="fast").report
    assert report.sqnr_db > 25
    assert "s" not in [row.tensor for row in report.worst]


def test_random_indices_out_of_range_are_blamed_on_the_data() -> None:
    """A table of one row: random whole numbers are 0 or 1, of which 1 is out of bounds."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int64[N,64] ids, float[N,4] x) => (float[N,4] y) { a = Gather(table, ids)
            b = ReduceMean<axes = [1], keepdims = 0>(a) z = MatMul(x, w) y = Add(z, b) }"""
    )
    for name, value in (("table", np.ones((1, 4), np.float32)), ("w", np.ones((4, 4), np.float32))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    with pytest.raises(CalibrationError, match=r"does not run on random data for input 'ids' \(int64") as caught:
        onnxshot.quantize(model, "random")
    assert caught.value.exit_code == 5
    assert "real samples" in caught.value.hint
    feeds = [{"ids": np.zeros((1, 64), np.int64), "x": RNG.normal(size=(1, 4)).astype(np.float32)} for _ in range(8)]
    assert onnxshot.quantize(model, feeds).report.sqnr_db is not None


def test_scaled_scores_after_a_tie_are_accepted() -> None:
    """A temperature is folded into the Conv's weights, so its old tensor disappears; TopK chose between ties."""
    middle = "m = Div(t, k) s = Sigmoid(m) v, i = TopK<axis = 1>(s, four) f = Cast<to = 1>(i) a = Concat<axis = 1>"
    middle += "(f, f, f, v) u = Identity(a)"
    given = net(middle, k=np.array(0.7, np.float32), four=np.array([4]))
    first = onnx.numpy_helper.to_array(given.graph.initializer[0]).copy()
    first[:] = first[:1] * (1 + 1e-7 * np.random.default_rng(2).normal(size=(16, 1, 1, 1)))  # rounding orders scores
    given.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(first, "first"))
    model = load_model(given)
    normalize(model)
    normal = model.to_proto()
    assert [node.op_type for node in normal.graph.node if node.op_type == "Div"] == []
    assert db(given.SerializeToString(), normal.SerializeToString(), SAMPLES[:1]) < 40
    check(given, normal, SAMPLES[0])


def test_a_scaled_deviation_of_random_numbers_is_accepted() -> None:
    """The sampling of a variational autoencoder: two runs never agree, so single nodes were compared."""
    middle = "d = Mul(t, half) e = Exp(d) r = RandomNormalLike(e) n = Mul(r, e) u = Tanh(n)"
    given = net(middle, half=np.array(0.05, np.float32))
    model = load_model(given)
    normalize(model)
    check(given, model.to_proto(), SAMPLES[0])
    assert onnxshot.quantize(given, SAMPLES, effort="fast").report.sqnr_db > 20


def test_another_meaning_after_random_numbers_is_refused() -> None:
    given = net("r = RandomNormalLike(t) n = Mul(r, t) u = LeakyRelu<alpha: float = 0.1>(n)")
    given.graph.node[3].name = "middle"
    other = onnx.ModelProto.FromString(given.SerializeToString())
    other.graph.node[3].attribute[0].f = 0.4
    with pytest.raises(ModelError, match=r"node 'middle' \(LeakyRelu\)"):
        check(given, other, SAMPLES[0])


def test_no_tensor_gets_a_lower_sqnr_from_a_scale_folded_into_weights(tmp_path: Path) -> None:
    """A tensor was reported with 7 dB although its sigmoid had 36: its name stood for other values in the result."""
    path, made = tmp_path / "given.onnx", tmp_path / "made.onnx"
    onnx.save(net("m = Mul(t, k) u = Sigmoid(m)", k=np.array(1 / 0.4, np.float32)), path)
    onnxshot.quantize(path, SAMPLES, output=made, effort="fast")
    rows = compare(path, made, [Sample("one", feed) for feed in SAMPLES[:4]], tensors=None).tensors
    assert "t" not in [row.tensor for row in rows]
    assert {"m", "u"} <= {row.tensor for row in rows}
    assert min(row.sqnr_db for row in rows) > 25


def in_float16(body: str, slope: float = 0.1) -> onnx.ModelProto:
    """A model with float32 inputs and outputs and float16 inside, also in the subgraphs of an If or a Loop."""
    leaky = f"LeakyRelu<alpha: float = {slope}>"
    inner = {
        "if": "e = If<then_branch = one () => (float16[n, 32] f) { g = MatMul(d, v) f = Relu(g) }, "
        f"else_branch = two () => (float16[n, 32] f) {{ f = {leaky}(d) }}>(use)",
        "loop": "e = Loop<body = turn (int64 i, bool c, float16[n, 32] s) => (bool k, float16[n, 32] t) "
        f"{{ k = Identity(c) g = MatMul(s, v) q = {leaky}(g) t = Add(q, d) }}>(turns, use, d)",
        "none": f"g = MatMul(d, v) e = {leaky}(g)",
    }[body]
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 32] x, bool use) => (float[n, 32] y) {{
            h = Cast<to = 10>(x) d = MatMul(h, w) {inner} o = MatMul(e, w) y = Cast<to = 1>(o)
        }}"""
    )
    rng = np.random.default_rng(2)
    stored = {name: (rng.normal(size=(32, 32)) / 6).astype(np.float16) for name in ("w", "v")}
    stored["turns"] = np.array(3, np.int64)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in stored.items())
    return model


FLOAT16_FEEDS = [
    {"x": np.random.default_rng(i).normal(size=(4, 32)).astype(np.float32), "use": np.array(i % 2 == 0)}
    for i in range(8)
]


@pytest.mark.parametrize("body", ["if", "loop", "none"])
def test_a_model_with_inner_float16_is_widened_without_an_error(body: str, tmp_path: Path) -> None:
    given, made = in_float16(body), tmp_path / "made.onnx"
    result = onnxshot.quantize(given, FLOAT16_FEEDS, output=made, effort="fast")
    truth = db(given.SerializeToString(), made, FLOAT16_FEEDS)  # nothing is learned from any of them
    assert result.report.sqnr_db == pytest.approx(truth, abs=0.5)
    assert truth > 25


@pytest.mark.parametrize("body", ["if", "loop", "none"])
def test_another_meaning_is_found_in_a_widened_float16_model(body: str) -> None:
    feed = FLOAT16_FEEDS[1 if body == "if" else 0]
    model = load_model(in_float16(body, slope=0.3))
    normalize(model)
    other = model.to_proto()
    with pytest.raises(ModelError, match=r"changes the output of node "):
        check(in_float16(body), other, feed)
    model = load_model(in_float16(body))
    normalize(model)
    check(in_float16(body), model.to_proto(), feed)
