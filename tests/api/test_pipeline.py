"""quantize() as a user calls it: what goes in, what comes out, what is left behind."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import accuracy, facts, fixture, heldout
from handmade import HANDMADE, write_external
from handmade.core import Feed, model, samples
from planned_models import FAST, PROVEN, initializers, nodes_of, run, sqnr

import onnxshot
from onnxshot import Settings, quantize
from onnxshot.calibration.readers import split
from onnxshot.delivery.record import RECIPE_KEY, VERSION_KEY
from onnxshot.delivery.write_results import RANDOM_KEY
from onnxshot.errors import CalibrationError, ModelError, OnnxshotError, TargetError, UsageError
from onnxshot.graph.load import load_model
from onnxshot.graph.skip import Skip

KEYS = {
    "input", "outputs", "sqnr_db", "samples", "seconds", "peak_rss_mb", "int8_macs_share", "sparsity", "latency",
    "skips", "worst", "recipe",
}  # fmt: skip


# What the fixtures reach with the defaults, a decibel or two below what was measured.
FLOORS = {
    "digits_resnet": 31.0,
    "digits_mobile": 33.0,
    "digits_detector": 19.0,
    "licence_encoder": 45.0,
    "licence_lstm": 50.0,
    "licence_gru": 50.0,
}
LOST = {"digits_detector": 0.03}  # small objects on a black ground: a layer's rounding is the same at every pixel


def preset_of(name: str) -> str:
    given = facts()[name]["preset"]
    return given if given == "none" else str(fixture(given))


def save(folder: Path, name: str = "resnet_block") -> tuple[Path, list[Feed]]:
    case = HANDMADE[name]()
    onnx.save(case.model, str(folder / "net.onnx"))
    return folder / "net.onnx", case.feeds


def tree(folder: Path) -> dict[str, str]:
    """Every file below the folder, with the hash of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# ---------------------------------------------------------------------- real models


