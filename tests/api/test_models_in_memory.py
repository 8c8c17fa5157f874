"""Calls take models in memory and results of other calls; results give a ModelProto and a session."""

import gc
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import model, weight

import onnxshot
from onnxshot.delivery import user_session
from onnxshot.errors import ModelError, UsageError
from onnxshot.graph import model as graph_model
from onnxshot.results import model_source

SAMPLES = [{"x": np.random.default_rng(i).normal(size=(2, 64)).astype(np.float32)} for i in range(8)]
QUIET = onnxshot.Settings(threads=1, use_cache=False, bench_seconds=0.01, search_seconds=0.0)
FAST: onnxshot.RecipeOptions = {"effort": "fast", "place": False}


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    text = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    return model(text, {"w": weight(64, 64), "v": weight(64, 64, seed=1)})


@pytest.fixture(scope="module")
def path(net: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("net") / "net.onnx")
    onnx.save(net, place)
    return place


@pytest.fixture(scope="module")
def sparse(net: onnx.ModelProto) -> onnxshot.PruneResult:
    return onnxshot.prune(net, sparsity=0.5, settings=QUIET)


@pytest.fixture(scope="module")
def small(net: onnx.ModelProto) -> onnxshot.Result:
    return onnxshot.quantize(net, SAMPLES, settings=QUIET, **FAST)


