"""One verdict for the terminal, the page, the JSON and the next step: it sees all that speaks against a result."""

import ast
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from batch_examples import manifest, two_models
from fixture_runs import PROVEN, QUICK, clock, command
from handmade.core import feeds, model, weight
from hypothesis import given
from hypothesis import strategies as st
from sample_reports import KINDS, report_of

import onnxshot
from onnxshot import Goal, errors
from onnxshot.api import tune as tuned_module
from onnxshot.batch.run import run
from onnxshot.batch.store import ROW
from onnxshot.cli.app import app
from onnxshot.report import findings
from onnxshot.report.finding import Finding
from onnxshot.report.gain_findings import float_in_effect
from onnxshot.report.html.page import page
from onnxshot.report.report import Report
from onnxshot.report.verdict import WORDS, judge
from onnxshot.wording import with_samples

pytestmark = pytest.mark.usefixtures("worded_as_options")

SOUND: dict[str, Any] = {
    **Report("net.onnx", {"mode": "static", "precision": "int8", "target": "ort"}, input_bytes=4_000_000).to_dict(),
    "outputs": [{
        "path": "q.onnx", "target": "ort", "format": "onnx", "bytes": 1_000_000, "sqnr_db": None, "agreement": None,
        "int8_macs_share": None, "latency": {},
    }],
    "sqnr_db": 31.0, "agreement": 0.99, "output_sqnr_db": {"y": 31.0}, "int8_macs_share": 0.97,
    "samples": {"calibration": 12, "held_out": 4, "judged": 4, "source": "d", "random": False},
    "latency": {"float_ms": 2.0, "ms": 1.0, "speedup": 2.0},
    "graph": [{"node": "c", "op": "Conv", "how": "static", "tensor": "y", "macs_share": 1.0, "sparsity": 0.0}],
}  # fmt: skip

SPREAD = {"least": 3.6, "tenth": 4.0, "median": 4.9, "samples": 8, "held": 0.03}

PART = {"axis": 1, "quiet": 6, "channels": 10, "quiet_db": 8.1, "loud_db": 33.0}

TOKENS: dict[str, Any] = {
    "output": "logits", "ids": "input_ids", "positions": 64, "scored": 60, "informative": True, "caches": ["present.0"],
    "float_perplexity": 20.0, "perplexity": 20.4, "perplexity_rise": 0.02, "kl_nats": 0.01, "agreement": 0.85,
}  # fmt: skip
RISEN = {**TOKENS, "perplexity": 25.0, "perplexity_rise": 0.25}
STEPS = {"windows": 4, "prompt": 32, "steps": 64, "positions": 64, "scored": 60, "perplexity": 26.0,
         "perplexity_at_once": 20.0}