@pytest.mark.parametrize("name", FLOORS)
def test_a_real_model_keeps_its_answers(name: str, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    before = fixture(name).read_bytes()
    result = quantize(
        fixture(name), fixture(facts()[name]["calib"]), output=out, preset=preset_of(name), settings=PROVEN
    )
    assert fixture(name).read_bytes() == before
    report = result.report
    assert report.sqnr_db is not None
    assert report.sqnr_db >= FLOORS[name]
    assert report.sqnr_unoptimized_db == pytest.approx(report.sqnr_optimized_db, abs=1.5)
    assert accuracy(name, out) >= facts()[name]["accuracy"] - LOST.get(name, 0.02)
    assert out.stat().st_size < len(before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.onnx", "small.recipe.yaml"]
    assert report.float_between_qdq == 0
    for skip in report.skips:
        assert skip.reason


def test_a_transformer_stores_its_matrices_in_8_bits() -> None:
    name = "licence_encoder"
    result = quantize(fixture(name), fixture(facts()[name]["calib"]), settings=FAST)
    made = result.model.to_proto()
    stored = initializers(made)
    assert not [n.name for n in nodes_of(made, "MatMul") if stored.get(n.input[1], np.zeros(1)).dtype == np.float32]
    assert len(nodes_of(made, "MatMulInteger")) >= 8
    assert not [s for s in result.report.float_weights if s.op == "MatMul"]


# ---------------------------------------------------------------------- what goes in


def test_models_and_data_in_every_form_give_the_same_bytes(tmp_path: Path) -> None:
    path, feeds = save(tmp_path)
    arrays, one = tmp_path / "arrays", tmp_path / "one.npz"
    arrays.mkdir()
    for i, feed in enumerate(feeds):
        np.savez(arrays / f"{i}.npz", **feed)
    np.savez(one, x=np.stack([f["x"] for f in feeds]))
    forms: dict[str, tuple[Any, Any]] = {
        "path": (path, feeds),
        "str": (str(path), tuple(feeds)),
        "proto": (onnx.load(str(path)), iter(feeds)),
        "folder": (path, arrays),
        "npz": (path, one),
    }
    made = {name: quantize(model, data, settings=FAST).model.to_proto() for name, (model, data) in forms.items()}
    first = made["path"].SerializeToString(deterministic=True)
    for name, proto in made.items():
        assert proto.SerializeToString(deterministic=True) == first, name


def test_a_proto_is_not_changed() -> None:
    case = HANDMADE["resnet_block"]()
    before = case.model.SerializeToString(deterministic=True)
    quantize(case.model, case.feeds, settings=FAST)
    assert case.model.SerializeToString(deterministic=True) == before


def test_two_runs_give_the_same_file(tmp_path: Path) -> None:
    for name in ("squeeze_excite", "concat_of_different_ranges", "if_captures_weights"):
        path, feeds = save(tmp_path, name)
        for out in ("a.onnx", "b.onnx"):
            quantize(path, feeds, output=tmp_path / out, settings=FAST)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_external_data_is_read_and_not_touched(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    before = tree(tmp_path)
    case = HANDMADE["resnet_block"]()
    result = quantize(path, case.feeds, output=tmp_path / "out" / "net.onnx", settings=PROVEN)
    after = tree(tmp_path)
    assert {k: after[k] for k in before} == before
    given = sum(p.stat().st_size for p in tmp_path.iterdir() if p.is_file())
    assert result.report.input_bytes == given
    assert onnxshot.compare(path, tmp_path / "out" / "net.onnx", case.feeds).input_bytes == given
    assert sqnr(case, onnx.load(str(tmp_path / "out" / "net.onnx"))) > 30


@pytest.mark.parametrize("mode", ["weights", "dynamic"])
def test_modes_that_need_no_data(mode: str, tmp_path: Path) -> None:
    path, _ = save(tmp_path, "embedding")
    result = quantize(path, mode=mode, output=tmp_path / "out.onnx", settings=PROVEN)
    assert (result.report.sqnr_db, result.report.agreement, result.report.output_sqnr_db) == (None, None, {})
    assert result.report.on_random_data["sqnr_db"] > 25
    assert result.report.verdict.level != "ready"
    assert any("random data" in reason for reason in result.report.verdict.reasons)
    assert RANDOM_KEY not in result.model.metadata, "nothing was calibrated on it"


def test_static_without_data_says_what_to_give() -> None:
    with pytest.raises(CalibrationError) as caught:
        quantize(HANDMADE["resnet_block"]().model)
    assert caught.value.hint


def test_a_model_with_nothing_to_calibrate_needs_no_data() -> None:
    result = quantize(HANDMADE["gru"]().model, settings=FAST)
    assert result.plan.tensors == {}


def test_random_data_is_flagged(tmp_path: Path) -> None:
    path, _ = save(tmp_path)
    result = quantize(path, "random", output=tmp_path / "out.onnx", settings=PROVEN)
    assert result.report.samples["random"] is True
    assert any("random" in note for note in result.report.notes)
    assert load_model(tmp_path / "out.onnx").metadata[RANDOM_KEY] == "true"


def test_a_few_samples_of_many(tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    result = quantize(case.model, case.feeds, settings=Settings(samples=4, verify=False, use_cache=False))
    assert (result.report.samples["calibration"], result.report.samples["held_out"]) == (3, 1)


def test_nan_names_the_tensor_and_the_sample() -> None:
    case = HANDMADE["resnet_block"]()
    bad = samples([dict(f) for f in case.feeds])
    number = split(len(bad))[0][1]
    bad[number]["x"] = bad[number]["x"].copy()
    bad[number]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match=f"sample '#{number}' holds NaN or infinity in input 'x'"):
        quantize(case.model, bad, settings=FAST)


def test_nan_in_a_sample_that_judges_is_not_the_models_fault() -> None:
    case = HANDMADE["resnet_block"]()
    made = quantize(case.model, case.feeds, settings=FAST).model.to_proto()
    bad = samples([dict(f) for f in case.feeds])
    number = split(len(bad))[1][0]
    for value in (np.nan, np.inf):
        bad[number]["x"] = case.feeds[number]["x"].copy()
        bad[number]["x"][0, 0, 0, 0] = value
        with pytest.raises(CalibrationError, match=f"sample '#{number}' holds NaN or infinity in input 'x'"):
            onnxshot.compare(case.model, made, bad)
        with pytest.raises(CalibrationError, match=f"sample '#{number}' holds NaN or infinity in input 'x'"):
            quantize(case.model, bad, settings=replace(FAST, verify=True))


# ---------------------------------------------------------------------- what comes out


def test_the_report_holds_what_it_promises(tmp_path: Path) -> None:
    path, feeds = save(tmp_path)
    out = tmp_path / "out.onnx"
    result = quantize(path, feeds, output=out, settings=PROVEN, exclude=("c2",))
    values = json.loads(result.report.to_json())
    assert set(values) >= KEYS
    assert values["input"] == str(path)
    expected = {"path": str(out), "target": "ort", "format": "onnx", "bytes": out.stat().st_size}
    assert expected.items() <= values["outputs"][0].items()
    assert 20 < values["sqnr_db"] < 60
    assert values["samples"]["calibration"] == 6
    assert values["samples"]["held_out"] == 2
    assert values["seconds"] > 0
    assert values["peak_rss_mb"] > 10
    assert values["int8_macs_share"] == pytest.approx(0.5)
    assert set(values["latency"]) >= {"float_ms", "ms"}
    assert {"node": "Conv_c2", "op": "Conv", "reason": "excluded by 'c2'"} in values["skips"]
    assert values["recipe"]["exclude"] == ["c2"]
    worst = [row["sqnr_db"] for row in values["worst"]]
    assert worst == sorted(worst)
    assert "r1" in {row["tensor"] for row in values["worst"]}
    result.report.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == values
    assert Skip("Conv_c2", "Conv", "excluded by 'c2'") in result.report.float_weights


def test_the_recipe_and_the_version_are_in_the_file(tmp_path: Path) -> None:
    path, feeds = save(tmp_path, "metadata_and_doc_strings")
    quantize(path, feeds, output=tmp_path / "out.onnx", settings=FAST, method="minmax")
    metadata = load_model(tmp_path / "out.onnx").metadata
    kept = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    assert kept.items() <= metadata.items()
    assert metadata[VERSION_KEY] == onnxshot.__version__
    assert onnxshot.Recipe.from_dict(json.loads(metadata[RECIPE_KEY])) == onnxshot.Recipe(method="minmax")


def test_a_result_can_be_saved_later_and_emitted(tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    path, _ = save(tmp_path)
    result = quantize(path, case.feeds, settings=PROVEN)
    assert result.report.outputs == []
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    saved = result.save(tmp_path / "deep" / "er" / "net.onnx")
    emitted = result.emit("onnx", tmp_path / "emitted")
    assert emitted == tmp_path / "emitted" / "net.int8.onnx"
    assert saved.read_bytes() == emitted.read_bytes()
    assert sqnr(case, onnx.load(str(saved))) == pytest.approx(sqnr(case, result.model.to_proto()))
    with pytest.raises(UsageError, match="tensorflow"):
        result.emit("tensorflow", tmp_path)
    with pytest.raises(UsageError, match="input itself"):
        result.save(path)


def test_names_types_and_dimensions_of_inputs_and_outputs_stay(tmp_path: Path) -> None:
    for name in ("yolo_head", "two_outputs", "unusual_names", "argmax_tail", "initializers_as_inputs", "embedding"):
        path, feeds = save(tmp_path, name)
        before = onnx.load(str(path)).graph
        stored = {t.name for t in before.initializer}
        quantize(path, feeds, output=tmp_path / "out.onnx", settings=FAST)
        after = onnx.load(str(tmp_path / "out.onnx")).graph
        assert list(after.output) == list(before.output), name
        assert list(after.input) == [i for i in before.input if i.name not in stored], name


def test_qoperator_in_numbers(tmp_path: Path) -> None:
    path, feeds = save(tmp_path)
    result = quantize(path, feeds, output=tmp_path / "out.onnx", settings=PROVEN, format="qoperator")
    made = onnx.load(str(tmp_path / "out.onnx"))
    assert len(nodes_of(made, "QLinearConv")) == 2
    assert result.report.int8_macs_share == 1.0
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 28


def test_a_quantized_model_is_refused_and_taken_back_on_demand(tmp_path: Path) -> None:
    for name in ("already_qdq", "already_qoperator", "already_dynamic"):
        path, feeds = save(tmp_path, name)
        with pytest.raises(UsageError, match="quantized already"):
            quantize(path, feeds, output=tmp_path / "out.onnx")
        assert not (tmp_path / "out.onnx").exists()
    case = HANDMADE["already_qdq"]()
    again = Settings(requantize=True, use_cache=False, bench_seconds=0.01, threads=1)
    result = quantize(case.model, case.feeds, settings=again)
    assert result.report.int8_macs_share == 1.0
    assert sqnr(case, result.model.to_proto()) > 22


@pytest.mark.parametrize("name", ["already_qoperator", "already_dynamic"])
def test_integer_operators_are_taken_back_too(name: str) -> None:
    case = HANDMADE[name]()
    made = quantize(case.model, case.feeds, mode="weights", settings=replace(FAST, requantize=True)).model
    assert not any("Integer" in node.op or node.op.startswith("QLinear") for _, node in made.walk())


def test_what_cannot_be_taken_back_to_float_is_told_at_once() -> None:
    text = "g (float[n, 8] x, int8[8, 4] w) => (int32[n, 4] y)"
    proto = model(f"{text} {{ q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, w, z) }}")
    with pytest.raises(UsageError, match="cannot be taken back to float") as caught:
        quantize(proto, mode="weights", settings=FAST)
    assert "requantize" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be taken back to float"):
        quantize(proto, mode="weights", settings=replace(FAST, requantize=True))


def test_only_a_way_that_works_is_offered() -> None:
    """A weight that is dequantized in another node, and moved: no scale of it can be kept."""
    text = """g (float[n, 8, 4] x) => (float[n, 6, 4] y) {
        q = QuantizeLinear(x, s, z) u = Unsqueeze(w, axis)
        [own] r = QLinearConv(q, s, z, u, s, v, s, z)
        y = DequantizeLinear(r, s, z)
    }"""
    held = {"s": np.float32(0.02), "z": np.uint8(128), "v": np.int8(0), "axis": np.array([2])}
    computed = model(text.replace("float[n, 8, 4] x", "float[n, 8, 4] x, int8[6, 8] w"), held)
    for way, words in (({}, "already"), ({"complete": True}, "cannot be taken back")):
        options = {"mode": "static", **way}
        with pytest.raises(UsageError, match=words) as caught:
            quantize(
                computed,
                [{"x": np.ones((1, 8, 4), np.float32), "w": np.ones((6, 8), np.int8)}],
                settings=FAST,
                **options,
            )
        assert "'own' (QLinearConv)" in str(caught.value)
        assert "complete" not in str(caught.value)
    stored = model(text, held | {"w": np.ones((6, 8), np.int8)})
    with pytest.raises(UsageError, match=r"with complete=True .* or quantize with Settings\(requantize=True\)"):
        quantize(stored, [{"x": np.ones((1, 8, 4), np.float32)}], settings=FAST)


def test_a_dynamically_quantized_lstm_is_quantized_already() -> None:
    made = quantize(HANDMADE["lstm"]().model, mode="dynamic", settings=FAST).model.to_proto()
    with pytest.raises(UsageError, match="quantized already"):
        quantize(made, mode="weights", settings=FAST)


def test_every_handmade_model_goes_through_or_says_why() -> None:
    """Weights only, the mode that asks least of a model: what ran before gives the same answers after."""
    for name, build in HANDMADE.items():
        if name.startswith("already_"):
            continue
        case = build()
        result = quantize(case.model, mode="weights", settings=FAST)
        made = result.model.to_proto()
        if not case.runs:
            continue
        for feed in case.feeds[:1]:
            for wanted, got in zip(run(case.model, feed), run(made, feed), strict=True):
                assert got.dtype == wanted.dtype, name
                assert got.shape == wanted.shape or name in ("nms_tail",), name


# ---------------------------------------------------------------------- what is left behind


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"calib": [{"x": np.zeros((2, 3, 12, 12), np.float32)}]}, CalibrationError),
        ({"calib": "no/such/folder"}, CalibrationError),
        ({"exclude": ("nothing",)}, UsageError),
        ({"target": "mars"}, UsageError),
        ({"mode": "fast"}, UsageError),
        ({"method": "best"}, UsageError),
        ({"colour": "red"}, UsageError),
        ({"activation_type": "uint16"}, TargetError),
        ({"preset": "no-such-preset"}, UsageError),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_an_error_leaves_nothing_behind(change: dict[str, Any], error: type[OnnxshotError], tmp_path: Path) -> None:
    path, feeds = save(tmp_path)
    before = tree(tmp_path)
    given = {"calib": feeds, "output": tmp_path / "new" / "out.onnx", "settings": PROVEN} | change
    with pytest.raises(error) as caught:
        quantize(path, given.pop("calib"), **given)
    assert caught.value.exit_code in (2, 5, 6)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_failing_check_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, feeds = save(tmp_path)
    before = Path(path).read_bytes()
    (tmp_path / "out.onnx").write_bytes(before)

    def fail(*_: object, **__: object) -> Iterator[None]:
        raise ModelError("the written file does not run")

    monkeypatch.setattr(onnxshot.stages.prove, "reload_check", fail)
    with pytest.raises(ModelError, match="does not run"):
        quantize(path, feeds, output=tmp_path / "out.onnx", settings=PROVEN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == before


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    path, feeds = save(tmp_path)
    (tmp_path / "link.onnx").symlink_to(path)
    before = tree(tmp_path)
    for out in (path, tmp_path / "." / "net.onnx", tmp_path / "link.onnx"):
        with pytest.raises(UsageError, match="is the input itself"):
            quantize(path, feeds, output=out, settings=FAST)
    with pytest.raises(UsageError, match="is a folder"):
        quantize(path, feeds, output=tmp_path, settings=FAST)
    assert tree(tmp_path) == before


def test_a_bad_place_is_told_before_the_work(tmp_path: Path) -> None:
    def never() -> Iterator[Feed]:
        raise AssertionError("calibration had begun")
        yield

    path, _ = save(tmp_path)
    with pytest.raises(UsageError):
        quantize(path, never(), output=path)


def test_duplicate_node_names_go_through() -> None:
    """ONNX Runtime refuses the source as it is: there is no latency to compare with, and a note says so."""
    case = HANDMADE["duplicate_node_names"]()
    result = quantize(case.model, case.feeds, settings=PROVEN)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 25


def test_progress_is_told() -> None:
    seen: list[tuple[str, int, int]] = []
    case = HANDMADE["resnet_block"]()
    settings = Settings(verify=False, use_cache=False, progress=lambda *args: seen.append(args))
    quantize(case.model, case.feeds, settings=settings)
    first = [("calibrating", i, 6) for i in range(1, 7)]
    assert seen[:6] == first
    assert seen[-2:] == [("repairing", 1, 2), ("repairing", 2, 2)]


@pytest.mark.parametrize("mode", ["dynamic", "weights"])  # static calibration meets the NaN first, in an activation
def test_a_weight_that_is_nan_is_named(mode: str) -> None:
    proto = onnx.load(fixture("digits_mobile"))
    (classifier,) = [n for n in proto.graph.node if n.op_type == "Gemm"]
    (broken,) = [i for i in proto.graph.initializer if i.name == classifier.input[1]]
    values = onnx.numpy_helper.to_array(broken).copy()
    values.flat[7] = np.nan
    broken.CopyFrom(onnx.numpy_helper.from_array(values, broken.name))
    with pytest.raises(ModelError, match=rf"weight '{broken.name}.*' of node .* \(Gemm\) holds NaN"):
        quantize(proto, heldout("digits_mobile")[0][:4], mode=mode, include=("Gemm",), settings=FAST)
