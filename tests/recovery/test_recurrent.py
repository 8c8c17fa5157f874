"""LSTMs are int8 by default if a trial on a few samples shows little error; `portable_ops` keeps standard operators."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from fixture_data import fixture, heldout
from handmade.core import Feed, feeds, model, vector, weight
from planned_models import FAST, PROVEN, initializers, nodes_of, run

import onnxshot
from onnxshot.errors import ModelError, OnnxshotError
from onnxshot.passes import quantize_dynamic
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery import lstm_trial

TEXT = """g (float[T, B, 16] x) => (float[T, 1, B, 32] y) {{ y = LSTM<hidden_size = 32{more}>(x, w, r{slots}) }}"""
QUICK = FAST


def net(more: str = "", slots: str = "", scale: float = 0.3, opset: int = 17, **constants: Any) -> onnx.ModelProto:
    weights = {"w": scale * weight(1, 128, 16, channel_axis=1), "r": scale * weight(1, 128, 32, channel_axis=1, seed=1)}
    return model(TEXT.format(more=more, slots=slots), weights | constants, opset=opset)


def data(count: int = 12) -> list[Feed]:
    return feeds(count, x=(7, 2, 16))


def kinds(result: onnxshot.Result) -> set[str]:
    return {n.op_type for n in result.model.to_proto().graph.node}


def db(wanted: onnx.ModelProto, made: onnx.ModelProto, given: list[Feed]) -> float:
    pairs = [(run(wanted, feed)[0], run(made, feed)[0]) for feed in given]
    noise = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return float(10 * np.log10(sum(float(np.square(a).sum()) for a, _ in pairs) / max(noise, 1e-30)))


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_an_lstm_is_int8_by_default_and_the_report_says_what_the_file_is_for(mode: str) -> None:
    proto = net()
    result = onnxshot.quantize(proto, data(), mode=mode, settings=PROVEN)
    assert kinds(result) == {"DynamicQuantizeLSTM"}
    (note,) = [note for note in result.report.notes if "LSTM" in note]
    assert "ONNX Runtime alone" in note
    assert "portable_ops=True" in note
    reported = float(note.partition("the outputs have ")[2].partition(" dB")[0])
    assert reported == pytest.approx(db(proto, result.model.to_proto(), data()[:8]), abs=2.0)
    assert result.report.int8_macs_share == 1.0
    assert result.report.float_weights == []


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_portable_ops_keeps_the_standard_lstm_with_weights_in_8_bits(mode: str) -> None:
    proto = net()
    result = onnxshot.quantize(proto, data(), mode=mode, portable_ops=True, settings=PROVEN)
    assert kinds(result) == {"Cast", "Mul", "LSTM"}
    made = result.model.to_proto()
    assert {o.domain for o in made.opset_import} <= {"", "ai.onnx"}
    assert made.ByteSize() < 0.5 * proto.ByteSize()
    assert db(proto, made, data()) > 38
    asked = onnxshot.quantize(proto, data(), mode=mode, portable_ops=True, include=("LSTM",), settings=QUICK)
    assert kinds(asked) == {"DynamicQuantizeLSTM"}, "named, it is asked for"


def lopsided() -> onnx.ModelProto:
    """An LSTM for `lopsided_data`."""
    return net(w=0.5 * weight(1, 128, 16, seed=2))


def lopsided_data(steps: int, count: int) -> list[Feed]:
    """The first step is 1000 times as large as the others: one scale for all steps fits neither."""
    given = feeds(count, x=(steps, 1, 16))
    for feed in given:
        feed["x"][0] *= 1000
    return given


def two() -> onnx.ModelProto:
    """Two LSTMs in a row, of which the first does not bear int8."""
    text = """g (float[T, 1, 16] x) => (float[T, 1, 1, 32] y) {
        h = LSTM<hidden_size = 32>(x, w, r)
        s = Squeeze(h, axis)
        y = LSTM<hidden_size = 32>(s, w2, r2)
    }"""
    names = {"r": (1, 0.3), "w2": (3, 0.3), "r2": (4, 0.3)}
    weights = {name: scale * weight(1, 128, 32, channel_axis=1, seed=seed) for name, (seed, scale) in names.items()}
    w = 0.5 * weight(1, 128, 16, seed=2)
    return model(text, {"w": w, "axis": np.array([1], np.int64), **weights})


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_of_two_lstms_the_one_that_holds_is_int8(mode: str) -> None:
    given, proto = lopsided_data(12, 12), two()
    result = onnxshot.quantize(proto, given, mode=mode, settings=PROVEN)
    first, second = (node for node in result.model.to_proto().graph.node if "LSTM" in node.op_type)
    assert (first.op_type, second.op_type) == ("LSTM", "DynamicQuantizeLSTM")
    assert result.report.recipe["portable_ops"] is False
    assert len(result.report.recipe["exclude"]) == 1
    assert any("with all LSTMs in int8 the outputs have" in note for note in result.report.notes)
    assert db(proto, result.model.to_proto(), given) > 28


def test_lstms_that_do_not_hold_together_stay_float_where_none_is_to_be_tried_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lstm_trial, "_MOST_APART", 1)
    result = onnxshot.quantize(two(), lopsided_data(12, 12), settings=PROVEN)
    assert "DynamicQuantizeLSTM" not in kinds(result)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_an_lstm_that_does_not_hold_stays_float_and_says_how_far_it_was(mode: str) -> None:
    given, proto = lopsided_data(12, 12), lopsided()
    asked = onnxshot.quantize(proto, given, mode=mode, include=("LSTM",), settings=PROVEN)
    assert asked.report.sqnr_db is not None
    assert asked.report.sqnr_db < lstm_trial.HOLDS_DB
    result = onnxshot.quantize(proto, given, mode=mode, settings=PROVEN)
    assert "LSTM" in kinds(result)
    assert result.report.recipe["portable_ops"] is True
    assert any("LSTMs stay float: with only them in int8" in note for note in result.report.notes)
    skip = next(s for s in result.report.skips if s.op == "LSTM")
    assert "DynamicQuantizeLSTM" in skip.reason


def test_without_samples_a_static_run_leaves_it_and_a_dynamic_one_does_what_was_asked(tmp_path: Path) -> None:
    proto = net()
    onnx.save(proto, tmp_path / "net.onnx")
    onnxshot.calibrate(tmp_path / "net.onnx", data(), output=tmp_path / "s.npz")
    static = onnxshot.quantize(tmp_path / "net.onnx", stats=tmp_path / "s.npz", settings=QUICK)
    assert "LSTM" in kinds(static)
    assert any("no samples to try them on" in note for note in static.report.notes)
    assert "DynamicQuantizeLSTM" in kinds(onnxshot.quantize(proto, mode="dynamic", settings=QUICK))


@pytest.mark.parametrize("build", [net, lopsided])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_replay_gives_the_same_bytes(build: Any, mode: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "net.onnx", tmp_path / "calib"
    folder.mkdir()
    onnx.save(build(), path)
    for i, feed in enumerate(lopsided_data(20, 8)):
        np.savez(folder / f"{i}.npz", **feed)
    onnxshot.quantize(path, folder, output=tmp_path / "q.onnx", mode=mode, settings=QUICK)
    again = onnxshot.replay(path, tmp_path / "q.recipe.yaml", tmp_path / "again.onnx")
    assert again.same
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_an_artifact_for_another_runtime_takes_standard_operators(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    result = onnxshot.quantize(net(), data(), output=tmp_path / "q.onnx", emit=("onnx", "openvino"), settings=FAST)
    assert "DynamicQuantizeLSTM" not in kinds(result)
    assert (tmp_path / "q.xml").exists()
    stages = {"stages": [{"quantize": {"effort": "fast"}}, {"emit": {"to": ["openvino"]}}]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(stages))
    made = onnxshot.compress(net(), data(), recipe=tmp_path / "r.yaml", output=tmp_path / "c.onnx", settings=FAST)
    assert "DynamicQuantizeLSTM" not in {n.op for n in made.model.graph.nodes}


FORMS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "opset 7": ("", "", {}, 7),
    "opset 22": ("", "", {}, 22),
    "other activations": (', activations = ["Relu", "Tanh", "Sigmoid"]', "", {}, 17),
    "activations with alpha": (
        ', activations = ["HardSigmoid", "Tanh", "Tanh"], activation_alpha = [0.3], activation_beta = [0.4]',
        "",
        {},
        17,
    ),
    "clip": (", clip = 0.5", "", {}, 17),
    "peephole": ("", ", , , , , p", {"p": vector(96)[None]}, 17),
    "a default layout": (", layout = 0, input_forget = 0", "", {}, 17),
    "reverse": (', direction = "reverse"', "", {}, 14),
    "states": ("", ", , , h, c", {"h": vector(64).reshape(1, 2, 32), "c": vector(64, 1).reshape(1, 2, 32)}, 17),
    "lengths": ("", ", , n", {"n": np.array([7, 4], np.int32)}, 17),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_network(name: str) -> None:
    more, slots, constants, opset = FORMS[name]
    proto = net(more, slots, opset=opset, **constants)
    try:
        run(proto, data()[0])
    except Exception as e:  # what ONNX Runtime does not run has no int8 form to be compared
        pytest.skip(str(e))
    result = onnxshot.quantize(proto, data(), settings=FAST)
    made = result.model.to_proto()
    (node,) = nodes_of(made, "DynamicQuantizeLSTM")
    assert {initializers(made)[node.input[i]].dtype.name for i in (1, 2)} == {"int8"}
    assert db(proto, made, data()) > 28


@pytest.mark.parametrize("asked", [{}, {"include": ("LSTM",)}])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_one_that_onnxruntime_does_not_load_in_int8_stays_float(
    mode: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown attribute is passed to DynamicQuantizeLSTM, as of a future opset; the file does not load then."""
    monkeypatch.setattr(quantize_dynamic, "_LSTM_ATTRS", (*quantize_dynamic._LSTM_ATTRS, "layout"))
    proto = net(", layout = 0")
    result = onnxshot.quantize(proto, data(), mode=mode, settings=PROVEN, **asked)
    assert "LSTM" in kinds(result)
    assert any("LSTMs stay float" in note and "does not load" in note for note in result.report.notes)
    assert db(proto, result.model.to_proto(), data()) > 38