AGAINST: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "SQNR": ({"sqnr_db": 14.9}, "bad", "SQNR is 14.9 dB, below 15 dB: the error is 18 %", "--min-sqnr 15"),
    "one output": ({"output_sqnr_db": {"y": 40.0, "z": 3.0}}, "bad", "output 'z' is 3.0 dB", "--min-sqnr 15"),
    "not a number": ({"sqnr_db": float("nan")}, "bad", "not a number", "--min-sqnr 15"),
    "no gain": ({"int8_macs_share": 0.03, "input_bytes": 1_010_000, "latency": {"speedup": 1.01, "sure": True}},
                "caution", "nothing to deploy it for: 3 % of the work runs in int8", "keep the input"),
    "own samples": ({"samples": {**SOUND["samples"], "held_out": 0, "judged": 1}}, "caution",
                    "judged on the one sample that it was calibrated on", "more samples"),
    "agreement": ({"agreement": 0.94}, "bad", "agreement is 94.0 %, below 95 %", "--min-sqnr 37"),
    "order": ({"judged": {"ordered": {"top": 0.4}}}, "bad", "the same picks of output 'top' is 40.0 %", "--min-sqnr"),
    "perplexity": ({"tokens": RISEN}, "bad", "rises by 25.0 %, more than 10 %: 20 -> 25 (+25.0 %)",
                   "--max-perplexity-rise 10%"),
    "own cache": ({"tokens": {**TOKENS, "steps": STEPS}}, "caution", "its own cache, the perplexity is 30.0 % higher",
                  "step by step"),
    "no text": ({"tokens": {**TOKENS, "informative": False}}, "caution", "no better than chance", "give text"),
    "beside the logits": ({"tokens": TOKENS, "output_sqnr_db": {"logits": 9.0, "state": 3.0}}, "bad",
                          "SQNR is 3.0 dB", "--max-perplexity-rise"),
    "median": ({"sample_db": {"y": SPREAD}}, "bad", "sample is 4.9 dB, below 15 dB; the 31.0 dB", "--min-sqnr 37"),
    "quiet median": ({"sample_db": {"y": {**SPREAD, "held": 0.001}}}, "caution", "median sample", "--min-sqnr"),
    "parts": ({"output_parts": {"y": PART}}, "caution", "the 6 quiet of 10 channels of output 'y': SQNR is 8.1 dB",
              "--min-sqnr 37"),
    "integers": ({"output_equal": {"ids": 0.5}}, "bad", "equal values of output 'ids' is 50.0 %", "--min-sqnr"),
    "NaN": ({"not_finite": ["output 'y' on sample 'a': NaN"]}, "bad", "output 'y' on sample 'a': NaN", "do not deploy"),
    "contract": ({"contract": "output 'y' is missing"}, "bad", "output 'y' is missing", "same inputs and outputs"),
    "goal": ({"goal": {"missed": ["max_size is 1 MB"]}}, "bad", "missed: max_size is 1 MB", "best that was found"),
    "goals": ({"goal": {"missed": ["max_size is 1"]}, "pareto": [{}, {}]}, "bad", "missed: max_size", "--report FILE"),
    "random": ({"samples": {"calibration": 4, "judged": 4, "random": True}}, "caution", "a guess", "--calib DATA"),
    "random proof": ({"sqnr_db": None, "on_random_data": {"sqnr_db": 9.0}}, "caution", "random data", "--calib DATA"),
    "no proof": ({"sqnr_db": None, "samples": {}}, "caution", "not compared", "--calib DATA"),
    "proof left out": ({"sqnr_db": None, "samples": {"source": "t.txt", "random": False}}, "caution", "not compared",
                       "leave out --no-verify"),
    "growth": ({"input_bytes": 900_000}, "caution", "larger than the input: 0.90 MB -> 1.00 MB", "--max-size 0.9"),
    "growth of integers": (
        {"input_bytes": 900_000, "notes": ["3 Q/DQ pairs and integer operators of the input were taken out"]},
        "caution", "larger than the input", "keep the input"),
    "growth of a completed one": (
        {"input_bytes": 900_000, "recipe": {**SOUND["recipe"], "complete": True}}, "caution", "larger than the input",
        "keep the input"),
    "no tensors": (
        {"sqnr_db": None, "samples": {}, "notes": ["input 's' is a seq(float), which cannot be fed from arrays"]},
        "caution", "not compared", "inputs of your own"),
    "slow": ({"latency": {"float_ms": 2.0, "ms": 4.0, "speedup": 0.5}}, "caution", "0.50x as fast", "keep the input"),
    "float work": ({"int8_macs_share": 0.12}, "caution", "12 % of the work runs in int8", "onnxshot inspect"),
    "nothing": ({"graph": [{**SOUND["graph"][0], "how": "float"}]}, "bad", "nothing was quantized", "inspect"),
    "unplanned": ({"int8_unplanned": ["head"]}, "caution", "leaves in float: 'head'", "as it runs"),
    "optimizer": ({"optimizer_changes_results": True, "sqnr_optimized_db": 9.0, "sqnr_unoptimized_db": 30.0}, "caution",
                  "9.0 dB with them, 30.0 dB without", "--target ort-avx2"),
    "another runtime": ({"outputs": [{**SOUND["outputs"][0], "format": "openvino", "sqnr_db": 2.0}]}, "bad",
                        "the openvino file: SQNR is 2.0 dB", "--min-sqnr"),
    "refused": ({"runtimes": [{"runtime": "openvino", "refused": "no such op"}]}, "caution", "no such op", "target"),
}  # fmt: skip


def test_a_language_model_is_judged_by_its_perplexity() -> None:
    low = {"sqnr_db": 9.0, "agreement": 0.85, "output_sqnr_db": {"logits": 9.0, "present.0": 8.0}}
    low |= {"sample_db": {"logits": SPREAD}, "optimizer_changes_results": True}
    low |= {"sqnr_optimized_db": 9.0, "sqnr_unoptimized_db": 30.0}
    assert judge({**SOUND, **low}).level == "bad"
    assert judge({**SOUND, **low, "tokens": TOKENS}).level == "ready"
    assert judge({**SOUND, **low, "tokens": {**TOKENS, "informative": False}}).level == "bad"


def test_random_tokens_show_nothing_but_that_they_are_random() -> None:
    known = {"sqnr_db": 5.6, "agreement": 0.34, "sqnr_optimized_db": 5.0, "sqnr_unoptimized_db": 30.0}
    values = {**SOUND, "sqnr_db": None, "agreement": None, "output_sqnr_db": {}, "optimizer_changes_results": True}
    values["on_random_data"] = {**known, "token_inputs": ["input_ids"]}
    found = judge(values)
    assert found.level == "caution" and len(found.reasons) == 1
    assert "random data only" in found.reasons[0] and "--exclude" not in found.next


