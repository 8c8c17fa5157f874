"""Mixed-precision search: goals that can and cannot be reached, checked with separate runs in ONNX Runtime."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import FIXTURES, accuracy, fixture, heldout
from fixture_runs import PROVEN, QUICK, command, data_of, outputs, sqnr
from handmade.core import Feed, model
from parted import held_out
from tiny_decoders import decoder, encoder, no_past, texts, written

from onnxshot import Goal, errors, quantize, tune
from onnxshot.api.tune import _which_sqnr
from onnxshot.cli.options import share_of
from onnxshot.graph import Model
from onnxshot.recipes.files import load_recipe
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.report import Report
from onnxshot.results.quantized import Result
from onnxshot.runtimes.ort_bench import Latency
from onnxshot.search import goal
from onnxshot.search.goal import Measured
from onnxshot.search.workbench import Workbench
from onnxshot.settings import Settings

NAME = "digits_resnet"


@pytest.fixture(scope="module")
def given() -> list[Feed]:
    return heldout(NAME)[0][:16]


@pytest.fixture(scope="module")
def base(given: list[Feed]) -> Result:
    return quantize(fixture(NAME), given, settings=QUICK)


def judged(model: onnx.ModelProto | Path, given: list[Feed]) -> float:
    """SQNR over the quarter of the samples, which calibration does not see."""
    return sqnr(outputs(fixture(NAME), held_out(given)), outputs(model, held_out(given)))


def test_a_least_sqnr_is_reached_with_few_nodes_in_float(given: list[Feed], base: Result, tmp_path: Path) -> None:
    before = judged(base.model.to_proto(), given)
    out = tmp_path / "q.onnx"
    result = tune(fixture(NAME), given, Goal(min_sqnr=before + 1.4), output=out, settings=QUICK)
    reached = judged(out, given)
    assert reached >= before + 1.4
    found = result.report.goal
    assert found["reached"]
    assert found["sqnr_db"] == pytest.approx(reached, abs=0.01)
    assert found["bytes"] == out.stat().st_size
    moved = result.report.recipe["layers"]
    assert 0 < len(moved) == found["float_nodes"] < len(result.report.graph) // 2
    assert found["candidates"] < len(moved) + 8, "groups are measured, not nodes"
    told = {skip.reason for skip in result.report.skips if any(skip.node in name for name in moved)}
    assert told and all(reason.startswith("left in float, as measured") for reason in told)
    assert out.stat().st_size < len(fixture(NAME).read_bytes())


def test_the_recipe_found_makes_the_same_bytes(given: list[Feed], base: Result, tmp_path: Path) -> None:
    before = judged(base.model.to_proto(), given)
    result = tune(fixture(NAME), given, Goal(min_sqnr=before + 2), output=tmp_path / "a.onnx", settings=QUICK)
    result.report.save(tmp_path / "r.json")
    recipe = load_recipe(tmp_path / "r.json")
    quantize(fixture(NAME), given, recipe=recipe, output=tmp_path / "b.onnx", settings=QUICK)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_goal_that_all_int8_reaches_costs_one_candidate(given: list[Feed], base: Result) -> None:
    result = tune(fixture(NAME), given, Goal(min_sqnr=20), settings=QUICK)
    assert result.report.goal["candidates"] == 1
    assert result.report.recipe["exclude"] == []
    assert judged(result.model.to_proto(), given) == judged(base.model.to_proto(), given)


def test_a_limit_on_size_is_used_up_for_accuracy(given: list[Feed], base: Result, tmp_path: Path) -> None:
    size = len(base.model.to_proto().SerializeToString()) * 1.25 / 1e6
    out = tmp_path / "q.onnx"
    result = tune(fixture(NAME), given, Goal(max_size=size), output=out, settings=QUICK)
    assert result.report.goal["reached"]
    assert out.stat().st_size <= size * 1e6
    assert judged(out, given) > judged(base.model.to_proto(), given) + 2
    rows = result.report.pareto
    fits = [row for row in rows if row["bytes"] <= size * 1e6]
    assert max(row["sqnr_db"] for row in fits) == pytest.approx(judged(out, given), abs=0.01)
    for row in rows:
        better = [r for r in rows if r["bytes"] <= row["bytes"] and r["sqnr_db"] >= row["sqnr_db"]]
        assert better == [row]


@pytest.fixture
def slow_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts 1 ms per float Conv, on a machine that becomes slower with every timing."""
    slowness = iter(np.linspace(1, 5, 500))

    def milliseconds(path: Path) -> float:
        proto = onnx.load(str(path))
        made = {name: node.op_type for node in proto.graph.node for name in node.output}
        return sum(n.op_type == "Conv" and made.get(n.input[1]) != "DequantizeLinear" for n in proto.graph.node) + 0.1

    def timed(paths: list[Path], feeds: list[Feed], **_: object) -> list[Latency]:
        assert feeds
        ms, now = [milliseconds(path) for path in paths], next(slowness)
        return [Latency(path, now * t, 0, 0, ms[0] / t, 9) for path, t in zip(paths, ms, strict=True)]

    monkeypatch.setattr(goal, "bench", timed)


