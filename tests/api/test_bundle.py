"""Bundles: what is in them, what `verify` finds, and what hostile ones cannot do."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from fixture_data import facts, fixture, session

import onnxshot
from onnxshot.bundles import samples as stored
from onnxshot.bundles.bundle_manifest import entry_of
from onnxshot.calibration.readers import open_data, split
from onnxshot.delivery.artifacts import load_artifact
from onnxshot.errors import CalibrationError, ModelError, TargetError, UsageError
from onnxshot.graph.load import load_model
from onnxshot.rewriting.model_inputs import input_specs, resolve_preset

CALIB = str(fixture(facts()["digits_mobile"]["calib"]))
PRESET = str(fixture(facts()["digits_mobile"]["preset"]))
QUICK = onnxshot.Settings(bench_seconds=0.01)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "labels.txt").write_text("zero\none\n")
    (folder / "config.json").write_text("{}")
    (folder / "notes.md").write_text("not of the model")
    shutil.copyfile(fixture("digits_mobile"), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.fixture(scope="module")
def result(source: Path) -> onnxshot.Result:
    return onnxshot.quantize(
        source, CALIB, preset=PRESET, output=source.with_name("net.int8.onnx"), effort="fast",
        emit=("onnx", "openvino"), settings=QUICK,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(result: onnxshot.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnxshot.bundle(result, tmp_path_factory.mktemp("made") / "bundle", CALIB, preset=PRESET)


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def change(bundle: Path, edit: Callable[[Any], object]) -> None:
    """Change the manifest."""
    values = json.loads((bundle / "manifest.json").read_text())
    edit(values)
    (bundle / "manifest.json").write_text(json.dumps(values))


def test_what_is_in_it(made: Path, result: onnxshot.Result, source: Path) -> None:
    names = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
    assert names == [
        "beside/config.json", "beside/labels.txt", "manifest.json", "net.int8.bin", "net.int8.onnx",
        "net.int8.recipe.yaml", "net.int8.xml", "preset.yaml", "recipe.json", "report.json",
        "samples/0.npz", "samples/1.npz", "samples/2.npz",
        "statistics.npz",
    ]  # fmt: skip
    manifest = json.loads((made / "manifest.json").read_text())
    assert sorted(manifest["files"]) == [name for name in names if name != "manifest.json"]
    assert all(entry_of(made / name).sha256 == e["sha256"] for name, e in manifest["files"].items())
    assert json.loads((made / "recipe.json").read_text()) == result.report.recipe
    report = json.loads((made / "report.json").read_text())
    assert [o["path"] for o in report["outputs"]] == ["net.int8.onnx", "net.int8.xml"]
    assert (made / "net.int8.onnx").read_bytes() == source.with_name("net.int8.onnx").read_bytes()
    assert onnxshot.quantize(source, stats=made / "statistics.npz", effort="fast", settings=QUICK).plan.params


def test_samples_are_held_out_and_hold_what_models_answer(made: Path, source: Path) -> None:
    data = open_data(CALIB, input_specs(load_model(source)), resolve_preset(PRESET))
    first = data[split(len(data))[1][0]].feed["image"]
    sample = stored.read_sample(made / "samples" / "0.npz", ("net.int8.onnx", "net.int8.xml"))
    np.testing.assert_array_equal(sample.inputs["image"], first)
    (expected,) = session(source).run(None, {"image": first})
    np.testing.assert_allclose(sample.expected["logits"], expected, rtol=1e-4, atol=1e-4)
    assert set(sample.outputs) == {"net.int8.onnx", "net.int8.xml"}


def test_verify_runs_every_artifact(made: Path) -> None:
    found = onnxshot.verify(made)
    assert {(row.artifact, row.equal, row.passed) for row in found.outputs} == {
        ("net.int8.onnx", 1.0, True), ("net.int8.xml", 1.0, True),
    }  # fmt: skip
    assert (found.samples, found.not_run, found.not_listed, found.deviations) == (3, {}, (), ())


def test_a_flipped_byte_is_found(bundle: Path) -> None:
    raw = bytearray((bundle / "net.int8.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / "net.int8.onnx").write_bytes(raw)
    with pytest.raises(ModelError, match=r"'net.int8.onnx' has another SHA-256"):
        onnxshot.verify(bundle)


def test_a_missing_and_a_cut_file_are_found(bundle: Path) -> None:
    (bundle / "report.json").write_text("{}")
    with pytest.raises(ModelError, match=r"'report.json' holds 2 bytes"):
        onnxshot.verify(bundle)
    (bundle / "report.json").unlink()
    with pytest.raises(ModelError, match=r"'report.json' is missing"):
        onnxshot.verify(bundle)


def test_other_answers_are_a_deviation(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Louder:
        """A runtime that has gone wrong."""

        def __init__(self, path: Path, name: str, *, threads: int) -> None:
            self.loaded = load_artifact(path, name, threads=threads)
            self.by = np.float32(1.5 if name == "openvino" else 1 + 1e-5)

        def run(self, feed: Any) -> dict[str, Any]:
            return {name: self.by * values for name, values in self.loaded.run(feed).items()}

    monkeypatch.setattr("onnxshot.api.verify.load_artifact", Louder)
    found = onnxshot.verify(made)
    (row,) = found.deviations
    assert (row.artifact, row.output, row.equal) == ("net.int8.xml", "logits", 0.0)
    assert row.sqnr_db == pytest.approx(20 * np.log10(2))  # half of what was recorded is noise
    samples = [stored.read_sample(path, ("net.int8.xml",)) for path in sorted((made / "samples").iterdir())]
    wanted = np.concatenate([s.expected["logits"] for s in samples]).astype(np.float64)
    noise = wanted - np.concatenate([s.outputs["net.int8.xml"]["logits"] for s in samples])
    assert row.least_db == pytest.approx(10 * np.log10((wanted**2).sum() / (noise**2).sum()))
    assert all(r.equal < 1 for r in found.outputs)  # a hundred thousandth is an order of sums


def test_without_a_runtime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise TargetError("it is not installed")

    monkeypatch.setattr("onnxshot.api.verify.load_artifact", missing)
    with pytest.raises(TargetError, match="nothing was run"):
        onnxshot.verify(bundle)


@pytest.mark.parametrize("name", ["../net.onnx", "/etc/hostname", "a/../../b", "..", "", "C:/x", "a\\..\\b", "x\0"])
def test_paths_that_leave_the_folder_are_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "net.onnx").write_bytes(b"")
    change(bundle, lambda m: m["files"].update({name: {"sha256": "0" * 64, "bytes": 0}}))
    with pytest.raises(ModelError, match="leaves the bundle"):
        onnxshot.verify(bundle)


def test_links_are_refused(bundle: Path) -> None:
    (bundle / "report.json").rename(bundle.parent / "report.json")
    (bundle / "report.json").symlink_to(bundle.parent / "report.json")
    with pytest.raises(ModelError, match="no regular file"):
        onnxshot.verify(bundle)
    (bundle / "report.json").unlink()
    (bundle.parent / "report.json").rename(bundle / "report.json")
    (bundle / "samples").rename(bundle.parent / "samples")
    (bundle / "samples").symlink_to(bundle.parent / "samples")
    with pytest.raises(ModelError, match="goes through a link"):
        onnxshot.verify(bundle)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("files"),
        lambda m: m.update(version=2),
        lambda m: m.update(files=[]),
        lambda m: m.update(samples=[1]),
        lambda m: m.update(samples=["../x.npz"]),
        lambda m: m.update(artifacts=[{"file": "net.int8.onnx"}]),
        lambda m: m["files"].update({"report.json": {"sha256": "0", "bytes": "many"}}),
        lambda m: m.update(files={str(i): {"sha256": "0", "bytes": 0} for i in range(10_001)}),
    ],
)
def test_malformed_manifests_are_refused(bundle: Path, edit: Callable[[Any], object]) -> None:
    change(bundle, edit)
    with pytest.raises(ModelError, match="no manifest that this version can read"):
        onnxshot.verify(bundle)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, " " * (5 << 20)])
def test_what_is_no_manifest(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match="no manifest"):
        onnxshot.verify(bundle)


def test_a_sample_that_unpacks_to_more_than_it_may(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_BYTES", -(1 << 20))
    with pytest.raises(ModelError, match="unpacks to"):
        onnxshot.verify(bundle)


def test_a_bundle_is_replaced_and_nothing_else_is(result: onnxshot.Result, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    onnxshot.bundle(result, tmp_path / "empty", CALIB, preset=PRESET)
    onnxshot.bundle(result, bundle, CALIB, preset=PRESET)
    assert onnxshot.verify(bundle).samples == 3
    (bundle / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match=r"'mine.txt' was added"):
        onnxshot.bundle(result, bundle, CALIB, preset=PRESET)
    assert onnxshot.verify(bundle).not_listed == ("mine.txt",)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for folder, what in (("other", "is no bundle"), ("link", "is no folder"), ("other/mine.txt", "is no folder")):
        with pytest.raises(UsageError, match=what):
            onnxshot.bundle(result, tmp_path / folder, CALIB, preset=PRESET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "empty", "link", "other"]


def test_a_failure_leaves_nothing(result: onnxshot.Result, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="nowhere"):
        onnxshot.bundle(result, tmp_path / "new", "nowhere/calib.npz")
    assert list(tmp_path.iterdir()) == []


def test_files_too_large_are_listed(result: onnxshot.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxshot.api.bundle._MOST_BESIDE", 2)
    onnxshot.bundle(result, tmp_path / "new", CALIB, preset=PRESET)
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["left_out"] == ["labels.txt: over 0 MB"]
    assert (tmp_path / "new" / "beside" / "config.json").is_file()


def test_a_full_disk_is_told_of_the_bundle_and_what_was_written_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system names the file that is copied, which is whole."""
    out = tmp_path / "q.onnx"
    made = onnxshot.quantize(source, output=out, mode="dynamic", settings=QUICK)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(file: Path, to: Path, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UsageError, match=rf"cannot write the bundle {tmp_path}/b: No space left") as told:
        onnxshot.bundle(made, tmp_path / "b")
    assert "are complete, and stay" in told.value.hint
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_of_sequences_alone_is_recorded_and_verified(tmp_path: Path) -> None:
    """What is recorded are the parts that onnx's own evaluator splits the output of the float model into, stacked."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,64] x) => (seq(float[N,1]) s) '
        "{ h = MatMul(x, w) r = Relu(h) s = SplitToSequence<axis=1, keepdims=1>(r) }"
    )
    weight = np.random.default_rng(0).normal(0, 0.1, (64, 8)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, str(tmp_path / "m.onnx"))
    made = onnxshot.quantize(tmp_path / "m.onnx", output=tmp_path / "q.onnx", mode="weights", settings=QUICK)
    onnxshot.bundle(made, tmp_path / "b", settings=QUICK)
    (first, *_) = sorted((tmp_path / "b" / "samples").iterdir())
    with np.load(first) as sample:
        (parts,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": sample["input/x"]})
        np.testing.assert_allclose(sample["float/s"], np.stack(parts), atol=1e-5)
        recorded = sample["output/q.onnx/s"]
    assert recorded.shape == np.stack(parts).shape and recorded.any()
    found = onnxshot.verify(tmp_path / "b")
    assert [(row.output, row.passed) for row in found.outputs] == [("s", True)] and not found.not_run
