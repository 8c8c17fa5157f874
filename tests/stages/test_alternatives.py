"""Where a result falls short, other recipes are measured, and the best is taken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_runs import PROVEN, clock, outputs, sqnr
from handmade import HANDMADE
from handmade.core import Feed, feeds, model, vector, weight
from parted import held_out

import onnxshot
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.further_steps import FurtherSteps
from onnxshot.recovery.layer_reconstruction import Repair
from onnxshot.recovery.plan_candidates import Repairs
from onnxshot.report.advice import FLOOR_DB
from onnxshot.runtimes.ort_bench import Latency
from onnxshot.runtimes.product_speed import ProductSpeed
from onnxshot.stages import alternatives, make_quantized, other_results
from onnxshot.stages.place_by_time import Placed
from onnxshot.stages.prepare_model import Prepared

pytestmark = pytest.mark.usefixtures("worded_as_options")

SEARCHING = replace(PROVEN, search_seconds=None)

# ---------------------------------------------------------------------- whole runs

COLUMNS = """g (float[1, 16] x) => (float[1, 8] y) {
    a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) d = MatMul(c, w2) e = Add(d, b2) f = Relu(e)
    h = MatMul(f, w3) y = Add(h, b3)
}"""


def columns() -> tuple[onnx.ModelProto, list[Feed]]:
    """A network with inputs of magnitudes 3000 and 1. The small ones matter; one scale for all rounds them to zero."""
    size = np.where(np.arange(16) < 8, 3000.0, 1.0).astype(np.float32)
    w1 = weight(16, 64, channel_axis=1)
    w1[:8] /= 1e6
    proto = model(COLUMNS, {
        "w1": w1, "b1": vector(64), "w2": weight(64, 64, seed=1, channel_axis=1), "b2": vector(64, 1),
        "w3": weight(64, 8, seed=2, channel_axis=1), "b3": vector(8, 2),
    })  # fmt: skip
    given = [{"x": feed["x"] * size} for feed in feeds(count=16, x=(1, 16))]
    return proto, given


def inaccurate() -> tuple[onnx.ModelProto, list[Feed], dict[str, Any]]:
    """A network below the floor, and what is asked for."""
    proto, data = columns()
    return proto, data, {"include": ("MatMul",), "effort": "fast", "settings": replace(SEARCHING, samples="all")}


def test_below_the_floor_the_run_goes_on_to_what_is_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 2.0)
    proto, data, asked = inaccurate()
    at_once = onnxshot.quantize(proto, data, **{**asked, "settings": replace(asked["settings"], search_seconds=0.0)})
    assert at_once.report.sqnr_db is not None
    assert at_once.report.sqnr_db < FLOOR_DB
    assert at_once.report.tried == []
    made = onnxshot.quantize(proto, data, output=tmp_path / "q.onnx", **asked)
    report = made.report
    first, *others = report.tried
    assert first["options"] == "as asked for"
    assert first["sqnr_db"] == pytest.approx(at_once.report.sqnr_db, abs=0.01)
    (taken,) = [row for row in others if row.get("taken")]
    path, unseen = tmp_path / "q.onnx", held_out(data)
    truly = sqnr(outputs(proto, unseen), outputs(path, unseen))
    assert truly == pytest.approx(taken["sqnr_db"], abs=0.01), "on the samples that the first was judged on"
    judged = unseen if report.samples["judged"] == len(unseen) else data  # if nothing was learned from any
    assert report.sqnr_db == pytest.approx(sqnr(outputs(proto, judged), outputs(path, judged)), abs=0.01)
    assert truly > FLOOR_DB
    assert report.verdict.level == "ready"
    assert any("not accurate enough; taken is" in note for note in report.notes)
    assert any(node.how != "float" for node in report.graph), "as much as possible stays quantized"
    assert len(report.notes) == len(set(report.notes))


def test_others_are_tried_with_the_default_effort_and_what_is_taken_is_made_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 2.0)
    efforts: list[str] = []
    real = other_results.make_quantized

    def makes(prepared: Any, *rest: Any) -> Any:
        efforts.append(prepared.recipe.effort)
        return real(prepared, *rest)

    monkeypatch.setattr(other_results, "make_quantized", makes)
    proto, data, asked = inaccurate()
    asked |= {"effort": "best", "equalize": False, "smooth": False, "look": False}
    report = onnxshot.quantize(proto, data, output=tmp_path / "q.onnx", **asked).report
    assert [row for row in report.tried if row.get("taken")]
    assert report.tried[1]["options"] == "--effort balanced"
    assert set(efforts[:-1]) == {"balanced"}
    assert efforts[-1] == "best"
    assert report.recipe["effort"] == "best"
    truly = sqnr(outputs(proto, held_out(data)), outputs(tmp_path / "q.onnx", held_out(data)))
    assert report.sqnr_db == pytest.approx(truly, abs=0.01)
    assert truly > FLOOR_DB


def test_where_only_the_steps_of_best_are_below_the_floor_the_default_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 2.0)

    def spoiled(self: Any, teacher: Any, model: Any, plan: Any, so_far: Repairs) -> Repairs:
        named = [(n.name, n.inputs[2].values) for n in model.graph.nodes if n.op == "Conv" and len(n.inputs) > 2]
        assert named
        return Repairs({name: Repair(values + 50) for name, values in named}, "spoiled")

    monkeypatch.setattr(FurtherSteps, "rounded", spoiled)
    case, out = HANDMADE["resnet_block"](), tmp_path / "q.onnx"
    report = onnxshot.quantize(case.model, case.feeds, output=out, effort="best", settings=SEARCHING).report
    assert [row["options"] for row in report.tried if row.get("taken")] == ["--effort balanced"]
    assert report.recipe["effort"] == "balanced"
    assert len(report.tried) == 2, "nothing else is tried"


def test_what_was_taken_is_made_again_without_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 2.0)
    proto, data, asked = inaccurate()
    onnx.save(proto, tmp_path / "m.onnx")
    out = tmp_path / "q.onnx"
    report = onnxshot.quantize(tmp_path / "m.onnx", data, output=out, **asked).report
    assert report.recipe["layers"]
    recipe = onnxshot.Recipe.from_dict(report.recipe)
    again = onnxshot.quantize(
        tmp_path / "m.onnx", data, output=tmp_path / "again.onnx", recipe=recipe, settings=asked["settings"]
    )
    assert again.report.tried == []
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    replayed = onnxshot.replay(tmp_path / "m.onnx", out, tmp_path / "replayed.onnx", calib=data)
    assert replayed.same


@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_an_inaccurate_result_gives_way_to_what_is_as_fast(speed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As fast as the input, or as the result itself where that is slower; the most accurate of it."""
    proto, data, asked = inaccurate()
    clock(monkeypatch, speed)
    report = onnxshot.quantize(proto, data, **asked).report
    (taken,) = [row for row in report.tried if row.get("taken")]
    sound = [row for row in report.tried if row["level"] != "bad"]
    assert taken in sound
    assert taken["sqnr_db"] == max(row["sqnr_db"] for row in sound)


