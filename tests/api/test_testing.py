"""Assertions for users' tests: what passes, what fails and how it says so, and what cannot be judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import fixture

import onnxshot
import onnxshot.testing
from onnxshot import testing
from onnxshot.errors import UsageError

MODEL = fixture("digits_mobile")
PICTURES = np.random.default_rng(0).normal(size=(8, 1, 28, 28)).astype(np.float32)
QUICK = onnxshot.Settings(threads=1, use_cache=False, verify=False)


def damaged(folder: Path) -> Path:
    """The model with another last layer."""
    proto = onnx.load(MODEL)
    (last,) = [node for node in proto.graph.node if node.op_type == "Gemm"]
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name == last.input[1]]
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(-values, weight.name))
    onnx.save(proto, folder / "damaged.onnx")
    return folder / "damaged.onnx"


def test_a_model_that_is_as_good_passes_and_gives_its_report() -> None:
    report = onnxshot.testing.assert_accuracy(MODEL, PICTURES, reference=MODEL, min_sqnr=60, min_agreement=1.0)
    assert report.agreement == 1.0


def test_a_result_knows_what_it_was_made_from() -> None:
    result = onnxshot.quantize(MODEL, PICTURES, effort="fast", settings=QUICK)
    onnxshot.testing.assert_accuracy(result, PICTURES, min_sqnr=5, min_int8_share=0.5)


def test_a_worse_model_fails_with_its_figures_and_worst_outputs(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    with pytest.raises(AssertionError) as caught:
        onnxshot.testing.assert_accuracy(path, PICTURES, reference=MODEL, min_sqnr=20, min_agreement=0.9)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} is not as asked, on 8 samples:"
    assert lines[1].startswith("  MISSED  SQNR")
    assert lines[1].endswith("at least 20 dB")
    assert lines[2].startswith("  MISSED  agreement")
    assert any("dB  logits" in line for line in lines[lines.index("  worst outputs") :])
    assert "  worst tensors" in lines


def test_a_figure_that_misses_does_not_read_as_its_limit() -> None:
    rows = ((0.999997, 1.0, "99.9997"), (0.9997, 1.0, "99.97"), (0.5, 0.5, "50.00"), (0.2, 1.0, "20.00"))
    for found, limit, told in rows:
        line, missed = testing._row("MACs in int8", limit, found, " %", scale=100)
        assert missed is (found < limit)
        assert line.split()[4] == told


def test_work_that_is_not_in_int8_is_told_by_operator() -> None:
    result = onnxshot.quantize(MODEL, PICTURES, effort="fast", settings=QUICK, exclude=["Gemm"])
    with pytest.raises(AssertionError) as caught:
        onnxshot.testing.assert_accuracy(result, PICTURES, min_int8_share=1.0)
    lines = str(caught.value).splitlines()
    assert "MISSED  MACs in int8" in lines[1]
    assert lines[1].endswith("at least 100 %")
    left = lines[lines.index("  not in int8") + 1 :]
    assert any(line.endswith("%  Gemm") for line in left)


def test_what_was_not_measured_is_not_as_good(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"MISSED  SQNR +not measured"):
        onnxshot.testing.assert_accuracy(MODEL, "random", reference=MODEL, min_sqnr=1)


def test_without_limits_or_reference_there_is_nothing_to_judge() -> None:
    with pytest.raises(UsageError, match="nothing to assert"):
        onnxshot.testing.assert_accuracy(MODEL, PICTURES, reference=MODEL)
    with pytest.raises(UsageError, match="no float model"):
        onnxshot.testing.assert_accuracy(MODEL, PICTURES, min_sqnr=1)


def test_what_was_understood_of_samples_is_told_where_they_are_compared() -> None:
    report = onnxshot.testing.assert_accuracy(
        MODEL, [(PICTURES, np.zeros(8))], reference=MODEL, min_sqnr=60, transform=lambda item: (item[0], 1)
    )
    assert "list of 1 batch of 8: 8 samples" in report.notes
    assert any("second element" in note for note in report.notes)


def test_a_share_in_percent_is_refused() -> None:
    with pytest.raises(UsageError, match="min_agreement is 95"):
        onnxshot.testing.assert_accuracy(MODEL, PICTURES, reference=MODEL, min_agreement=95)


@pytest.mark.parametrize("name", ["min_sqnr", "max_perplexity_rise", "min_agreement"])
def test_a_limit_that_nothing_misses_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is nan"):
        onnxshot.testing.assert_accuracy(MODEL, PICTURES, reference=MODEL, **{name: float("nan")})
