"""Effort: what each step gains on held-out samples, and that only steps that help are kept."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import fixture, heldout, session
from fixture_runs import data_of
from handmade import HANDMADE
from planned_models import FAST, PROVEN

import onnxshot
from onnxshot import quantize
from onnxshot.comparison.balanced_sqnr import CandidateError
from onnxshot.delivery.record import RECIPE_KEY
from onnxshot.errors import UsageError
from onnxshot.execution.candidate_race import Judge
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.recovery import further_steps, layer_reconstruction, plan_candidates, range_search
from onnxshot.recovery.layer_reconstruction import Repair
from onnxshot.results.quantized import Result
from onnxshot.runtimes.ort_runtime import Runner

EFFORTS = ("fast", "balanced", "best")
DONE = {"balanced": ("biases were corrected",), "best": ("biases were corrected", "weights were rounded again")}


def made(name: str, samples: int | str = "auto", **options: Any) -> Result:
    return quantize(fixture(name), **data_of(name), settings=replace(FAST, samples=samples), **options)


def heldout_db(name: str, result: Result) -> float:
    """SQNR on held-out samples, which are none of those that were calibrated on."""
    runs = session(fixture(name)), session(result.model.to_proto().SerializeToString())
    total = SqnrSum()
    for feed in heldout(name)[0][::2]:
        wanted, got = (run.run(None, feed)[0] for run in runs)
        total.add(wanted, got)
    return total.db


def weights_of(result: Result) -> bytes:
    """All but the metadata, which names the effort."""
    proto = result.model.to_proto()
    del proto.metadata_props[:]
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("name", ["digits_mobile", "digits_resnet"])
def test_more_effort_is_no_worse_on_held_out_samples_and_says_what_it_did(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_reconstruction, "_WEIGHT_ROWS", 512)  # a second instead of ten
    results = {kind: made(name, effort=kind) for kind in EFFORTS}
    found = {kind: heldout_db(name, result) for kind, result in results.items()}
    assert found["balanced"] >= found["fast"] - 0.2
    assert found["best"] >= found["fast"] - 0.2
    assert max(found.values()) > found["fast"] + 0.5, "there is something to gain on both"
    for kind, result in results.items():
        notes = [n for n in result.report.notes if "equalized" in n or "dB before" in n]
        if kind == "fast":
            assert notes == []
            assert not {"repair", "equalize"} & result.report.timings.keys()
            continue
        assert {"repair", "equalize"} <= result.report.timings.keys()
        (last,) = [n for n in notes if "dB before" in n]
        assert last.startswith(DONE[kind])
        numbers = [float(word) for word in last.replace(",", "").split() if word.replace(".", "").isdigit()]
        assert numbers[1] > numbers[0]
        assert result.report.recipe["effort"] == kind


def test_the_same_run_twice_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_reconstruction, "_WEIGHT_ROWS", 512)
    for threads in (1, 2):
        settings = replace(FAST, samples=16, threads=threads)
        quantize(
            fixture("digits_mobile"), **data_of("digits_mobile"), settings=settings, effort="best",
            output=tmp_path / f"{threads}.onnx",
        )  # fmt: skip
    again = made("digits_mobile", 16, effort="best").save(tmp_path / "again.onnx")
    assert (tmp_path / "1.onnx").read_bytes() == again.read_bytes() == (tmp_path / "2.onnx").read_bytes()


def harmful(reference: Any, candidate: LeanModel, layers: list[str], *_: Any, **__: Any) -> dict[str, Repair]:
    """Biases that are off by far."""
    nodes = [n for n in candidate.proto.graph.node if n.name in layers and len(n.input) > 2]
    assert nodes
    return {n.name: Repair(np.asarray(candidate.array(n.input[2]) + 5, np.float32), None) for n in nodes}


@pytest.mark.parametrize("kind", ["balanced", "best"])
def test_a_repair_that_makes_it_worse_is_not_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_candidates, "reconstruct", harmful)
    monkeypatch.setattr(further_steps, "refine_ranges", lambda model, plan, evidence, *_, **__: evidence)
    result = made("digits_mobile", 16, effort=kind)
    (note,) = [n for n in result.report.notes if "dB before" in n]
    assert note.startswith("no repair was kept: ")
    monkeypatch.setattr(plan_candidates, "reconstruct", lambda *_, **__: {})
    unrepaired = made("digits_mobile", 16, effort=kind)
    assert weights_of(result) == weights_of(unrepaired)


def spoiled_ranges(model: Any, plan: Any, evidence: Any, *_: Any, **__: Any) -> Any:
    """The loudest tensors clipped to a tenth."""
    chosen = {key: replace(one, low=one.low / 10, high=one.high / 10) for key, one in evidence.chosen.items()}
    return replace(evidence, chosen=chosen)


def test_steps_of_best_that_do_not_help_leave_the_result_of_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    balanced = made("digits_mobile", 64, effort="balanced")
    real = plan_candidates.reconstruct

    def rounds_badly(*args: Any, rounding: bool, **rest: Any) -> dict[str, Repair]:
        return harmful(*args) if rounding else real(*args, rounding=rounding, **rest)

    monkeypatch.setattr(plan_candidates, "reconstruct", rounds_badly)
    monkeypatch.setattr(further_steps, "refine_ranges", spoiled_ranges)
    best = made("digits_mobile", 64, effort="best")
    assert weights_of(best) == weights_of(balanced)
    (note,) = [n for n in best.report.notes if "dB before" in n]
    assert note.startswith("biases were corrected: ")
    assert "weights were not rounded again: " in note
    assert not [n for n in best.report.notes if "chosen by the error" in n]


def test_a_step_must_gain_on_a_typical_sample_and_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged by the mean of both gains, and neither may lose half a dB."""
    before = CandidateError(tuple({"y": SqnrSum(10.0, n)} for n in (0.01, 0.01, 0.02)))
    cases = {
        True: [(0.005, 0.005, 0.0205), (0.009, 0.009, 0.018)],
        False: [(0.001, 0.001, 0.2), (0.00999, 0.00999, 0.02), (0.02, 0.02, 0.01)],
    }
    monkeypatch.setattr(further_steps, "with_repairs", lambda model, found: model)
    for better, rows in cases.items():
        for row in rows:
            after = CandidateError(tuple({"y": SqnrSum(10.0, n)} for n in row))

            class Measured:
                def measure(self, *_: Any, after: CandidateError = after) -> list[CandidateError]:
                    return [before, after]

            steps: Any = further_steps.FurtherSteps(Measured(), [], [0, 1, 2], None, FAST)  # type: ignore[arg-type]
            found, said = steps._compared((None, {}), (None, {}))
            assert found is better, row
            assert said.endswith("on 3 samples kept to decide")