class Program:
    """As `torch.onnx.ONNXProgram`: a ModelProto is made whenever it is asked for."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, self.asked = proto, 0

    @property
    def model_proto(self) -> onnx.ModelProto:
        self.asked += 1
        return self.proto


def test_every_form_of_a_model_gives_the_same_result(net: onnx.ModelProto, path: str) -> None:
    written = io.BytesIO()
    written.write(net.SerializeToString())  # it stands at its end
    program = Program(net)
    forms = [net, net.SerializeToString(), path, Path(path), program, io.BytesIO(net.SerializeToString()), written]
    made = [onnxshot.quantize(form, None, mode="dynamic", settings=QUIET).model_proto for form in forms]
    assert len({proto.SerializeToString(deterministic=True) for proto in made}) == 1
    assert "DynamicQuantizeLinear" in {node.op_type for node in made[0].graph.node}
    assert program.asked == 1


def test_what_holds_no_model_is_refused_with_what_to_give(path: str, tmp_path: Path) -> None:
    module = type("Module", (), {"__module__": "torch.nn.modules.module"})
    net = type("Net", (module,), {})()
    session = onnxruntime.InferenceSession(path)
    calls: list[tuple[Callable[[Any], object], str]] = [
        (lambda m: onnxshot.quantize(m, SAMPLES), "model"), (lambda m: onnxshot.compare(path, m, SAMPLES), "candidate"),
        (lambda m: onnxshot.bench([m]), r"models\[0\]"),
        (lambda m: onnxshot.emit(path, output="x.onnx", reference=m), "reference"),
    ]  # fmt: skip
    for call, name in calls:
        with pytest.raises(UsageError, match=rf"{name} is Net \(export it: .*torch.onnx.export"):
            call(net)
        with pytest.raises(UsageError, match=rf"{name} is InferenceSession \(.*give the .onnx file"):
            call(session)
    closed = io.BytesIO(b"x")
    closed.close()
    (tmp_path / "text").write_text("text")
    with (tmp_path / "text").open() as text, (tmp_path / "new").open("wb") as new:
        for file, words in ((text, "open as text"), (new, "cannot be read"), (closed, "cannot be read")):
            with pytest.raises(ModelError, match=rf"{words}.*'rb'"):
                onnxshot.inspect(file)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="model_proto of the given Program is int"):
        onnxshot.inspect(Program(5))  # type: ignore[arg-type]


def test_a_bundle_needs_the_file_of_the_model(small: onnxshot.Result, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"given in memory.*its path"):
        onnxshot.bundle(small, tmp_path / "bundle", SAMPLES)


def test_an_open_file_over_the_limit_of_a_proto_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "MOST_BYTES", 100)
    with pytest.raises(ModelError, match=r"over 2 GiB.*give its path"):
        onnxshot.inspect(io.BytesIO(Path(path).read_bytes()))


VERBS: dict[str, Callable[[Any, Path], object]] = {
    "quantize": lambda m, _: onnxshot.quantize(m, SAMPLES, settings=QUIET, **FAST).report.sqnr_db,
    "tune": lambda m, _: onnxshot.tune(m, SAMPLES, onnxshot.Goal(min_sqnr=1), settings=QUIET, **FAST).report.sqnr_db,
    "calibrate": lambda m, _: sorted(onnxshot.calibrate(m, SAMPLES, settings=QUIET).tensors),
    "sensitivity": lambda m, _: onnxshot.sensitivity(m, SAMPLES, settings=QUIET).sqnr_db,
    "inspect": lambda m, _: onnxshot.inspect(m).to_text(),
    "prune": lambda m, _: onnxshot.prune(m, sparsity=0.7, settings=QUIET).report.sparsity_of_all,
    "shrink": lambda m, _: onnxshot.shrink(m, target_params=0.8, settings=QUIET).report.params,
    "compress": lambda m, _: len(onnxshot.compress(m, SAMPLES, sparsity=0.6, settings=QUIET).report.stages),
    "emit": lambda m, folder: onnxshot.emit(m, output=folder / "out.onnx", settings=QUIET).outputs[0].bytes,
    "diff": lambda m, _: onnxshot.diff(m, m).unchanged,
    "compare": lambda m, _: onnxshot.compare(m, m, SAMPLES, settings=QUIET).agreement,
    "bench": lambda m, _: len(onnxshot.bench([m, m], SAMPLES, seconds=0.01)),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_result_is_a_model(verb: str, sparse: onnxshot.PruneResult, tmp_path: Path) -> None:
    place = sparse.save(tmp_path / "sparse.onnx")
    from_file = VERBS[verb](place, tmp_path)
    assert VERBS[verb](sparse, tmp_path) == from_file
    assert VERBS[verb](sparse.model_proto, tmp_path) == from_file


def test_the_proto_is_what_is_saved(small: onnxshot.Result, sparse: onnxshot.PruneResult, tmp_path: Path) -> None:
    for made in (small, sparse):
        saved = made.save(tmp_path / "x.onnx").read_bytes()
        assert made.model_proto.SerializeToString(deterministic=True) == saved


def test_zeros_of_a_result_stay_in_the_next(sparse: onnxshot.PruneResult) -> None:
    made = onnxshot.quantize(sparse, SAMPLES, settings=QUIET, **FAST)
    values = [onnx.numpy_helper.to_array(t) for t in made.model_proto.graph.initializer if len(t.dims) == 2]
    assert [round(float(np.mean(w == 0)), 2) >= 0.5 for w in values] == [True, True]
    assert made.report.input == "(ModelProto)"


def test_a_session_runs_what_is_saved(small: onnxshot.Result, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = small.session(sess_options=options)
    assert isinstance(session, onnxruntime.InferenceSession)
    from_file = onnxruntime.InferenceSession(str(small.save(tmp_path / "x.onnx")), options)
    np.testing.assert_array_equal(session.run(None, SAMPLES[0])[0], from_file.run(None, SAMPLES[0])[0])


def test_models_in_memory_are_compared_as_their_files(path: str, small: onnxshot.Result, tmp_path: Path) -> None:
    place = small.save(tmp_path / "x.onnx")
    by_file = onnxshot.compare(path, place, SAMPLES, settings=QUIET)
    found = onnxshot.compare(path, small, SAMPLES, settings=QUIET)
    assert (found.sqnr_db, found.int8_macs_share) == (by_file.sqnr_db, by_file.int8_macs_share)
    assert (found.input, found.recipe) == ("(ModelProto)", {"reference": path})
    assert [str(row.path) for row in onnxshot.bench(path, SAMPLES, seconds=0.01)] == [path]
    rows = onnxshot.bench([path, small], SAMPLES, seconds=0.01)
    assert [str(row.path) for row in rows] == [path, "(ModelProto)"]
    changes, of_files = onnxshot.diff(path, small), onnxshot.diff(path, place)
    assert (changes.before, changes.after, changes.changed) == (path, "(ModelProto)", of_files.changed)


def test_messages_do_not_name_temporary_files(path: str, net: onnx.ModelProto) -> None:
    other = model("g (float[n, 32] x) => (float[n, 32] y) { y = Relu(x) }", {})
    for bad in (other, other.SerializeToString()):
        with pytest.raises(onnxshot.errors.OnnxshotError) as caught:
            onnxshot.compare(net, bad, SAMPLES, settings=QUIET)
        assert tempfile.gettempdir() not in str(caught.value)
    with pytest.raises(ModelError, match="bytes are no ONNX model"):
        onnxshot.quantize(b"\xff\xff\xff", None, mode="dynamic")


def test_a_model_over_the_limit_of_a_proto_runs_and_is_refused_as_one(
    small: onnxshot.Result, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = small.session().run(None, SAMPLES[0])[0]
    monkeypatch.setattr(graph_model, "MOST_BYTES", 100)
    monkeypatch.setattr(user_session, "MOST_BYTES", 100)
    with pytest.raises(ModelError, match=r"over 2 GiB.*save it to a path"):
        _ = small.model_proto
    with pytest.raises(ModelError, match="over 2 GiB"):
        onnxshot.inspect(small)
    session = small.session()
    np.testing.assert_array_equal(session.run(None, SAMPLES[0])[0], expected)
    (folder,) = tmp_path.glob("onnxshot-session-*")
    del session
    gc.collect()
    assert not folder.exists()


def test_a_result_in_memory_is_called_after_its_file(path: str) -> None:
    made = onnxshot.quantize(path, SAMPLES, settings=QUIET, **FAST)
    found = onnxshot.compare(path, made, SAMPLES, settings=QUIET)
    assert found.input == f"(result of {Path(path).name})"
    assert f"result of {Path(path).name}" in repr(found)