def test_what_runs_do_not_tell_does_not_count_as_slower() -> None:
    slow = {"float_ms": 2.0, "ms": 2.5, "speedup": 0.8, "sure": False}
    assert judge({**SOUND, "latency": slow}).level == "ready"
    assert judge({**SOUND, "latency": {**slow, "sure": True}}).level == "caution"


def test_a_sound_result_is_ready() -> None:
    found = judge(SOUND)
    assert (found.level, found.reasons) == ("ready", ())
    assert found.next.startswith("ready: deploy it")


@pytest.mark.parametrize("name", AGAINST)
def test_each_fact_that_speaks_against_a_result_is_said(name: str) -> None:
    changed, level, reason, hint = AGAINST[name]
    found = judge({**SOUND, **changed})
    assert found.level == level
    assert any(reason in text for text in found.reasons), found.reasons
    assert hint in found.next


@given(st.sets(st.sampled_from(sorted(AGAINST)), min_size=1))
def test_nothing_is_ready_beside_any_of_them(names: set[str]) -> None:
    values = dict(SOUND)
    for name in sorted(names):
        values |= AGAINST[name][0]
    found = judge(values)
    assert found.reasons
    assert "ready" not in (found.level, found.next.partition(":")[0])
    assert "--exclude" not in found.next, "what was not measured is not advised"


def test_what_is_slower_and_larger_is_worth_nothing() -> None:
    slow = {"float_ms": 2.0, "ms": 4.0, "speedup": 0.5}
    assert judge({**SOUND, "input_bytes": 900_000, "latency": slow}).level == "bad"


def test_what_was_measured_to_help_is_advised_and_what_was_not_is_not() -> None:
    rows = [
        {"options": "--exclude a", "sqnr_db": 12.5, "agreement": None, "bytes": 1_200_000, "speedup": None},
        {"options": "--exclude b", "sqnr_db": 22.0, "agreement": None, "bytes": 1_300_000, "speedup": None},
        {"options": "--exclude c", "sqnr_db": 10.2, "agreement": None, "bytes": 1_100_000, "speedup": None},
    ]
    found = judge({**SOUND, "sqnr_db": 10.0, "tried": rows})
    assert found.next == "--exclude b: SQNR 22.0 dB in place of 10.0 dB, measured here (1.30 MB)"
    assert "--exclude" not in judge({**SOUND, "sqnr_db": 10.0, "tried": rows[2:]}).next


def test_what_is_better_and_not_enough_is_not_advised_alone() -> None:
    row = {"options": "--exclude a", "sqnr_db": 12.5, "agreement": None, "bytes": 1_200_000, "speedup": None}
    found = judge({**SOUND, "sqnr_db": 10.0, "tried": [row]})
    assert found.next.startswith("--exclude a is not enough (SQNR 12.5 dB in place of 10.0 dB, still below); ")
    assert found.next.endswith("the same run with --min-sqnr 15 searches for what to leave in float, by measuring")


def test_what_is_tried_is_judged_by_its_own_verdict() -> None:
    known = {"agreement": 0.99, "bytes": 900_000, "speedup": 1.5, "reasons": []}
    loud = {**known, "options": "--exclude a", "sqnr_db": 45.0, "output_sqnr_db": {"y": 45.0, "z": 3.1}, "level": "bad"}
    right = {**known, "options": "--exclude z", "sqnr_db": 40.2, "output_sqnr_db": {"y": 40.2, "z": 24.0},
             "level": "ready"}  # fmt: skip
    values = {**SOUND, "sqnr_db": 40.0, "output_sqnr_db": {"y": 40.0, "z": 3.0}, "tried": [loud, right]}
    assert judge(values).next.startswith("--exclude z: SQNR of output 'z' 24.0 dB in place of 3.0 dB, measured here")
    assert "--exclude" not in judge({**values, "tried": [loud]}).next


def test_advice_asks_for_nothing_that_was_given() -> None:
    pruned = {**SOUND, "sqnr_db": 9.0, "layers": [], "recipe": {"stages": [{"scope": "auto"}]}}
    assert judge(pruned).next == "a lower --sparsity"
    without = {**pruned, "samples": {}, "recipe": {"stages": [{"scope": "layer"}]}}
    assert judge(without).next == "a lower --sparsity, or --scope auto with --calib DATA"
    unproven = {key: value for key, value in SOUND["samples"].items() if key != "judged"}
    assert "--no-verify" in judge({**SOUND, "sqnr_db": None, "samples": unproven}).next
    compared = {**SOUND, "recipe": {"reference": "a.onnx"}, "not_finite": ["output 'y' on sample 'a': NaN"]}
    assert "onnxshot compare" not in judge(compared).next
    assert "onnxshot compare" not in judge({**compared, "not_finite": []}).next


