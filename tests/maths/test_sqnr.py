"""SQNR: the definition, sums, and the cases that have no finite logarithm."""

import json

import numpy as np
import pytest

from onnxshot.maths.sqnr import CAP_DB, SqnrSum, sqnr_db

ONE = np.ones(10, np.float32)


def test_sqnr_is_ten_log_of_the_energy_ratio() -> None:
    assert sqnr_db(ONE, ONE * np.float32(0.9)) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_db(ONE * 0.5, ONE) == pytest.approx(0.0)


def test_no_error_and_no_signal_are_finite_numbers() -> None:
    assert sqnr_db(ONE, ONE) == CAP_DB
    assert sqnr_db(ONE * 0, ONE * 0) == CAP_DB
    assert sqnr_db(ONE * 0, ONE) == -CAP_DB
    assert SqnrSum().db == CAP_DB
    json.dumps([sqnr_db(ONE, ONE), sqnr_db(ONE * 0, ONE)], allow_nan=False)


def test_values_that_are_not_finite() -> None:
    masked = np.asarray([1.0, -np.inf], np.float32)
    assert sqnr_db(masked, masked) == CAP_DB  # an attention mask
    assert sqnr_db(masked, np.asarray([0.9, -np.inf])) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_db(masked, np.asarray([1.0, np.inf])) == -CAP_DB
    assert sqnr_db(ONE, ONE * np.nan) == -CAP_DB
    assert sqnr_db(np.asarray([3e38], np.float32), np.asarray([-3e38], np.float32)) == pytest.approx(-6.02, abs=0.01)


def test_the_sum_over_samples_equals_one_concatenation() -> None:
    rng = np.random.default_rng(0)
    refs = [rng.standard_normal(n).astype(np.float32) for n in (5, 0, 1000, 77)]
    cands = [r + 0.01 * rng.standard_normal(r.size).astype(np.float32) for r in refs]
    total = SqnrSum()
    for ref, cand in zip(refs, cands, strict=True):
        total.add(ref, cand)
    assert total.count == 1082
    assert total.db == pytest.approx(sqnr_db(np.concatenate(refs), np.concatenate(cands)))


def test_integer_and_half_arrays_are_compared_as_numbers() -> None:
    assert sqnr_db(np.asarray([0, 255], np.uint8), np.asarray([1, 255], np.uint8)) == pytest.approx(48.13, abs=0.01)
    assert sqnr_db(ONE.astype(np.float16), ONE.astype(np.float16)) == CAP_DB


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[10\] and \[5, 2\]"):
        sqnr_db(ONE, np.ones((5, 2)))