@pytest.mark.usefixtures("slow_floats")
def test_a_limit_on_latency_is_held_against_the_clock(given: list[Feed], base: Result) -> None:
    result = tune(fixture(NAME), given, Goal(max_latency=3.5), settings=QUICK)
    assert result.report.goal["latency_ms"] == pytest.approx(3.1)
    assert judged(result.model.to_proto(), given) > judged(base.model.to_proto(), given)


@pytest.mark.usefixtures("slow_floats")
def test_of_two_goals_that_exclude_each_other_the_limit_is_kept(given: list[Feed]) -> None:
    goal = Goal(max_latency=1.5, min_sqnr=250)
    missed = tune(fixture(NAME), given, goal, settings=QUICK, effort="fast").report.goal
    assert missed["missed"] == [f"min_sqnr is 250 dB, found {missed['sqnr_db']:.4g} dB"]
    assert missed["latency_ms"] == pytest.approx(1.1), "the most accurate one among those that are fast enough"


def test_a_candidate_that_was_timed_too_well_is_timed_again(given: list[Feed], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate but all int8 is reported ten times as fast as the float model when it is timed first."""
    timings: dict[bytes, int] = {}

    def timed(paths: list[Path], feeds: list[Feed], **_: object) -> list[Latency]:
        content = paths[-1].read_bytes()
        timings[content] = timings.get(content, 0) + 1
        lucky = 10.0 if timings[content] == 1 else 1.1
        ratio = 2.0 if b'"exclude": []' in content else lucky
        return [Latency(path, 1.0, 0, 0, r, 9) for path, r in zip(paths, (1.0, ratio)[: len(paths)], strict=True)]

    monkeypatch.setattr(goal, "bench", timed)
    found = tune(fixture(NAME), given, Goal(max_latency=0.6), settings=QUICK).report
    assert found.goal["reached"]
    assert found.goal["latency_ms"] == pytest.approx(0.5)
    assert found.recipe["exclude"] == []


def test_what_is_slower_in_int8_goes_back_to_float(given: list[Feed], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock where a Conv takes 1 ms in float and 0.6 ms in int8, but two of them 4 ms."""
    names = [n.name for n in onnx.load(str(fixture(NAME))).graph.node if n.op_type == "Conv"]
    slow = {names[1], names[4]}

    def milliseconds(path: Path) -> float:
        proto = onnx.load(str(path))
        made = {name: node.op_type for node in proto.graph.node for name in node.output}
        convs = {n.name: made.get(n.input[1]) == "DequantizeLinear" for n in proto.graph.node if n.op_type == "Conv"}
        return sum(1.0 if not int8 else 4.0 if name in slow else 0.6 for name, int8 in convs.items())

    def timed(paths: list[Path], feeds: list[Feed], **_: object) -> list[Latency]:
        ms = [milliseconds(path) for path in paths]
        return [Latency(path, t, 0, 0, ms[0] / t, 9) for path, t in zip(paths, ms, strict=True)]

    def latencies(bench: Workbench) -> dict[str, tuple[float, float]]:
        conv = {name: (1.0, 4.0 if name in slow else 0.6) for name in names}
        return {u.pattern: conv.get(u.planned.node, (0.0, 0.0)) for u in bench.units}

    monkeypatch.setattr(goal, "bench", timed)
    monkeypatch.setattr(Workbench, "latencies", latencies)
    limit = 3 + 0.6 * (len(names) - 3) + 0.1  # the first one, which is thin, is float anyway
    found = tune(fixture(NAME), given, Goal(max_latency=limit), settings=QUICK, effort="fast").report
    assert found.goal["reached"], found.goal
    assert set(found.recipe["exclude"]) & set(names) == slow  # Adds, which take no time here, may be float too


EVALUATION = """
import numpy as np

data = np.load({path!r})
images = (data["images"][:, None, None].astype(np.float32) / np.float32(255) - data["mean"]) / data["std"]
images = images.astype(np.float32)


def right(run):
    return 100 * np.mean([run({{"image": x}})["logits"].argmax() == y for x, y in zip(images, data["labels"])])


def agree(run):
    return -float(np.abs(run({{"image": images[0]}})["logits"]).sum())


def broken(run):
    raise KeyError("x")


def nan(run):
    return float("nan")
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "score.py"
    text = EVALUATION.format(path=str(FIXTURES / "data/digits/heldout.npz"))
    name = onnx.load(str(fixture(NAME))).graph.output[0].name
    path.write_text(text.replace('"logits"', repr(name)))
    return str(path)


def test_a_drop_is_that_of_the_users_own_score(script: str, tmp_path: Path) -> None:
    data = data_of(NAME)
    out = tmp_path / "q.onnx"
    wanted = Goal(max_drop=0.0, evaluate=f"{script}:right")
    result = tune(fixture(NAME), data["calib"], wanted, preset=data["preset"], output=out, settings=QUICK)
    found = result.report.goal
    assert found["float_score"] == pytest.approx(100 * accuracy(NAME), abs=1e-6)
    assert found["drop"] == pytest.approx(100 * (accuracy(NAME) - accuracy(NAME, out)), abs=1e-6)
    assert found["reached"]
    assert accuracy(NAME, out) >= accuracy(NAME)


def test_an_evaluation_is_any_function(given: list[Feed]) -> None:
    seen: list[Any] = []

    def score(run: goal.Run) -> float:
        seen.append(run(given[0]))
        return float(len(seen) == 1)

    wanted = Goal(max_drop=0.5, evaluate=score, budget=0)
    assert tune(fixture(NAME), given, wanted, settings=QUICK).report.goal["drop"] == 1.0
    assert len(seen) == 3, "float, all int8, and the file that was written"
    assert all(isinstance(value, np.ndarray) for value in seen[0].values())


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("broken", "raised KeyError: 'x'"),
        ("nan", "returned nan"),
        ("other", "has no function 'other' (it has: right, agree, broken, nan)"),
        ("", "name it as file.py:function"),
    ],
)
def test_an_evaluation_that_fails_is_one_line(function: str, text: str, script: str, given: list[Feed]) -> None:
    with pytest.raises(errors.UsageError) as caught:
        tune(fixture(NAME), given, Goal(max_drop=1, evaluate=f"{script}:{function}"), settings=QUICK)
    assert text in str(caught.value)


def test_a_model_that_an_evaluation_runs_wrongly_is_told_without_the_numbers(given: list[Feed]) -> None:
    (x,) = given[0].values()
    x = np.concatenate([x] * 4)
    calls: list[tuple[Callable[[Any], Any], str]] = [
        (lambda run: run(x), "run() was given array float32 [4,1,28,28] (give one dict from input name to array"),
        (lambda run: run([x]), "run() was given [array float32 [4,1,28,28]]"),
        (lambda run: run(image=x), "run() was given image=array float32"),
        (lambda run: run(), "run() was given nothing"),
    ]
    for call, words in calls:
        with pytest.raises(errors.UsageError) as caught:
            goal.score(call, lambda feed: {}, None)
        assert words in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "there is no goal"),
        ({"budget": 1.0}, "there is no goal"),
        ({"max_drop": 1.0}, "without Goal.evaluate"),
        ({"evaluate": "a.py:f", "min_sqnr": 3.0}, "without Goal.max_drop"),
        ({"max_size": -1.0}, "max_size is -1"),
        ({"min_sqnr": float("nan")}, "Goal.min_sqnr is nan"),
        ({"min_sqnr": 20.0, "budget": -1.0}, "the budget is -1 minutes"),
    ],
)
def test_goals_that_make_no_sense_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.UsageError, match=text):
        Goal(**values)


def test_missed_limits_are_reported() -> None:
    wanted = Goal(min_sqnr=30, max_latency=2, max_size=1)
    found = Measured((), 29.97, 1_500_000, 2.0)
    assert wanted.missed(found) == {
        "min_sqnr": "min_sqnr is 30 dB, found 29.97 dB",
        "max_size": "max_size is 1 MB, found 1.5 MB",
    }
    assert wanted.missed(Measured((), 29.9999, 10, output="boxes")) == {
        "min_sqnr": "min_sqnr is 30 dB, found 29.9999 dB of output 'boxes'",
        "max_latency": "max_latency is 2 ms, found nothing",
    }
    assert wanted.inaccurate(found)
    assert wanted.too_much(found)
    assert not Measured((), 20, 10, drop=0.0).beats(Measured((), 20, 10, drop=-1.0))
    assert Measured((), 20, 10).beats(Measured((), 20, 11))
    assert not Measured((), 20, 10).beats(Measured((), 20, 10))


def test_data_that_can_be_read_once_is_kept(given: list[Feed], base: Result) -> None:
    result = tune(fixture(NAME), iter(given), Goal(min_sqnr=20), settings=QUICK)
    assert result.model.to_proto().graph == base.model.to_proto().graph


def test_nodes_with_scales_at_run_time_go_back_too() -> None:
    given = heldout("licence_encoder")[0][:16]

    def reached(model: onnx.ModelProto) -> float:
        return sqnr(outputs(fixture("licence_encoder"), given), outputs(model, given))

    before = reached(quantize(fixture("licence_encoder"), mode="dynamic", settings=QUICK).model.to_proto())
    wanted = Goal(min_sqnr=before + 2)
    result = tune(fixture("licence_encoder"), given, wanted, mode="dynamic", settings=QUICK)
    assert reached(result.model.to_proto()) >= before + 2
    assert result.report.int8_macs_share is None, "QUICK proves nothing; the goal is measured all the same"


# ---------------------------------------------------------------------- the command


def arguments(out: Path, *more: object) -> list[str]:
    data = data_of("digits_mobile")
    common = ["--calib", data["calib"], "--preset", data["preset"], "--samples", "16", "--threads", "1", "--no-verify"]
    return ["quantize", str(fixture("digits_mobile")), *common, "-o", str(out), *map(str, more)]


def test_a_recipe_file_is_overruled_by_options_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method: minmax\nper_channel: false\nexclude: [Add]\n")
    assert command(*arguments(tmp_path / "a.onnx", "--recipe", recipe, "--json")) == 0
    made = json.loads(capsys.readouterr().out)["recipe"]
    assert (made["method"], made["per_channel"], made["exclude"]) == ("minmax", False, ["Add"])
    # `auto` is the default of the option; standing on the command line, it overrules the file.
    more = ["--recipe", recipe, "--method", "auto", "--per-channel", "--json"]
    assert command(*arguments(tmp_path / "a.onnx", *more)) == 0
    made = json.loads(capsys.readouterr().out)["recipe"]
    assert (made["method"], made["per_channel"], made["exclude"]) == ("auto", True, ["Add"])


@pytest.mark.parametrize(
    ("text", "error"),
    [("- a\n", "is no recipe: it holds a list"), ("depth: 3\n", "depth is no key"), ("a: [", "be read")],
)
def test_what_is_no_recipe_is_refused(
    text: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    assert command(*arguments(tmp_path / "a.onnx", "--recipe", recipe)) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def uneven() -> onnx.ModelProto:
    """Three convolutions and a residual, with channels of different ranges."""
    text = """g (float[1, 3, 16, 16] x) => (float[1, 10] y) {
        h0 = Conv<pads = [1, 1, 1, 1]>(x, c0) a0 = Relu(h0)
        h1 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a0, c1) a1 = Relu(h1)
        h2 = Conv<pads = [1, 1, 1, 1]>(a1, c2) s = Add(h2, a1) a2 = Relu(s)
        p = GlobalAveragePool(a2) f = Flatten(p) y = Gemm(f, w)
    }"""
    rng = np.random.default_rng(15)
    shapes = {"c0": (16, 3, 3, 3), "c1": (32, 16, 3, 3), "c2": (32, 32, 3, 3), "w": (32, 10)}
    made = {n: rng.normal(0, np.sqrt(2 / np.prod(s[1:])), s).astype(np.float32) for n, s in shapes.items()}
    made["c0"] *= np.exp(rng.normal(0, 0.7, (16, 1, 1, 1))).astype(np.float32)
    return model(text, made)


def test_a_candidate_that_its_own_run_makes_better_is_not_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the workbench builds is no better than all int8 here; only a full run recovers the accuracy."""
    proto = uneven()
    rng = np.random.default_rng(3)
    calib = [{"x": rng.normal(0, 1, (1, 3, 16, 16)).cumsum(-1).astype(np.float32)} for _ in range(16)]

    def db(made: onnx.ModelProto | Path) -> float:
        return sqnr(outputs(proto, held_out(calib)), outputs(made, held_out(calib)))

    plain = db(quantize(proto, calib, settings=QUICK).model.to_proto())
    limit = Goal(min_sqnr=plain + 1.0)
    build = Workbench.build

    def weak(bench: Workbench, recipe: Recipe) -> Model:
        return build(bench, replace(recipe, exclude=(), layers={}))

    monkeypatch.setattr(Workbench, "build", weak)
    out = tmp_path / "found.onnx"
    found = tune(proto, calib, limit, output=out, settings=QUICK).report
    assert found.recipe["exclude"] or found.recipe["layers"]
    assert found.goal["reached"]
    assert db(out) == pytest.approx(found.goal["sqnr_db"], abs=0.01)
    recipe = Recipe.from_dict(found.recipe)
    quantize(proto, calib, recipe=recipe, output=tmp_path / "same.onnx", settings=QUICK)
    assert out.read_bytes() == (tmp_path / "same.onnx").read_bytes(), "what the same options give"
    rejected = tune(proto, calib, Goal(min_sqnr=100.0), settings=QUICK).report
    assert not rejected.goal["reached"], "what is made anew is held to the goal too"