def test_outputs_that_are_infinite_have_no_figure() -> None:
    found = judge({**SOUND, "sqnr_db": -200.0, "not_finite": ["output 'y' on sample 'a': 1 of 4 values are infinite"]})
    told = " ".join(found.reasons)
    assert "SQNR is not a finite number" in told
    assert "-200" not in told
    assert "times the size" not in told


def test_the_stage_that_costs_most_is_named() -> None:
    def row(name: str, db: float | None) -> dict[str, Any]:
        return {"name": name, "sqnr_db": db, "agreement": None, "report": None}

    stages = [row("input", None), row("pruned", 12.0), row("quantized", 11.5)]
    found = judge({**SOUND, "sqnr_db": 11.5, "stages": stages})
    assert found.next == "stage 'pruned' costs the most accuracy: ask for less in it"
    assert any("after stage 'pruned', SQNR is already 12.0 dB" in text for text in found.reasons)


# ---------------------------------------------------------------------- where people and scripts read it


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("targets", "sensitivity")])
def test_json_and_page_say_the_same(kind: str) -> None:
    values = report_of(kind)
    fresh = judge({name: value for name, value in values.items() if name != "verdict"})
    assert values["verdict"] == fresh.to_dict()
    text = page(values)
    assert f"Next: </b>{fresh.next.removeprefix('ready: ')}" in text.replace("&#x27;", "'")


def spoilt(folder: Path) -> Path:
    """A model whose channels differ by 3000 times in one tensor, so that one scale erases all but one; with data."""
    text = """g (float[n, 8, 12, 12] x) => (float[n, 8, 12, 12] y) {
        a = Conv(x, w1) s = Relu(a) b = Conv(s, w2) c = Relu(b) y = Conv(c, w3)
    }"""
    w1, w2 = np.abs(weight(8, 8, 1, 1)), np.abs(weight(8, 8, 1, 1, seed=1))
    w1[0] *= 3000
    w2[:, 0] /= 3e9
    onnx.save(model(text, {"w1": w1, "w2": w2, "w3": weight(8, 8, 1, 1, seed=2)}), str(folder / "m.onnx"))
    np.savez(folder / "x.npz", x=np.concatenate([f["x"] for f in feeds(x=(1, 8, 12, 12))]))
    return folder / "m.onnx"


def test_a_terminal_is_red_says_so_in_words_and_agrees_with_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock(monkeypatch, 2.0)
    path, report = spoilt(tmp_path), tmp_path / "r.json"
    asked = ("quantize", path, "--calib", tmp_path / "x.npz", "-o", tmp_path / "q.onnx", "--effort", "fast")
    assert command(*asked, "--report", report) == 0
    lines = capsys.readouterr().err.splitlines()
    found = json.loads(report.read_text())["verdict"]
    assert found["level"] == "bad"
    red = "\x1b[1;31m"
    assert any(f"{red}SQNR" in line for line in lines), "the figure itself is red"
    assert any(line.startswith(f"{red}{WORDS['bad']}: {found['reasons'][0]}") for line in lines)
    whole = " ".join(re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in lines)  # long lines are wrapped at words
    for reason in found["reasons"][1:]:
        assert f" also: {reason}" in whole, reason
        assert any(line.startswith(f"{red}also: {reason[:30]}") for line in lines), reason
    assert whole.endswith(f"next: {found['next']}")
    assert "--min-sqnr 15" in found["next"] or "measured here" in found["next"]


# ---------------------------------------------------------------------- goals


def test_a_goal_that_only_the_float_model_reaches_is_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoilt(tmp_path)
    out, report = tmp_path / "q.onnx", tmp_path / "r.json"
    asked = ("quantize", path, "--calib", tmp_path / "x.npz", "-o", out, "--min-sqnr", "100", "--threads", "1")
    assert command(*asked, "--no-cache", "--report", report) == 3
    assert "only the float model, with nothing quantized, reaches the goal" in capsys.readouterr().err
    values = json.loads(report.read_text())
    assert values["goal"]["reached"] is False
    assert values["verdict"]["level"] == "bad"
    kinds = {node.op_type for node in onnx.load(str(out)).graph.node}
    assert kinds & {"QuantizeLinear", "DequantizeLinear"}, "the best that quantizes something is written"


