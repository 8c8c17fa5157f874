"""Timings of stages."""

import time

from onnxshot.report.report import Report


def test_what_is_done_in_two_turns_counts_as_one_stage() -> None:
    report = Report("m.onnx", {})
    with report.timed("calibrate"):
        time.sleep(0.01)
    first = report.timings["calibrate"]
    with report.timed("calibrate"):
        time.sleep(0.01)
    assert first >= 0.01 and report.timings["calibrate"] >= first + 0.01