def test_a_missed_floor_is_told_and_may_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, data, asked = inaccurate()
    clock(monkeypatch, 1.0)
    asked |= {"layers": {"MatMul": {"mode": "static"}}}
    report = onnxshot.quantize(proto, data, **asked).report
    assert not any(row.get("taken") for row in report.tried)
    assert report.verdict.level == "bad"
    assert any("nothing above the floor is as fast as the input" in note for note in report.notes)
    accepted = {**asked, "settings": replace(asked["settings"], accept=True)}
    report = onnxshot.quantize(proto, data, **accepted).report
    assert report.verdict.level == "caution"
    assert any("below 15 dB" in reason for reason in report.verdict.reasons), "it is told nevertheless"


def test_forms_that_the_user_chose_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 2.0)
    proto, data, asked = inaccurate()
    report = onnxshot.quantize(proto, data, **asked, layers={"MatMul": {"mode": "static"}}).report
    assert not any(row.get("taken") for row in report.tried)
    assert report.sqnr_db is not None
    assert report.sqnr_db < FLOOR_DB


def test_what_went_to_float_by_its_time_returns_where_the_floor_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing that leaves them in float is above the floor."""
    clock(monkeypatch, 2.0)
    real, kept = other_results.OtherResults.attempt, set[str]()

    def attempt(self: Any, recipe: Recipe, words: str) -> Any:
        return None if kept <= recipe.layers.keys() else real(self, recipe, words)

    monkeypatch.setattr(other_results.OtherResults, "attempt", attempt)

    def placed(prepared: Prepared, *_: Any) -> Placed:
        if prepared.recipe.place is False:
            return Placed(prepared)
        names = [node.label for node in prepared.model.graph.nodes if node.op in ("MatMul", "Gemm")][1:]
        kept.update(names)
        layers = {name: {"mode": "stored"} for name in names}
        return Placed(replace(prepared, recipe=replace(prepared.recipe, layers=layers, place=False)), {
            "floats": 2, "of": 3, "float_us": 1.0, "int8_us": 1.0, "gain": 1.0,
        })  # fmt: skip

    monkeypatch.setattr(make_quantized, "place_by_time", placed)
    proto, data, asked = inaccurate()
    made = onnxshot.quantize(proto, data, **asked)
    assert made.report.sqnr_db is not None
    assert made.report.sqnr_db > FLOOR_DB
    first, *others = [node for node in made.plan.nodes if node.op in ("MatMul", "Gemm")]
    assert first.how != "static"
    assert any(node.how in ("static", "dynamic") for node in others)


def test_nothing_is_tried_where_nothing_falls_short_or_there_is_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 2.0)
    proto, _ = columns()
    fine = onnxshot.quantize(proto, feeds(count=16, x=(1, 16)), include=("MatMul",), settings=SEARCHING)
    assert fine.report.sqnr_db is not None
    assert fine.report.sqnr_db > FLOOR_DB
    assert fine.report.tried == []
    assert onnxshot.quantize(proto, "random", include=("MatMul",), settings=SEARCHING).report.tried == []


def test_what_is_slower_is_tried_with_products_quantized_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, _ = columns()
    data = feeds(count=12, x=(1, 16))
    clock(monkeypatch, 0.5)
    report = onnxshot.quantize(proto, data, include=("MatMul",), settings=SEARCHING).report
    assert report.slower
    row = next(row for row in report.tried if row["options"] == "--mode dynamic --include MatMul")
    own = onnxshot.quantize(proto, data, include=("MatMul",), mode="dynamic", settings=SEARCHING).model.to_proto()
    truly = sqnr(outputs(proto, held_out(data)), outputs(own, held_out(data)))
    assert truly == pytest.approx(row["sqnr_db"], abs=0.01), "on the samples that the result is judged on"
    assert "taken" not in row, "it was measured to be as slow"


@pytest.mark.parametrize(("faster", "tried"), [("dynamic", ["--mode auto --bits 4"]), ("blocks", [])])
def test_blocks_that_bring_no_speed_are_tried_with_products_in_int8(
    faster: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(*_: object) -> dict[str, float]:
        return {form: 1.0 if form == faster else 3.0 for form in ("dynamic", "blocks")}

    monkeypatch.setattr(ProductSpeed, "of", of)
    clock(monkeypatch, 1.0)
    proto = model("g (float[R, 64] x) => (float[R, 96] y) { y = MatMul(x, w) }", {"w": weight(64, 96)})
    data = feeds(count=12, x=(40, 64))
    report = onnxshot.quantize(proto, data, mode="weights", bits=4, settings=SEARCHING).report
    others = [row for row in report.tried if row["options"] != "as asked for"]
    assert [row["options"] for row in others if "exclude" not in row["options"]] == tried
    if tried:
        own = onnxshot.quantize(proto, data, mode="auto", bits=4, settings=SEARCHING).model.to_proto()
        truly = sqnr(outputs(proto, held_out(data)), outputs(own, held_out(data)))
        assert truly == pytest.approx(others[0]["sqnr_db"], abs=0.01)


def recurrent(op: str, gates: int) -> tuple[onnx.ModelProto, list[Feed]]:
    text = f"g (float[5, 1, 24] x) => (float[5, 1, 1, 32] y) {{ y = {op}<hidden_size = 32>(x, w, r) }}"
    constants = {"w": weight(1, gates * 32, 24, channel_axis=1), "r": weight(1, gates * 32, 32, channel_axis=1)}
    return model(text, constants), feeds(count=16, x=(5, 1, 24))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_layers_in_float_name_the_option_that_was_measured(
    op: str, gates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 1.0)
    proto, data = recurrent(op, gates)
    report = onnxshot.quantize(proto, data, target="portable", settings=SEARCHING).report
    assert [row["options"] for row in report.tried] == ["--mode weights --target portable"]
    own = onnxshot.quantize(proto, data, target="portable", mode="weights", settings=SEARCHING).report
    assert own.sqnr_db == pytest.approx(report.tried[0]["sqnr_db"], abs=1.0), "it may be judged on other samples"
    assert report.tried[0]["bytes"] < len(proto.SerializeToString())


def test_sizes_that_were_asked_for_are_no_fault_of_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 1.0)
    proto, data = recurrent("GRU", 3)
    for port in (proto.graph.input[0], proto.graph.output[0]):
        port.type.tensor_type.shape.dim[0].dim_param = "steps"
    report = onnxshot.quantize(proto, data, target="portable", shapes={"x": (5, 1, 24)}, settings=SEARCHING).report
    (row,) = report.tried
    assert row["options"].startswith("--mode weights")
    assert not any("differ" in reason for reason in row["reasons"]), row["reasons"]
    assert row["level"] != "bad"


def test_recurrent_layers_in_8_bits_need_no_other_option(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 1.0)
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        proto, data = recurrent(op, gates)
        assert onnxshot.quantize(proto, data, settings=SEARCHING).report.tried == []


def heads() -> tuple[onnx.ModelProto, list[Feed]]:
    """Two heads: 'small' reads columns that one scale per tensor rounds to zero; 'big' dominates the total SQNR."""
    text = """g (float[1, 16] x) => (float[1, 8] small, float[1, 64] big) {
        a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) big = MatMul(c, w2) small = MatMul(x, w3)
    }"""
    w3 = weight(16, 8, seed=2, channel_axis=1)
    w3[:8] = 0.0  # the loud half of the input
    size = np.where(np.arange(16) < 8, 3000.0, 1.0).astype(np.float32)
    w2 = weight(64, 64, seed=1, channel_axis=1)
    proto = model(text, {"w1": weight(16, 64, channel_axis=1), "b1": vector(64), "w2": w2, "w3": w3})
    return proto, [{"x": feed["x"] * size} for feed in feeds(count=16, x=(1, 16))]


def test_the_head_whose_output_is_below_the_floor_goes_back_though_all_together_are_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 2.0)
    proto, data = heads()
    settings = replace(SEARCHING, samples="all")
    asked = {"include": ("MatMul",), "effort": "fast", "settings": settings}
    made = onnxshot.quantize(proto, data, **asked)
    first = made.report.tried[0]
    assert first["sqnr_db"] > FLOOR_DB
    assert first["output_sqnr_db"]["small"] < FLOOR_DB
    path = made.save(tmp_path / "q.onnx")
    truly = sqnr(outputs(proto, data[12:]), outputs(path, data[12:]))  # of the first output, which is the small one
    assert truly == pytest.approx(made.report.output_sqnr_db["small"], abs=0.01)
    assert truly > FLOOR_DB
    assert any(node.how == "static" for node in made.report.graph), "the other head stays in int8"


def test_what_quantizes_nothing_is_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that can be dynamic or stored in 8 bits is excluded; the remaining nodes can only be static."""
    clock(monkeypatch, 0.5)
    text = """g (float[1, 16, 8, 8] x) => (float[1, 16, 4, 4] y) {
        a = Conv(x, w) b = Relu(a) y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
    }"""
    proto = model(text, {"w": weight(16, 16, 1, 1)})
    report = onnxshot.quantize(proto, feeds(count=8, x=(1, 16, 8, 8)), exclude=("Conv",), settings=SEARCHING).report
    assert [row["options"] for row in report.tried] == []
    assert "--mode" not in report.next_step()


