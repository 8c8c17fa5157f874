"""Twice the nodes take twice the steps: counted, not timed."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from handmade.core import model, weight

import onnxshot


def chain(length: int) -> onnx.ModelProto:
    """Elementwise nodes one after the other, in front of a product."""
    ops = ("Sigmoid(t{0})", "Tanh(t{0})", "Mul(t{0}, s)", "Relu(t{0})")
    lines = [f"t{i + 1} = {ops[i % 4].format(i)}" for i in range(length)]
    text = f"net (float[N,8] t0) => (float[N,8] y) {{ {' '.join(lines)} y = MatMul(t{length}, w) }}"
    return model(text, {"s": np.float32(0.9), "w": weight(8, 8)})


def steps(run: Callable[[], Any]) -> int:
    """How many Python functions a run calls."""
    calls = 0

    def seen(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def test_inspecting_twice_the_nodes_takes_twice_the_steps() -> None:
    """Each node left in float searched the whole graph for a weight behind it: 2000 nodes took 9 s, 12,000 minutes."""
    few, many = chain(360), chain(720)
    onnxshot.inspect(chain(36))  # what is imported or looked up once is not counted
    assert steps(lambda: onnxshot.inspect(many)) < 2.2 * steps(lambda: onnxshot.inspect(few))
