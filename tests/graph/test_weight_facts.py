"""Zeros and finiteness of weights of all types, counted a block of rows at a time."""

import ml_dtypes
import numpy as np
import pytest

from onnxshot.graph import Constant, weight_pieces, weights
from onnxshot.graph.weight_facts import facts_of

TYPES = [
    np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8, ml_dtypes.int4, ml_dtypes.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
def test_zeros_are_counted(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_pieces, "BLOCK", 8)
    values = np.array([[0, 1, -2, -0.0], [3, 0, 0, 4], [5, 6, 7, -0.0]]).astype(dtype)
    facts = facts_of(Constant("w", values))
    assert (facts.finite, facts.zeros, facts.size) == (True, 5, 12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_is_found(dtype: type, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_pieces, "BLOCK", 8)
    values = np.ones((6, 4), dtype)
    assert facts_of(Constant("w", values)).finite
    values[4, 1] = value
    assert not facts_of(Constant("w", values)).finite


def test_the_largest_and_smallest_values_of_a_type_are_finite() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        info = ml_dtypes.finfo(dtype)
        facts = facts_of(Constant("w", np.array([info.max, info.min, info.smallest_subnormal], dtype)))
        assert (facts.finite, facts.zeros) == (True, 0)


def test_a_widened_weight_is_not_widened_to_count_its_zeros() -> None:
    def refuse() -> np.ndarray:
        raise AssertionError

    narrow = Constant("w", np.array([0, 1, np.inf], np.float16))
    wide = Constant("w", weights.ComputedValues((3,), np.dtype(np.float32), refuse, widened=narrow))
    assert facts_of(wide) == facts_of(narrow)
    assert not facts_of(wide).finite


def test_a_reader_of_all_blocks_gets_them_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_pieces, "BLOCK", 8)
    seen: list[np.ndarray] = []
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    assert facts_of(Constant("w", values), seen.append).zeros == 1
    np.testing.assert_array_equal(np.concatenate(seen), values)


def test_lazy_values_are_read_once() -> None:
    times = []

    def compute() -> np.ndarray:
        times.append(1)
        return np.zeros(5, np.float32)

    constant = Constant("w", weights.ComputedValues((5,), np.dtype(np.float32), compute))
    assert facts_of(constant) == facts_of(constant)
    assert len(times) == 1