def test_a_goal_met_by_a_model_that_nothing_can_be_quantized_in_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model("g (float[n, 4] x) => (float[n, 4] y) { a = Abs(x) y = Sqrt(a) }"), str(path))
    result = onnxshot.tune(path, feeds(x=(1, 4)), Goal(min_sqnr=20), settings=QUICK)
    assert result.report.goal["missed"] == ["nothing is quantized: that is the float model"]


def test_a_least_sqnr_on_random_data_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="random"):
        onnxshot.tune(spoilt(tmp_path), "random", Goal(min_sqnr=20), settings=QUICK)


@pytest.mark.parametrize(
    "gain",
    [{"int8_macs_share": 0.3}, {"input_bytes": 1_100_000}, {"latency": {"speedup": 1.1}}, {"latency": {}}],
)
def test_what_brings_something_or_was_not_timed_is_not_the_float_model(gain: dict[str, Any]) -> None:
    nothing = {"int8_macs_share": 0.0, "input_bytes": 1_000_000, "latency": {"speedup": 1.0, "sure": True}}
    assert float_in_effect({**SOUND, **nothing})
    assert not float_in_effect({**SOUND, **nothing, **gain})


def test_a_goal_met_by_what_is_the_float_model_in_effect_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned_module, "float_in_effect", lambda values: "0 % of the work" if values["latency"] else "")
    net = model("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }", {"w": weight(64, 64)})
    result = onnxshot.tune(net, feeds(x=(16, 64)), Goal(min_sqnr=10), settings=PROVEN)
    assert result.report.goal["missed"] == ["only the float model reaches it: 0 % of the work"]
    assert result.report.goal["reached"] is False


def test_a_single_sample_is_not_held_out() -> None:
    net = model("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }", {"w": weight(64, 64)})
    found = [onnxshot.quantize(net, feeds(count, x=(4, 64)), settings=PROVEN).report for count in (1, 2)]
    assert [report.samples["held_out"] for report in found] == [0, 1]
    told = ["calibrated on" in " ".join(report.verdict.reasons) for report in found]
    assert told == [True, False]


# ---------------------------------------------------------------------- no data


@pytest.mark.parametrize("options", [("--mode", "dynamic"), ("--mode", "weights"), ("--calib", "random")])
def test_without_data_no_sqnr_is_a_headline(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 2.0)
    text = "g (float[n, 256] x) => (float[n, 128] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    w = weight(256, 256, channel_axis=1)
    onnx.save(model(text, {"w": w, "v": weight(256, 128, channel_axis=1)}), str(tmp_path / "m.onnx"))
    report = tmp_path / "r.json"
    asked = ("quantize", tmp_path / "m.onnx", *options, "-o", tmp_path / "q.onnx", "--threads", "1", "--no-cache")
    assert command(*asked, "--report", report) == 0
    said = capsys.readouterr().err
    values = json.loads(report.read_text())
    assert (values["sqnr_db"], values["agreement"], values["output_sqnr_db"]) == (None, None, {})
    assert values["on_random_data"]["sqnr_db"] > 15
    assert values["verdict"]["level"] == "caution"
    assert "random data" in " ".join(values["verdict"]["reasons"])
    assert "SQNR" not in said
    assert "next: give --calib DATA" in said
    shown = page(values)
    tile = re.search(r"<dt>SQNR.*?</dt><dd[^>]*>(.*?)</dd>", shown)
    assert tile is not None
    assert tile[1].endswith("dB on random data")
    assert "same answer as float" not in shown


def test_a_threshold_is_not_met_by_random_data(tmp_path: Path) -> None:
    path = manifest(two_models(tmp_path), targets=["ort"], thresholds={"min_sqnr": 5},
                    defaults={"calib": "random", "emit": "onnx", "effort": "fast"})  # fmt: skip
    found = run(path, use_cache=False)
    assert found.exit_code == 3
    for row in found.rows:
        assert row["missed"] == ["min_sqnr is 5 dB, found nothing"]
        assert any("random data" in reason for reason in row["report_verdict"]["reasons"])


def test_thresholds_are_not_met_by_quantizing_nothing(tmp_path: Path) -> None:
    onnx.save(model("g (float[n, 4] x) => (float[n, 4] y) { a = Abs(x) y = Sqrt(a) }"), str(tmp_path / "one.onnx"))
    np.savez(tmp_path / "calib.npz", x=np.abs(np.concatenate([f["x"] for f in feeds(x=(1, 4))])))
    path = manifest(tmp_path, models=["one.onnx"], targets=["ort"], thresholds={"min_sqnr": 5})
    found = run(path, use_cache=False)
    assert found.exit_code == 3
    assert found.rows[0]["missed"] == ["nothing was quantized"]


