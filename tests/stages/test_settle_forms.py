"""Mode auto: weights in blocks where few rows are multiplied, int8 where many are, and no less accurate than blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import model, weight
from planned_models import FAST, run, sqnr

import onnxshot
from onnxshot.errors import CalibrationError, TargetError, UsageError
from onnxshot.recipes.keys import BadKey
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.product_speed import Blocks, ProductSpeed

ROWS = 64


@pytest.fixture(autouse=True)
def _known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 costs 2 for each run and 1 a row, blocks 3 a row: int8 is clearly faster from two rows on."""

    def of(self: ProductSpeed, inputs: int, outputs: int, rows: int, blocks: Blocks) -> Mapping[str, float]:
        return {"dynamic": 2.0 + rows, "blocks": 3.0 * rows}

    monkeypatch.setattr(ProductSpeed, "of", of)


def two_parts() -> Case:
    """A product of many rows, their mean, and a product of one row."""
    text = """g (float[B, T, 96] x) => (float[B, T, 96] y, float[B, 64] z) {
        y = MatMul(x, many)
        middle = ReduceMean<axes = [1], keepdims = 0>(y)
        z = MatMul(middle, one)
    }"""
    made = model(text, {"many": weight(96, 96), "one": weight(96, 64)})
    made.graph.node[0].name, made.graph.node[2].name = "many", "one"
    rng = np.random.default_rng(0)
    return Case(made, [{"x": rng.standard_normal((1, ROWS, 96), np.float32)} for _ in range(4)])


def ops(made: onnxshot.Result) -> Counter[str]:
    return Counter(node.op_type for node in made.model.to_proto().graph.node)


def quantized(case: Case, **recipe: object) -> onnxshot.Result:
    return onnxshot.quantize(case.model, case.feeds, recipe=Recipe(mode="auto", **recipe), settings=FAST)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [4, 8])
def test_many_rows_get_int8_and_one_row_gets_blocks(bits: int) -> None:
    case = two_parts()
    made = quantized(case, bits=bits, block=32)
    assert ops(made) == Counter(
        {"MatMulNBits": 1, "DynamicQuantizeLinear": 1, "MatMulInteger": 1, "Cast": 1, "Mul": 2, "ReduceMean": 1}
    )
    (node,) = (n for n in made.model.to_proto().graph.node if n.op_type == "MatMulNBits")
    assert {a.name: a.i for a in node.attribute if a.name in ("bits", "block_size", "N")} == {
        "bits": bits, "block_size": 32, "N": 64,
    }  # fmt: skip
    assert sqnr(case, made.model.to_proto()) > (15 if bits == 4 else 28)
    assert any("mode auto: samples bring 1 to 64 rows to 2 products" in note for note in made.report.notes)
    assert made.report.recipe["mode"] == "dynamic"
    assert made.report.recipe["layers"] == {"one": {"mode": "weights", "bits": bits, "block": 32}}


def test_a_replay_makes_the_same_bytes_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = two_parts()
    onnx.save(case.model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.concatenate([feed["x"][None] for feed in case.feeds]))
    out, again = tmp_path / "q.onnx", tmp_path / "again.onnx"
    onnxshot.quantize(
        str(tmp_path / "m.onnx"), str(tmp_path / "x.npz"), recipe=Recipe(mode="auto", bits=4), output=out, settings=FAST
    )
    monkeypatch.setattr(ProductSpeed, "of", None)
    onnxshot.replay(str(tmp_path / "m.onnx"), out, again, calib=str(tmp_path / "x.npz"), settings=FAST)
    assert again.read_bytes() == out.read_bytes()


def test_only_few_rows_make_the_recipe_of_weights() -> None:
    case = two_parts()
    short = Case(case.model, [{"x": feed["x"][:, :1]} for feed in case.feeds])
    made = quantized(short, bits=4)
    assert ops(made)["MatMulNBits"] == 2 and "MatMulInteger" not in ops(made)
    assert (made.report.recipe["mode"], made.report.recipe["bits"]) == ("weights", 4)


