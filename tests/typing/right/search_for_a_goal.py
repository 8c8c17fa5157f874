"""A score of one's own, a goal and a budget."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import onnxshot

Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def score(run: Run) -> float:
    return float(run({"x": np.zeros((1, 4), np.float32)})["y"].max())


goal = onnxshot.Goal(max_drop=0.1, evaluate=score, budget=5)
result = onnxshot.tune("model.onnx", "samples/", goal, target="tensorrt", look=False)
print(result.report.goal["reached"], result.report.pareto)