def test_a_batch_says_of_each_cell_what_its_report_says(tmp_path: Path) -> None:
    found = run(manifest(two_models(tmp_path), targets=["ort"]), use_cache=False)
    for row in found.rows:
        folder = tmp_path / "out" / row["name"] / row["target"]
        assert row["report_verdict"] == json.loads((folder / "report.json").read_text())["verdict"]
        assert json.loads((folder / ROW).read_text())["report_verdict"] == row["report_verdict"]
    ready = sum(row["report_verdict"]["level"] == "ready" for row in found.rows)
    assert found.to_text().startswith(f"{ready} of 2 cells are fine")


def test_compare_says_how_many_samples_and_calls_none_held_out(tmp_path: Path) -> None:
    path = spoilt(tmp_path)
    onnxshot.quantize(path, tmp_path / "x.npz", output=tmp_path / "q.onnx", effort="fast", settings=PROVEN)
    found = onnxshot.compare(path, tmp_path / "q.onnx", tmp_path / "x.npz", settings=PROVEN)
    assert found.samples["judged"] == 8
    assert "held_out" not in found.samples
    assert found.verdict.level == "bad"
    assert "--exclude" not in found.next_step()


@pytest.mark.parametrize(
    ("agreement", "cases", "level"),
    [
        (0.75, 4, "caution"), (18 / 19, 19, "caution"), (0.9, 20, "caution"), (0.75, 20, "bad"), (0.5, 4, "bad"),
        (0.95, 100, "ready"), (28 / 32, 32, "caution"), (27 / 32, 32, "bad"), (0.93, 1000, "bad"), (0.94, 0, "bad"),
    ],
)
def test_few_cases_that_differ_are_no_rate(agreement: float, cases: int, level: str) -> None:
    values = {**SOUND, "agreement": agreement, "samples": {**SOUND["samples"], **({"cases": cases} if cases else {})}}
    assert judge(values).level == level


def test_accuracy_that_is_accepted_is_told_and_not_bad() -> None:
    values = {**SOUND, "sqnr_db": 9.0, "output_sqnr_db": {"y": 9.0}}
    assert judge(values).level == "bad"
    accepted = judge({**values, "accepted": True})
    assert (accepted.level, accepted.reasons) == ("caution", judge(values).reasons)
    broken = {**values, "accepted": True, "not_finite": ["output 'y' is NaN"]}
    assert judge(broken).level == "bad", "only accuracy is accepted"

ALSO: tuple[dict[str, Any], ...] = (  # what no case above says
    {"output_sqnr_db": dict.fromkeys("abcde", 3.0)},
    {"sqnr_db": float("-inf")},
    {"optimizer_changes_results": True, "sqnr_optimized_db": 26.3, "sqnr_unoptimized_db": 26.2},
    {"agreement": 0.9, "samples": {**SOUND["samples"], "cases": 20}},
    {"samples": {**SOUND["samples"], "held_out": 0, "judged": 3}},
    {"samples": {**SOUND["samples"], "held_out": 1, "judged": 1}},
    {"samples": {**SOUND["samples"], "held_out": 2, "judged": 2}},
    {"samples": {**SOUND["samples"], "judged": 16, "distinct": 1}},
    {"samples": {**SOUND["samples"], "copies": 3}},
    {"samples": {**SOUND["samples"], "blank": 4}},
    {"samples": {**SOUND["samples"], "judged": 16, "distinct": 2}},
    {"outputs": [{**SOUND["outputs"][0], "format": "openvino", "target": "openvino", "agreement": 0.2,
                  "latency": {"speedup": 0.5}, "int8_macs_share": 0.1}]},
    {"recipe": {**SOUND["recipe"], "target": "openvino"},
     "runtimes": [{"runtime": "openvino", "sqnr_db": 2.0, "latency": {"speedup": 0.5}}]},
    {"recipe": {**SOUND["recipe"], "target": "openvino"}},
    {"stages": [
        {"name": "pruned", "sqnr_db": 3.0, "agreement": None, "report": {"reached": False}},
        {"name": "quantized", "sqnr_db": 30.0, "agreement": None,
         "report": {**SOUND, "graph": [{**SOUND["graph"][0], "how": "float"}]}},
    ]},
)  # fmt: skip
SHRUNK: dict[str, Any] = {"reached": False, "drop": None}
CUT_TOO_FAR: dict[str, Any] = {"drop": None, "sqnr_db": 3.0, "agreement": 0.6, "cases": 32}
DOCS = Path(__file__).resolve().parents[2] / "docs"


def said(reason: str) -> str:
    """A reason with N for each number and NAME for each name, as docs/ has it."""
    return re.sub(r"[+-]?\d+(\.\d+)?", "N", re.sub(r"'[^']*'", "NAME", reason))


