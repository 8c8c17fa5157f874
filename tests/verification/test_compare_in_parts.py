"""A model that runs in parts is compared with the same figures as one that runs as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxshot
from onnxshot import memory
from onnxshot.calibration.readers import Sample
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.runtimes.parts import Parts
from onnxshot.settings import Settings
from onnxshot.verification import proof, tensor_walk
from onnxshot.verification.compare_models import Comparison, compare
from onnxshot.verification.reference import Reference

WIDTH, LAYERS = 80, 5


def residual(output: str = "y", outlier: float = 1.0) -> onnx.ModelProto:
    """Layers h + relu(h A) B on a residual stream, and class scores of its end."""
    rng = np.random.default_rng(3)
    nodes, weights, source = [], {}, "x"
    for i in range(LAYERS):
        weights |= {f"{n}{i}": (rng.standard_normal((WIDTH, WIDTH)) / 9).astype(np.float32) for n in "ab"}
        nodes += [
            helper.make_node("MatMul", [source, f"a{i}"], [f"u{i}"], name=f"first{i}"),
            helper.make_node("Relu", [f"u{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"b{i}"], [f"v{i}"], name=f"second{i}"),
            helper.make_node("Add", [source, f"v{i}"], [f"h{i}"]),
        ]
        source = f"h{i}"
    weights["c"] = (outlier * rng.standard_normal((WIDTH, WIDTH))).astype(np.float32)
    nodes.append(helper.make_node("MatMul", [source, "c"], [output], name="head"))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(5)
    return [Sample(str(i), {"x": rng.standard_normal((3 + i % 2, WIDTH)).astype(np.float32)}) for i in range(count)]


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, a part has a float weight or four in int8, and arrays that wait are in a file."""

    def small() -> None:
        monkeypatch.setattr(memory, "part_bytes", lambda: 4 * WIDTH * WIDTH)
        monkeypatch.setattr(memory, "held_bytes", lambda: 0)

    return small


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    given, written = folder / "given.onnx", folder / "int8.onnx"
    onnx.save(residual(), given)
    feeds = [sample.feed for sample in samples(8)]
    onnxshot.quantize(given, feeds, output=written, effort="fast", settings=Settings(verify=False))
    return given, written


def assert_alike(one: Comparison, other: Comparison) -> None:
    assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=0.05)
    assert one.unoptimized_db == pytest.approx(other.unoptimized_db, abs=0.05)
    assert one.agreement == other.agreement
    assert one.samples == other.samples
    assert {row.tensor for row in one.tensors} == {row.tensor for row in other.tensors}
    found = {row.tensor: row for row in other.tensors}
    for row in one.tensors:
        assert row.sqnr_db == pytest.approx(found[row.tensor].sqnr_db, abs=0.05)
        assert row.clipped == pytest.approx(found[row.tensor].clipped, abs=1e-3)


def test_figures_of_parts_are_those_of_the_whole(
    files: tuple[Path, Path], in_parts: Callable[[], None]
) -> None:
    whole = compare(*files, samples(9), tensors=None)
    in_parts()
    assert Runner(files[0]).in_parts > 3
    parted = compare(*files, samples(9), tensors=None)
    assert len(parted.tensors) >= 3 * LAYERS
    assert_alike(parted, whole)


def test_samples_may_be_a_stream(files: tuple[Path, Path], in_parts: Callable[[], None]) -> None:
    whole = compare(*files, samples(9))
    in_parts()
    assert compare(*files, iter(samples(9))).sqnr_db == pytest.approx(whole.sqnr_db, abs=0.05)


def test_a_lean_model_is_compared_as_its_file_is(files: tuple[Path, Path], in_parts: Callable[[], None]) -> None:
    whole = compare(*files, samples(4), tensors=None)
    in_parts()
    parted = compare(LeanModel.of(files[0]), LeanModel.of(files[1]), samples(4), tensors=None)
    assert_alike(parted, whole)


