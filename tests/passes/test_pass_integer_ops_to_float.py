"""Operators on integers, as ONNX Runtime and its quantizers write them, taken back to what they were made of."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.core import Feed, feeds, model, vector, weight
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pass_checks import outputs

from onnxshot.graph.load import load_model
from onnxshot.graph.model import Model
from onnxshot.maths.dequantize_stored import dequantize_blocks
from onnxshot.maths.int4_packing import unpack_bits
from onnxshot.passes.integer_ops_to_float import IntegerOpsToFloat
from onnxshot.rewriting.undo_quantization import to_float

_MLP = ("g (float[n, 64] x) => (float[n, 96] y) { h = Gemm(x, w, b) r = Relu(h) y = MatMul(r, v) }",
        {"w": weight(64, 256), "b": vector(256), "v": weight(256, 96)}, {"x": (8, 64)})  # fmt: skip
_CNN = ("g (float[n, 3, 16, 16] x) => (float[n, 8, 14, 14] y) {"
        " c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) y = Conv(r, v) }",
        {"w": weight(16, 3, 3, 3), "b": vector(16), "v": weight(8, 16, 3, 3)}, {"x": (2, 3, 16, 16)})  # fmt: skip
_LSTM = ("g (float[t, 2, 24] x) => (float[t, 2, 2, 32] y) {"
         " y = LSTM<hidden_size = 32, direction = \"bidirectional\">(x, w, r, b) }",
         {"w": weight(2, 128, 24), "r": weight(2, 128, 32), "b": vector(512).reshape(2, 256)},
         {"x": (6, 2, 24)})  # fmt: skip
_WORDS = ("g (float[n, s, 64] x, int64[n, s] ids) => (float[n, s, 32] y) {"
          " e = Gather(table, ids) a = Add(x, e) y = MatMul(a, w) }",
          {"table": weight(500, 64), "w": weight(64, 32)}, {"x": (2, 5, 64)})  # fmt: skip
_ATTENTION = ("g (float[n, 8, 16] x) => (float[n, 8, 16] y) { y = com.microsoft.Attention<num_heads = 4>(x, w, b) }",
              {"w": weight(16, 48), "b": vector(48)}, {"x": (2, 8, 16)})  # fmt: skip
SOURCES = {"mlp": _MLP, "cnn": _CNN, "lstm": _LSTM, "words": _WORDS, "attention": _ATTENTION}
_OPS = ["MatMul", "Gemm", "Conv", "LSTM", "Gather", "Attention"]


def _source(name: str) -> tuple[onnx.ModelProto, list[Feed]]:
    text, constants, shapes = SOURCES[name]
    proto = model(text, constants, imports=', "com.microsoft": 1')
    samples = feeds(4, **shapes)
    if name == "words":
        samples = [{**feed, "ids": np.random.default_rng(i).integers(0, 500, (2, 5))} for i, feed in enumerate(samples)]
    return proto, samples


def _db(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def _optimized(path: Path) -> Path:
    place, options = path.with_suffix(".opt.onnx"), onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(place)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return place


def _floats(path: Path) -> Model:
    found = load_model(path)
    to_float(found, complete=False, requantize=True)
    return found


def _check(path: Path, proto: onnx.ModelProto, samples: list[Feed]) -> None:
    """Float outputs are no further from those of the source than the quantized ones, and no weight is integer."""
    restored = _floats(path)
    left = Counter(node.op for _, node in restored.walk())
    assert not any("Quantize" in op or "Integer" in op or op.startswith("Q") for op in left), left
    after = restored.to_proto()
    for feed in samples:
        (expected,), (found,), (given,) = outputs(proto, feed), outputs(after, feed), outputs(onnx.load(path), feed)
        assert _db(expected, found) > max(30, _db(expected, given) - 0.5)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("name", SOURCES)
def test_dynamic_quantization_is_taken_back(name: str, kind: str, per_channel: bool, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if name == "cnn" and (kind == "QInt8" or per_channel):
        pytest.skip("ONNX Runtime has no kernel for that ConvInteger")
    proto, samples = _source(name)
    onnx.save(proto, tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx", tmp_path / "q.onnx", op_types_to_quantize=_OPS, per_channel=per_channel,
        weight_type=getattr(QuantType, kind), extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )  # fmt: skip
    assert any("nteger" in n.op_type or "Quantize" in n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node)
    _check(tmp_path / "q.onnx", proto, samples)
    _check(_optimized(tmp_path / "q.onnx"), proto, samples)


@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_static_quantization_is_taken_back_also_where_it_was_optimized(name: str, form: str, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    proto, samples = _source(name)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    onnx.save(proto, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "q.onnx", Reader(), quant_format=getattr(QuantFormat, form),
        per_channel=name == "cnn", weight_type=QuantType.QInt8,
    )  # fmt: skip
    _check(tmp_path / "q.onnx", proto, samples)
    _check(_optimized(tmp_path / "q.onnx"), proto, samples)


@pytest.mark.parametrize("with_zero", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(TensorProto.UINT4, 4), (TensorProto.UINT8, 8)])
@pytest.mark.parametrize("columns", [64, 72])
def test_blocks_of_a_product_are_taken_back(
    kind: int, bits: int, columns: int, with_zero: bool, tmp_path: Path
) -> None:
    """What ONNX Runtime makes of DequantizeLinear and MatMul: MatMulNBits; its own kernel is the reference."""
    blocks, rng = -(-columns // 32), np.random.default_rng(bits)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", *(["z"] if with_zero else [])], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    top = 1 << bits
    stored = [helper.make_tensor("q", kind, [columns, 16], rng.integers(0, top, columns * 16).tolist())]
    stored.append(numpy_helper.from_array(rng.uniform(0.01, 0.1, (blocks, 16)).astype(np.float32), "s"))
    if with_zero:
        stored.append(helper.make_tensor("z", kind, [blocks, 16], rng.integers(0, top, blocks * 16).tolist()))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [3, columns]), ("y", [3, 16]))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, tmp_path / "q.onnx")
    path = _optimized(tmp_path / "q.onnx")
    assert "MatMulNBits" in {node.op_type for node in onnx.load(path).graph.node}
    (feed,) = feeds(1, x=(3, columns))
    restored = _floats(path)
    assert [node.op for _, node in restored.walk()] == ["MatMul"]
    unoptimized = onnxruntime.SessionOptions()
    unoptimized.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), unoptimized, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(outputs(restored.to_proto(), feed)[0], session.run(None, feed)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("with_zero", [False, True])
def test_blocks_of_a_table_are_taken_back(bits: int, with_zero: bool) -> None:
    text = "g (int64[n, s] ids) => (float[n, s, 64] y) {{ y = com.microsoft.GatherBlockQuantized"
    text += "<bits = {bits}, block_size = 32>(q, ids, s{z}) }}"
    rng = np.random.default_rng(bits)
    constants = {
        "q": rng.integers(0, 256, (50, 64 * bits // 8)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.1, (50, 2)).astype(np.float32),
    }
    if with_zero:
        constants["z"] = rng.integers(0, 256, (50, max(1, 2 * bits // 8))).astype(np.uint8)
    proto = model(
        text.format(bits=bits, z=", z" if with_zero else ""), constants, opset=21, ir=10, imports=', "com.microsoft": 1'
    )
    feed = {"ids": rng.integers(0, 50, (2, 5))}
    restored = load_model(proto)
    assert IntegerOpsToFloat().run(restored).edits == 1
    assert [node.op for _, node in restored.walk()] == ["Gather"]
    np.testing.assert_allclose(outputs(restored.to_proto(), feed)[0], outputs(proto, feed)[0], rtol=1e-5, atol=1e-6)


def test_a_dequantizer_moves_in_front_of_what_moves_integers() -> None:
    text = """g (int64[n] ids) => (float[4, n] y) {
        r = Gather(q, ids) t = Transpose<perm = [1, 0]>(r) y = DequantizeLinear(t, s, z)
    }"""
    constants = {
        "q": np.arange(80, dtype=np.uint8).reshape(20, 4),
        "s": np.array(0.5, np.float32),
        "z": np.array(7, np.uint8),
    }
    proto, feed = model(text, constants), {"ids": np.array([3, 1, 19])}
    restored = load_model(proto)
    to_float(restored, complete=False, requantize=True)
    assert [node.op for _, node in restored.walk()] == ["Gather", "Transpose"]
    np.testing.assert_array_equal(outputs(restored.to_proto(), feed)[0], outputs(proto, feed)[0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) y = Cast<to = 1>(i)", "not multiplied by"),
        ("q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) y = Neg(i)", "not cast to float"),
        ("q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w) c = Cast<to = 1>(i) y = Mul(c, s)", "not that of"),
        ("y = com.microsoft.DynamicQuantizeMatMul(x, w, m)", "computed at run time"),
        ("y = com.microsoft.DynamicQuantizeMatMul(x, w, five)", "do not fit"),
    ],
)
def test_what_stays_says_why(text: str, why: str) -> None:
    kind = "int32" if "Neg" in text else "float"
    proto = model(
        f"g (float[n, 8] x, float m) => ({kind}[n, 4] y) {{ {text} }}",
        {"w": np.ones((8, 4), np.int8), "five": np.ones(5, np.float32)},
        imports=', "com.microsoft": 1',
    )
    loaded = load_model(proto)
    before = [node.op for _, node in loaded.walk()]
    change = IntegerOpsToFloat().run(loaded)
    assert change.edits == 0
    assert any(why in skip.reason for skip in change.skips)
    assert [node.op for _, node in loaded.walk()] == before


def test_packed_integers_against_a_loop() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 4)).astype(np.uint8)
    for bits in (2, 4, 8):
        found = unpack_bits(stored, bits)
        each = 8 // bits
        for row in range(3):
            for i in range(4 * each):
                assert found[row, i] == (int(stored[row, i // each]) >> (i % each * bits)) % (1 << bits)
    values = dequantize_blocks(np.arange(10).reshape(2, 5), np.array([[1, 2, 3], [4, 5, 6]], np.float32), 1.0, 1, 2)
    np.testing.assert_array_equal(values, [[-1, 0, 2, 4, 9], [16, 20, 30, 35, 48]])
