"""Weights in blocks that ONNX Runtime would dequantize at every run are unpacked when the file is loaded."""

from typing import Any

import numpy as np
import onnx
import pytest
from handmade.core import feeds, model, weight
from ml_dtypes import int4, uint4
from onnx.reference import ReferenceEvaluator
from planned_models import nodes_of, quantized, run, small, sqnr

from onnxshot.graph.load import load_model
from onnxshot.maths.affine import INT4, PerBlock, QuantScheme
from onnxshot.planning.plan import DEQUANTIZED, WEIGHTS, NodePlan, Plan, WeightPlan
from onnxshot.rewriting.fold_dequantized import fold_dequantized
from onnxshot.runtimes.ort_dequantized_weights import dequantized_weights
from onnxshot.targets import target_named

RNG = np.random.default_rng(0)


def integers(kind: Any, *shape: int) -> Any:
    low, high = {int4: (-8, 8), uint4: (0, 16), np.int8: (-128, 128), np.uint8: (0, 256)}[kind]
    return RNG.integers(low, high, shape).astype(kind)


def product(kind: Any, size: int, inputs: int, *, zeros: bool) -> onnx.ModelProto:
    """MatMul and Relu, which no ONNX Runtime fuses with the DequantizeLinear in front."""
    few = (-(-inputs // size), 40) if size else (40,)
    attrs = f"axis = 0, block_size = {size}" if size else "axis = 1"
    text = f"""g (float[2, N, {inputs}] x) => (float[2, N, 40] y) {{
        d = DequantizeLinear<{attrs}>(w, s{", z" if zeros else ""})
        p = MatMul(x, d)
        r = Relu(p)
        y = MatMul(r, v)
    }}"""
    constants = {"v": weight(40, 40), "w": integers(kind, inputs, 40), "s": RNG.random(few).astype(np.float32) / 100}
    return model(text, constants | ({"z": integers(kind, *few)} if zeros else {}), opset=21, ir=10)


def plan_of(label: str) -> Plan:
    scheme = QuantScheme(INT4, symmetric=True, granularity=PerBlock(0, 32))
    planned = WeightPlan(1, scheme, "mse", DEQUANTIZED, in_blocks=True)
    return Plan("ort", "weights", (NodePlan(label, "MatMul", WEIGHTS),), weights={label: planned})


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("size", "inputs"), [(16, 64), (32, 40), (0, 64), (0, 33)])
@pytest.mark.parametrize("kind", [int4, uint4, np.int8, np.uint8], ids=str)
def test_the_floats_are_the_same(kind: Any, size: int, inputs: int, zeros: bool) -> None:
    given = product(kind, size, inputs, zeros=zeros)
    feed = feeds(1, x=(2, 5, inputs))[0]
    wanted = ReferenceEvaluator(given).run(None, feed)[0]
    loaded = load_model(given)
    label = next(n.label for _, n in loaded.walk() if n.op == "MatMul")
    notes = fold_dequantized(loaded, plan_of(label), target_named("ort"))
    made = loaded.to_proto()
    assert notes == ["1 weights are unpacked when the file is loaded: ONNX Runtime fuses none of their products"]
    assert not nodes_of(made, "DequantizeLinear")
    np.testing.assert_allclose(run(made, feed)[0], wanted, rtol=1e-4, atol=np.abs(wanted).max() / 1e5)


def test_what_is_not_fused_behind_an_int8_layer_is_unpacked() -> None:
    text = """g (float[1, 4, 8, 8] x) => (float[1, 4, 40] y) {
        c = Conv(x, k)
        r = Reshape(c, shape)
        p = MatMul(r, w)
        y = Sigmoid(p)
    }"""
    constants = {"k": weight(4, 4, 1, 1), "shape": np.array([1, 4, 64]), "w": weight(64, 40)}
    case = small(text, constants, x=(1, 4, 8, 8))
    layers = {"MatMul": {"mode": "weights", "bits": 4, "block": 32}}
    result, made = quantized(case, layers=layers, format="qdq")
    assert any("unpacked when the file is loaded" in note for note in result.report.notes)
    assert not dequantized_weights(made)
    assert sqnr(case, made) > 15
