"""How many digits of a figure people are shown."""

import pytest

from onnxshot.report.advice import decibels, size_change
from onnxshot.report.digits import apart, significant


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [(14.2, 15, "14.2"), (14.96, 15, "14.96"), (14.9999, 15, "14.9999"), (15.0, 15, "15.0"), (float("nan"), 15, "nan")],
)
def test_a_figure_that_misses_its_limit_does_not_read_as_it(value: float, limit: float, shown: str) -> None:
    assert apart(value, limit) == shown


def test_significant_digits() -> None:
    assert [significant(x) for x in (0.22, 1234.4, 12.34, 1e-5)] == ["0.220", "1234", "12.3", "1e-05"]


def test_sizes_and_errors_in_words() -> None:
    assert size_change(930_000, 257_000) == "0.93 -> 0.26 MB"
    assert size_change(480, 1900) == "0.5 -> 1.9 kB"
    assert [decibels(db) for db in (20.04, 200.0, float("inf"), None)] == ["20.0 dB", "exact", "exact", "not measured"]
