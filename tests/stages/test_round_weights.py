"""Weights in blocks that were rounded with data reach the file, with the biases that were corrected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import model, weight
from onnx import ModelProto, numpy_helper
from small_decoders import small_decoder, token_feeds

import onnxshot
from onnxshot import Settings
from onnxshot.maths.affine import dequantize

SETTINGS = Settings(verify=False, use_cache=False)
TURNED = ("wq", "wk", "wv", "scores")


def _outputs(model: ModelProto | Path) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0].ravel() for feed in token_feeds(8, seed=5)])


def _db(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_file_computes_with_what_was_learned(tmp_path: Path, asymmetric: bool) -> None:
    model, path = small_decoder(), tmp_path / "small.onnx"
    result = onnxshot.quantize(
        model, token_feeds(40), output=path, mode="weights", bits=4, block=16, asymmetric=asymmetric, settings=SETTINGS
    )
    plan = result.plan
    learned, held = {}, {tensor.name: tensor for tensor in model.graph.initializer}
    for name, rounded in plan.rounded.items():
        floats = dequantize(*rounded.read())
        origin = next(n for n in (*TURNED, "wo") if name == n or name.startswith(n))
        learned[origin] = floats.T if origin in TURNED else floats
    learned |= {"bq": plan.biases["q_bias"], "bo": plan.biases["o"]}
    assert learned.keys() == {"wq", "wk", "wv", "wo", "scores", "bq", "bo"}  # the table is too small for blocks
    same = ModelProto()
    same.CopyFrom(model)
    for tensor in same.graph.initializer:
        if tensor.name in learned:
            values = learned[tensor.name].reshape(tuple(held[tensor.name].dims))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), tensor.name))
    wanted, got, exact = _outputs(same), _outputs(path), _outputs(model)
    assert _db(wanted, got) > 30.0  # what is left are the 8-bit inputs of MatMulNBits
    assert _db(exact, got) < _db(wanted, got)
    assert any(note.startswith("weights of ") for note in result.report.notes)


def test_nothing_is_learned_with_effort_fast(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(small_decoder(), path)
    result = onnxshot.quantize(path, token_feeds(16), mode="weights", bits=4, effort="fast", settings=SETTINGS)
    assert not result.plan.rounded
    assert not result.plan.biases


@pytest.mark.parametrize("calib", [None, "random"])
def test_without_samples_second_moments_are_those_of_random_tokens(tmp_path: Path, calib: str | None) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(small_decoder(), path)
    result = onnxshot.quantize(path, calib, mode="weights", bits=4, settings=SETTINGS)
    assert result.plan.rounded
    assert not result.plan.biases
    assert any("random tokens; real ones are better" in note for note in result.report.notes)
    fast = onnxshot.quantize(path, mode="weights", bits=4, effort="fast", settings=SETTINGS)
    wanted = _outputs(onnx.load(path))
    errors = []
    for made in (result, fast):
        onnx.save(made.model.to_proto(), tmp_path / "made.onnx")
        errors.append(_db(wanted, _outputs(tmp_path / "made.onnx")))
    assert errors[0] > errors[1], "on tokens that it was not rounded with"

def test_experts_that_all_read_one_matrix(tmp_path: Path) -> None:
    text = "g (float[T, 64] x) => (float[3, T, 32] y) { y = MatMul(x, w) }"
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((8, 64)).astype(np.float32)
    given = [{"x": rng.standard_normal((40, 8)).astype(np.float32) @ mixing} for _ in range(12)]
    proto = model(text, {"w": weight(3, 64, 32)})
    onnx.save(proto, tmp_path / "m.onnx")
    result = onnxshot.quantize(tmp_path / "m.onnx", given, mode="weights", bits=4, block=16)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 20
