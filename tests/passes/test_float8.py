"""float8 (e4m3) on both sides of a product, as TensorRT takes it from sm89 on."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import feeds, model, weight
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from planned_models import PROVEN, initializers, maker, nodes_of, quantized

from onnxshot.errors import ModelError, TargetError
from onnxshot.maths.affine import FLOAT8E4M3FN, QuantParams, QuantScheme, dequantize, quantize
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.targets.tensorrt import TENSORRT

FLOAT8: dict[str, Any] = {
    "target": "tensorrt", "activation_type": "float8e4m3fn", "weight_type": "float8e4m3fn", "method": "minmax",
}  # fmt: skip
PAIR = "g (float[N] x) => (float[N] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"


def case() -> Case:
    text = """g (float[N, 4, 8, 8] x) => (float[N, 16] y) {
        c = Conv(x, k, b) r = Clip(c, low, high) f = Flatten(r) m = MatMul(f, w) y = Add(m, v)
    }"""
    constants = {
        "k": weight(8, 4, 3, 3), "b": np.ones(8, np.float32), "low": np.float32(0), "high": np.float32(6),
        "w": weight(288, 16), "v": np.ones(16, np.float32),
    }  # fmt: skip
    return Case(model(text, constants), feeds(8, x=(1, 4, 8, 8)))


def every_rounding() -> NDArray[np.float32]:
    """All finite values of float8e4m3fn, what lies half way between two, and that one float32 to each side."""
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = np.unique(codes[np.isfinite(codes)])
    middles = (codes[1:] + codes[:-1]) / 2
    beyond = np.float32([449, 463, 464, 465, 480, 1e30, np.inf])
    around = [np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([codes, middles, *around, beyond, -beyond]).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 2.0**-9, 2.0**7])
def test_every_rounding_is_that_of_onnx_and_of_onnx_runtime(scale: float) -> None:
    x = every_rounding() * np.float32(scale)
    zero = np.zeros((), FLOAT8E4M3FN.storage)
    params = QuantParams(QuantScheme(FLOAT8E4M3FN, True), np.float32(scale), zero)
    found = dequantize(quantize(x, params), params)
    graph = model(PAIR, {"s": np.float32(scale), "z": zero}, opset=19, ir=9)
    finite = np.isfinite(x)  # onnx and ml_dtypes differ on what becomes of infinity
    np.testing.assert_array_equal(found[finite], ReferenceEvaluator(graph).run(None, {"x": x[finite]})[0])
    np.testing.assert_array_equal(found, Runner(graph.SerializeToString()).run({"x": x})["y"])
    assert np.abs(found).max() == 448 * scale, "saturated, not NaN"


def test_scales_are_the_largest_value_over_448_and_all_but_pairs_stays() -> None:
    _, made = quantized(case(), **FLOAT8)
    onnx.checker.check_model(made, full_check=True)
    assert next(o.version for o in made.opset_import if not o.domain) == 19
    assert [n.op_type for n in made.graph.node if "Quantize" not in n.op_type and "quantize" not in n.op_type] == [
        "Conv", "Clip", "Flatten", "MatMul", "Add",
    ]  # fmt: skip
    stored, values = {t.name: t.data_type for t in made.graph.initializer}, initializers(made)
    quantizers = nodes_of(made, "QuantizeLinear")
    assert len(quantizers) == 2, "the inputs of both products, and no output"
    assert {stored[q.input[2]] for q in quantizers} == {TensorProto.FLOAT8E4M3FN}
    highest = max(float(np.abs(feed["x"]).max()) for feed in case().feeds[:6])
    assert float(values[quantizers[0].input[1]]) == pytest.approx(highest / 448)
    for node, name, axis in (("Conv", "k", 0), ("MatMul", "w", 1)):
        dq = maker(made, nodes_of(made, node)[0].input[1])
        assert stored[dq.input[0]] == TensorProto.FLOAT8E4M3FN
        source = next(onnx.numpy_helper.to_array(t) for t in case().model.graph.initializer if t.name == name)
        rows = np.moveaxis(source, axis, 0).reshape(source.shape[axis], -1)
        np.testing.assert_allclose(values[dq.input[1]], np.abs(rows).max(1) / 448, rtol=1e-6)
    assert stored[nodes_of(made, "Conv")[0].input[2]] == TensorProto.FLOAT


def test_onnx_runtime_runs_it_and_it_is_compared() -> None:
    """Its optimizers refuse float8 products, and a Clip in front of a float8 Q."""
    result, made = quantized(case(), PROVEN, effort="balanced", **FLOAT8)
    assert result.report.sqnr_db is not None
    assert 20 < result.report.sqnr_db < 40
    feed = case().feeds[0]
    wanted = ReferenceEvaluator(made).run(None, feed)[0]
    np.testing.assert_allclose(Runner(made.SerializeToString()).run(feed)["y"], wanted, rtol=1e-4, atol=1e-3)


def test_a_model_with_float8_that_does_not_load_at_all_is_an_error() -> None:
    _, made = quantized(case(), **FLOAT8)
    made.graph.node[-1].op_type = "Unheard"
    with pytest.raises(ModelError, match="does not load"):
        Runner(made.SerializeToString())


@pytest.mark.parametrize("target", ["ort", "openvino", "portable"])
def test_other_targets_refuse_it(target: str) -> None:
    with pytest.raises(TargetError, match="float8"):
        quantized(case(), **{**FLOAT8, "target": target})


@pytest.mark.slow
def test_an_engine_computes_every_product_in_float8(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _, made = quantized(case(), **FLOAT8)
    onnx.save(made, tmp_path / "net.onnx")
    assert TENSORRT.runtime is not None
    for hardware in ((), ("sm89",), ("sm89", "sm120")):
        built = TENSORRT.runtime.emit(tmp_path / "net.onnx", tmp_path, "net", EmitOptions(hardware=hardware))
        assert built.executed is not None
        assert [(n.op, n.precision) for n in built.executed.nodes] == [("Conv", "float8"), ("MatMul", "float8")]
        assert built.executed.honoured == built.executed.share == 1.0
    with pytest.raises(TargetError, match=r'float8 is built for EmitOptions\(hardware="sm89"\) and newer'):
        TENSORRT.runtime.emit(tmp_path / "net.onnx", tmp_path, "net", EmitOptions(hardware=("sm86", "sm89")))
