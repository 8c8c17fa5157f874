"""Samples that candidates are compared on: of a large model, half of the first batch is looked at first."""

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest

from onnxshot.calibration.sample_parts import TrialSamples, evenly
from onnxshot.recipes.recipe import Recipe
from onnxshot.recovery.improver import Improver


def _improver(weight_bytes: int, count: int) -> Any:
    """An improver of a model of which only the size is known, with `count` samples to choose on."""
    improver = object.__new__(Improver)
    improver.model = SimpleNamespace(weight_bytes=lambda: weight_bytes)  # type: ignore[assignment]
    improver.recipe = Recipe(effort="balanced")
    improver._samples = TrialSamples([], evenly(range(count)), [])
    return improver


def test_a_small_model_is_compared_on_whole_batches() -> None:
    assert [len(batch) for batch in _improver(1 << 20, 32)._glances()] == [8, 8, 16]


def test_half_of_the_first_batch_of_a_large_model_comes_first() -> None:
    batches = list(_improver(1 << 30, 32)._glances())
    assert [len(batch) for batch in batches] == [4, 4, 8, 16]
    small = list(_improver(1 << 20, 32)._glances())
    assert list(chain(*batches)) == list(chain(*small))  # the same samples in the same order


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_samples_are_all_looked_at_once(count: int) -> None:
    batches = list(_improver(1 << 30, count)._glances())
    assert sorted(list(chain(*batches))) == list(range(count))
    assert all(batches)
