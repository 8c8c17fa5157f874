"""Pruning a model: the zeros that were asked for, where they were asked for, and outputs that stay close."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import fixture, session
from handmade.core import Feed, model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxshot
from onnxshot.errors import UsageError
from onnxshot.recipes.stages import PruneStage, Stages

TEXT = """g (float[1, 3, 12, 12] x) => (float[1, 6] y) {
    a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)
    r = Relu(a)
    d = Conv<group = 16, pads = [1, 1, 1, 1]>(r, dw, db)
    e = Relu(d)
    f = Conv<group = 2, auto_pad = "SAME_UPPER", strides = [2, 2]>(e, u, ub)
    p = Relu(f)
    o = GlobalAveragePool(p)
    q = Flatten(o)
    h = Gemm<transB = 1>(q, k, kb)
    i = Relu(h)
    y = MatMul(i, v)
}"""
CONSTANTS = {
    "w": weight(16, 3, 3, 3), "b": vector(16), "dw": weight(16, 1, 3, 3), "db": vector(16, 1),
    "u": weight(24, 8, 3, 3), "ub": vector(24), "k": weight(32, 24), "kb": vector(32), "v": weight(32, 6),
}  # fmt: skip
WEIGHTS = {"Conv": ("w", "dw", "u"), "Gemm": ("k",), "MatMul": ("v",)}
SIZES = {name: CONSTANTS[name].size for name in ("w", "dw", "u", "k", "v")}


def smooth(count: int = 64) -> list[Feed]:
    rng = np.random.default_rng(11)
    noise = rng.standard_normal((count, 1, 3, 12, 16))
    found = sum(noise[..., i : i + 12] for i in range(5)) / np.sqrt(5)
    return [{"x": x.astype(np.float32)} for x in found]


def network() -> ModelProto:
    return model(TEXT, CONSTANTS)


def kept(proto: ModelProto) -> list[NDArray[Any]]:
    """The weights of a pruned model, in the order of the graph."""
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return [stored[n.input[1]] for n in proto.graph.node if n.op_type in WEIGHTS]


def weights_of(result: onnxshot.PruneResult) -> dict[str, NDArray[Any]]:
    return dict(zip(SIZES, kept(result.model.to_proto()), strict=True))


def zeros(result: onnxshot.PruneResult) -> dict[str, int]:
    return {name: int((w == 0).sum()) for name, w in weights_of(result).items()}


@pytest.mark.parametrize("scope", ["layer", "global", "erk", "auto"])
def test_as_many_weights_are_zero_as_were_asked_for(scope: str) -> None:
    calib = smooth() if scope == "auto" else None
    result = onnxshot.prune(network(), calib, sparsity=0.6, scope=scope)
    found = zeros(result)
    slack = len(found) if scope == "layer" else 0
    assert abs(sum(found.values()) - round(0.6 * sum(SIZES.values()))) <= slack
    if scope == "layer":
        assert all(abs(n - 0.6 * SIZES[name]) <= 1 for name, n in found.items())
    assert result.report.sparsity == pytest.approx(0.6, abs=0.002)
    assert [row.weights for row in result.report.layers] == list(SIZES.values())
    assert [round(row.sparsity * row.weights) for row in result.report.layers] == list(found.values())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4x1"])
def test_with_data_outputs_stay_closer_than_by_magnitude(pattern: str) -> None:
    given = network().SerializeToString()
    proto = network()
    result = onnxshot.prune(proto, smooth(96), sparsity=0.5, pattern=pattern, scope=None)
    report = result.report
    assert report.sqnr_db is not None
    assert report.magnitude_sqnr_db is not None
    assert report.sqnr_db > report.magnitude_sqnr_db + 2
    assert report.samples["held_out"] == 24
    assert proto.SerializeToString() == given
    onnx.checker.check_model(result.model.to_proto(), full_check=True)


def test_two_of_four_inputs_stay_in_every_group() -> None:
    result = onnxshot.prune(network(), smooth(), pattern="2:4")
    found = weights_of(result)
    assert [skip.reason for skip in result.report.skips] == [
        "3 inputs are no multiple of 4", "1 inputs are no multiple of 4",
    ]  # fmt: skip
    channels_last = {
        "u": found["u"].transpose(0, 2, 3, 1).reshape(-1, 4), "k": found["k"].reshape(-1, 4),
        "v": found["v"].T.reshape(-1, 4),
    }  # fmt: skip
    for groups in channels_last.values():
        assert ((groups == 0).sum(1) == 2).all()
    np.testing.assert_array_equal(found["w"], CONSTANTS["w"])


@pytest.mark.parametrize("calib", [None, 48])
def test_blocks_are_of_neighbouring_outputs(calib: int | None) -> None:
    result = onnxshot.prune(network(), calib and smooth(calib), sparsity=0.5, pattern="block:4x1", scope="layer")
    for name in ("u", "k"):
        table = weights_of(result)[name].reshape(SIZES[name] // CONSTANTS[name][0].size, -1)
        blocks = (table == 0).reshape(len(table) // 4, 4, -1).sum(1)
        assert set(np.unique(blocks)) == {0, 4}


def test_without_data_the_smallest_go_and_nothing_else_changes() -> None:
    result = onnxshot.prune(network(), sparsity=0.5)
    for name, found in weights_of(result).items():
        given = CONSTANTS[name]
        np.testing.assert_array_equal(found[found != 0], given[found != 0])
        assert np.abs(given[found == 0]).max() <= np.abs(given[found != 0]).min()
    (stage,) = Stages.from_dict(result.report.recipe).stages
    assert isinstance(stage, PruneStage)
    assert stage.scope == "layer"


def test_zeros_are_in_the_file_bit_for_bit(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    result = onnxshot.prune(network(), smooth(), sparsity=0.5, output=out)
    for name, written in zip(SIZES, kept(onnx.load(out)), strict=True):
        bits = written.view(np.uint32)
        assert (bits == 0).sum() == zeros(result)[name]
        assert not (bits == 1 << 31).any(), "no zero is negative"
    assert {t.name for t in onnx.load(out).graph.initializer}.isdisjoint(SIZES), "no old weight stays in the file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.recipe.yaml"]


@pytest.mark.parametrize("calib", [None, 48])
def test_zeros_that_are_there_are_kept_and_count(calib: int | None) -> None:
    first = onnxshot.prune(network(), sparsity=0.3, scope="layer")
    proto = first.model.to_proto()
    again = onnxshot.prune(proto, calib and smooth(calib), sparsity=0.5, keep_zeros=True)
    before, after = weights_of(first), weights_of(again)
    for name in SIZES:
        assert (after[name][before[name] == 0] == 0).all()
    assert abs(sum(zeros(again).values()) - 0.5 * sum(SIZES.values())) <= len(SIZES)
    for row in again.report.layers:
        assert row.before == pytest.approx(0.3, abs=0.02)


def test_layers_that_are_left_out_are_untouched() -> None:
    result = onnxshot.prune(network(), smooth(), sparsity=0.5, exclude=("Gemm", "a"))
    found = weights_of(result)
    for name in ("w", "k"):
        np.testing.assert_array_equal(found[name], CONSTANTS[name])
    assert {skip.reason for skip in result.report.skips} == {"excluded by 'Gemm'", "excluded by 'a'"}
    only = onnxshot.prune(network(), sparsity=0.5, include=("MatMul",))
    assert [name for name, count in zeros(only).items() if count] == ["v"]


def test_a_layers_own_sparsity_is_kept_and_the_others_make_up_for_it() -> None:
    result = onnxshot.prune(network(), smooth(), sparsity=0.5, layers={"Gemm": 0.25, "a": 0.0})
    found = zeros(result)
    assert found["k"] == round(0.25 * SIZES["k"])
    assert found["w"] == 0
    assert sum(found.values()) == round(0.5 * sum(SIZES.values()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 1.0}, "1.0"),
        ({"sparsity": -0.1}, "-0.1"),
        ({"sparsity": float("nan")}, "nan"),
        ({"sparsity": 0.5, "pattern": "4:2"}, "'4:2'"),
        ({"sparsity": 0.5, "pattern": "channels"}, "cuts them out"),
        ({"sparsity": 0.7, "pattern": "2:4"}, "0.7"),
        ({"sparsity": 0.5, "scope": "best"}, "'best'"),
        ({"sparsity": 0.5, "scope": "auto"}, "calib=DATA"),
        ({"sparsity": 0.5, "include": ("nothing",)}, "'nothing'"),
        ({"sparsity": 0.5, "exclude": ("nothing*",)}, "nothing*"),
        ({"sparsity": 0.5, "layers": {"nothing": 0.5}}, "'nothing'"),
        ({"sparsity": 0.5, "layers": {"Relu": 0.5}}, "'Relu'"),
        ({"sparsity": 0.5, "layers": {"Gemm": 1.5}}, "1.5"),
        ({"sparsity": 0.5, "exclude": ("Conv", "Gemm", "MatMul")}, "nothing to prune"),
    ],
)
def test_what_contradicts_itself_or_is_not_there_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("*", r"\*")):
        onnxshot.prune(network(), **options)


def test_a_model_with_nothing_to_prune_says_so() -> None:
    text = "g (float[1, 4] x, float[4, 3] w) => (float[1, 3] y) { y = MatMul(x, w) }"
    with pytest.raises(UsageError, match="nothing to prune"):
        onnxshot.prune(model(text), sparsity=0.5)


def test_a_shared_weight_is_left_and_told() -> None:
    text = "g (float[1, 8] x) => (float[1, 8] y) { a = MatMul(x, w)  b = MatMul(a, w)  y = MatMul(b, v) }"
    result = onnxshot.prune(model(text, {"w": weight(8, 8), "v": weight(8, 8)}), sparsity=0.5)
    assert len(result.report.skips) == 2
    assert "shared" in result.report.skips[0].reason


def test_a_refit_from_a_handful_of_samples_does_no_harm() -> None:
    feeds = smooth(80)
    plain = onnxshot.prune(network(), sparsity=0.3)
    for count in (2, 4, 12):
        result = onnxshot.prune(network(), feeds[:count], sparsity=0.3)
        assert distance(result, feeds[40:]) < 0.5 * distance(plain, feeds[40:])
        assert any("shared out by layer" in note for note in result.report.notes) == (count == 2)


def distance(result: onnxshot.PruneResult, feeds: list[Feed]) -> float:
    one, other = (session(p.SerializeToString()) for p in (network(), result.model.to_proto()))
    return float(sum(((one.run(None, f)[0] - other.run(None, f)[0]) ** 2).sum() for f in feeds))


def test_the_command_writes_beside_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnxshot.cli.app import app

    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    given = path.read_bytes()
    app(["prune", str(path), "--sparsity", "0.5", "--layer", "MatMul=0.25", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert Path(found["outputs"][0]["path"]) == tmp_path / "net.pruned.onnx"
    assert found["layers"][-1] == {
        "layer": found["layers"][-1]["layer"], "op": "MatMul", "weights": 192, "sparsity": 0.25, "before": 0.0,
        "refitted": None,
    }  # fmt: skip
    assert path.read_bytes() == given
    with pytest.raises(UsageError, match="'x'"):
        app(["prune", str(path), "--sparsity", "0.5", "--layer", "x"], standalone_mode=False)
    with pytest.raises(UsageError, match="input itself"):
        app(["prune", str(path), "--sparsity", "0.5", "-o", str(path)], standalone_mode=False)


def test_a_real_network_keeps_its_answers() -> None:
    calib, preset = fixture("data/digits/calib"), str(fixture("data/digits/preset.yaml"))
    result = onnxshot.prune(fixture("digits_mobile"), calib, preset=preset, sparsity=0.5)
    assert result.report.agreement is not None
    assert result.report.agreement >= 0.9
    assert result.report.sqnr_db is not None
    assert result.report.magnitude_sqnr_db is not None
    assert result.report.sqnr_db > result.report.magnitude_sqnr_db + 3


def test_weights_that_came_as_float16_are_stored_so_again(tmp_path: Path) -> None:
    text = """g (float[N, 32] x) => (float[N, 24] y) {
        w = Cast<to = 1>(half)
        y = MatMul(x, w)
    }"""
    proto = model(text, {"half": weight(32, 24).astype(np.float16)})
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((20, 32)).astype(np.float32)} for _ in range(16)]
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(proto, path)
    result = onnxshot.prune(path, feeds, sparsity=0.5, output=out)
    (stored,) = onnx.load(out).graph.initializer
    assert stored.data_type == onnx.TensorProto.FLOAT16
    assert (numpy_helper.to_array(stored) == 0).sum() == round(result.report.sparsity * 32 * 24) == 384
