"""Run a model on single samples while its samples are still being made, such as a streaming model for its states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from onnxshot.graph import Model
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Runner


def model_step(model: Model, threads: int) -> Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]:
    """A function that runs the model on a feed and returns its outputs by name.

    The session is made when the function is called first. What it returns may share the session's memory.
    """
    made: list[Runner] = []
    one_at_a_time = Lock()

    def step(feed: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        with one_at_a_time:
            if not made:
                made.append(Runner(LeanModel.of(model), threads=threads))
            return made[0].run(feed)

    return step