FEW = {**SOUND, "agreement": 0.9, "samples": {**SOUND["samples"], "cases": 20}}


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (("net.onnx", "q.onnx"), ["net.onnx", "q.onnx"]),
        (("a RESULT.onnx", r"b\1.onnx"), ["a RESULT.onnx", r"b\1.onnx"]),
        (("(ModelProto)", "q[1].onnx"), ["INPUT", "RESULT"]),
    ],
)
def test_the_next_step_is_a_command_that_can_be_pasted(paths: tuple[str, str], named: list[str]) -> None:
    values = {**FEW, "input": paths[0], "outputs": [{**SOUND["outputs"][0], "path": paths[1]}]}
    with with_samples({"calib": "my data", "preset": "p.yaml", "length": None}):
        words = shlex.split(judge(values).next.partition("judge by all samples: ")[2])
    assert words == ["onnxshot", "compare", *named, "--calib", "my data", "--preset", "p.yaml"]


def test_the_commands_of_all_next_steps_are_read_as_they_stand() -> None:
    """What comes before a command ends with a colon, and nothing comes behind it."""
    commands, seen = typer.main.get_command(app).commands, set[str]()  # type: ignore[attr-defined]
    for changed in (*(row[0] for row in AGAINST.values()), *ALSO):
        words, _, command = judge({**SOUND, **changed}).next.partition("onnxshot ")
        if not words or words.endswith(": "):
            verb, *rest = shlex.split(command)
            commands[verb].make_context(verb, rest)  # raises where it cannot be read
            seen.add(verb)
    assert {"compare", "inspect"} <= seen


def test_what_is_not_enough_is_said_with_the_figure_that_is_below() -> None:
    row = {"options": "--mode weights", "sqnr_db": 21.0, "level": "bad", "bytes": 1, "reasons": ["agreement is 60 %"]}
    said = judge({**SOUND, "sqnr_db": 10.0, "tried": [row]}).next
    assert said.startswith("--mode weights is not enough (SQNR 21.0 dB in place of 10.0 dB, but agreement is 60 %); ")
    low = judge({**SOUND, "sqnr_db": 10.0, "tried": [{**row, "sqnr_db": 12.0}]}).next
    assert low.startswith("--mode weights is not enough (SQNR 12.0 dB in place of 10.0 dB, still below); the same ")


def test_samples_that_were_left_out_are_advised_before_new_ones() -> None:
    few = {**SOUND, "samples": {**SOUND["samples"], "held_out": 2, "judged": 2}}
    assert judge(few).next.startswith("give more samples with --calib DATA")
    part = {**few, "notes": ["8 of 64 samples, evenly spaced"]}
    assert judge(part).next.startswith("take more of the samples: leave out --samples")
    compared = {**part, "outputs": [], "recipe": {"reference": "net.onnx"}}
    assert judge(compared).next == "take more of the samples: leave out --samples"


def test_a_comparison_does_not_advise_to_compare() -> None:
    values = {**FEW, "input": "q.onnx", "outputs": [], "recipe": {"reference": "net.onnx"}}
    assert judge(values).next == "give more samples with --calib DATA"
    bad = judge({**values, "sqnr_db": 3.0, "output_sqnr_db": {"y": 3.0}})
    assert ": onnxshot quantize net.onnx " in bad.next, "the reference, not the candidate"


