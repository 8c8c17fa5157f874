import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import FIXTURES, facts, fixture, heldout
from handmade.core import Feed, feeds, model, weight
from handmade.products import conv, matmul
from numpy.typing import NDArray
from planned_models import run, small

from onnxshot import quantize
from onnxshot.errors import ModelError, TargetError
from onnxshot.graph.load import load_model
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.runtimes.base import EmitOptions, Emitted
from onnxshot.runtimes.openvino_runtime import OpenVino, _number_nameless
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.settings import Settings

openvino = pytest.importorskip("openvino")

OPENVINO = OpenVino()
QUICK = Settings(verify=False, threads=1)
ALIKE_DB = 60.0  # float32 sums in another order are alike to over 100 dB; a rounding may fall to the other side


def emitted(proto: onnx.ModelProto, folder: Path, options: EmitOptions | None = None) -> tuple[Path, Emitted]:
    source = folder / "source.onnx"
    onnx.save(proto, source)
    found = OPENVINO.emit(source, folder, "out", options or EmitOptions())
    return folder / found.files[0], found


def db(wanted: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> float:
    total = SqnrSum()
    assert list(wanted) == list(got)
    for name, values in wanted.items():
        assert values.dtype == got[name].dtype
        total.add(values, got[name])
    return total.db


def test_ir_and_onnx_give_the_same_bits(tmp_path: Path) -> None:
    for case in (conv(output=True), matmul()):
        path, made = emitted(case.model, tmp_path)
        assert made.files == ("out.xml", "out.bin")
        assert all((tmp_path / name).is_file() for name in made.files)
        ir, direct = (OPENVINO.load(p, threads=1) for p in (path, tmp_path / "source.onnx"))
        for feed in case.feeds:
            np.testing.assert_array_equal(ir.run(feed)["y"], direct.run(feed)["y"])


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobile", "digits_detector", "licence_encoder"])
def test_fixtures_give_the_outputs_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    known = facts()[name]
    preset = None if known["preset"] == "none" else str(FIXTURES / known["preset"])
    source, calib = fixture(name), FIXTURES / known["calib"]
    made = quantize(source, calib, preset=preset, target="openvino", effort="fast", settings=QUICK).model.to_proto()
    path, found = emitted(made, tmp_path)
    samples, _ = heldout(name)
    total = {"ort": SqnrSum(), "openvino": SqnrSum()}
    float_run, int8_run, ir = Runner(source), Runner(made.SerializeToString()), OPENVINO.load(path, threads=1)
    for feed in samples[:60]:
        wanted = float_run.run(feed)
        for which, got in (("ort", int8_run.run(feed)), ("openvino", ir.run(feed))):
            for output, values in wanted.items():
                total[which].add(values, got[output])
    # ONNX Runtime rounds more: a bias to int32, and what an op that it runs in int8 gives.
    assert -1.0 < total["openvino"].db - total["ort"].db < 4.0
    assert found.executed is not None
    assert found.executed.honoured == 1.0, found.executed.float_between
    assert OPENVINO.preflight(load_model(made)) == []


def test_free_dimensions_stay_free_and_tokens_are_integers(tmp_path: Path) -> None:
    path, _ = emitted(onnx.load(fixture("licence_encoder")), tmp_path)
    loaded, wanted = OPENVINO.load(path, threads=1), Runner(fixture("licence_encoder"))
    for batch, length in ((1, 7), (3, 20)):
        tokens = np.arange(batch * length, dtype=np.int64).reshape(batch, length) % 200
        feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "more": tokens}
        assert db(wanted.run(feed), loaded.run(feed)) > ALIKE_DB


def test_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    """Identities become one tensor with many names; scalars, several types; an output that is an input."""
    text = """g (float[n, 4] x, int32 k, bool[n, 4] keep) => (float[n, 4] a, float[n, 4] b, float[n, 4] c, int32 d) {
        r = Relu(x)
        a = Identity(r)
        b = Where(keep, r, x)
        c = Identity(x)
        d = Add(k, k)
    }"""
    proto = model(text)
    feed: dict[str, Any] = {**feeds(1, x=(3, 4))[0], "k": np.array(21, np.int32)}
    feed["keep"] = feed["x"] > 0.5
    path, _ = emitted(proto, tmp_path)
    for file in (path, tmp_path / "source.onnx"):
        loaded = OPENVINO.load(file, threads=1)
        assert loaded.outputs == ("a", "b", "c", "d")
        found = loaded.run(feed)
        for name, wanted in zip(loaded.outputs, run(proto, feed), strict=True):
            np.testing.assert_array_equal(found[name], wanted)
            assert found[name].dtype == wanted.dtype


