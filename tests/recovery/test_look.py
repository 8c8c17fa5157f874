import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import Case
from handmade.core import weight
from planned_models import run, small
from planned_models import sqnr as sqnr_of

from onnxshot.api.quantize import quantize
from onnxshot.execution.placement_cache import Decision
from onnxshot.recovery import further_steps, improver, look
from onnxshot.settings import Settings

QUICK = Settings(use_cache=False, threads=1, bench_seconds=0.01, search_seconds=0)

SPECTRUM = """g (float[n, 1, 600] x) => (float[n, 8] y, float[n, 16, 68] l) {
    s = Conv<strides = [8]>(x, dft)
    p = Mul(s, s)
    q = Conv(p, mel)
    t = Add(q, floor)
    l = Log(t)
    c = Conv(l, w1)
    r = Relu(c)
    d = Conv(r, w2)
    e = Relu(d)
    m = GlobalAveragePool(e)
    y = Flatten(m)
}"""


def spectrum() -> Case:
    """A spectrum whose bands differ by 60 dB in power, in front of a Log."""
    steps = np.arange(64)
    dft = np.stack([np.cos(2 * np.pi * (k + 1) * steps / 64) * np.hanning(64) for k in range(24)])[:, None]
    constants = {
        "dft": dft.astype(np.float32), "mel": np.abs(weight(16, 24, 1)), "floor": np.array(1e-6, np.float32),
        "w1": weight(32, 16, 3, seed=1), "w2": weight(8, 32, 3, seed=2),
    }  # fmt: skip
    case = small(SPECTRUM, constants, x=(1, 1, 600))
    random, feeds = np.random.default_rng(0), []
    time = np.arange(600)
    for _ in range(24):
        tone = np.sin(2 * np.pi * time * random.integers(2, 5) / 64) * np.exp(-time / 80)
        feeds.append({"x": (tone + 1e-3 * random.normal(size=600)).astype(np.float32)[None, None]})
    return Case(case.model, feeds)


def made(case: Case, folder: Path, **options: Any) -> Any:
    return quantize(case.model, case.feeds, output=str(folder / "m.onnx"), settings=QUICK, **options)


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(spectrum(), tmp_path_factory.mktemp("on"))


def test_a_front_end_whose_int8_costs_the_outputs_goes_back_to_float(looked: Any, tmp_path: Path) -> None:
    case = spectrum()
    plain = made(case, tmp_path, look=False)
    before, after = (sqnr_of(case, one.model.to_proto()) for one in (plain, looked))
    assert after > before + 6
    (kept,) = [row for row in looked.report.look if row["kept"]]
    assert "front end" in kept["group"]
    assert kept["form"].startswith("float")
    assert kept["microseconds"] is not None
    assert any("front end" in note for note in looked.report.notes)
    assert plain.report.look == []
    gain = {row["group"]: row["gain_db"] for row in looked.report.look}
    assert gain[kept["group"]] == max(gain.values())


def test_the_record_holds_what_was_found_and_replays_to_the_same_bytes(looked: Any, tmp_path: Path) -> None:
    case = spectrum()
    proto = looked.model.to_proto()
    recorded = json.loads({p.key: p.value for p in proto.metadata_props}["onnxshot.recipe"])
    assert recorded["look"] is False
    assert recorded["layers"]
    again = quantize(
        case.model, case.feeds, output=str(tmp_path / "again.onnx"), settings=QUICK,
        **{k: v for k, v in recorded.items() if k not in ("target", "mode")},
    )  # fmt: skip
    for feed in case.feeds[:4]:
        for one, other in zip(run(proto, feed), run(again.model.to_proto(), feed), strict=True):
            np.testing.assert_array_equal(one, other)
    assert again.report.look == []


def test_nothing_is_looked_for_with_effort_fast_or_good_outputs(tmp_path: Path) -> None:
    assert made(spectrum(), tmp_path, effort="fast").report.look == []
    text = "g (float[n, 4, 8, 8] x) => (float[n, 4, h, w] y) {\n y = Conv(x, w)\n}"
    good = small(text, {"w": weight(4, 4, 3, 3)}, x=(1, 4, 8, 8))
    assert made(good, tmp_path / "good", effort="balanced").report.look == []


