"""Nodes go back to float by times that the tests give; what is decided replays without timing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import HANDMADE
from numpy.typing import NDArray
from planned_models import FAST

from onnxshot import quantize
from onnxshot.graph import Model
from onnxshot.recipes.recipe import Recipe
from onnxshot.results.quantized import Result
from onnxshot.runtimes.ort_kernels import Kernel, kernels_of
from onnxshot.stages import make_quantized, place_by_time

SETTINGS = replace(FAST, use_cache=True)


class Clock:
    """Times as the tests want them: int8 kernels take `int8` times as long, and forms take `ms` each."""

    def __init__(self, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.int8, self.ms, self.profiled = 1.0, [1.0, 1.0, 1.0], 0
        patch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
        patch.setattr(make_quantized, "place_by_time", place_by_time.place_by_time)
        patch.setattr(place_by_time, "_SHORTEST_US", 0.0)
        patch.setattr(place_by_time, "kernels_of", self._kernels)
        patch.setattr(place_by_time, "_timed", self._timed)

    def _kernels(self, *args: Any, **kwargs: Any) -> list[list[Kernel]]:
        self.profiled += 1
        in_float, in_int8 = kernels_of(*args, **kwargs)
        return [
            [replace(k, microseconds=100.0) for k in in_float],
            [replace(k, microseconds=100.0 * self.int8 if k.op.startswith("QLinear") else 1.0) for k in in_int8],
        ]

    def _timed(self, models: Sequence[Model], *_: Any) -> list[NDArray[np.float64]]:
        return [np.tile(self.ms[: len(models)], (4, 1))] * 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    return Clock(monkeypatch, tmp_path)


def made(recipe: Recipe | None = None) -> Result:
    case = HANDMADE["mbconv_block"]()
    return quantize(case.model, case.feeds, recipe=recipe or Recipe(), settings=SETTINGS)


def counts(result: Result) -> dict[str, int]:
    found = dict[str, int]()
    for node in result.plan.nodes:
        found[node.how] = found.get(node.how, 0) + 1
    return found


def test_slower_int8_goes_to_float_and_replays_without_timing(clock: Clock) -> None:
    clock.int8, clock.ms = 3.0, [3.0, 1.0, 1.0]
    first = made()
    assert "static" not in counts(first)
    assert first.report.placed["floats"] == first.report.placed["of"] > 0
    assert first.report.placed["gain"] == pytest.approx(3.0)
    assert "int8" not in str(first.report.verdict.reasons), first.report.verdict
    recipe = Recipe.from_dict(first.report.recipe)
    assert recipe.place is False and {rule["mode"] for rule in recipe.layers.values()} == {"stored"}
    before = clock.profiled
    again = made(recipe)
    assert clock.profiled == before
    assert again.model.to_proto().SerializeToString() == first.model.to_proto().SerializeToString()


def test_the_same_input_is_timed_once(clock: Clock) -> None:
    clock.int8, clock.ms = 3.0, [3.0, 1.0, 1.0]
    first = made()
    clock.ms = [1.0, 3.0, 3.0]  # it would now decide otherwise
    second = made()
    assert clock.profiled == 1
    assert second.model.to_proto().SerializeToString() == first.model.to_proto().SerializeToString()


def test_faster_int8_stays(clock: Clock) -> None:
    clock.int8, clock.ms = 0.3, [1.0, 3.0, 3.0]
    found = made()
    assert counts(found)["static"] > 0 and found.report.placed == {}
    assert found.report.recipe["place"] is False


def test_kernels_propose_and_the_whole_decides(clock: Clock) -> None:
    clock.int8, clock.ms = 3.0, [1.0, 2.0, 2.0]
    assert made().report.placed == {}


def test_what_the_user_asks_for_stays(clock: Clock) -> None:
    clock.int8, clock.ms = 3.0, [3.0, 1.0, 1.0]
    found = made(Recipe(include=("*",)))
    assert found.report.placed == {} and counts(found)["static"] > 0


@pytest.mark.parametrize("recipe", [Recipe(effort="fast"), Recipe(place=False), Recipe(target="openvino")])
def test_nothing_is_timed_where_it_is_not_asked_for(recipe: Recipe, clock: Clock) -> None:
    made(recipe)
    assert clock.profiled == 0
