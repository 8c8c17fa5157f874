"""Weights in blocks as standard ONNX, and how they run in ONNX Runtime."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from handmade import HANDMADE, Case
from handmade.core import feeds, model, weight
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from planned_models import initializers, nodes_of, quantized, run, sqnr

from onnxshot.errors import TargetError
from onnxshot.passes.dequantized_blocks import _positive

LEAST_DB = {4: 11, 8: 33}
QDQ: dict[str, Any] = {"mode": "weights", "format": "qdq"}


def product(inputs: int = 96, outputs: int = 40) -> Case:
    text = f"g (float[B, T, {inputs}] x) => (float[B, T, {outputs}] y) {{ y = MatMul(x, w) }}"
    return Case(model(text, {"w": weight(inputs, outputs)}), feeds(3, x=(2, 5, inputs)))


def optimized(made: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Number of nodes by operator in ONNX Runtime's optimized graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 4
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


def kinds_of(made: onnx.ModelProto) -> set[int]:
    """Types of the stored integers that DequantizeLinear reads."""
    types = {t.name: t.data_type for t in made.graph.initializer}
    return {types[n.input[0]] for n in nodes_of(made, "DequantizeLinear")}


@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt", "portable"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("block", [32, "channel"])
def test_integers_that_onnx_dequantizes_to_almost_the_weight(
    target: str, bits: int, asymmetric: bool, block: int | str
) -> None:
    case = product()
    options = {**QDQ, "target": target, "bits": bits, "asymmetric": asymmetric, "block": block}
    one_kind = target in ("tensorrt", "portable")
    if one_kind and (asymmetric or (bits == 4) == (block == "channel")):
        with pytest.raises(TargetError):
            quantized(case, **options)
        return
    _, made = quantized(case, **options)
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node] == ["DequantizeLinear", "MatMul"]
    (dq,) = nodes_of(made, "DequantizeLinear")
    attrs = {a.name: a.i for a in dq.attribute}
    assert attrs == ({"axis": 1} if block == "channel" else {"axis": 0, "block_size": 32})
    signed, unsigned = {4: ("INT4", "UINT4"), 8: ("INT8", "UINT8")}[bits]
    assert kinds_of(made) == {TensorProto.DataType.Value(unsigned if asymmetric else signed)}
    assert (len(dq.input) == 3) == asymmetric, "signed integers have no zero points"
    real = ReferenceEvaluator(made).run([dq.output[0]], case.feeds[0])[0]
    given = initializers(case.model)["w"]
    assert np.abs(real - given).max() < 2 * np.abs(given).max() / (1 << (bits - 1))
    assert sqnr(case, made) > LEAST_DB[bits] - (2 if block == "channel" else 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_both_forms_stand_for_the_same_floats(bits: int, asymmetric: bool) -> None:
    case = product(100)
    options = {"mode": "weights", "bits": bits, "asymmetric": asymmetric, "block": 32, "effort": "balanced"}
    _, standard = quantized(case, **options, format="qdq")
    _, operator = quantized(case, **options)
    assert nodes_of(operator, "MatMulNBits")
    (dq,) = nodes_of(standard, "DequantizeLinear")
    real = ReferenceEvaluator(standard).run([dq.output[0]], case.feeds[0])[0]
    eye = np.eye(100, dtype=np.float32)[None]
    np.testing.assert_allclose(run(operator, {"x": eye})[0][0], real, atol=np.abs(real).max() / 100)


FOLLOWED = {
    "a product": "y = MatMul(x, w)",
    "a bias": "p = MatMul(x, w) y = Add(p, b)",
    "a residual": "p = MatMul(x, w) y = Add(p, x)",
    "Relu": "p = MatMul(x, w) y = Relu(p)",
    "a bias and Relu": "p = MatMul(x, w) q = Add(p, b) y = Relu(q)",
    "Clip": "p = MatMul(x, w) y = Clip(p, low)",
    "a bias and a residual": "p = MatMul(x, w) q = Add(p, b) y = Add(q, x)",
    "two readers": "p = MatMul(x, w) q = MatMul(p, w) y = Add(q, x)",
}
MATRICES = {
    "Gemm": "y = Gemm(x, w, b)",
    "Gemm of a transposed weight": "y = Gemm<transB = 1>(x, w, b)",
    "Gemm and Relu": "p = Gemm(x, w, b) y = Relu(p)",
    "Gemm and a residual": "p = Gemm(x, w) y = Add(p, x)",
    "Gemm with half of its bias": "y = Gemm<beta = 0.5>(x, w, b)",
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", [*FOLLOWED, *MATRICES])
@pytest.mark.parametrize("rank", [2, 3])
def test_onnx_runtime_dequantizes_no_weight_at_run_time(name: str, rank: int, bits: int, tmp_path: Path) -> None:
    if rank == 3 and name in MATRICES:
        pytest.skip("Gemm takes matrices")
    text, sizes = (FOLLOWED | MATRICES)[name], "N, 64" if rank == 2 else "2, N, 64"
    twice = text.replace(" y = ", " first = ").replace("y = ", "first = ", 1 if text.startswith("y") else 0)
    again = text.replace("p ", "p2 ").replace("(p", "(p2").replace("q ", "q2 ").replace("(q", "(q2")
    again = again.replace("(x", "(first").replace(", x)", ", first)").replace(", w", ", v")
    body = f"g (float[{sizes}] x) => (float[{sizes}] y) {{ {twice} {again} }}"
    constants = {"w": weight(64, 64), "v": weight(64, 64), "b": weight(64), "low": np.float32(-1)}
    case = Case(model(body, constants), feeds(3, x=(5, 64) if rank == 2 else (2, 5, 64)))
    _, made = quantized(case, **QDQ, bits=bits, block=32)
    onnx.checker.check_model(made, full_check=True)
    ops = optimized(made, tmp_path)
    assert not ops["DequantizeLinear"]
    assert ops["MatMulNBits"] == (4 if name == "two readers" else 2)
    wanted = ReferenceEvaluator(made).run(None, case.feeds[0])[0]
    got = run(made, case.feeds[0])[0]
    assert 10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()) > 30, "int8 activations alone"


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_a_weight_of_many_readers_is_stored_once(target: str, tmp_path: Path) -> None:
    body = " ".join(f"h{i} = MatMul({'x' if i == 0 else f'h{i - 1}'}, w)" for i in range(4))
    text = f"g (float[2, N, 64] x) => (float[2, N, 64] y) {{ {body} y = Neg(h3) }}"
    case = Case(model(text, {"w": weight(64, 64)}), feeds(3, x=(2, 5, 64)))
    _, made = quantized(case, **QDQ, target=target, bits=4, block=32)
    stored = [v for v in initializers(made).values() if v.nbytes > 1000]
    assert [v.shape for v in stored] == [(64, 2, 16)]
    assert optimized(made, tmp_path)["MatMul"] == 4, "floats that are computed when the file is loaded"
    assert sqnr(case, made) > 6


TIED = """g (int64[2, T] ids) => (float[2, T, 500] scores) {
    x = Gather(table, ids)
    turned = Transpose<perm = [1, 0]>(table)
    scores = MatMul(x, turned)
}"""


def tied() -> Case:
    ids = np.random.default_rng(3).integers(0, 500, (2, 4))
    return Case(model(TIED, {"table": weight(500, 96)}), [{"ids": ids}])


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_tied_table_has_one_dequantize(target: str) -> None:
    case = tied()
    _, made = quantized(case, target=target, mode="weights", bits=4, block=32)
    assert Counter(n.op_type for n in made.graph.node) == {
        "DequantizeLinear": 1, "Gather": 1, "Transpose": 1, "MatMul": 1,
    }  # fmt: skip
    assert [tuple(t.dims) for t in made.graph.initializer] == [(500, 96), (500, 3)]
    wanted = ReferenceEvaluator(made).run(None, case.feeds[0])[0]
    np.testing.assert_allclose(run(made, case.feeds[0], optimize=False)[0], wanted, rtol=1e-4, atol=1e-4)
    assert sqnr(case, made) > 12


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_a_table_is_gathered_before_it_is_dequantized(target: str, tmp_path: Path) -> None:
    case = tied()
    _, made = quantized(case, **QDQ, target=target, bits=4, block=32)
    ops = optimized(made, tmp_path)
    assert not ops["DequantizeLinear"]
    assert ops["MatMulNBits"] == 1
    assert sqnr(case, made) > 12


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "portable"])
def test_blocks_that_do_not_divide_the_inputs_are_made_smaller_or_are_int8(target: str) -> None:
    _, made = quantized(product(96), target=target, mode="weights", bits=4, block=128)
    assert {a.name: a.i for a in nodes_of(made, "DequantizeLinear")[0].attribute}["block_size"] == 32
    result, made = quantized(product(100), target=target, mode="weights", bits=4, block=128)
    assert kinds_of(made) == {TensorProto.INT8}
    assert any("kept in int8" in note for note in result.report.notes)


@pytest.mark.parametrize("name", ["matmul_batched_weight", "matmul_weight_on_the_left", "gemm_trans_a",
                                  "if_captures_weights", "shared_by_matmul_and_gemm"])  # fmt: skip
@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt", "portable"])
def test_other_products(name: str, target: str) -> None:
    case = HANDMADE[name]()
    _, made = quantized(case, **QDQ, target=target, bits=4, block=32)
    onnx.checker.check_model(made, full_check=True)
    assert sqnr(case, made) > LEAST_DB[4]


@pytest.mark.parametrize("kind", [np.float16])
@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt"])
def test_scales_of_a_float16_model_are_float16(kind: type, target: str) -> None:
    text = "g (float16[2, N, 96] x) => (float16[2, N, 40] y) { y = MatMul(x, w) }"
    given = [{"x": f["x"].astype(kind)} for f in feeds(3, x=(2, 5, 96))]
    case = Case(model(text, {"w": weight(96, 40).astype(kind)}), given)
    _, made = quantized(case, **QDQ, target=target, bits=4, block=16 if target == "tensorrt" else 32)
    stored = {t.data_type for t in made.graph.initializer if len(t.dims) == 2}
    assert stored == {TensorProto.INT4, TensorProto.FLOAT16}
    assert run(made, given[0], optimize=target == "ort")[0].dtype == kind


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "tensorrt", "bits": 4, "asymmetric": True}, "no zero points"),
        ({"target": "tensorrt", "bits": 4, "block": "channel"}, "floats before each product"),
        ({"target": "tensorrt", "bits": 8, "block": 32}, "floats before each product"),
        ({"target": "portable", "bits": 8, "block": 128}, "floats before each product"),
        ({"target": "openvino", "bits": 4, "block": 16}, "slower"),
    ],
    ids=str,
)
def test_what_a_target_does_not_take_is_refused_with_what_to_use(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TargetError, match=words) as told:
        quantized(product(), mode="weights", **options)
    assert told.value.hint


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt", "portable"])
def test_tensorrt_takes_positive_scales_only(target: str, effort: str) -> None:
    _, made = quantized(product(), **QDQ, target=target, bits=4, block=32, effort=effort)
    scales = initializers(made)[nodes_of(made, "DequantizeLinear")[0].input[1]]
    assert (scales > 0).all() == (target in ("tensorrt", "portable"))
    assert (scales != 0).all()


def test_integers_with_negative_scales_are_mirrored() -> None:
    codes = np.array([[0, 3, 8, 15], [0, 3, 8, 15]], np.uint8)
    found, scale = _positive(codes, np.array([[-1, 2], [1, -2]], np.float32), 2, 4)
    assert found.tolist() == [[15, 13, 8, 15], [0, 3, 8, 1]]
    assert scale.tolist() == [[1, 2], [1, 2]]


def test_large_weights_are_computed_when_the_file_is_written() -> None:
    case = product(1024, 512)
    _, made = quantized(case, **QDQ, bits=4, block=32, asymmetric=True)
    values, scales, zeros = (t for t in made.graph.initializer)
    assert [tuple(t.dims) for t in (values, scales, zeros)] == [(1024, 512), (32, 512), (32, 512)]
    assert len(values.raw_data) == 1024 * 512 // 2
    given = initializers(case.model)["w"]
    codes, scale, zero = (numpy_helper.to_array(t).astype(np.float32) for t in (values, scales, zeros))
    real = (codes.reshape(32, 32, 512) - zero[:, None]) * scale[:, None]
    assert 10 * np.log10((given**2).sum() / ((real.reshape(1024, 512) - given) ** 2).sum()) > 18