def test_figures_of_openvino_stand_beside_no_note_that_says_there_are_none(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    text = "g (float[1, 8, 16, 16] x) => (float[1, 8, 16, 16] y) { a = Conv(x, w1) b = Relu(a) y = Conv(b, w2) }"
    proto = model(text, {"w1": weight(16, 8, 1, 1), "w2": weight(8, 16, 1, 1, seed=1)})
    data = feeds(count=8, x=(1, 8, 16, 16))
    asked = {"effort": "fast", "target": "openvino", "settings": SEARCHING}
    alone = onnxshot.quantize(proto, data, output=tmp_path / "a.onnx", **asked).report
    (row,) = alone.runtimes  # the .onnx file alone is measured there too
    assert (row["runtime"], row["latency"] != {}) == ("openvino", True)
    assert not any("not timed" in note for note in alone.notes)
    both = onnxshot.quantize(proto, data, output=tmp_path / "b.onnx", emit=("onnx", "openvino"), **asked).report
    assert any(artifact.latency for artifact in both.outputs)
    assert not any("not timed" in note for note in both.notes)
    assert any("the .onnx file was checked in ONNX Runtime, not in openvino" in note for note in both.notes)


def test_a_graph_that_is_faster_in_float_than_in_int8_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the test's own: the normalized float graph takes a time, int8 twice that, the input three times."""
    proto, given = columns()[0], feeds(count=16, x=(1, 16))
    seen = []

    def timed(paths: list[Path], _: list[Feed], **how: object) -> list[Latency]:
        kinds = [{t.data_type for t in onnx.load(path).graph.initializer} for path in paths]
        seen.append(tuple(onnx.TensorProto.INT8 in kind for kind in kinds))
        return [Latency(path, 1.0, 1.0, 1.0, ratio, 9) for path, ratio in zip(paths, (1.0, 0.5), strict=True)]

    clock(monkeypatch, 1.5)
    monkeypatch.setattr(alternatives, "bench", timed)
    settings = replace(SEARCHING, bench_seconds=0.01)
    report = onnxshot.quantize(proto, given, effort="fast", include=("MatMul",), settings=settings).report
    assert seen == [(False, True)], "the normalized float graph, and the result"
    assert any("2.00x as fast as this file" in note and "--mode weights" in note for note in report.notes)
    assert any(row["options"].startswith("--mode weights") for row in report.tried)


def test_a_graph_that_is_faster_in_int8_is_not_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, given = columns()[0], feeds(count=16, x=(1, 16))
    clock(monkeypatch, 1.5)
    fine = [Latency(Path("a"), 1.0, 1.0, 1.0, 1.0, 9), Latency(Path("b"), 0.5, 0.5, 0.5, 2.0, 9)]
    monkeypatch.setattr(alternatives, "bench", lambda *_, **__: fine)
    report = onnxshot.quantize(proto, given, effort="fast", include=("MatMul",), settings=SEARCHING).report
    assert not any("the same graph in float" in note for note in report.notes)
    assert not any(row["options"].startswith("--mode weights") for row in report.tried)


def test_rules_for_layers_that_no_other_mode_takes_are_no_error_after_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`layers: {MatMul: {mode: static}}` goes with mode static alone: no other mode is tried, and the run succeeds."""
    proto, _ = columns()
    clock(monkeypatch, 0.5)
    report = onnxshot.quantize(
        proto, feeds(count=12, x=(1, 16)), include=("MatMul",), layers={"MatMul": {"mode": "static"}},
        settings=SEARCHING,
    ).report  # fmt: skip
    assert report.slower
    assert not any("--mode dynamic" in row["options"] for row in report.tried)
