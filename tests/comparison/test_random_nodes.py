"""Comparisons and calibration draw equal random numbers in every run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from compared_models import db, noisy_net, run, samples
from handmade.core import model
from onnx import ModelProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

import onnxshot
from onnxshot.comparison.random_nodes import random_sources, with_fixed_randomness
from onnxshot.execution.candidate_race import measure_candidates
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.verification.compare_models import compare

PROVEN = onnxshot.Settings(threads=2, bench_seconds=0.01)


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
