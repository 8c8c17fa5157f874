"""Figures for people."""

import math

import pytest

from onnxshot.report.digits import significant
from onnxshot.report.html.figures import milliseconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.41, "0.410"), (0.2204, "0.220"), (9.27, "9.27"), (-6.96, "-6.96"), (99.96, "100.0"),
        (1234.5, "1234"), (1e-9, "1e-09"), (-3.4e38, "-3.4e+38"), (math.nan, "nan"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_a_figure_has_its_digits_and_no_power_of_ten_where_people_read_none(value: float, text: str) -> None:
    assert significant(value) == text


def test_a_slow_model_is_told_in_plain_milliseconds() -> None:
    assert milliseconds(2345.6) == "2346 ms"
