"""Pairs of files that cannot be compared, and those whose comparison says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import fixture

import onnxshot
from onnxshot.errors import UsageError
from onnxshot.testing import assert_accuracy

MODEL = fixture("digits_mobile")
PICTURES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
QUICK = onnxshot.Settings(threads=1, use_cache=False, verify=False, bench_seconds=0.0)


def edited(folder: Path, change: Callable[[onnx.GraphProto], object]) -> Path:
    """The model with another input."""
    proto = onnx.load(MODEL)
    change(proto.graph)
    onnx.save(proto, folder / "other.onnx")
    return folder / "other.onnx"


def named(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.input[:] = ["pixels" if name == "image" else name for name in node.input]
    graph.input[0].name = "pixels"


def halved(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def resized(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (named, "it takes 'pixels', the other takes 'image'"),
        (halved, r"'image' float16 \[batch, 1, 28, 28\] against input 'image' float \["),
        (resized, r"\[batch, 1, 32, 28\] against .*\[batch, 1, 28, 28\]"),
    ],
)
@pytest.mark.parametrize("call", [onnxshot.compare, onnxshot.diff])
def test_models_of_other_inputs_are_refused_with_what_differs(
    call: Callable[..., object], change: Callable[[onnx.GraphProto], object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        call(MODEL, edited(tmp_path, change), PICTURES, settings=QUICK)


def test_a_model_compared_with_itself_is_told(tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(Path(MODEL).read_bytes())
    report = onnxshot.compare(MODEL, copy, PICTURES, settings=QUICK)
    assert any("compared with itself" in note for note in report.notes)
    report = assert_accuracy(MODEL, PICTURES, reference=MODEL, min_sqnr=20, settings=QUICK)
    assert any("compared with itself" in note for note in report.notes)


@pytest.mark.parametrize("mode", ["static", "dynamic", "weights"])
def test_a_float_model_in_second_place_is_told(mode: str) -> None:
    made = onnxshot.quantize(MODEL, PICTURES, mode=mode, effort="fast", settings=QUICK)  # type: ignore[arg-type]
    swapped = onnxshot.compare(made, MODEL, PICTURES, settings=QUICK).notes
    assert any("the float model comes first" in note for note in swapped)
    right = onnxshot.compare(MODEL, made, PICTURES, settings=QUICK).notes
    assert not any("comes first" in note or "with itself" in note for note in right)


def test_a_result_of_dynamic_quantization_is_no_float_model() -> None:
    """Its weights are integers behind Cast and Mul, without an integer operator."""
    made = onnxshot.quantize(MODEL, mode="dynamic", settings=QUICK).model_proto
    assert not any(node.op_type.startswith(("Quantize", "Dequantize", "DynamicQ")) for node in made.graph.node)
    with pytest.raises(UsageError, match=r"quantized already: \d+ weights such as .* are integers") as caught:
        onnxshot.quantize(made, mode="dynamic", settings=QUICK)
    assert "requantize" in caught.value.hint
    assert "complete" not in caught.value.hint
    notes = onnxshot.quantize(made, mode="dynamic", settings=replace(QUICK, requantize=True)).report.notes
    assert any("became floats again" in note for note in notes)