def test_packed_sequences_and_two_directions() -> None:
    """As exporters write a packed, bidirectional LSTM: lengths are an input, and both directions are one node."""
    text = """g (float[T, B, 16] x, int32[B] n) => (float[T, B, 64] y, float[2, B, 32] h) {
        a, h = LSTM<hidden_size = 32, direction = "bidirectional">(x, w, r, b, n)
        t = Transpose<perm = [0, 2, 1, 3]>(a)
        y = Reshape(t, shape)
    }"""
    constants: Feed = {"w": 0.3 * weight(2, 128, 16), "r": 0.3 * weight(2, 128, 32, seed=1), "b": 0.1 * weight(2, 256)}
    proto = model(text, constants | {"shape": np.array([0, 0, 64], np.int64)})
    lengths = [np.array(n, np.int32) for n in ([7, 3], [7, 7], [7, 1], [5, 7])]
    given = [feed | {"n": n} for feed, n in zip(feeds(4, x=(7, 2, 16)), lengths, strict=True)]
    result = onnxshot.quantize(proto, given, settings=FAST)
    made = result.model.to_proto()
    assert nodes_of(made, "DynamicQuantizeLSTM")
    assert db(proto, made, given) > 30
    for feed in given:  # what lies behind the end of a sequence stays 0
        for lane, end in enumerate(feed["n"]):
            assert not run(made, feed)[0][end:, lane].any()