def test_a_repair_that_harms_the_worst_samples_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not raise the error over all samples together, which the worst of them make up."""
    noise = [[0.01, 0.01, 1.0], [0.001, 0.001, 2.0]]  # better on two samples, worse in sum
    one, other = (CandidateError(tuple({"y": SqnrSum(10.0, n)} for n in values)) for values in noise)
    assert other.typical_db > one.typical_db
    before, after = plan_candidates._together(one, other)
    assert before == pytest.approx(10 * np.log10(30 / 1.02))
    assert after == pytest.approx(10 * np.log10(30 / 2.002))
    shorter = CandidateError(other.samples[:2])
    assert plan_candidates._together(one, shorter) == pytest.approx((10 * np.log10(1000), 10 * np.log10(10000)))
    monkeypatch.setattr(plan_candidates, "_together", lambda *_: (2.0, 1.0))
    result = made("digits_mobile", 64)
    (note,) = [n for n in result.report.notes if "dB before" in n]
    assert note.startswith("no repair was kept: 2.0 dB before, 1.0 dB after, over ")


def test_of_two_repairs_the_better_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rounding does harm it is not kept, and what was measured is the other repair; and the other way round."""
    real = plan_candidates.reconstruct
    kept = {}
    for bad in (False, True):

        def one_bad(*args: Any, rounding: bool, bad: bool = bad, **rest: Any) -> dict[str, Repair]:
            return harmful(*args) if rounding == bad else real(*args, rounding=rounding, **rest)

        monkeypatch.setattr(plan_candidates, "reconstruct", one_bad)
        monkeypatch.setattr(layer_reconstruction, "_WEIGHT_ROWS", 512)
        notes = made("digits_mobile", 64, effort="best").report.notes
        kept[bad] = next(n for n in notes if "dB before" in n)
    assert kept[True].startswith(("biases were corrected", "no repair was kept: "))
    before, after = (float(figure) for figure in re.findall(r"([\d.]+) dB", kept[True])[:2])
    assert abs(after - before) < 3.0, "the harmful one is 10 dB worse"
    assert kept[False].startswith("weights were rounded again, layer by layer: ")


