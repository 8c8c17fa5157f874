"""The note on weights that take more bits than were asked for."""

from typing import Any

import pytest

from onnxshot.report.report import Report
from onnxshot.report.values import NodeReport
from onnxshot.verification.weight_sizes import more_bits_than_asked


def report(asked: int | None, now: float | None, *bits: int | None) -> Report:
    recipe: dict[str, Any] = {"bits": asked}
    rows = [NodeReport(str(i), "MatMul", "weights", str(i), 0.0, None, bits=held) for i, held in enumerate(bits)]
    return Report("net.onnx", recipe, graph=rows, bits_per_weight=now)


def test_weights_of_more_bits_than_asked_for_are_counted() -> None:
    (note,) = more_bits_than_asked(report(4, 11.04, 32, 8, 8, 4, None))
    assert note.startswith("11.04 bits a weight where 4 were asked for: 4 bits in 1 node, 8 bits in 2 nodes, 32 bits")


@pytest.mark.parametrize(
    ("asked", "now", "bits"), [(4, 5.3, (4, 8)), (4, 11.0, (4, 4)), (None, 33.0, (32,)), (4, None, (4, 32))]
)
def test_hardly_more_bits_or_none_asked_for_say_nothing(asked: int | None, now: float | None, bits: tuple[int]) -> None:
    assert more_bits_than_asked(report(asked, now, *bits)) == []