def test_the_key_goes_with_int8_alone() -> None:
    assert Recipe.from_dict({"portable_ops": True}).portable_ops
    with pytest.raises(OnnxshotError, match="portable_ops"):
        Recipe.from_dict({"portable_ops": True, "precision": "fp16"})
    with pytest.raises(OnnxshotError, match="portable_ops"):
        Recipe.from_dict({"portable_ops": 1})


def test_a_real_one_by_default_and_by_name(tmp_path: Path) -> None:
    path, (given, _) = fixture("licence_lstm"), heldout("licence_lstm")
    made = onnxshot.quantize(path, given[:8], output=tmp_path / "q.onnx", settings=PROVEN)
    assert made.report.sqnr_db is not None
    assert made.report.sqnr_db > 30
    assert "DynamicQuantizeLSTM" in kinds(made)
    assert made.report.outputs[0].bytes < 0.35 * path.stat().st_size


def test_a_weight_that_is_nan_stays_as_it_is_or_is_named() -> None:
    proto = net()
    (w,) = [t for t in proto.graph.initializer if t.name == "w"]
    values = onnx.numpy_helper.to_array(w).copy()
    values.flat[5] = np.nan
    w.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    with pytest.raises(ModelError, match="holds NaN"):
        onnxshot.quantize(proto, mode="dynamic", settings=QUICK)
    kept = onnxshot.quantize(proto, mode="dynamic", portable_ops=True, settings=QUICK)
    assert any("NaN" in skip.reason for skip in kept.report.skips)