def test_a_node_that_was_asked_for_stays(tmp_path: Path) -> None:
    found = made(spectrum(), tmp_path, include=["s"])
    proto = found.model.to_proto()
    makers = {name: node for node in proto.graph.node for name in node.output}
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert makers[convs[0].input[1]].op_type == "DequantizeLinear"
    assert not any(row["kept"] and "front end" in row["group"] for row in found.report.look)


def test_ranges_are_refined_of_what_the_look_left_in_int8(
    looked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def refined(model: Any, plan: Any, evidence: Any, *_: Any, **__: Any) -> Any:
        seen.append({node.node: node.how for node in plan.nodes})
        return evidence

    monkeypatch.setattr(further_steps, "refine_ranges", refined)
    result = made(spectrum(), tmp_path, effort="best")
    (kept,) = [row for row in result.report.look if row["kept"]]
    assert "front end" in kept["group"]
    static = {node.node for node in result.plan.nodes if node.how == "static"}
    assert static.isdisjoint({"Conv_s", "Mul_p", "Conv_q"})
    (plan,) = seen
    assert {name for name, how in plan.items() if how == "static"} == static
    recorded = {p.key: p.value for p in result.model.to_proto().metadata_props}["onnxshot.recipe"]
    assert len(json.loads(recorded)["layers"]) == kept["nodes"]


def test_kernels_rule_out_what_is_clearly_too_slow_without_timing_it(
    looked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = [row for row in looked.report.look if row["kept"]]
    labels = [node.node for node in looked.plan.nodes]
    slow = Decision((), 200.0, 100.0, saved=dict.fromkeys(labels, 1000.0))  # each node takes ten times all the rest
    timed = []
    real = improver.Looker

    def with_times(*given: Any) -> Any:
        return real(*given[:-1], slow)

    monkeypatch.setattr(improver, "Looker", with_times)
    monkeypatch.setattr(look, "bench", lambda *_, **__: timed.append(1) or [])
    found = made(spectrum(), tmp_path).report.look
    gain = {row["group"]: row["gain_db"] for row in found}
    assert gain[kept["group"]] == pytest.approx(kept["gain_db"])
    assert not timed and not any(row["kept"] for row in found)


@pytest.mark.parametrize(
    ("db", "times", "allowed"), [(20.0, 1.19, True), (20.0, 1.3, False), (10.0, 1.3, True), (10.0, 1.5, False)]
)
def test_half_of_the_speed_may_be_given_up_and_all_of_it_below_the_floor(
    db: float, times: float, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 is 1.44 times as fast as float; 1.2 is half of that factor."""
    looker = object.__new__(look.Looker)
    part = look._Part(())
    monkeypatch.setattr(look.Looker, "_db", lambda *_: db)
    looker._base_ms, looker._float_time, looker._times = 1.0, 1.44, {part: times}
    assert np.isfinite(looker._percent(part)) == allowed


def test_what_lifts_outputs_above_the_floor_may_take_any_time_of_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 60 % more than int8, and is still faster than the float model, which takes twice as long."""
    looker, part, group = object.__new__(look.Looker), look._Part(()), look.PlanGroup("front end", ("a",))
    better = look._Part(((group, "float"),))
    db = {part: 5.0, better: 24.0}
    monkeypatch.setattr(look.Looker, "_db", lambda _, one: db[one])
    monkeypatch.setattr(look.Looker, "_quantizes", lambda *_: True)
    monkeypatch.setattr(look.Looker, "_time", lambda *_: None)
    looker._found = {better: None}
    looker._base_ms, looker._float_time, looker._times, looker.kernels, looker._work = 1.0, 2.0, {better: 1.6}, None, {}
    assert looker._best(part) == better
    db[better] = 12.0
    assert looker._best(part) == part, "it is not above the floor"
    db[better], looker._times = 24.0, {better: 2.2}
    assert looker._best(part) == part, "the float model is faster"


def test_after_few_samples_few_candidates_are_run_and_after_many_as_before() -> None:
    assert [look.most_runs(count, in_parts=False) for count in (1, 4, 8, 12, 32, 96)] == [20, 20, 32, 48, 48, 96]
    assert look.most_runs(96, in_parts=True) == 16