def test_a_model_over_the_budget_is_not_refined_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_search, "_WEIGHTS", 1 << 40)
    monkeypatch.setattr(further_steps, "refine_ranges", None)  # would fail if it was called
    monkeypatch.setattr(layer_reconstruction, "_WEIGHT_ROWS", 512)
    notes = made("digits_mobile", 16, effort="best").report.notes
    (note,) = [n for n in notes if "ranges were not refined" in n]
    assert "exceed" in note


def test_equalized_channels_that_make_it_worse_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: Any, *_: Any) -> Any:
        copy = onnxshot.graph.load.load_model(model.to_proto())
        bias = next(n for n in copy.graph.nodes if n.op == "Conv").inputs[2]
        bias.values = bias.values + 5
        return copy, {}

    monkeypatch.setattr(plan_candidates, "reconstruct", lambda *_, **__: {})
    monkeypatch.setattr(plan_candidates, "equalized", lambda *_: None)
    plain = made("digits_mobile", 16, effort="balanced")
    monkeypatch.setattr(plan_candidates, "equalized", spoiled)
    tried = made("digits_mobile", 16, effort="balanced")
    assert "channels were equalized" not in tried.report.notes
    assert weights_of(tried) == weights_of(plain)


def test_samples_that_judge_a_repair_are_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[Any] = []
    judged: list[Any] = []
    real, race = plan_candidates.reconstruct, Judge.race

    def learns(reference: Any, candidate: Any, layers: Any, feeds: Any, **rest: Any) -> dict[str, Repair]:
        learned.extend(feeds)
        return real(reference, candidate, layers, feeds, **rest)

    def judges(judge: Judge, candidates: Any, batches: Any, *rest: Any) -> Any:
        drawn = list(batches)
        judged.extend(judge.samples[number].feed for batch in drawn for number in batch)
        return race(judge, candidates, drawn, *rest)

    monkeypatch.setattr(plan_candidates, "reconstruct", learns)
    monkeypatch.setattr(Judge, "race", judges)
    monkeypatch.setattr(plan_candidates, "equalized", lambda *_: None)
    made("digits_resnet", 16, effort="balanced", method="minmax")
    first, second = ({feed["image"].tobytes() for feed in given} for given in (learned, judged))
    assert first
    assert second
    assert not first & second


def test_an_unknown_effort_is_refused() -> None:
    case = HANDMADE["resnet_block"]()
    with pytest.raises(UsageError, match="effort is 'heroic'"):
        quantize(case.model, case.feeds, effort="heroic", settings=FAST)


def test_with_statistics_alone_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = HANDMADE["mbconv_block"]()
    onnx.save(case.model, str(tmp_path / "m.onnx"))
    onnxshot.calibrate(tmp_path / "m.onnx", case.feeds, output=tmp_path / "s.npz", settings=FAST)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was run")

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", never)
        results = [
            quantize(tmp_path / "m.onnx", stats=tmp_path / "s.npz", effort=kind, settings=FAST) for kind in EFFORTS
        ]
    assert all(result.report.samples["inferences"] == 0 for result in results)
    assert len({weights_of(result) for result in results}) == 1, "without samples, more effort changes nothing"
    proto = results[-1].model.to_proto()
    assert '"effort": "best"' in next(p.value for p in proto.metadata_props if p.key == RECIPE_KEY)


def test_fast_neither_equalizes_nor_repairs_where_it_proves_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nobody asked for it")

    for name in ("equalized", "repaired", "reconstruct"):
        monkeypatch.setattr(plan_candidates, name, never)
    case = HANDMADE["resnet_block"]()
    assert quantize(case.model, case.feeds, effort="fast", settings=PROVEN).report.sqnr_db is not None


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_modes_without_ranges_have_nothing_to_repair(mode: str) -> None:
    case = HANDMADE["resnet_block"]()
    result = quantize(case.model, mode=mode, effort="best", settings=FAST)
    assert not [n for n in result.report.notes if "dB before" in n or "equalized" in n]


def test_few_samples_leave_none_to_judge_by_and_nothing_is_repaired() -> None:
    case = HANDMADE["resnet_block"]()
    result = quantize(case.model, case.feeds[:3], effort="best", settings=FAST)
    assert not [n for n in result.report.notes if "dB before" in n]
