"""Counts of what two models share, in words."""

from onnxshot.report.counts import counts


def test_of_each_kind_the_lowest_is_told_and_tiny_masks_are_not() -> None:
    found = counts({
        "edge": {"kind": "mask", "same": 900, "of": 1000},
        "area": {"kind": "mask", "same": 300, "of": 1000},
        "dot": {"kind": "mask", "same": 0, "of": 4},
        "text": {"kind": "sequences", "same": 9, "of": 10},
    })  # fmt: skip
    assert found == ["mask IoU 30.0 %", "lines of text 9 of 10"]
