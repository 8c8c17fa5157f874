"""Bits per layer under a goal: the layer that matters gets more, and the recipe found makes the same file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_runs import QUICK, outputs, sqnr
from handmade.core import Feed, feeds
from loud_layer import LOUD, network
from onnx import numpy_helper
from parted import held_out

from onnxshot import Goal, memory, quantize, tune
from onnxshot.graph.lean_model import LeanModel
from onnxshot.recipes.files import load_recipe
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.search import block_search


@pytest.fixture(scope="module")
def given() -> list[Feed]:
    return feeds(16, x=(6, 256))


def bits(proto: onnx.ModelProto) -> dict[str, float]:
    """By layer, bits per value of what its product reads: integers, scales and zero points; 32 for floats."""
    held = {t.name: numpy_helper.to_array(t).nbytes for t in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type in ("MatMul", "MatMulNBits"):
            found[node.name] = 8 * sum(held.get(name, 0) for name in node.input[1:]) / (256 * 96)
    return found


def judged(proto: onnx.ModelProto, given: list[Feed]) -> float:
    """SQNR on the quarter of the samples, from which nothing is chosen."""
    return sqnr(outputs(network(), held_out(given)), outputs(proto, held_out(given)))


def test_the_layer_that_matters_gets_the_bytes(given: list[Feed], tmp_path: Path) -> None:
    even = quantize(network(), given, mode="weights", bits=4, block=32, settings=QUICK).model.to_proto()
    out, size = tmp_path / "q.onnx", len(even.SerializeToString()) / 1e6
    result = tune(network(), given, Goal(max_size=size), output=out, mode="weights", bits=4, settings=QUICK)
    found = onnx.load(str(out))
    held = bits(found)
    loud = held.pop(f"layer/y{LOUD}")
    assert loud > max(held.values())
    assert out.stat().st_size <= size * 1e6
    assert result.report.goal["reached"]
    assert result.report.goal["bytes"] == out.stat().st_size
    assert judged(found, given) > judged(even, given) + 3
    assert sum(result.report.goal["levels"].values()) == 6
    assert result.report.goal["candidates"] <= 4


def test_the_smallest_file_that_reaches_a_minimum_is_found(given: list[Feed], tmp_path: Path) -> None:
    base = tune(network(), given, Goal(max_size=1e-9), mode="weights", bits=4, settings=QUICK)
    assert base.report.goal["missed"], "nothing is that small"
    least = judged(base.model.to_proto(), given) + 6
    out = tmp_path / "q.onnx"
    result = tune(network(), given, Goal(min_sqnr=least), output=out, mode="weights", bits=4, settings=QUICK)
    assert judged(onnx.load(str(out)), given) >= least
    assert result.report.goal["sqnr_db"] == pytest.approx(judged(onnx.load(str(out)), given), abs=0.01)
    held = bits(onnx.load(str(out)))
    assert held[f"layer/y{LOUD}"] == max(held.values()) > min(held.values())
    smaller = [row for row in result.report.pareto if row["bytes"] < out.stat().st_size]
    assert smaller
    assert all(row["sqnr_db"] < least for row in smaller)


def test_the_recipe_found_makes_the_same_file(given: list[Feed], tmp_path: Path) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    result = tune(network(), given, Goal(max_size=0.11), output=a, mode="weights", bits=4, settings=QUICK)
    result.report.save(tmp_path / "r.json")
    quantize(network(), given, recipe=load_recipe(tmp_path / "r.json"), output=b, settings=QUICK)
    assert a.read_bytes() == b.read_bytes()
    assert len(set(bits(onnx.load(str(a))).values())) > 1


def test_layers_with_rules_of_the_user_keep_them(given: list[Feed]) -> None:
    rules: dict[str, Any] = {f"layer/y{LOUD}": {"bits": 4, "block": 128}, "layer/y0": {"mode": "float"}}
    recipe = Recipe(mode="weights", bits=4, block=64, layers=rules)
    result = tune(network(), given, Goal(max_size=0.3), recipe=recipe, settings=QUICK)
    held = bits(result.model.to_proto())
    assert held["layer/y0"] == 32
    assert held[f"layer/y{LOUD}"] == 4 + 32 / 128
    assert all(held[f"layer/y{i}"] > 4.5 for i in (1, 2, 4, 5)), "there is room for the others"
    assert result.report.goal["reached"]


def test_without_time_the_smallest_candidate_is_written(given: list[Feed]) -> None:
    result = tune(network(), given, Goal(max_size=0.2, budget=0), mode="weights", bits=4, block=128, settings=QUICK)
    assert result.report.goal["candidates"] == 1
    assert result.report.goal["budget_spent"]
    assert set(bits(result.model.to_proto()).values()) == {4 + 32 / 128}


def test_a_minimum_that_only_floats_reach_is_missed(given: list[Feed]) -> None:
    report = tune(network(), given, Goal(min_sqnr=200), mode="weights", bits=8, settings=QUICK).report
    assert report.goal["reached"] is False
    assert "quantized" in " ".join(report.goal["missed"])
    assert report.goal["float_nodes"] < 6


def test_mode_auto_is_settled_before_bits_are_chosen(given: list[Feed]) -> None:
    """Which form is faster is measured; layers that stay in blocks get bits under the goal, as with mode weights."""
    result = tune(network(), given, Goal(min_sqnr=24), mode="auto", settings=QUICK)
    assert result.report.goal["reached"]
    assert result.report.recipe["mode"] != "auto"
    assert judged(result.model.to_proto(), given) >= 24


def test_a_model_in_parts_gets_the_same_bits(given: list[Feed], monkeypatch: pytest.MonkeyPatch) -> None:
    goal, how = Goal(max_size=0.11), replace(QUICK, bench_seconds=0.01)
    whole = tune(network(), given, goal, mode="weights", bits=4, settings=how, effort="fast")
    monkeypatch.setattr(memory, "part_bytes", lambda: 4 * 256 * 96)
    assert Runner(LeanModel.of(network().SerializeToString())).in_parts > 1
    parts = tune(network(), given, goal, mode="weights", bits=4, settings=how, effort="fast")
    assert bits(whole.model.to_proto()) == bits(parts.model.to_proto())


def test_what_rounding_with_data_gains_makes_the_file_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that depend on each other: integers that are chosen with data lose less, so fewer bits are enough."""
    mixing = np.random.default_rng(3).normal(0, 1, (24, 256)).astype(np.float32) / 5
    given = [{"x": feed["x"] @ mixing} for feed in feeds(24, x=(64, 24))]
    goal, sizes = Goal(min_sqnr=26), []
    for least_gain in (0.1, float("inf")):
        monkeypatch.setattr(block_search, "_GAIN_DB", least_gain)
        found = tune(network(), given, goal, mode="weights", bits=4, settings=QUICK).report.goal
        assert found["reached"]
        sizes.append(found["bytes"])
    assert sizes[0] < 0.95 * sizes[1]