def test_a_goal_of_perplexity_is_held_on_held_out_text(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(decoder(cache=True))
    feeds = [{"input_ids": ids, **no_past()} for ids in written()]
    settings = Settings(use_cache=False, threads=1, bench_seconds=0.01)
    how = {"mode": "weights", "output": tmp_path / "q.onnx", "settings": settings}
    found = tune(tmp_path / "m.onnx", feeds, Goal(max_perplexity_rise=0.001), **how).report
    goal, tokens = found.goal, found.tokens
    assert goal["max_perplexity_rise"] == 0.001
    assert goal["perplexity_rise"] == pytest.approx(tokens["perplexity_rise"], abs=1e-5)
    assert goal["reached"] == (goal["perplexity_rise"] <= 0.001)
    rows = [row["perplexity_rise"] for row in found.pareto]
    assert all(isinstance(rise, float) for rise in rows)


def test_a_goal_of_perplexity_needs_a_model_that_predicts_next_tokens(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(encoder())
    feeds = [{"input_ids": ids} for ids in texts(4)]
    goal = Goal(max_perplexity_rise=0.02)
    with pytest.raises(errors.UsageError, match="does not predict next tokens"):
        tune(tmp_path / "m.onnx", feeds, goal, settings=Settings(use_cache=False, threads=1))
    with pytest.raises(errors.UsageError, match="max_perplexity_rise is a goal for real data"):
        tune(tmp_path / "m.onnx", "random", goal)


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), ("0.02", 0.02), (" 10 %", 0.1), (None, None)])
def test_shares_are_given_in_percent_or_as_numbers(text: str | None, share: float | None) -> None:
    found = share_of("--max-perplexity-rise", text)
    assert found == (None if share is None else pytest.approx(share))