def test_picks_of_a_model_in_parts_are_imposed(in_parts: Callable[[], None], tmp_path: Path) -> None:
    """TopK behind the last part orders the output: the candidate is given the picks of the float model."""

    def with_top(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto.graph.initializer.append(numpy_helper.from_array(np.int64([5]), "k"))
        proto.graph.node.append(helper.make_node("TopK", ["y", "k"], ["values", "places"]))
        del proto.graph.output[:]
        proto.graph.output.extend([
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", 5]),
            helper.make_tensor_value_info("places", TensorProto.INT64, ["n", 5]),
        ])  # fmt: skip
        return proto

    def noisy(proto: onnx.ModelProto) -> onnx.ModelProto:
        rng = np.random.default_rng(0)
        for tensor in proto.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                value = numpy_helper.to_array(tensor)
                changed = value + (0.02 * rng.standard_normal(value.shape)).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        return proto

    one, other = (proto.SerializeToString() for proto in (with_top(residual()), noisy(with_top(residual()))))
    whole = compare(one, other, samples(6), tensors=None)
    assert whole.ordered
    in_parts()
    parted = compare(one, other, samples(6), tensors=None)
    assert parted.ordered == whole.ordered
    assert_alike(parted, whole)


def test_a_quantize_run_in_parts_has_all_figures(
    tmp_path: Path, in_parts: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given.onnx"
    onnx.save(residual(), given)
    feeds = [sample.feed for sample in samples(12)]
    settings = Settings(bench_seconds=0.01)
    whole = onnxshot.quantize(given, feeds, output=tmp_path / "a.onnx", effort="fast", settings=settings).report
    in_parts()
    monkeypatch.setattr(memory, "budget", lambda: 0)
    told: dict[str, tuple[int, int]] = {}  # step -> what was told of it last
    tell = lambda step, done, of: told.update({step.partition(",")[0]: (done, of)})  # noqa: E731
    settings = replace(settings, progress=tell, use_cache=False)
    report = onnxshot.quantize(given, feeds, output=tmp_path / "b.onnx", effort="fast", settings=settings).report
    assert {"checking the normalized model", "calibrating", "comparing", "timing"} <= told.keys()
    assert all(done == of > 2 for done, of in told.values()), told
    assert report.sqnr_db == pytest.approx(whole.sqnr_db, abs=0.1)
    assert report.agreement == whole.agreement
    assert {row.tensor for row in report.worst} == {row.tensor for row in whole.worst}
    assert report.int8_macs_share == pytest.approx(whole.int8_macs_share)
    assert report.latency["speedup"] > 0
    assert "parts" not in whole.latency
    assert report.latency["parts"] > 3
    assert any("latency: the sum over" in note for note in report.notes)


def test_a_part_whose_tensors_exceed_what_is_held_is_run_several_times(
    files: tuple[Path, Path], in_parts: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(*files, samples(5), tensors=None)
    in_parts()  # nothing may be held
    opened: list[int] = []
    session = tensor_walk.PartSession

    def counted(parts: Parts, number: int, *args: Any, **how: Any) -> Any:
        opened.append(number)
        return session(parts, number, *args, **how)

    monkeypatch.setattr(tensor_walk, "PartSession", counted)
    assert_alike(compare(*files, samples(5), tensors=None), whole)
    assert opened.count(0) >= 4, "twice for each model"
    monkeypatch.setattr(memory, "held_bytes", lambda: 1 << 30)
    opened.clear()
    assert_alike(compare(*files, samples(5), tensors=None), whole)
    assert opened.count(0) == 2, "once for each model"


def test_a_file_that_runs_in_parts_is_loaded_as_a_whole_to_see_that_it_loads(
    files: tuple[Path, Path], in_parts: Callable[[], None], tmp_path: Path
) -> None:
    in_parts()
    assert proof.loads(files[1], files[0])
    broken = onnx.load(files[1])
    broken.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(ModelError, match="NoSuchOperator"):
        proof.loads(tmp_path / "broken.onnx", files[0])
    assert not proof.loads(tmp_path / "broken.onnx", tmp_path / "broken.onnx")


def test_a_reference_in_memory_is_written_where_a_file_is_needed(tmp_path: Path) -> None:
    given = residual()
    path = Reference(LeanModel.of(given)).at(tmp_path / "float.onnx")
    feed = samples(1)[0].feed
    wanted = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
    np.testing.assert_array_equal(Runner(path).run(feed)["y"], wanted[0])