def test_an_output_is_not_overwritten_by_the_next_run(tmp_path: Path) -> None:
    path, _ = emitted(matmul().model, tmp_path)
    first, second = matmul().feeds
    loaded = OPENVINO.load(path, threads=1)
    kept = loaded.run(first)["y"]
    copy = kept.copy()
    loaded.run(second)
    np.testing.assert_array_equal(kept, copy)


def test_arrays_may_be_read_only_or_views(tmp_path: Path) -> None:
    path, _ = emitted(matmul().model, tmp_path)
    feed, loaded = matmul().feeds[0], OPENVINO.load(path, threads=1)
    wanted = loaded.run(feed)["y"]
    view = np.repeat(feed["x"], 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(loaded.run({"x": view})["y"], wanted)
    view.flags.writeable = False
    np.testing.assert_array_equal(loaded.run({"x": view})["y"], wanted)
    feed["x"].flags.writeable = False
    np.testing.assert_array_equal(loaded.run(feed)["y"], wanted)


def test_the_recipe_is_in_the_ir(tmp_path: Path) -> None:
    proto = matmul().model
    recipe = '{"target": "openvino", "exclude": ["<a & b>"]}'
    onnx.helper.set_model_props(proto, {"onnxshot.recipe": recipe, "characters": "é\n\n 1"})
    path, _ = emitted(proto, tmp_path)
    read = openvino.Core().read_model(str(path))
    assert read.get_rt_info(["framework", "onnxshot.recipe"]).value == recipe
    assert read.get_rt_info(["framework", "characters"]).value == "é\n\n 1"


def test_an_input_that_nothing_reads_stays(tmp_path: Path) -> None:
    path, _ = emitted(model("g (float[n] x, float[n] idle) => (float[n] y) { y = Relu(x) }"), tmp_path)
    feed = feeds(1, x=(3,), idle=(3,))[0]
    loaded = OPENVINO.load(path, threads=1)
    np.testing.assert_array_equal(loaded.run(feed)["y"], np.maximum(feed["x"], 0))
    with pytest.raises(ModelError, match="idle"):
        loaded.run({"x": feed["x"]})


def floats() -> tuple[onnx.ModelProto, list[Feed]]:
    case = small("g (float[n, 256] x) => (float[n, 256] y) { y = MatMul(x, w) }", {"w": weight(256, 256)}, x=(4, 256))
    return case.model, case.feeds


def test_weights_take_16_bits_only_if_asked(tmp_path: Path) -> None:
    proto, (feed, *_) = floats()
    whole = emitted(proto, tmp_path)[0].with_suffix(".bin").stat().st_size
    exact = OPENVINO.load(tmp_path / "out.xml", threads=1).run(feed)["y"]
    half = emitted(proto, tmp_path, EmitOptions(half=True))[0].with_suffix(".bin").stat().st_size
    assert whole >= 4 * 256 * 256 > half >= 2 * 256 * 256
    rounded = OPENVINO.load(tmp_path / "out.xml", threads=1).run(feed)["y"]
    np.testing.assert_allclose(exact, run(proto, feed)[0], rtol=1e-4, atol=1e-5)
    assert 0 < np.abs(rounded - exact).max() < 1e-2


def test_float_is_float32_unless_the_default_precision_is_asked_for(tmp_path: Path) -> None:
    proto, (feed, *_) = floats()
    path, _ = emitted(proto, tmp_path)
    default = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    exact, usual = OPENVINO.load(path, threads=1), OPENVINO.load(path, threads=1, precision=None)
    assert (exact.precision, usual.precision) == ("f32", default)
    alike = db(exact.run(feed), usual.run(feed))
    assert alike > 100 if default == "f32" else 20 < alike < 80
    assert db({"y": run(proto, feed)[0]}, exact.run(feed)) > 100


def hard_swish() -> onnx.ModelProto:
    text = """g (float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c)
        m = Mul(c, h)
        o = HardSigmoid<alpha = 0.2, beta = 0.5>(m)
        y = Conv<pads = [1, 1, 1, 1]>(o, w)
    }"""
    return model(text, {"w": weight(8, 8, 3, 3)}, opset=13)


def test_a_decomposed_hard_swish_fuses_into_the_conv_before_it(tmp_path: Path) -> None:
    proto, (feed, *_) = hard_swish(), feeds(1, x=(2, 8, 6, 6))
    path, found = emitted(proto, tmp_path)
    assert found.executed is not None
    assert found.executed.ops["Math"] == 1, "the HardSigmoid with another slope"
    assert "Eltwise" not in found.executed.ops
    for file in (path, tmp_path / "source.onnx"):
        assert db({"y": run(proto, feed)[0]}, OPENVINO.load(file, threads=1).run(feed)) > 100


def test_work_is_counted_at_the_usual_shapes(tmp_path: Path) -> None:
    proto = matmul(rank=3).model
    _, found = emitted(proto, tmp_path, EmitOptions(shapes={"x": ((1, 5, 64), (7, 5, 64), (9, 5, 64))}))
    assert found.executed is not None
    assert found.executed.total_macs == 7 * 5 * 64 * 48
    assert all(node.exact for node in found.executed.nodes)
    _, found = emitted(proto, tmp_path)
    assert found.executed is not None
    assert found.executed.total_macs == 5 * 64 * 48, "a free dimension counts once"


@pytest.mark.parametrize(
    ("feed", "said"),
    [
        ({}, "asks for input 'x', which the sample does not hold"),
        ({"x": np.zeros((2, 64))}, "input 'x' of .* is f32; the sample holds float64"),
        ({"x": np.array(["text"])}, "input 'x' of .* is f32; the sample holds <U4"),
        ({"x": np.zeros((2, 63), np.float32)}, "fails in OpenVINO"),
    ],
)
def test_a_feed_that_does_not_fit_is_an_error_of_one_line(feed: Feed, said: str, tmp_path: Path) -> None:
    path, _ = emitted(matmul().model, tmp_path)
    with pytest.raises(ModelError, match=said) as error:
        OPENVINO.load(path, threads=1).run(feed)
    assert "\n" not in str(error.value)
    assert "Exception from" not in str(error.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for name in ("m.onnx", "m.xml"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ModelError, match=f"OpenVINO cannot read .*{name}") as error:
            OPENVINO.load(tmp_path / name, threads=1)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError):
        OPENVINO.load(tmp_path / "none.xml", threads=1)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPENVINO.runs_here() == ""
    OPENVINO.check()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(TargetError, match=r"pip install 'onnxshot\[openvino\]'") as error:
        OPENVINO.check()
    assert error.value.exit_code == 6
    assert "pip install 'onnxshot[openvino]'" in OPENVINO.runs_here()


@pytest.mark.parametrize("name", ["digits_mobile", "licence_lstm"])
def test_an_ir_does_not_depend_on_earlier_work_of_the_process(name: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        OpenVino().emit(fixture(name), tmp_path / folder, "m", EmitOptions())
    for file in ("m.xml", "m.bin"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_node_keeps_its_name_if_a_numbered_default_equals_it() -> None:
    """Two IRs of one model had Concat_41 and Concat_41_1: the 41st node of one process was a Concat."""
    ops = openvino.opset13

    def graph() -> tuple[Any, Any, Any]:
        x = ops.parameter([1, 4], np.float32, name="x")
        first = ops.relu(x)
        second = ops.relu(first)
        return openvino.Model([second], [x], "g"), first, second

    made, first, second = graph()
    given = first.get_name()  # such as Relu_41, which its ONNX node is called too
    _number_nameless(made, {given})
    assert (first.get_friendly_name(), second.get_friendly_name()) == (given, "Relu_0")

    made, first, second = graph()
    given = first.get_name()  # that of a node without a name, so that the node of that name was given another
    second.set_friendly_name(f"{given}_1")
    _number_nameless(made, {given})
    assert (first.get_friendly_name(), second.get_friendly_name()) == ("Relu_0", given)

    made, first, second = graph()
    _number_nameless(made, set())
    assert (first.get_friendly_name(), second.get_friendly_name()) == ("Relu_0", "Relu_1")