def test_what_is_no_share_is_told() -> None:
    with pytest.raises(errors.UsageError, match="--max-perplexity-rise is 'much'"):
        share_of("--max-perplexity-rise", "much")


def loud_and_quiet() -> onnx.ModelProto:
    """A loud output in front of a quiet one, whose layer has columns that 8 bits of a whole matrix do not resolve."""
    rng = np.random.default_rng(4)
    quiet = rng.normal(0, 1e-3, (64, 32)).astype("f")
    quiet[0] = 1.0  # meets an input that is almost 0
    text = """g (float[n, 64] x) => (float[n, 32] loud, float[n, 32] quiet) {
        loud = MatMul(x, a) quiet = MatMul(x, b) }"""
    return model(text, {"a": rng.normal(0, 3e3, (64, 32)).astype("f"), "b": quiet})


def test_a_goal_holds_for_a_quiet_output_too() -> None:
    rng = np.random.default_rng(5)
    size = np.asarray([1e-3, *[1.0] * 63])
    given = [{"x": (size * rng.standard_normal((8, 64))).astype("f")} for _ in range(16)]
    proto = loud_and_quiet()
    options = {"per_channel": False, "effort": "fast"}
    plain = quantize(proto, given, settings=PROVEN, **options).report
    assert plain.sqnr_db is not None
    assert plain.sqnr_db > 30 > 15 > plain.output_sqnr_db["quiet"]
    assert plain.worst_db == plain.output_sqnr_db["quiet"]
    assert plain.verdict.level == "bad"
    found = tune(proto, given, Goal(min_sqnr=25), recipe=Recipe(**options), settings=PROVEN).report
    assert found.goal["reached"]
    assert len(found.recipe["exclude"]) == 1
    assert min(found.output_sqnr_db.values()) >= 25
    assert found.goal["sqnr_db"] == pytest.approx(found.worst_db, abs=0.01)


@pytest.mark.parametrize(
    ("db", "output", "judged", "said"),
    [
        (30.02, "z", 16, ""), (12.0, "z", 16, ", 30.0 dB of all outputs together"),
        (31.0, "", 64, " on the 16 held-out samples, 30.0 dB on all 64"), (25.0, "", 16, ""),
    ],
)  # fmt: skip
def test_a_missed_goal_says_by_which_of_two_figures(db: float, output: str, judged: int, said: str) -> None:
    report = Report("net.onnx", {}, sqnr_db=30.0, samples={"judged": judged})
    assert _which_sqnr(Measured((), db, 1, output=output), report, 16) == said
