"""int4 weights with a scale per output and block of inputs: dequantized in front of products, for TensorRT."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade import Case
from handmade.core import feeds, model, weight
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from planned_models import FAST, PROVEN, initializers, maker, nodes_of, quantized, run

import onnxshot
from onnxshot.errors import TargetError, UsageError
from onnxshot.maths.affine import INT4, PerBlock, QuantScheme, dequantize, quantize, weight_params
from onnxshot.recipes.recipe import Recipe
from onnxshot.runtimes.base import EmitOptions
from onnxshot.targets.tensorrt import TENSORRT

INT4_BLOCKS: dict[str, Any] = {"target": "tensorrt", "mode": "weights", "weight_type": "int4", "block": 32}
PRODUCTS = {
    "MatMul": ("y = MatMul(x, w)", (64, 24), 0),
    "Gemm": ("y = Gemm(x, w)", (64, 24), 0),
    "Gemm of a transposed weight": ("y = Gemm<transB = 1>(x, w)", (24, 64), 1),
}


def product(text: str, shape: tuple[int, ...]) -> Case:
    proto = model(f"g (float[N, 64] x) => (float[N, 24] y) {{ {text} }}", {"w": weight(*shape)})
    return Case(proto, feeds(4, x=(5, 64)))


def blocks(values: NDArray[Any], axis: int, size: int) -> NDArray[Any]:
    """A matrix as [block, value, other]."""
    return np.moveaxis(values, axis, 0).reshape(-1, size, values.shape[1 - axis])


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_matrix_is_dequantized_by_blocks_of_its_inputs(name: str) -> None:
    text, shape, axis = PRODUCTS[name]
    case = product(text, shape)
    _, made = quantized(case, **INT4_BLOCKS)
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node] == ["DequantizeLinear", name.split()[0]]
    dq = made.graph.node[0]
    assert {a.name: a.i for a in dq.attribute} == {"axis": 0, "block_size": 32}
    assert len(dq.input) == 2, "the zero point is 0"
    stored = {t.name: t for t in made.graph.initializer}
    assert stored[dq.input[0]].data_type == TensorProto.INT4
    assert len(stored[dq.input[0]].raw_data) == 64 * 24 // 2, "two to a byte"
    codes, scales = (initializers(made)[t] for t in dq.input)
    source = blocks(onnx.numpy_helper.to_array(case.model.graph.initializer[0]), axis, 32)
    back = blocks(codes.astype(np.float32), 0, 32) * scales[:, None]
    step = np.abs(source).max(axis=1, keepdims=True) / 7
    plain = np.clip(np.rint(source / step), -8, 7) * step
    assert (np.square(back - source).sum(1) <= np.square(plain - source).sum(1) * (1 + 1e-5)).all(), "no block is worse"
    wanted = ReferenceEvaluator(made).run(None, case.feeds[0])[0]
    np.testing.assert_allclose(run(made, case.feeds[0], optimize=False)[0], wanted, rtol=1e-5, atol=1e-5)


def test_blocks_use_all_sixteen_codes_and_come_back_as_onnx_says() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(96, 8)).astype(np.float32)
    scheme = QuantScheme(INT4, symmetric=True, granularity=PerBlock(0, 32))
    params = weight_params(w, scheme, method="mse")
    q = quantize(w, params)
    assert set(np.unique(q.astype(np.int8))) == set(range(-8, 8))
    assert not params.zero_point.astype(np.int8).any()
    graph = model(
        "g () => (float[96, 8] y) { y = DequantizeLinear<axis = 0, block_size = 32>(q, s) }",
        {"q": q, "s": params.scale}, opset=21, ir=10,
    )  # fmt: skip
    np.testing.assert_array_equal(dequantize(q, params), ReferenceEvaluator(graph).run(None, {})[0])


def test_what_has_no_blocks_is_int8_and_told() -> None:
    text = "g (float[1, 4, 8, 8] x) => (float y) { c = Conv(x, k) f = Flatten(c) a = MatMul(f, w) y = MatMul(a, v) }"
    case = Case(
        model(text, {"k": weight(8, 4, 3, 3), "w": weight(288, 30), "v": weight(30, 8)}), feeds(2, x=(1, 4, 8, 8))
    )
    result, made = quantized(case, **INT4_BLOCKS)
    types = {tuple(t.dims): t.data_type for t in made.graph.initializer if len(t.dims) > 1}
    assert types[288, 30] == TensorProto.INT4
    assert types[8, 4, 3, 3] == types[30, 8] == TensorProto.INT8
    assert types[9, 30] == TensorProto.FLOAT
    note = (
        "2 of 3 weights are kept in int8: blocks of 4 bits exist for products of matrices and tables, whose inputs "
        "divide into blocks"
    )
    assert note in result.report.notes


def test_the_file_is_run_and_compared() -> None:
    case = product(*PRODUCTS["MatMul"][:2])
    result, made = quantized(case, PROVEN, **INT4_BLOCKS)
    assert next(o.version for o in made.opset_import if not o.domain) == 21
    assert result.report.sqnr_db is not None
    assert 15 < result.report.sqnr_db < 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "static"}, "no kernel for int8 activations with int4 weights.*int4 weights take mode=.weights."),
        ({"mode": "static", "target": "ort"}, "no kernel for uint8 activations with int4 weights"),
        ({"mode": "dynamic", "target": "ort"}, "takes 8-bit weights, not int4"),
    ],
    ids=str,
)
def test_targets_that_have_no_blocks_refuse_them(options: dict[str, Any], words: str) -> None:
    case = product(*PRODUCTS["MatMul"][:2])
    with pytest.raises(TargetError, match=words):
        quantized(case, **{**INT4_BLOCKS, **options})


@pytest.mark.parametrize("block", [1, 0, True, "32"])
def test_a_block_is_a_number_from_2_up(block: Any) -> None:
    with pytest.raises(UsageError, match="block is"):
        Recipe(block=block)


def test_the_file_is_in_the_form_of_tensorrt(tmp_path: Path) -> None:
    _, made = quantized(product(*PRODUCTS["MatMul"][:2]), **INT4_BLOCKS)
    onnx.save(made, tmp_path / "net.onnx")
    report = onnxshot.emit(tmp_path / "net.onnx", output=tmp_path / "out.onnx", target="tensorrt", settings=FAST)
    assert report.skips == []


def test_activations_are_never_int4() -> None:
    with pytest.raises(UsageError, match="activation_type is 'int4'"):
        Recipe(activation_type="int4")


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("block", [16, 32])
def test_an_engine_keeps_the_weights_in_int4(name: str, block: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _, made = quantized(product(*PRODUCTS[name][:2]), **{**INT4_BLOCKS, "block": block})
    onnx.save(made, tmp_path / "net.onnx")
    assert maker(made, "y").op_type in ("MatMul", "Gemm")
    assert len(nodes_of(made, "DequantizeLinear")) == 1
    assert TENSORRT.runtime is not None
    built = TENSORRT.runtime.emit(tmp_path / "net.onnx", tmp_path, "net", EmitOptions(hardware=("sm80",)))
    assert built.executed is not None
    assert [(n.precision, n.stored) for n in built.executed.nodes] == [("float", "int4")]
    assert built.notes == ("1 of 1 int4 weights are kept so in the engine, and multiplied as floats",)
    with pytest.raises(TargetError, match="int4 for sm80 and newer"):
        TENSORRT.runtime.emit(tmp_path / "net.onnx", tmp_path, "net", EmitOptions(hardware=("sm75",)))
