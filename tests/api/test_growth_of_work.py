"""Twice the nodes take twice the steps: counted, not timed."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from handmade.deep import DEEP

import onnxshot
from onnxshot.channels.groups import groups_of
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import concrete_shapes


def steps(run: Callable[[], Any]) -> int:
    """How many functions a run calls, those of C included: a scan of a list asks each entry for something."""
    calls = 0

    def seen(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("kind", DEEP)
def test_inspecting_twice_the_nodes_takes_twice_the_steps(kind: str) -> None:
    """A node asked the whole graph for a weight behind it; a chain of products came undone one round at a time."""
    few, many = DEEP[kind](330).model, DEEP[kind](660).model
    onnxshot.inspect(DEEP[kind](36).model)  # what is imported or looked up once is not counted
    assert steps(lambda: onnxshot.inspect(many)) < 2.1 * steps(lambda: onnxshot.inspect(few))


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
def test_planning_twice_the_blocks_for_other_targets_takes_twice_the_steps(target: str) -> None:
    few, many = DEEP["cnn"](150).model, DEEP["cnn"](300).model
    recipe = onnxshot.Recipe(target=target)
    onnxshot.inspect(DEEP["cnn"](36).model, recipe=recipe)
    inspect = onnxshot.inspect
    assert steps(lambda: inspect(many, recipe=recipe)) < 2.1 * steps(lambda: inspect(few, recipe=recipe))


def test_grouping_the_channels_of_twice_the_blocks_takes_twice_the_steps() -> None:
    """Each group asked every layer whether it makes or reads one of its channels."""

    def counted(nodes: int) -> int:
        model = load_model(DEEP["cnn"](nodes).model)
        shapes = concrete_shapes(model)
        return steps(lambda: groups_of(model, shapes))

    counted(36)
    assert counted(300) < 2.1 * counted(150)
