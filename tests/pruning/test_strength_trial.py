"""The strength of ridge and damping that held-out samples prefer."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.maths.pruning_masks import Pattern
from onnxshot.maths.ridge_regression import Moments
from onnxshot.pruning import strength_trial
from onnxshot.pruning.strength_trial import best_strength


def moments(outputs: int, noise: float, rows: int) -> tuple[NDArray[np.float32], Moments, Moments]:
    """(Weight [1, O, 24], moments of rows that another weight made, of others); noise: of the rows to learn from."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((1, outputs, 24)).astype(np.float32)
    moved = weight + 0.5 * rng.standard_normal(weight.shape).astype(np.float32)
    x = rng.standard_normal((1, rows + 400, 24)).astype(np.float32)
    y = x @ moved.transpose(0, 2, 1)
    y[:, :rows] += noise * rng.standard_normal((1, rows, outputs)).astype(np.float32)
    return weight, Moments.of(x[:, :rows], y[:, :rows]), Moments.of(x[:, rows:], y[:, rows:])


@pytest.mark.parametrize("count", [0, 60])
def test_much_clean_data_moves_the_weight_freely_and_little_noisy_data_does_not(count: int) -> None:
    weight, learned, others = moments(10, 0.0, 1000)
    nothing = np.zeros(weight.shape, bool)
    free = best_strength(weight, learned, others, Pattern(), count, nothing)
    assert (free.damping, free.moves) == (0.01, True)
    weight, learned, others = moments(10, 20.0, 30)
    held = best_strength(weight, learned, others, Pattern(), count, nothing)
    assert not held.moves


def test_a_part_of_the_outputs_decides_as_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (16, 1000):
        monkeypatch.setattr(strength_trial, "_OUTPUTS", most)
        weight, learned, others = moments(200, 3.0, 300)
        found.append(best_strength(weight, learned, others, Pattern(), 2400, np.zeros(weight.shape, bool)))
    assert found[0] == found[1]
