"""What `bench` prints beside its figures: where they do not show which model is faster, and why two of them differ."""

from pathlib import Path

import pytest

from onnxshot.cli.latency_table import show_latencies
from onnxshot.runtimes.ort_bench import Latency

FIRST = Latency(Path("a.onnx"), 1.0, 0.9, 1.1, 1.0, 100)
SCATTER, PAIRED = "not certain whether faster, because runs scatter: b.onnx", "medians over rounds"


@pytest.mark.parametrize(
    ("other", "scatters", "paired"),
    [
        (Latency(Path("b.onnx"), 0.5, 0.4, 0.6, 2.0, 100), False, False),
        (Latency(Path("b.onnx"), 0.9, 0.4, 2.6, 1.1, 100, sure=False), True, False),
        (Latency(Path("b.onnx"), 1.1, 0.9, 1.6, 1.1, 100), False, True),
    ],
)
def test_figures_that_seem_to_contradict_each_other_are_explained(
    other: Latency, scatters: bool, paired: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    show_latencies([FIRST, other])
    told = capsys.readouterr().err
    assert (SCATTER in told, PAIRED in told) == (scatters, paired)