def test_inputs_that_int8_would_round_too_coarsely_keep_blocks() -> None:
    case = two_parts()
    for feed in case.feeds:
        feed["x"][0, 3] *= 3000  # one row is that large: the others vanish in the steps of one scale
    made = quantized(case, bits=4)
    assert ops(made)["MatMulNBits"] == 2
    assert any("1 of these because int8 would round their inputs too coarsely" in note for note in made.report.notes)


def test_rules_of_the_user_win() -> None:
    made = quantized(two_parts(), bits=4, layers={"many": {"mode": "float"}, "one": {"bits": 8}}, exclude=())
    found = {n.node: n.how for n in made.plan.nodes if n.op == "MatMul"}
    assert found == {"many": "float", "one": "weights"}
    (node,) = (n for n in made.model.to_proto().graph.node if n.op_type == "MatMulNBits")
    assert next(a.i for a in node.attribute if a.name == "bits") == 8


def test_a_decoder_is_counted_with_its_steps() -> None:
    """A sample of 64 tokens is followed by 64 steps of one row: 66 + 64 * 3 for int8, 192 + 64 * 3 for blocks."""
    text = """g (float[B, T, 96] x, float[B, P, 96] past_key) => (float[B, T, 96] y, float[B, S, 96] present_key) {
        y = MatMul(x, w)
        present_key = Concat<axis = 1>(past_key, y)
    }"""
    feeds = [{"x": np.ones((1, ROWS, 96), np.float32), "past_key": np.zeros((1, 0, 96), np.float32)}] * 2
    made = quantized(Case(model(text, {"w": weight(96, 96)}), feeds), bits=4)
    assert any("as many steps of one row as a sample has" in note for note in made.report.notes)
    assert ops(made)["MatMulInteger"] == 1  # 258 against 384


def test_products_in_subgraphs_keep_blocks_as_their_rows_are_not_known() -> None:
    text = """g (float[R, 96] x, bool c) => (float[R, 96] z) {
        m = MatMul(x, w)
        z = If (c) <
            then_branch = a () => (float[R, 96] t) { t = MatMul(m, u) },
            else_branch = b () => (float[R, 96] e) { e = Identity(m) }
        >
    }"""
    held = {name: weight(96, 96) for name in ("w", "u")}
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((ROWS, 96), np.float32), "c": np.array(True)} for _ in range(4)]
    case = Case(model(text, held), data)
    made = quantized(case, bits=4)
    assert sorted(n.how for n in made.plan.nodes if n.op == "MatMul") == ["dynamic", "weights"]
    assert sqnr(case, made.model.to_proto()) > 12


def test_what_auto_needs_is_named() -> None:
    case = two_parts()
    with pytest.raises(CalibrationError, match="calibration data is needed"):
        onnxshot.quantize(case.model, recipe=Recipe(mode="auto", bits=4), settings=FAST)
    with pytest.raises(TargetError, match="openvino does not have both"):
        quantized(case, target="openvino")
    with pytest.raises(TargetError, match="ort does not have both"):
        quantized(case, format="qdq")
    with pytest.raises(UsageError, match="mode auto is settled by quantize"):
        onnxshot.inspect(case.model, recipe=Recipe(mode="auto"))
    with pytest.raises(BadKey):
        Recipe(layers={"one": {"mode": "auto"}})


def test_the_result_runs_as_the_float_model_does_on_other_numbers_of_rows() -> None:
    case = two_parts()
    made = quantized(case, bits=4).model.to_proto()
    for rows in (1, 7, 200):
        feed = {"x": np.random.default_rng(rows).standard_normal((2, rows, 96), np.float32)}
        for wanted, got in zip(run(case.model, feed), run(made, feed), strict=True):
            assert wanted.shape == got.shape
            assert np.linalg.norm(got - wanted) < 0.25 * np.linalg.norm(wanted)