def test_docs_explain_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that makes a finding is reached, and what it says stands under a heading of a page."""
    reached = set[tuple[str, int]]()

    def noted(*given: str) -> Finding:
        frame = sys._getframe(1)
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return Finding(*given)

    modules = {rule.__module__ for rule in (*findings.RULES, *findings.SHRINK_RULES)}
    places = {sys.modules[name].__file__ or "" for name in modules}
    for name in modules:
        monkeypatch.setattr(sys.modules[name], "Finding", noted)
    values = [{**SOUND, **changed} for changed in (*(row[0] for row in AGAINST.values()), *ALSO)]
    reasons = [reason for each in (*values, SHRUNK, CUT_TOO_FAR) for reason in judge(each).reasons]
    calls = {
        (place, node.lineno)
        for place in places
        for node in ast.walk(ast.parse(Path(place).read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding"
    }
    assert calls == reached
    assert len(places) > 1
    text = "".join((DOCS / name).read_text("utf-8") for name in ("why-slower.md", "why-worse.md"))
    told = [said(found) for found in re.findall(r"^> `(.*)`$", text, re.MULTILINE)]
    starts = tuple(known[:-3] for known in told if known.endswith("..."))
    missing = [reason for reason in map(said, reasons) if reason not in told and not reason.startswith(starts)]
    assert not missing, missing


def test_a_command_that_searches_keeps_what_was_asked_for() -> None:
    risen = {**SOUND, "tokens": RISEN}
    for recipe, kept in (({"mode": "weights", "bits": 4}, "--bits 4"), ({"target": "ort-avx2"}, "--target ort-avx2")):
        assert f"DATA {kept} --max" in judge({**risen, "recipe": {**SOUND["recipe"], **recipe}}).next
    assert "DATA --max-perplexity-rise" in judge(risen).next


def test_a_search_is_advised_as_what_its_reader_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    low = {**SOUND, "sqnr_db": 9.0, "recipe": {**SOUND["recipe"], "target": "ort-avx2"}}
    assert judge(low).next.startswith("the same run with --min-sqnr 15 searches")
    monkeypatch.setattr("onnxshot.wording._command", False)
    said = judge(low).next
    assert said.endswith(': onnxshot.tune("net.onnx", calib=DATA, target="ort-avx2", goal=Goal(min_sqnr=15))')


@pytest.mark.parametrize(("floats", "said"), [(54, "for its size: it computes in float"), (53, "or compare on your")])
def test_a_result_that_computes_in_float_is_ready_for_its_size(floats: int, said: str) -> None:
    placed = {"floats": floats, "of": 54, "float_us": 200.0, "int8_us": 250.0, "gain": 1.2}
    recipe = {**SOUND["recipe"], "layers": {"c": {"mode": "stored"}}}
    found = judge({**SOUND, "placed": placed, "recipe": recipe, "int8_macs_share": 0.0})
    assert (found.level, said in found.next) == ("ready", True)


def test_two_sizes_beside_each_other_have_one_unit() -> None:
    larger = {**SOUND, "input_bytes": 99_000, "outputs": [{**SOUND["outputs"][0], "bytes": 150_000}]}
    assert "0.10 MB -> 0.15 MB" in judge(larger).reasons[0]


def test_random_data_are_not_told_as_samples_that_it_was_calibrated_on() -> None:
    """As where ranges come from statistics, and there are no samples."""
    samples = {"calibration": 48, "held_out": 0, "judged": 4, "random": False}
    reasons = judge({**SOUND, "samples": samples, "on_random_data": {"sqnr_db": 40.0}}).reasons
    assert reasons == ("it was compared on random data only",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"graph": [{**SOUND["graph"][0], "how": "float"}]}, "keep the input: in int8 the other nodes were measured"),
        ({"int8_macs_share": 0.3}, "deploy it for what it gains: in int8 the other nodes were measured"),
        ({"int8_macs_share": 0.3, "goal": {"reached": True}}, "keep the input, or ask for less accuracy: in int8"),
    ],
)
def test_what_was_measured_to_stay_in_float_is_not_looked_up_in_a_plan(changed: dict[str, Any], said: str) -> None:
    assert "onnxshot inspect" in judge({**SOUND, **changed}).next
    skip = {"node": "c", "op": "Conv", "reason": "left in float, as measured: quantized it was slower"}
    assert judge({**SOUND, **changed, "skips": [skip]}).next.startswith(said)


def test_what_was_not_quantized_at_all_is_not_searched_for_a_size() -> None:
    larger = {"outputs": [{**SOUND["outputs"][0], "bytes": 2 * SOUND["input_bytes"]}]}
    assert "--max-size" in judge({**SOUND, **larger}).next
    nothing = {**SOUND, **larger, "graph": [{**SOUND["graph"][0], "how": "float"}]}
    assert "--max-size" not in judge(nothing).next


def test_inspect_is_advised_with_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**SOUND["recipe"], "mode": "dynamic", "exclude": ["/x/*", "y"], "target": "openvino"}
    values = {**SOUND, "recipe": recipe, "graph": [{**SOUND["graph"][0], "how": "float"}]}
    wanted = "onnxshot inspect net.onnx --target openvino --mode dynamic --exclude '/x/*' --exclude y"
    assert judge(values).next.endswith(wanted)
    monkeypatch.setattr("onnxshot.wording._command", False)
    fields = 'target="openvino", mode="dynamic", exclude=["/x/*", "y"]'
    assert judge(values).next.endswith(f'onnxshot.inspect("net.onnx", recipe=onnxshot.Recipe({fields}))')


def test_a_model_without_weights_is_kept() -> None:
    note = "there is nothing to quantize: no layer of the model multiplies with a weight; its operators: TreeEnsemble"
    values = {**SOUND, "graph": [{**SOUND["graph"][0], "how": "float"}], "notes": [note]}
    assert judge(values).next == "keep the input"
